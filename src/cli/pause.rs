//! `ferry pause`.

use clap::ArgMatches;

use super::given;
use super::globals::Globals;
use super::verb::{Arguments, Verb};
use crate::error::Result;
use crate::lifecycle;

/// The row of `pause`.
pub const VERB: Verb = Verb {
    name: "pause",
    about: "Stop every process of a container",
    arguments: Arguments::ID,
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "Freezes every process of a running container through the cgroup's freezer. The processes keep their memory and their files and do not notice. `ferry resume` lets them go on.",
        ),
        ("EXIT STATUS", "0 when every process stands still, 1 otherwise."),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    lifecycle::pause::pause(&globals.setting, &given::id(matches)?)?;
    Ok(0)
}
