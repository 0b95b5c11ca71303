//! `ferry migrate plot`.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use crate::cli::output;
use crate::error::{Context, Error, Result};
use crate::migrate::plot;
use crate::migrate::report::Report;

/// A report larger than this is none. Bytes.
const LARGEST: u64 = 16 << 20;

/// Draws a report.
///
/// # Errors
/// It is none; the picture cannot be written.
pub fn run(report: &Path, to: Option<&OsStr>) -> Result<u8> {
    let mut text = String::new();
    let file = std::fs::File::open(report).or_cannot("open", report.display())?;
    file.take(LARGEST).read_to_string(&mut text).or_cannot("read", report.display())?;
    let report: Report = serde_json::from_str(&text)
        .map_err(|why| Error::said("use report", report.display().to_string(), why.to_string()))?;
    let picture = plot::svg(&report);
    match to {
        Some(path) => write(path, &picture)?,
        None => output::print(&picture)?,
    }
    Ok(0)
}

/// Writes a file.
///
/// # Errors
/// The kernel's answer.
pub fn write(path: &OsStr, text: &str) -> Result<()> {
    let path = Path::new(path);
    std::fs::write(path, text).or_cannot("write", path.display())
}
