//! `ferry image inspect`.

use clap::ArgMatches;

use super::delegate;
use crate::cli::globals::Globals;
use crate::cli::verb::{Arguments, CommandLine, Verb};
use crate::cli::{given, output};
use crate::error::Result;
use crate::lifecycle::image::list;

/// An image's name, alone.
pub const IMAGE: Arguments = Arguments { usage: "IMAGE", min: 1, max: 1, command: CommandLine::None };

/// The row of `image inspect`.
pub const VERB: Verb = Verb {
    name: "image inspect",
    about: "Show an image's manifest, configuration and layers as JSON",
    arguments: IMAGE,
    flags: &[],
    details: &[
        ("DESCRIPTION", "Prints what the image's documents say, and where its layers are unpacked."),
        ("EXIT STATUS", "0, or 1 when there is no such image."),
        ("EXAMPLES", "    ferry image inspect debian:12 | jq .config.config.Env"),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// There is no such image.
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    output::print_pretty(&list::inspect(&globals.setting, &given::id(matches)?)?)?;
    Ok(0)
}
