//! How long work is shown: one line that is written over on a terminal, a line of JSON an event for programs, nothing elsewhere.

use std::io::{IsTerminal, Write, stderr};

use crate::error::{Error, Result};

/// The ways to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// A line that is written over.
    Line,
    /// Lines of JSON.
    Json,
    /// Not at all.
    Quiet,
}

impl How {
    /// By the value of `--progress`.
    ///
    /// # Errors
    /// It is none of the words.
    pub fn of(given: Option<&str>) -> Result<Self> {
        match given {
            None | Some("auto") if stderr().is_terminal() => Ok(Self::Line),
            None | Some("auto" | "none") => Ok(Self::Quiet),
            Some("json") => Ok(Self::Json),
            Some(word) => {
                Err(Error::plain(format!("invalid value {word:?} for --progress: it is one of auto, json, none")))
            }
        }
    }
}

/// Writes over the line. It is for looking at: one that cannot be written is no failure.
pub fn line(text: &str) {
    stderr().lock().write_all(format!("\r\x1b[K{text}").as_bytes()).ok();
}
