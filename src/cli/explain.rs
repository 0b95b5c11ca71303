//! `ferry explain`.

use clap::ArgMatches;

use super::create::{self, BUNDLE, CONFIG};
use super::globals::Globals;
use super::verb::{Arguments, Flag, Value, Verb};
use super::{given, output};
use crate::error::Result;
use crate::lifecycle::{self, Report};

/// `--format`, as `explain` and `doctor` have it.
pub const FORMAT: Flag = Flag {
    long: "format",
    short: Some('f'),
    value: Value::Words("text|json"),
    help: "Answer in text (the default) or as json",
    ..Flag::SWITCH
};

/// The row of `explain`.
pub const VERB: Verb = Verb {
    name: "explain",
    about: "Show what would be done for a bundle, without doing it",
    arguments: Arguments::NONE,
    flags: &[BUNDLE, CONFIG, FORMAT],
    details: &[
        (
            "DESCRIPTION",
            "Prints the plan that `ferry run` would carry out for this bundle, on this host, as this user: namespaces, \
             cgroup, mounts in their order, limits, filters, and the program. Nothing is made or changed.\n\nA bundle that \
             cannot be run fails here with the error it would fail with, as far as that shows from outside: by config.json, \
             the cgroup's place and controllers, resource limits, root.path, the sources of binds, the namespaces that are \
             joined, network interfaces, the resctrl filesystem and the hooks of the host. A filesystem that the kernel does \
             not know yet is a warning. What systemd, a mount, a hook or the program inside answers shows only in the run.",
        ),
        ("EXIT STATUS", "0, or 1 when the bundle could not be run."),
        ("EXAMPLES", "    ferry explain --bundle /srv/web"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "text")?;
    let config = given::absolute(matches, "config")?;
    let report = lifecycle::explain::explain(&globals.setting, &create::bundle(matches)?, config.as_deref())?;
    show(&report, json)
}

/// Prints a report in the form that was asked for.
pub fn show(report: &Report, json: bool) -> Result<u8> {
    if json {
        output::print_pretty(&report.json)?
    } else {
        output::print(&report.text)?
    }
    Ok(0)
}
