//! The `ferry-image` program: what `ferry image` carries out. `ferry` executes it with its own command line.

use std::process::ExitCode;

use ferry::log::Log;

fn main() -> ExitCode {
    let mut log = Log::default();
    match ferry::cli::image::program::run(std::env::args_os().skip(1), &mut log) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            log.failure(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
