//! `ferry list`.

use clap::ArgMatches;

use super::globals::Globals;
use super::verb::{Arguments, Flag, Value, Verb};
use super::{given, output};
use crate::container::State;
use crate::error::{Context, Result};
use crate::lifecycle;

/// `--format`, as `list` and `ps` have it.
pub const FORMAT: Flag = Flag {
    long: "format",
    short: Some('f'),
    value: Value::Words("table|json"),
    help: "Answer as a table (the default) or as json",
    ..Flag::SWITCH
};

/// The row of `list`.
pub const VERB: Verb = Verb {
    name: "list",
    about: "List the containers",
    arguments: Arguments::NONE,
    flags: &[FORMAT, Flag { long: "quiet", short: Some('q'), help: "Print ids only", ..Flag::SWITCH }],
    details: &[
        ("DESCRIPTION", "Lists the containers below --root. With --format json each is what `ferry state` prints."),
        ("EXIT STATUS", "0, or 1 when --root was given and cannot be read."),
        ("EXAMPLES", "    ferry list\n    ferry list -q | xargs -n 1 ferry delete --force"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "table")?;
    // Nobody has made a container yet where the default directory is missing; one that was named is a mistake.
    if globals.root_given {
        std::fs::metadata(&globals.setting.root).or_cannot("read --root", globals.setting.root.display())?;
    }
    let states = lifecycle::list::list(&globals.setting)?;
    if given::switch(matches, "quiet") {
        output::print(&states.iter().map(|state| format!("{}\n", state.id)).collect::<String>())?;
    } else if json {
        output::print_line(&states)?;
    } else {
        output::print(&table(&states))?;
    }
    Ok(0)
}

fn table(states: &[State]) -> String {
    let rows: Vec<_> = states.iter().map(row).collect();
    output::table(["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], &rows)
}

fn row(state: &State) -> [String; 6] {
    [
        state.id.clone(),
        state.pid.to_string(),
        state.status.to_string(),
        state.bundle.display().to_string(),
        state.created.to_string(),
        state.owner.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_runcs_columns() {
        let state = State {
            id: "web".to_owned(),
            pid: 4711,
            status: crate::container::Status::Running,
            bundle: "/srv/web".into(),
            created: "2026-01-02T03:04:05.678Z".to_owned(),
            owner: "root".to_owned(),
            oci_version: "1.3.0".to_owned(),
            rootfs: "/srv/web/rootfs".into(),
            annotations: Default::default(),
        };
        assert_eq!(
            table(&[state]),
            "ID          PID         STATUS      BUNDLE      CREATED                    OWNER\n\
             web         4711        running     /srv/web    2026-01-02T03:04:05.678Z   root\n"
        );
    }

    #[test]
    fn no_containers_is_the_heading_alone() {
        assert_eq!(table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
    }
}
