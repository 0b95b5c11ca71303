//! Handing a command line over to `ferry-image`, which lies beside `ferry`.

use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::ArgMatches;

use crate::cli::globals::Globals;
use crate::error::{Context, Error, Result};

/// The program's name.
const PROGRAM: &str = "ferry-image";

/// Becomes that program, with the same command line: it has been understood already, and is read again there.
///
/// # Errors
/// The program is not there.
pub fn run(_: &Globals, _: &ArgMatches) -> Result<u8> {
    let own = std::env::current_exe().or_cannot("find", "this program's own file")?;
    let program = own.with_file_name(PROGRAM);
    let refused = Command::new(&program).args(std::env::args_os().skip(1)).exec();
    Err(refused)
        .or_cannot("execute", program.display())
        .map_err(|error: Error| error.hint("the package has two programs: install ferry-image beside ferry"))
}
