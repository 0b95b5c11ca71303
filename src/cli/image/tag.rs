//! `ferry image tag`.

use clap::ArgMatches;

use super::delegate;
use crate::cli::given;
use crate::cli::globals::Globals;
use crate::cli::verb::{Arguments, CommandLine, Verb};
use crate::error::Result;
use crate::lifecycle::image::tag;

/// The row of `image tag`.
pub const VERB: Verb = Verb {
    name: "image tag",
    about: "Give an image another name",
    arguments: Arguments { usage: "IMAGE NAME", min: 2, max: 2, command: CommandLine::None },
    flags: &[],
    details: &[
        ("DESCRIPTION", "The image keeps its other names. NAME is taken from the image that had it."),
        ("EXIT STATUS", "0, or 1 when there is no such image or NAME is no name."),
        ("EXAMPLES", "    ferry image tag debian:12 base"),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// There is no such image; the name is none.
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    tag::tag(&globals.setting, &words[0], &words[1])?;
    Ok(0)
}
