//! `ferry run`: a bundle, as runc runs it, or, by `run_rootfs` and `run_image`, a bare root filesystem
//! or an image with a command.

use std::env;
use std::io::{IsTerminal, stdin, stdout};

use clap::ArgMatches;

use super::create::{
    self, BUNDLE, CONFIG, CONSOLE_SOCKET, KSM, NO_NEW_KEYRING, NO_PIVOT, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS,
};
use super::globals::Globals;
use super::run_image;
use super::run_rootfs::{self, Caller};
use super::verb::{Arguments, CommandLine, Flag, Value, Verb};
use super::{given, usage};
use crate::error::{Error, Result};
use crate::lifecycle;

/// The row of `run`.
pub const VERB: Verb = Verb {
    name: "run",
    about: "Make a container and run its program",
    arguments: Arguments {
        usage: "ID | --rootfs DIR [--] [COMMAND [ARG...]] | --image NAME [ID] [-- COMMAND [ARG...]]",
        min: 0,
        max: usize::MAX,
        command: CommandLine::WithOrBehind("rootfs", "image"),
    },
    flags: &[
        BUNDLE,
        CONFIG,
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        Flag { long: "detach", short: Some('d'), help: "Do not wait for the program", ..Flag::SWITCH },
        Flag { long: "keep", help: "Leave the container there when its program has ended", ..Flag::SWITCH },
        PID_FILE,
        Flag {
            long: "no-subreaper",
            help: "Do not become the parent of processes the container leaves behind",
            ..Flag::SWITCH
        },
        NO_PIVOT,
        NO_NEW_KEYRING,
        PRESERVE_FDS,
        KSM,
        Flag {
            long: "rootfs",
            value: Value::Path("DIR"),
            help: "Run COMMAND in this root filesystem; no bundle is needed",
            ..Flag::SWITCH
        },
        Flag {
            long: "image",
            value: Value::Text("NAME"),
            help: "Run this image of the store; COMMAND replaces the image's own",
            ..Flag::SWITCH
        },
        Flag {
            long: "erofs",
            help: "With --image: take the layers from their EROFS images, which `image import --erofs` makes",
            ..Flag::SWITCH
        },
        Flag {
            long: "name",
            value: Value::Text("ID"),
            help: "With --rootfs or --image: the container's id (default: a random one)",
            ..Flag::SWITCH
        },
        Flag {
            long: "hostname",
            value: Value::Text("NAME"),
            help: "With --rootfs or --image: the host name inside",
            ..Flag::SWITCH
        },
        Flag {
            long: "env",
            short: Some('e'),
            value: Value::Text("NAME[=VALUE]"),
            many: true,
            help: "With --rootfs or --image: set an environment variable, or pass the caller's on; may be given many times",
            ..Flag::SWITCH
        },
        Flag {
            long: "cwd",
            value: Value::Path("DIR"),
            help: "With --rootfs or --image: the working directory, inside (default /)",
            ..Flag::SWITCH
        },
        Flag {
            long: "user",
            short: Some('u'),
            value: Value::Text("UID[:GID]"),
            help: "With --rootfs or --image: run as this user and group, by number",
            ..Flag::SWITCH
        },
        Flag {
            long: "mount",
            value: Value::Text("SPEC"),
            many: true,
            help: "With --rootfs or --image: mount as type=bind,src=DIR,dst=DIR[,ro] says; may be given many times",
            ..Flag::SWITCH
        },
        Flag {
            long: "volume",
            short: Some('v'),
            value: Value::Text("SRC:DST[:ro]"),
            many: true,
            help: "With --rootfs or --image: bind SRC of the host to DST inside; may be given many times",
            ..Flag::SWITCH
        },
        Flag {
            long: "memory",
            short: Some('m'),
            value: Value::Text("SIZE"),
            help: "With --rootfs or --image: at most so much memory, such as 64m or 1.5g",
            ..Flag::SWITCH
        },
        Flag {
            long: "cpus",
            value: Value::Text("N"),
            help: "With --rootfs or --image: at most so many CPUs' time, such as 1.5",
            ..Flag::SWITCH
        },
        Flag {
            long: "pids-limit",
            value: Value::Text("N"),
            help: "With --rootfs or --image: at most so many tasks; -1 for no limit",
            ..Flag::SWITCH
        },
        Flag {
            long: "read-only",
            help: "With --rootfs or --image: make the root filesystem read-only",
            ..Flag::SWITCH
        },
        Flag {
            long: "tty",
            short: Some('t'),
            help: "With --rootfs or --image: give the command a terminal (default: when ferry itself has one)",
            ..Flag::SWITCH
        },
        Flag { long: "no-tty", help: "With --rootfs or --image: give the command no terminal", ..Flag::SWITCH },
    ],
    details: &[
        (
            "DESCRIPTION",
            "With ID, makes the container that the bundle's config.json describes and starts it, as `ferry create` and \
             `ferry start` do. ID is the name of your choice for it, unique below --root. ferry stays until the program \
             ends, passes signals on to it, and then deletes the container. With --detach it returns as soon as the \
             program runs, and the container is yours to delete.\n\nWith --rootfs, runs COMMAND in that directory as the \
             root filesystem, without a bundle: with namespaces of its own, the usual mounts, and what the flags add. \
             Without COMMAND it is $SHELL, or sh. Everything from COMMAND on is the command's own.\n\nWith --image, runs \
             an image that `ferry image import` brought into the store, with what it says of its command, user, environment \
             and working directory. Its layers are shared by all containers of it; what the container writes goes to a \
             layer of its own, and away with it. Where the kernel will not stack layers (it has no overlayfs, or the store's \
             filesystem cannot be an upper layer), the container gets a copy of the image's files, with a warning.\n\nWith --erofs the layers come from \
             their EROFS images: few large files of the host in place of many small ones, each mounted once for all \
             containers and unmounted with the last. Only root can; where the kernel cannot, the layers' directories stand \
             in for them, with a warning.\n\nFor a bundle alone, and refused with --rootfs and --image, are --bundle, \
             --config, --console-socket, --pidfd-socket, --keep, --no-subreaper, --no-pivot, --no-new-keyring, \
             --preserve-fds and --ksm.",
        ),
        (
            "EXIT STATUS",
            "The program's own, or 128 and the number of the signal that ended it. With --detach 0 once it runs. 1 when it \
             could not be run; then nothing is left of the container. With --rootfs or --image that is 127 when there is no \
             such program inside, and 126 when it is none that can be executed, as shells have it.",
        ),
        (
            "EXAMPLES",
            "    ferry run --bundle /srv/web web\n    ferry run --detach --pid-file /run/web.pid --bundle /srv/web web\n    \
             ferry run --rootfs ./alpine -- sh\n    \
             ferry run --rootfs ./alpine --detach --pid-file /run/web.pid -- httpd -f\n    \
             ferry run --image debian:12 -- apt list\n    \
             ferry run --rootfs ./alpine --memory 64m --volume ./src:/src:ro make -C /src",
        ),
    ],
    run,
};

