//! `ferry image diff`.

use clap::ArgMatches;

use super::delegate;
use super::destination::{self, OUTPUT};
use crate::cli::given;
use crate::cli::globals::Globals;
use crate::cli::verb::{Arguments, CommandLine, Verb};
use crate::error::Result;
use crate::lifecycle::image;

/// The row of `image diff`.
pub const VERB: Verb = Verb {
    name: "image diff",
    about: "Write what a container changed, as a layer's archive",
    arguments: Arguments { usage: "ID", min: 1, max: 1, command: CommandLine::None },
    flags: &[OUTPUT],
    details: &[
        (
            "DESCRIPTION",
            "Writes what a container of `ferry run --image` made, changed and removed as a tar archive: a layer as OCI's image \
             specification has it, with whiteouts for what was removed. The same changes give the same archive. A container \
             that runs is read as it stands: pause it first, where it writes meanwhile.",
        ),
        ("EXIT STATUS", "0, or 1 when there is no such container or the archive cannot be written."),
        ("EXAMPLES", "    ferry image diff web | tar -tv"),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// As [`image::container::diff`].
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let id = given::arguments(matches)?.into_iter().next().unwrap_or_default();
    let path = destination::path(matches)?;
    image::as_root(&globals.setting, |setting| {
        destination::write(path, |out| image::container::diff(setting, &id, out)).map(|()| 0)
    })
}
