//! The `ferry` program: runs the command line, prints the one error, and ends with its exit code.

use std::process::ExitCode;

use ferry::log::Log;

fn main() -> ExitCode {
    let mut log = Log::default();
    match ferry::cli::run(std::env::args_os().skip(1), &mut log) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.failure(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
