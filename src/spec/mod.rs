//! `config.json` to checked types: what the rest of ferry plans from.
//!
//! A file is read once, parsed leniently (unknown fields are ignored, null is the default) and checked against the rules
//! that need no kernel; nothing later asks whether a field is there. Whoever finds a field at fault later names its JSON
//! path, and [`Document::locate`] adds the line.

mod annotations;
mod check;
pub mod config;
pub mod extensions;
mod place;
pub mod resources;
pub mod seccomp;
pub mod template;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::error::{Context, Error, Result};

pub use check::{check, check_process};
pub use config::Config;

/// The version of the specification that ferry implements.
pub const VERSION: &str = "1.3.0";

/// No configuration is as large as this; a larger file is refused before it is held in memory. Bytes.
const MAX_SIZE: u64 = 32 << 20;

/// A JSON file as it was read, kept to name lines in errors and to be copied beside a container's record.
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    /// The bytes as they were read.
    pub text: Vec<u8>,
}

/// Reads and checks the `config.json` of a bundle.
///
/// # Errors
/// A file that cannot be read, is too large, is not JSON, has a field of another type, or breaks a rule of the
/// specification: with the JSON path and the line.
pub fn load(path: &Path) -> Result<(Config, Document)> {
    let document = Document::read(path)?;
    Ok((document.config()?, document))
}

impl Document {
    /// A text in hand; `path` is its name in errors.
    pub fn new(path: &Path, text: Vec<u8>) -> Self {
        Self { path: path.to_owned(), text }
    }

    /// Reads a file of at most 32 MiB.
    ///
    /// # Errors
    /// What open(2) and read(2) answer; a larger file.
    pub fn read(path: &Path) -> Result<Self> {
        File::open(path).or_cannot("open", path.display()).and_then(|file| Self::of(path, file))
    }

    /// The same of a file that is open; `path` is its name in errors.
    ///
    /// # Errors
    /// What read(2) answers; a larger file.
    pub fn of(path: &Path, file: File) -> Result<Self> {
        let size = file.metadata().or_cannot("read", path.display())?.len();
        let mut text = Vec::with_capacity(size.min(MAX_SIZE) as usize + 1);
        file.take(MAX_SIZE + 1).read_to_end(&mut text).or_cannot("read", path.display())?;
        if text.len() as u64 > MAX_SIZE {
            return Err(Error::said("read", path.display().to_string(), "it is larger than 32 MiB"));
        }
        Ok(Self { path: path.to_owned(), text })
    }

    /// Parses the whole text.
    ///
    /// # Errors
    /// The JSON path, the line and the parser's words.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.text).map_err(|error| {
            let offset = place::offset(&self.text, error.line(), error.column());
            let path = place::path_at(&self.text, offset).unwrap_or_else(|| "the document".to_owned());
            Error::config(path, error.to_string()).in_file(&self.path.display().to_string(), Some(error.line()))
        })
    }

    /// Parses the text as a configuration and checks it.
    ///
    /// # Errors
    /// As [`load`], but for the file.
    pub fn config(&self) -> Result<Config> {
        let config = self.parse()?;
        check::check(&config).map_err(|error| self.locate(error))?;
        Ok(config)
    }

    /// Adds file and line to an error about a field.
    pub fn locate(&self, error: Error) -> Error {
        let line = error.config_path().and_then(|path| self.line(path));
        error.in_file(&self.path.display().to_string(), line)
    }

    /// The line on which the value at `path` (`linux.namespaces[2].type`) begins, or the nearest value above it.
    fn line(&self, path: &str) -> Option<usize> {
        let text = std::str::from_utf8(&self.text).ok()?;
        let mut here: &str = text.trim_start();
        for step in path.split(['.', '[']) {
            let next = match step.strip_suffix(']') {
                Some(index) => {
                    let items: Vec<&RawValue> = serde_json::from_str(here).ok()?;
                    index.parse().ok().and_then(|index: usize| items.get(index).copied())
                }
                None => serde_json::from_str::<BTreeMap<&str, &RawValue>>(here).ok()?.get(step).copied(),
            };
            match next {
                Some(value) => here = value.get(),
                None => break,
            }
        }
        // RawValue borrows from the text, so the distance between the two is where the value stands.
        let offset = (here.as_ptr() as usize).checked_sub(text.as_ptr() as usize)?;
        Some(1 + text.get(..offset)?.bytes().filter(|byte| *byte == b'\n').count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document { path: "config.json".into(), text: text.as_bytes().to_vec() }
    }

    #[test]
    fn a_wrong_type_is_named_by_path_and_line() {
        let text = "{\n \"process\": {\n  \"user\": {\"uid\": -1},\n  \"cwd\": \"/\"\n }\n}";
        let error = document(text).parse::<Config>().unwrap_err().to_string();
        assert!(error.starts_with("config.json:3: process.user.uid: "), "{error}");
    }

    #[test]
    fn truncated_and_foreign_text_is_refused() {
        assert!(document("{\"a\": [").parse::<Config>().unwrap_err().to_string().contains("EOF"));
        let broken = Document { path: "config.json".into(), text: b"{\"hostname\": \"\xff\"}".to_vec() };
        assert!(broken.parse::<Config>().is_err());
        assert!(document(&"[".repeat(100_000)).parse::<Config>().is_err());
    }

    #[test]
    fn lines_of_fields() {
        let document = document("{\n\"linux\": {\"namespaces\": [\n{\"type\": \"pid\"},\n{\"type\":\n\"x\"}]}}");
        assert_eq!(document.line("linux.namespaces[1].type"), Some(5));
        assert_eq!(document.line("linux.namespaces[1].path"), Some(4));
        assert_eq!(document.line("linux.absent[3].deep"), Some(2));
    }

    #[test]
    fn null_is_the_default() {
        let config: Config =
            document(r#"{"linux": null, "mounts": null, "process": {"capabilities": null}}"#).parse().unwrap();
        assert_eq!(config.process.unwrap_or_default(), config::Process::default());
        assert_eq!(config.linux, config::Linux::default());
    }
}
