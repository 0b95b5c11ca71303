//! The program inside the test containers: it reports what it sees, or does one deed and says how it went.
//!
//! It is static, so it is a whole root filesystem by itself. A test is then a change to config.json and one look through
//! these eyes. Without arguments it prints the report (see `report`); with arguments, it does a deed (see `deeds`).

mod agent;
mod attacks;
mod deeds;
mod kernel;
mod living;
mod load;
mod records;
mod report;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all, before anything here opens a file of its own.
    let descriptors = report::descriptors();
    let args: Vec<String> = std::env::args().collect();
    let rest = args.get(2..).unwrap_or_default();
    let outcome = match args.get(1).map(String::as_str) {
        None | Some("report") => say(&report::report(descriptors)).map(|()| 0),
        Some(deed) => deeds::perform(deed, rest),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::from(125)
        }
    }
}

/// Prints one line at once, whole, so that a test that waits for it can go on.
fn say(line: &impl std::fmt::Display) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
