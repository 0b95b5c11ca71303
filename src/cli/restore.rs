//! `ferry restore`.

use clap::ArgMatches;

use super::checkpoint::progress::{PROGRESS, Shown};
use super::checkpoint::{
    AUTO_DEDUP, EMPTY_NS, EXT_UNIX_SK, FILE_LOCKS, IDENTITY, IMAGE_PATH, LAZY_PAGES, MANAGE_CGROUPS_MODE, NETWORK_LOCK,
    SHELL_JOB, STATUS_FD, TCP_CLOSE, TCP_ESTABLISHED, WORK_PATH, choice,
};
use super::create::{self, BUNDLE, CONSOLE_SOCKET, NO_PIVOT, PID_FILE};
use super::given;
use super::globals::Globals;
use super::image::delegate;
use super::verb::{Arguments, CommandLine, Flag, Value, Verb};
use crate::checkpoint::progress::Progress;
use crate::checkpoint::restore::RestoreChoice;
use crate::checkpoint::root::Origin;
use crate::error::{Error, Result};
use crate::lifecycle;
use crate::lifecycle::restore::Options;

/// The row of `restore`.
pub const VERB: Verb = Verb {
    name: "restore",
    about: "Bring a container back from the files of a checkpoint",
    arguments: Arguments { usage: "ID", min: 0, max: 1, command: CommandLine::None },
    flags: &[
        Flag {
            long: "import",
            value: Value::Path("FILE"),
            help: "Restore from an archive; - is standard input",
            ..Flag::SWITCH
        },
        IDENTITY,
        Flag {
            long: "name",
            value: Value::Text("ID"),
            help: "The container's id; from an archive it is the one it had where none is given",
            ..Flag::SWITCH
        },
        BUNDLE,
        Flag {
            long: "rootfs",
            value: Value::Path("DIR"),
            help: "Of a container that ran with --rootfs: the directory, where it is another now",
            ..Flag::SWITCH
        },
        IMAGE_PATH,
        WORK_PATH,
        CONSOLE_SOCKET,
        Flag { long: "detach", short: Some('d'), help: "Do not wait for the container's end", ..Flag::SWITCH },
        PID_FILE,
        Flag {
            long: "no-subreaper",
            help: "Do not become the parent of processes the container leaves behind",
            ..Flag::SWITCH
        },
        // CRIU makes the mounts.
        Flag { hidden: true, ..NO_PIVOT },
        TCP_ESTABLISHED,
        TCP_CLOSE,
        EXT_UNIX_SK,
        SHELL_JOB,
        FILE_LOCKS,
        LAZY_PAGES,
        STATUS_FD,
        MANAGE_CGROUPS_MODE,
        EMPTY_NS,
        AUTO_DEDUP,
        NETWORK_LOCK,
        PROGRESS,
        Flag {
            long: "lsm-profile",
            value: Value::Text("TYPE:NAME"),
            help: "Give the processes this label, such as apparmor:web, instead of the one they had",
            ..Flag::SWITCH
        },
        Flag {
            long: "lsm-mount-context",
            value: Value::Text("CONTEXT"),
            help: "Give mounts this SELinux context instead of the one they had",
            ..Flag::SWITCH
        },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Brings back what `ferry checkpoint` saved, under any ID: from the images, and from the bundle the container \
             was made from, whose root filesystem must be as it was. Mounts, cgroup, limits and hooks are those of the \
             bundle's config.json; prestart, createRuntime and poststart hooks run as on a start.\n\nNamespaces that \
             config.json names by path are joined again. A network namespace of the container's own is made new, with \
             the loopback interface up and otherwise empty. Standard streams that led out of the container lead to \
             ferry's own. In the foreground ferry stays until the container ends, as `ferry run` does.\n\nA container that had a root of its own gets one again, and \
             needs no bundle: of `ferry run --image` the image must be in the store, of `--rootfs` the directory must be \
             there. An archive of one chooses what an image may choose, the program, its environment, directory and user, and \
             limits; whatever else `ferry run` would not give it is refused, unless --bundle names a config.json that \
             does, and the directory is named with --rootfs.\n\nAn archive is verified \
             whole, and refused where this host lacks what its programs may use: instructions of the processor, the kernel, \
             CRIU. It may be anybody's: what comes out of it is held to the bundle's config.json before any of it runs \
             (capabilities, system call filter, ids, namespaces, mounts, cgroup, limits), and ends if it has more. Its images \
             are unpacked into $TMPDIR or /var/tmp and removed once it runs, or kept in --image-path. One that is encrypted needs \
             --identity, and comes to nothing if it is not whole.\n\nOn a terminal a line tells how far it is, until the container has the terminal. With \
             --progress json each line on standard error is an event until then: a step (unpack, restore, resume), and the bytes done in it; a file that was the container's \
             standard error takes none of them, since it has to be as long as it was.",
        ),
        (
            "EXIT STATUS",
            "The program's own, or 128 and the number of the signal that ended it. 1 when the container could not be \
             restored; then nothing is left of it but the images. With --detach 0 once it runs.",
        ),
        (
            "EXAMPLES",
            "    ferry restore --detach --image-path /srv/save --bundle /srv/web web\n    \
             ferry restore --detach --import web.ferry --bundle /srv/web --name web2\n    \
             ferry restore --detach --import web.ferry --identity key.txt",
        ),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    if given::path(matches, "import").is_some() {
        return delegate::run(globals, matches);
    }
    if matches.contains_id(IDENTITY.long) {
        return Err(Error::plain("--identity is for archives: see --import"));
    }
    let options = options(matches, globals.setting.log.debugs())?;
    if Origin::is_in(&options.choice.choice.images) {
        return delegate::run(globals, matches);
    }
    if given::path(matches, "rootfs").is_some() {
        return Err(Error::plain(
            "--rootfs is for a container that ran with --rootfs, and these images are not of one",
        )
        .hint("--bundle names the bundle, and its config.json the root"));
    }
    shown(matches, |progress| lifecycle::restore::restore(&globals.setting, &options, progress))
}

