//! `ferry image check`.

use clap::ArgMatches;

use super::delegate;
use crate::cli::globals::Globals;
use crate::cli::list::FORMAT;
use crate::cli::verb::{Arguments, Flag, Verb};
use crate::cli::{given, output};
use crate::error::Result;
use crate::lifecycle::image;

/// The row of `image check`.
pub const VERB: Verb = Verb {
    name: "image check",
    about: "Verify everything in the store, and repair what can be",
    arguments: Arguments::NONE,
    flags: &[
        FORMAT,
        Flag {
            long: "repair",
            help: "Unpack layers anew that are missing or incomplete; remove damaged blobs",
            ..Flag::SWITCH
        },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Reads every blob that an image with a name or one in use refers to and compares it with its digest, and sees that \
             every layer is unpacked with all that was in it, and that EROFS images of layers are as they were made. With \
             --repair, layers that are missing or incomplete are unpacked anew from their blobs, and their EROFS images made \
             anew; a damaged blob of a layer is removed, and the next import or pull of the image brings it anew.",
        ),
        ("EXIT STATUS", "0 when the store is whole, or was made whole; 1 when something is damaged."),
        ("EXAMPLES", "    ferry image check\n    ferry image check --repair"),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// The store itself cannot be read.
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "table")?;
    let repair = given::switch(matches, "repair");
    image::as_root(&globals.setting, |setting| {
        let found = image::check::check(setting, repair)?;
        if json {
            output::print_line(&found)?;
        } else {
            let lines = found.repaired.iter().map(|line| format!("repaired: {line}\n"));
            let lines = lines.chain(found.damages.iter().map(|line| format!("damaged: {line}\n")));
            let (images, blobs, layers) = (found.images, found.blobs, found.layers);
            let sum = format!("{images} images, {blobs} blobs, {layers} layers, {} damages\n", found.damages.len());
            output::print(&lines.chain([sum]).collect::<String>())?;
        }
        Ok(u8::from(!found.damages.is_empty()))
    })
}