/// Flags that say how a bundle is run; the rest of the table, but for those of [`EITHER`], is `--rootfs`'s.
const BUNDLE_ONLY: [&str; 10] = [
    "bundle",
    "config",
    "console-socket",
    "pidfd-socket",
    "keep",
    "no-subreaper",
    "no-pivot",
    "no-new-keyring",
    "preserve-fds",
    "ksm",
];

/// Flags of both, beside the two that tell which it is.
const EITHER: [&str; 4] = ["detach", "pid-file", "rootfs", "image"];

/// The two things that can be run.
#[derive(Debug, PartialEq)]
enum Form {
    Bundle(lifecycle::run::Options),
    Rootfs(lifecycle::run_rootfs::Options),
    Image(String, lifecycle::run_rootfs::Options),
}

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let caller = Caller {
        terminal: (matches.contains_id("rootfs") || matches.contains_id("image"))
            && stdin().is_terminal()
            && stdout().is_terminal(),
        variable: &|name| env::var(name).ok(),
    };
    match form(matches, &caller)? {
        Form::Bundle(options) => lifecycle::run::run(&globals.setting, &options),
        Form::Rootfs(options) => lifecycle::run_rootfs::run(&globals.setting, &options),
        Form::Image(image, options) => lifecycle::run_image::run(&globals.setting, &image, &options),
    }
}

