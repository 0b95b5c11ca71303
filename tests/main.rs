//! The scenarios: what somebody at the command line sees ferry do, against real kernels and no mock.
//!
//! One binary, so that it can be carried to another machine. `FERRY_RUNTIME` is the runtime under test (another one,
//! such as runc, serves as control: a test that no runtime could fail proves nothing), `FERRY_PROBE` the program inside
//! (see `rootfs-fixtures/probe`); under cargo both have defaults. Arguments are those of any Rust test binary: a name
//! filter, `--list`, `--skip`, `--test-threads`.
//!
//! What cannot run here says why, and is counted on the last line. The same binary is for an ordinary user and for root.

#![allow(clippy::print_stdout, clippy::panic, reason = "a test speaks on its standard output, and fails by panicking")]

#[path = "../rootfs-fixtures/image.rs"]
mod image_fixtures;
#[path = "../rootfs-fixtures/mod.rs"]
mod rootfs_fixtures;
mod suite;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    match suite::run(&arguments) {
        Ok(code) => code,
        Err(why) => {
            println!("the tests could not be begun or ended: {why}");
            ExitCode::FAILURE
        }
    }
}
