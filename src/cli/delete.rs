//! `ferry delete`.

use clap::ArgMatches;

use super::given;
use super::globals::Globals;
use super::name::Name;
use super::verb::{Arguments, Flag, Verb};
use crate::error::Result;
use crate::lifecycle;
use crate::lifecycle::delete::Which;

/// `--regex`, which `delete` and `kill` share.
pub const REGEX: Flag = Flag {
    long: "regex",
    help: "ID is a regular expression: every container with an id that it is found in is meant, and none is no failure",
    ..Flag::SWITCH
};

/// The row of `delete`.
pub const VERB: Verb = Verb {
    name: "delete",
    about: "Remove a container and everything ferry made for it",
    arguments: Arguments::ID,
    flags: &[
        Flag {
            long: "force",
            short: Some('f'),
            help: "Kill the container's processes first; a container that is not there is no failure",
            ..Flag::SWITCH
        },
        REGEX,
    ],
    details: &[
        (
            "DESCRIPTION",
            "Removes a stopped container's record and cgroup, and runs its poststop hooks. The bundle and what lies in \
             its root filesystem stay. One that is not stopped is refused unless --force is given. That is so of one that \
             was created and never started, too; called by the name runc, ferry kills and removes that, as runc does.\n\nWith --force it also clears away what a run that was killed \
             half way has left.",
        ),
        ("EXIT STATUS", "0 when nothing is left, 1 otherwise."),
        ("EXAMPLES", "    ferry delete web\n    ferry delete --force web\n    ferry delete --force --regex '^job-'"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let (id, force) = (given::id(matches)?, given::switch(matches, "force"));
    let which = match (force, globals.name) {
        (true, _) => Which::Any,
        (false, Name::Runc) => Which::Created,
        (false, Name::Ferry) => Which::Stopped,
    };
    let delete = |id: &str| lifecycle::delete::delete(&globals.setting, id, which);
    if given::switch(matches, "regex") {
        lifecycle::matching::each(&globals.setting, &id, delete)?;
    } else {
        delete(&id)?;
    }
    Ok(0)
}