fn form(matches: &ArgMatches, caller: &Caller) -> Result<Form> {
    let (rootfs, image) = (given::absolute(matches, "rootfs")?, given::string(matches, "image"));
    let bare = rootfs.is_some() || image.is_some();
    let of_the_other = |flag: &&Flag| {
        !EITHER.contains(&flag.long) && BUNDLE_ONLY.contains(&flag.long) == bare && matches.contains_id(flag.long)
    };
    if let Some(flag) = VERB.flags.iter().find(of_the_other) {
        let sentence = match (&rootfs, &image) {
            (Some(_), _) => "does not go with --rootfs",
            (None, Some(_)) => "does not go with --image",
            (None, None) => "needs --rootfs or --image",
        };
        return Err(usage(Error::plain(format!("--{} {sentence}", flag.long)), Some(&VERB)));
    }
    if rootfs.is_some() && given::switch(matches, "erofs") {
        return Err(usage(Error::plain("--erofs needs --image"), Some(&VERB)));
    }
    match (rootfs, image) {
        (Some(_), Some(_)) => Err(usage(Error::plain("--rootfs and --image contradict each other"), Some(&VERB))),
        (Some(rootfs), None) => Ok(Form::Rootfs(run_rootfs::options(matches, rootfs, caller)?)),
        (None, Some(image)) => Ok(Form::Image(image, run_image::options(matches, caller)?)),
        (None, None) => Ok(Form::Bundle(bundle_options(matches)?)),
    }
}

fn bundle_options(matches: &ArgMatches) -> Result<lifecycle::run::Options> {
    if given::arguments(matches)?.len() != 1 {
        let error = Error::plain("\"run\" requires exactly 1 argument(s)");
        return Err(error.hint("give the container's id; to run a command in a directory, give --rootfs DIR before it"));
    }
    Ok(lifecycle::run::Options {
        create: create::options(matches)?,
        detach: given::switch(matches, "detach"),
        keep: given::switch(matches, "keep"),
        no_subreaper: given::switch(matches, "no-subreaper"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    fn parse(line: &str) -> Result<Form> {
        form(&matches(&VERB, line)?, &Caller { terminal: true, variable: &|_| None })
    }

    fn refused(line: &str) -> String {
        parse(line).unwrap_err().to_string()
    }

    #[test]
    fn a_bundle_is_run_as_runc_runs_it() {
        let line = "-d --keep -no-subreaper --bundle /b --pid-file /p --console-socket /s --preserve-fds=1 web";
        let expected = lifecycle::run::Options {
            create: lifecycle::create::Options {
                id: "web".to_owned(),
                bundle: "/b".into(),
                console_socket: Some("/s".into()),
                pid_file: Some("/p".into()),
                preserve_fds: 1,
                ..lifecycle::create::Options::default()
            },
            detach: true,
            keep: true,
            no_subreaper: true,
        };
        assert_eq!(parse(line).unwrap(), Form::Bundle(expected));
    }

    #[test]
    fn flags_of_the_one_form_are_refused_in_the_other() {
        for flag in VERB.flags.iter().filter(|flag| !EITHER.contains(&flag.long)) {
            let value = if flag.value == Value::Switch { "" } else { "=1" };
            let (line, said) = match BUNDLE_ONLY.contains(&flag.long) {
                true => (format!("--rootfs /r --{}{value} sh", flag.long), "does not go with --rootfs"),
                false => (format!("--{}{value} web", flag.long), "needs --rootfs or --image"),
            };
            assert!(refused(&line).starts_with(&format!("--{} {said}", flag.long)), "{line}: {}", refused(&line));
        }
    }

    #[test]
    fn what_is_a_bundles_alone_is_said() {
        let (_, description) = VERB.details[0];
        let (_, said) = description.split_once("For a bundle alone").unwrap();
        assert!(BUNDLE_ONLY.iter().all(|flag| said.contains(&format!("--{flag}"))), "{said}");
        assert!(EITHER.iter().all(|flag| !BUNDLE_ONLY.contains(flag)));
    }

    #[test]
    fn layers_are_an_images() {
        assert!(refused("--rootfs /r --erofs -- sh").starts_with("--erofs needs --image"));
        assert!(matches!(parse("--image a --erofs"), Ok(Form::Image(_, options)) if options.erofs));
    }

    #[test]
    fn a_bundle_takes_one_id_and_nothing_else() {
        for (line, said) in
            [("web x", "\"run\" requires exactly 1 argument(s)"), ("", "\"run\" requires exactly 1 argument(s)")]
        {
            assert!(refused(line).starts_with(said), "{line}: {}", refused(line));
        }
    }
}
