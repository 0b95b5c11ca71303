//! The `ferry` program: runs the command line, prints the one error, and ends with its exit code.

#![no_main]

use ferry::error::Context;
use ferry::log::Log;
use nix::errno::Errno;

ferry::program!(program);

fn program(begun: Result<(), Errno>) -> u8 {
    let mut log = Log::default();
    let ran = begun
        .or_cannot("prepare", "the standard descriptors and signals")
        .and_then(|()| ferry::cli::run(std::env::args_os().skip(1), &mut log));
    ran.unwrap_or_else(|error| {
        log.failure(&error);
        error.exit_code()
    })
}
