//! `ferry image commit`.

use clap::ArgMatches;

use super::delegate;
use crate::cli::globals::Globals;
use crate::cli::verb::{Arguments, CommandLine, Flag, Value, Verb};
use crate::cli::{given, output};
use crate::error::Result;
use crate::lifecycle::image;

/// The row of `image commit`.
pub const VERB: Verb = Verb {
    name: "image commit",
    about: "Make an image of what a container changed",
    arguments: Arguments { usage: "ID NAME", min: 2, max: 2, command: CommandLine::None },
    flags: &[Flag {
        long: "created",
        value: Value::Text("SECONDS"),
        help: "The time that the image says it was made, in seconds since 1970 (default: now)",
        ..Flag::SWITCH
    }],
    details: &[
        (
            "DESCRIPTION",
            "Makes an image of the one that the container runs from, with one layer more: what the container made, changed \
             and removed. It is run as the container's image is. With --created the same changes give the same image. A \
             container that runs is read as it stands: pause it first, where it writes meanwhile.",
        ),
        ("EXIT STATUS", "0, or 1 when there is no such container or the image cannot be kept."),
        (
            "EXAMPLES",
            "    ferry run --detach --image debian:12 work -- sleep inf\n    ferry exec work apt-get install -y curl\n    \
             ferry image commit work debian:curl",
        ),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// As [`image::container::commit`].
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    let seconds = given::number(matches, "created")?;
    image::as_root(&globals.setting, |setting| {
        let digest = image::container::commit(setting, &words[0], &words[1], seconds)?;
        output::print(&format!("{} {digest}\n", words[1])).map(|()| 0)
    })
}
