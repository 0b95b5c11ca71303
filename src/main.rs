//! The `ferry` program: runs the command line, prints the one error, and ends with its exit code.

#![no_main]

use ferry::cli::name::Name;
use ferry::error::Context;
use ferry::log::Log;
use nix::errno::Errno;

ferry::program!(program);

fn program(begun: Result<(), Errno>) -> u8 {
    let mut log = Log::default();
    let mut argv = std::env::args_os();
    let name = Name::of(argv.next().as_deref());
    let ran = begun
        .or_cannot("prepare", "the standard descriptors and signals")
        .and_then(|()| ferry::cli::run(name, argv, &mut log));
    ran.unwrap_or_else(|error| {
        name.report(&error, &log);
        error.exit_code()
    })
}
