//! The `ferry-image` program: what `ferry image` carries out. `ferry` executes it with its own command line.

#![no_main]

use ferry::error::Context;
use ferry::log::{Form, Log};
use nix::errno::Errno;

ferry::program!(program);

fn program(begun: Result<(), Errno>) -> u8 {
    let mut log = Log::default();
    let ran = begun
        .or_cannot("prepare", "the standard descriptors and signals")
        .and_then(|()| ferry::cli::image::program::run(std::env::args_os().skip(1), &mut log));
    ran.unwrap_or_else(|error| {
        log.failure(&error, Form::Person);
        error.exit_code()
    })
}
