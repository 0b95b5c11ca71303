//! Where an archive goes: `--output FILE`, or standard output.
//!
//! A file appears whole or not at all: it is written under another name beside the place first, and renamed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, IsTerminal, Write, stdout};
use std::path::PathBuf;

use clap::ArgMatches;

use crate::cli::given;
use crate::cli::verb::{Flag, Value};
use crate::error::{Context, Error, Result};

/// `--output`.
pub const OUTPUT: Flag = Flag {
    long: "output",
    short: Some('o'),
    value: Value::Path("FILE"),
    help: "Write to FILE, which is replaced once the archive is whole (default: standard output)",
    ..Flag::SWITCH
};

/// Where the archive goes.
///
/// # Errors
/// The working directory is gone.
pub fn path(matches: &ArgMatches) -> Result<Option<PathBuf>> {
    given::absolute(matches, OUTPUT.long)
}

/// Writes an archive to the file at `path`, or to standard output.
///
/// # Errors
/// Standard output is a terminal; the file cannot be written; what `deed` answers. Then no file is left.
pub fn write(path: Option<PathBuf>, deed: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let Some(path) = path else {
        if stdout().is_terminal() {
            return Err(Error::plain("an archive is nothing for a terminal")
                .hint("name a file with --output, or send standard output elsewhere"));
        }
        let mut out = BufWriter::new(stdout().lock());
        return deed(&mut out).and_then(|()| out.flush().or_cannot("write", "standard output"));
    };
    // A pipe or a device is written as it stands.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let file = OpenOptions::new().write(true).open(&path).or_cannot("write", path.display())?;
        return filled(file, deed, &path);
    }
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(format!(".{}", std::process::id()));
    let part = path.with_file_name(name);
    let file = OpenOptions::new().write(true).create_new(true).open(&part).or_cannot("write", part.display())?;
    let written =
        filled(file, deed, &path).and_then(|()| std::fs::rename(&part, &path).or_cannot("write", path.display()));
    written.map_err(|error| match std::fs::remove_file(&part) {
        Ok(()) => error,
        Err(_) => error.hint(format!("{} is left", part.display())),
    })
}

fn filled(file: File, deed: impl FnOnce(&mut dyn Write) -> Result<()>, path: &std::path::Path) -> Result<()> {
    let mut out = BufWriter::new(file);
    deed(&mut out)?;
    out.flush().or_cannot("write", path.display())
}
