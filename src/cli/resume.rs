//! `ferry resume`.

use clap::ArgMatches;

use super::given;
use super::globals::Globals;
use super::verb::{Arguments, Verb};
use crate::error::Result;
use crate::lifecycle;

/// The row of `resume`.
pub const VERB: Verb = Verb {
    name: "resume",
    about: "Let the processes of a paused container go on",
    arguments: Arguments::ID,
    flags: &[],
    details: &[
        ("DESCRIPTION", "Thaws the cgroup that `ferry pause` has frozen."),
        ("EXIT STATUS", "0 when the processes run again, 1 otherwise."),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    lifecycle::resume::resume(&globals.setting, &given::id(matches)?)?;
    Ok(0)
}
