//! `ferry image export`.

use clap::ArgMatches;

use super::delegate;
use super::destination::{self, OUTPUT};
use crate::cli::given;
use crate::cli::globals::Globals;
use crate::cli::verb::{Arguments, CommandLine, Verb};
use crate::error::Result;
use crate::lifecycle::image;

/// The row of `image export`.
pub const VERB: Verb = Verb {
    name: "image export",
    about: "Write an image as an archive that other tools load",
    arguments: Arguments { usage: "IMAGE", min: 1, max: 1, command: CommandLine::None },
    flags: &[OUTPUT],
    details: &[
        (
            "DESCRIPTION",
            "Writes an OCI image layout with docker's manifest.json in it, as one archive: for tools that read either form, such \
             as skopeo with oci-archive:FILE and docker-archive:FILE. Layers and documents stand as they came, so the image \
             keeps its digest, and the same image gives the same archive. Every blob is verified while it is written.",
        ),
        ("EXIT STATUS", "0, or 1 when there is no such image, it is damaged, or the archive cannot be written."),
        ("EXAMPLES", "    ferry image export -o web.tar web:1\n    ferry image export web:1 | gzip >web.tar.gz"),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// As [`image::export::export`].
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let wanted = given::arguments(matches)?.into_iter().next().unwrap_or_default();
    destination::write(destination::path(matches)?, |out| image::export::export(&globals.setting, &wanted, out))?;
    Ok(0)
}
