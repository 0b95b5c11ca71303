//! `ferry start`.

use clap::ArgMatches;

use super::given;
use super::globals::Globals;
use super::verb::{Arguments, Verb};
use crate::error::Result;
use crate::lifecycle;

/// The row of `start`.
pub const VERB: Verb = Verb {
    name: "start",
    about: "Let the program of a created container run",
    arguments: Arguments::ID,
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "Executes the program of a container that `ferry create` has made. Returns once the program runs, after the \
             container's startContainer and poststart hooks. A container can be started once.",
        ),
        ("EXIT STATUS", "0 when the program runs, 1 when it could not be started."),
        ("EXAMPLES", "    ferry create --bundle /srv/web web\n    ferry start web"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    lifecycle::start::start(&globals.setting, &given::id(matches)?)?;
    Ok(0)
}
