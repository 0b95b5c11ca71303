//! `ferry doctor`.

use clap::ArgMatches;

use super::explain::{FORMAT, show};
use super::globals::Globals;
use super::verb::{Arguments, Verb};
use super::{given, output};
use crate::error::{EXIT_FAILURE, Result};
use crate::lifecycle;

/// The row of `doctor`.
pub const VERB: Verb = Verb {
    name: "doctor",
    about: "Show what this host lets containers do",
    arguments: Arguments::NONE,
    flags: &[FORMAT],
    details: &[
        (
            "DESCRIPTION",
            "Looks at the kernel, the cgroup tree, the security modules and this user's rights, and says what works, what \
             does not, and what would have to be done about it. Nothing is changed.",
        ),
        ("EXIT STATUS", "0, or 1 when this user cannot run containers here at all."),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "text")?;
    let diagnosis = lifecycle::doctor::doctor(&globals.setting)?;
    let shown = show(&diagnosis.report, json)?;
    Ok(if diagnosis.can_run { shown } else { EXIT_FAILURE })
}
