//! How a migration is shown: one line that is written over on a terminal, a line of JSON an event for programs, nothing
//! elsewhere.

use std::io::{IsTerminal, Write, stderr};

use serde_json::json;

use crate::cli::output;
use crate::error::{Error, Result};
use crate::migrate::progress::{Event, Progress};
use crate::migrate::report::{size, time};
use crate::migrate::rounds;

#[derive(Debug, PartialEq, Eq)]
enum How {
    Line,
    Json,
    Quiet,
}

/// Who shows it.
#[derive(Debug)]
pub struct Shown {
    how: How,
    refused: Option<Error>,
}

impl Shown {
    /// By the value of `--progress`.
    ///
    /// # Errors
    /// It is none of the words.
    pub fn new(given: Option<&str>) -> Result<Self> {
        let how = match given {
            None | Some("auto") if stderr().is_terminal() => How::Line,
            None | Some("auto" | "none") => How::Quiet,
            Some("json") => How::Json,
            Some(word) => {
                return Err(Error::plain(format!(
                    "invalid value {word:?} for --progress: it is one of auto, json, none"
                )));
            }
        };
        Ok(Self { how, refused: None })
    }

    /// Clears the line away.
    ///
    /// # Errors
    /// Standard output did not take a line.
    pub fn finish(&mut self) -> Result<()> {
        if self.how == How::Line {
            line("");
        }
        self.refused.take().map_or(Ok(()), Err)
    }
}

/// A line is for looking at: one that cannot be written is no failure.
fn line(text: &str) {
    stderr().lock().write_all(format!("\r\x1b[K{text}").as_bytes()).ok();
}

impl Progress for Shown {
    fn event(&mut self, event: Event<'_>) {
        match (&self.how, &event) {
            (How::Quiet, _) | (_, Event::Done(_)) => (),
            (How::Line, event) => line(&words(event)),
            (How::Json, event) => {
                let printed = output::print_line(&told(event));
                self.refused = self.refused.take().or(printed.err());
            }
        }
    }
}

fn words(event: &Event<'_>) -> String {
    match event {
        Event::Step(step) => step.name().to_owned(),
        Event::Note(note) => (*note).to_owned(),
        Event::Round { rounds, sent } => {
            let rate = |rate: Option<u64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", size(rate)));
            let still =
                rounds::downtime(rounds).map_or_else(|| "-".to_owned(), |still| time(still.total().as_nanos() as u64));
            format!(
                "round {}: {} sent, written to {}, carried {}, would stand still {still}",
                rounds.len(),
                size(*sent),
                rate(rounds::dirty_rate(rounds)),
                rate(rounds::bandwidth(rounds)),
            )
        }
        Event::Done(_) => String::new(),
    }
}

fn told(event: &Event<'_>) -> serde_json::Value {
    match event {
        Event::Step(step) => json!({"event": "step", "step": step.name()}),
        Event::Note(note) => json!({"event": "note", "note": note}),
        Event::Round { rounds, sent } => json!({
            "event": "round", "round": rounds.len(), "last": rounds.last(), "sent": sent,
            "dirtyRate": rounds::dirty_rate(rounds), "bandwidth": rounds::bandwidth(rounds),
            "estimate": rounds::downtime(rounds).map(|still| still.total().as_nanos() as u64),
        }),
        Event::Done(_) => json!({"event": "done"}),
    }
}
