//! `ferry image prune`.

use clap::ArgMatches;

use super::delegate;
use crate::cli::globals::Globals;
use crate::cli::list::FORMAT;
use crate::cli::verb::{Arguments, Flag, Verb};
use crate::cli::{given, output, size};
use crate::error::Result;
use crate::lifecycle::image;

/// The row of `image prune`.
pub const VERB: Verb = Verb {
    name: "image prune",
    about: "Remove from disk what no image and no container uses",
    arguments: Arguments::NONE,
    flags: &[
        FORMAT,
        Flag {
            long: "all",
            short: Some('a'),
            help: "First take the names of images that nothing uses away",
            ..Flag::SWITCH
        },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Removes layers and documents that no name leads to and no container or mount uses, what containers that are \
             gone have left, and what was being made by a process that was cut off; EROFS images that no \
             container runs from are unmounted. Nobody else can use the store \
             meanwhile.",
        ),
        ("EXIT STATUS", "0, or 1 when something cannot be removed."),
        ("EXAMPLES", "    ferry image prune\n    ferry image prune --all"),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// Something cannot be removed.
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "table")?;
    let all = given::switch(matches, "all");
    image::as_root(&globals.setting, |setting| {
        let removed = image::prune::prune(setting, all)?;
        if json {
            output::print_line(&removed)?;
        } else {
            let (layers, blobs, uses) = (removed.layers.len(), removed.blobs.len(), removed.uses.len());
            let bytes = size::text(removed.bytes);
            output::print(&format!("{layers} layers, {blobs} blobs ({bytes}) and what {uses} containers left\n"))?;
        }
        Ok(0)
    })
}
