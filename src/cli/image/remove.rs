//! `ferry image remove`.

use clap::ArgMatches;

use super::delegate;
use crate::cli::globals::Globals;
use crate::cli::verb::{Arguments, CommandLine, Verb};
use crate::cli::{given, output};
use crate::error::Result;
use crate::lifecycle::image::tag;

/// The row of `image remove`.
pub const VERB: Verb = Verb {
    name: "image remove",
    about: "Take names of images away",
    arguments: Arguments { usage: "IMAGE...", min: 1, max: usize::MAX, command: CommandLine::None },
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "Takes the names away and prints them. An image that is given by its digest loses all its names. What no name \
             and no container refers to any more, `ferry image prune` removes from disk.",
        ),
        ("EXIT STATUS", "0, or 1 when one of the images is not there; then none loses its name."),
        ("EXAMPLES", "    ferry image remove base && ferry image prune"),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// One of the images is not there.
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let gone = tag::remove(&globals.setting, &given::arguments(matches)?)?;
    gone.iter().try_for_each(|name| output::print(&format!("{name}\n")))?;
    Ok(0)
}
