//! `ferry snapshot`: what a container has written, kept to go back to.

use clap::ArgMatches;

use super::checkpoint::{EXT_UNIX_SK, SHELL_JOB};
use super::family::Family;
use super::globals::Globals;
use super::image::delegate;
use super::list::FORMAT;
use super::verb::{Arguments, CommandLine, Flag, Value, Verb};
use super::{given, output, size};
use crate::error::{Error, Result};
use crate::image::store::snapshots::Snapshot;
use crate::lifecycle::snapshot;
use crate::lifecycle::snapshot::memory::Flags;

/// The row of `snapshot`.
pub const FAMILY: Family = Family {
    name: "snapshot",
    about: "Keep what a container has written and had in memory, and go back to it",
    details: &[(
        "DESCRIPTION",
        "A container of `ferry run --image` writes to a layer of its own above the image's. A snapshot keeps that layer as it is \
         at one moment, and the container can be rolled back to any of them. Snapshots are kept in the image store and go when \
         the container is deleted; `ferry image commit` makes an image, which stays. With --memory a snapshot has the processes too, with everything they had \
         in memory at the same moment, and going back has them go on from there.",
    )],
    verbs: &[CREATE, LIST, SHOW, ROLLBACK, REMOVE, CLONE],
};

const CREATE: Verb = Verb {
    name: "snapshot create",
    about: "Keep what a container has written",
    arguments: Arguments { usage: "ID [NAME]", min: 1, max: 2, command: CommandLine::None },
    flags: &[
        Flag { long: "memory", help: "Keep the processes with their memory too, by way of CRIU", ..Flag::SWITCH },
        EXT_UNIX_SK,
        SHELL_JOB,
        Flag {
            long: "format",
            value: Value::Words("text|json"),
            help: "Print, as text or json, how much was kept (default: the name alone)",
            ..Flag::SWITCH
        },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Copies the container's own layer, while its processes stand still, and prints the snapshot's name. Without NAME it \
             is a number. Where the filesystem can share data between files, the copy takes no room.\n\nWith --memory the processes \
             are saved in the same standstill, and go on. Where the kernel tracks what is written to in memory, the second such \
             snapshot in a row and those after it hold only what was written since the one before, and share the rest. TCP \
             connections that are established go on in the container, and are closed where it goes back.",
        ),
        (
            "EXIT STATUS",
            "0, or 1 when there is no such container, it runs from no image, its layer cannot be copied, or its memory not be \
             had; then it goes on as before.",
        ),
        (
            "EXAMPLES",
            "    ferry snapshot create web before-upgrade\n    ferry snapshot create --memory --format text web",
        ),
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
            "Lists them with their sizes, the oldest first. What lies upon another one holds only what was written since; so does \
             the memory of one that follows another. Of one without memory that is a dash.",
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
    about: "Take a container back to a snapshot",
    arguments: Arguments { usage: "ID NAME", min: 2, max: 2, command: CommandLine::None },
    flags: &[Flag {
        long: "files-only",
        help: "Of a snapshot with memory: take its files, and begin the program anew",
        ..Flag::SWITCH
    }],
    details: &[
        (
            "DESCRIPTION",
            "Ends the container's program, takes away what it wrote that is in no snapshot, and begins the program anew, detached, \
             with the files of the snapshot; of a snapshot with memory its processes go on from there, with their TCP connections \
             closed. Standard streams that led out of the container lead to ferry's own; one that was a file must be a file of the same \
             size and mode, for those processes. The snapshot stays, as do the others.",
        ),
        (
            "EXIT STATUS",
            "0 once the program runs; 1 otherwise. When there is no such snapshot, or CRIU is missing, or a stream is \
             another, the container is as it was; when it cannot be brought back, or ferry is killed in the middle, it is a \
             container that has ended, with all of its snapshots, and can be rolled back again.",
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
        (
            "DESCRIPTION",
            "Removes them from disk. One that the container or another snapshot lies upon is not removed. Memory that later \
             snapshots share stays until the last of them is removed.",
        ),
        ("EXIT STATUS", "0, or 1 when one of them is not there or is lain upon; then none is removed."),
        ("EXAMPLES", "    ferry snapshot remove web before-upgrade"),
    ],
    run: remove,
};

/// The row of `snapshot clone`, which `ferry-image` carries out.
pub const CLONE: Verb = Verb {
    name: "snapshot clone",
    about: "Make a running container once more, under another id",
    arguments: Arguments { usage: "ID NEW", min: 2, max: 2, command: CommandLine::None },
    flags: &[
        Flag {
            long: "hostname",
            value: Value::Text("NAME"),
            help: "The host name that the clone sees (default: NEW)",
            ..Flag::SWITCH
        },
        EXT_UNIX_SK,
        SHELL_JOB,
    ],
    details: &[
        (
            "DESCRIPTION",
            "Makes a container NEW with the same processes as ID, which had in memory and on disk what ID has at one moment; ID \
             goes on. The clone has a cgroup, a host name and a network namespace of its own, with nothing but the loopback \
             interface, and its TCP connections are closed. What either writes from then on the other does not see, but for bind \
             mounts, which they share. The clone is detached; standard streams that led out of ID lead to ferry's own.\n\nOnly \
             containers of `ferry run --image` and `--rootfs` have a root that can be made twice, and only root can have that \
             done. Of a container that was rolled back to a snapshot, make an image first.",
        ),
        ("EXIT STATUS", "0 once the clone runs; 1 otherwise, and then there is none."),
        ("EXAMPLES", "    ferry snapshot clone web web-trial"),
    ],
    run: delegate::run,
};

/// Carries `snapshot clone` out.
///
/// # Errors
/// As [`snapshot::clone::clone`].
pub fn clone(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    let hostname = given::string(matches, "hostname").unwrap_or_else(|| words[1].clone());
    snapshot::clone::clone(&globals.setting, &words[0], &words[1], &hostname, flags(matches)).map(|()| 0)
}

fn flags(matches: &ArgMatches) -> Flags {
    let [ext_unix_sk, shell_job] = [EXT_UNIX_SK.long, SHELL_JOB.long].map(|flag| given::switch(matches, flag));
    Flags { ext_unix_sk, shell_job }
}

fn create(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    let is_json = given::text(matches, "format").map(|format| output::is_json(Some(format), "text")).transpose()?;
    let memory = given::switch(matches, "memory").then(|| flags(matches));
    if memory.is_none() && flags(matches) != Flags::default() {
        return Err(Error::plain("--ext-unix-sk and --shell-job are for snapshots with --memory"));
    }
    let made = snapshot::create(&globals.setting, &words[0], words.get(1).map(String::as_str), memory)?;
    match is_json {
        Some(true) => output::print_pretty(&made)?,
        Some(false) => output::print(&text(&made))?,
        None => output::print(&format!("{}\n", made.name))?,
    }
    Ok(0)
}

fn text(made: &Snapshot) -> String {
    let mut lines = vec![format!("name         {}", made.name), format!("files        {}", size::text(made.bytes))];
    if let Some(memory) = &made.memory {
        lines.push(format!("memory       {}", size::text(memory.bytes)));
        lines.push(format!("unchanged    {}", size::text(memory.unchanged_bytes)));
        lines.push(format!("stood still  {:.1} ms", memory.frozen_milliseconds));
    }
    lines.join("\n") + "\n"
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
        let memory = one.memory.as_ref().map_or_else(|| "-".to_owned(), |memory| size::text(memory.bytes));
        [one.name.clone(), parent, one.entries.to_string(), size::text(one.bytes), memory, one.created.clone()]
    };
    output::table(["NAME", "UPON", "FILES", "SIZE", "MEMORY", "CREATED"], &found.iter().map(row).collect::<Vec<_>>())
}

fn show(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    output::print_pretty(&snapshot::show(&globals.setting, &words[0], &words[1])?).map(|()| 0)
}

fn rollback(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    let files_only = given::switch(matches, "files-only");
    snapshot::rollback(&globals.setting, &words[0], &words[1], files_only).map(|()| 0)
}

fn remove(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    snapshot::remove(&globals.setting, &words[0], &words[1..]).map(|()| 0)
}
