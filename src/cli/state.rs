//! `ferry state`.

use clap::ArgMatches;

use super::globals::Globals;
use super::verb::{Arguments, Verb};
use super::{given, output};
use crate::error::Result;
use crate::lifecycle;

/// The row of `state`.
pub const VERB: Verb = Verb {
    name: "state",
    about: "Show the state of a container as JSON",
    arguments: Arguments::ID,
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "Prints the container's state as the runtime specification has it: ociVersion, id, pid, status (created, \
             running, paused or stopped), bundle and annotations; and beside it rootfs, created and owner. A stopped \
             container's pid is 0.",
        ),
        ("EXIT STATUS", "0, or 1 when there is no such container."),
        ("EXAMPLES", "    ferry state web | jq -r .status"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    output::print_pretty(&lifecycle::state::state(&globals.setting, &given::id(matches)?)?)?;
    Ok(0)
}
