//! `ferry snapshot`: what a container has written, kept to go back to.

use clap::ArgMatches;

use super::family::Family;
use super::globals::Globals;
use super::list::FORMAT;
use super::verb::{Arguments, CommandLine, Verb};
use super::{given, output, size};
use crate::error::Result;
use crate::image::store::snapshots::Snapshot;
use crate::lifecycle::snapshot;

/// The row of `snapshot`.
pub const FAMILY: Family = Family {
    name: "snapshot",
    about: "Keep what a container has written, and go back to it",
    details: &[(
        "DESCRIPTION",
        "A container of `ferry run --image` writes to a layer of its own above the image's. A snapshot keeps that layer as it is \
         at one moment, and the container can be rolled back to any of them. Snapshots are kept in the image store and go when \
         the container is deleted; `ferry image commit` makes an image, which stays. What is in memory is not kept.",
    )],
    verbs: &[CREATE, LIST, SHOW, ROLLBACK, REMOVE],
};

const CREATE: Verb = Verb {
    name: "snapshot create",
    about: "Keep what a container has written",
    arguments: Arguments { usage: "ID [NAME]", min: 1, max: 2, command: CommandLine::None },
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "Copies the container's own layer, while its processes stand still, and prints the snapshot's name. Without NAME it \
             is a number. Where the filesystem can share data between files, the copy takes no room.",
        ),
        (
            "EXIT STATUS",
            "0, or 1 when there is no such container, it runs from no image, or its layer cannot be copied.",
        ),
        ("EXAMPLES", "    ferry snapshot create web before-upgrade"),
    ],
    run: create,
};

const LIST: Verb = Verb {
    name: "snapshot list",
    about: "List the snapshots of a container",
    arguments: Arguments::ID,
    flags: &[FORMAT],
    details: &[
        (
            "DESCRIPTION",
            "Lists them with their sizes, the oldest first. What lies upon another one holds only what was written since.",
        ),
        ("EXIT STATUS", "0, or 1 when there is no such container."),
        ("EXAMPLES", "    ferry snapshot list web"),
    ],
    run: list,
};

const SHOW: Verb = Verb {
    name: "snapshot show",
    about: "Print everything about a snapshot, as JSON",
    arguments: Arguments { usage: "ID NAME", min: 2, max: 2, command: CommandLine::None },
    flags: &[],
    details: &[
        ("DESCRIPTION", "Prints, among others, the directories whose files it shows, the uppermost first."),
        ("EXIT STATUS", "0, or 1 when there is no such snapshot."),
        ("EXAMPLES", "    ferry snapshot show web before-upgrade"),
    ],
    run: show,
};

const ROLLBACK: Verb = Verb {
    name: "snapshot rollback",
    about: "Begin a container anew with the files of a snapshot",
    arguments: Arguments { usage: "ID NAME", min: 2, max: 2, command: CommandLine::None },
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "Ends the container's program, takes away what it wrote that is in no snapshot, and begins the program anew, detached, \
             with the files of the snapshot. The snapshot stays, as do the others.",
        ),
        (
            "EXIT STATUS",
            "0 once the program runs; 1 otherwise. When there is no such snapshot the container is as it was; when the program \
             cannot be begun again there is no container any more.",
        ),
        ("EXAMPLES", "    ferry snapshot rollback web before-upgrade"),
    ],
    run: rollback,
};

const REMOVE: Verb = Verb {
    name: "snapshot remove",
    about: "Remove snapshots of a container",
    arguments: Arguments { usage: "ID NAME...", min: 2, max: usize::MAX, command: CommandLine::None },
    flags: &[],
    details: &[
        ("DESCRIPTION", "Removes them from disk. One that the container or another snapshot lies upon is not removed."),
        ("EXIT STATUS", "0, or 1 when one of them is not there or is lain upon; then none is removed."),
        ("EXAMPLES", "    ferry snapshot remove web before-upgrade"),
    ],
    run: remove,
};

fn create(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    let made = snapshot::create(&globals.setting, &words[0], words.get(1).map(String::as_str))?;
    output::print(&format!("{}\n", made.name)).map(|()| 0)
}

fn list(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "table")?;
    let found = snapshot::list(&globals.setting, &given::id(matches)?)?;
    if json {
        output::print_line(&found)?
    } else {
        output::print(&table(&found))?
    }
    Ok(0)
}

fn table(found: &[Snapshot]) -> String {
    let row = |one: &Snapshot| {
        let parent = one.parent.clone().unwrap_or_else(|| "-".to_owned());
        [one.name.clone(), parent, one.entries.to_string(), size::text(one.bytes), one.created.clone()]
    };
    output::table(["NAME", "UPON", "FILES", "SIZE", "CREATED"], &found.iter().map(row).collect::<Vec<_>>())
}

fn show(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    output::print_pretty(&snapshot::show(&globals.setting, &words[0], &words[1])?).map(|()| 0)
}

fn rollback(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    snapshot::rollback(&globals.setting, &words[0], &words[1]).map(|()| 0)
}

fn remove(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    snapshot::remove(&globals.setting, &words[0], &words[1..]).map(|()| 0)
}
