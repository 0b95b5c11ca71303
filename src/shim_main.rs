//! The `containerd-shim-ferry-v2` program: containerd starts it for `io.containerd.ferry.v2`.

#![no_main]

use ferry::error::Context;
use ferry::log::{Form, Log};
use nix::errno::Errno;

ferry::program!(program);

fn program(begun: Result<(), Errno>) -> u8 {
    let ran = begun
        .or_cannot("prepare", "the standard descriptors and signals")
        .and_then(|()| ferry::shim::run(std::env::args_os().skip(1)));
    ran.unwrap_or_else(|error| {
        Log::default().failure(&error, Form::Person);
        error.exit_code()
    })
}
