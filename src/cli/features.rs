//! `ferry features`.

use clap::ArgMatches;

use super::globals::Globals;
use super::output;
use super::verb::{Arguments, Verb};
use crate::error::Result;
use crate::lifecycle;

/// The row of `features`.
pub const VERB: Verb = Verb {
    name: "features",
    about: "Show what this runtime can do, as JSON",
    arguments: Arguments::NONE,
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "Prints the features structure of the runtime specification: versions, hooks, mount options, namespaces, \
             capabilities and so on, as ferry knows them. What this host lets containers do is `ferry doctor`'s answer.",
        ),
        ("EXIT STATUS", "0."),
        ("EXAMPLES", "    ferry features | jq .linux.namespaces"),
    ],
    run,
};

fn run(globals: &Globals, _: &ArgMatches) -> Result<u8> {
    output::print_pretty(&lifecycle::features::features(&globals.setting)?)?;
    Ok(0)
}