/// Restores while the progress is shown, which is over when the container runs.
///
/// # Errors
/// A value that is none; as `deed`.
pub fn shown(matches: &ArgMatches, deed: impl FnOnce(&dyn Progress) -> Result<u8>) -> Result<u8> {
    let shown = Shown::new(given::text(matches, PROGRESS.long))?;
    let done = deed(&shown);
    if done.is_err() {
        shown.finish(false);
    }
    done
}

/// What the flags choose. Only an archive has an id of its own.
///
/// # Errors
/// A value that is none; no id, or two.
pub fn options(matches: &ArgMatches, verbose: bool) -> Result<Options> {
    let id = match (given::arguments(matches)?.pop(), given::string(matches, "name")) {
        (Some(_), Some(_)) => return Err(Error::plain("--name does not go with an ID")),
        (None, None) if given::path(matches, "import").is_none() => {
            return Err(Error::plain("\"restore\" requires exactly 1 argument(s)"));
        }
        (id, name) => id.or(name).unwrap_or_default(),
    };
    Ok(Options {
        create: lifecycle::create::Options {
            id,
            bundle: create::bundle(matches)?,
            console_socket: given::absolute(matches, "console-socket")?,
            pid_file: given::absolute(matches, "pid-file")?,
            no_pivot: given::switch(matches, "no-pivot"),
            ..lifecycle::create::Options::default()
        },
        detach: given::switch(matches, "detach"),
        no_subreaper: given::switch(matches, "no-subreaper"),
        choice: RestoreChoice {
            choice: choice(matches, verbose)?,
            lsm_profile: given::string(matches, "lsm-profile"),
            lsm_mount_context: given::string(matches, "lsm-mount-context"),
            audited: false,
            criu: None,
        },
        brought_by: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::dump::Choice;
    use crate::cli::matches;

    #[test]
    fn what_engines_send_becomes_options() {
        let line = "--image-path /i --work-path /w --detach --pid-file /p -no-subreaper --bundle /b --console-socket /c \
                    --no-pivot --lsm-profile apparmor:x --lsm-mount-context y --tcp-established web";
        let expected = Options {
            create: lifecycle::create::Options {
                id: "web".to_owned(),
                bundle: "/b".into(),
                console_socket: Some("/c".into()),
                pid_file: Some("/p".into()),
                no_pivot: true,
                ..lifecycle::create::Options::default()
            },
            detach: true,
            no_subreaper: true,
            choice: RestoreChoice {
                choice: Choice {
                    images: "/i".into(),
                    work: Some("/w".into()),
                    tcp_established: true,
                    ..Choice::default()
                },
                lsm_profile: Some("apparmor:x".to_owned()),
                lsm_mount_context: Some("y".to_owned()),
                audited: false,
                criu: None,
            },
            brought_by: None,
        };
        assert_eq!(options(&matches(&VERB, line).unwrap(), false).unwrap(), expected);
    }
}
