//! `ferry create`.

use std::path::PathBuf;

use clap::ArgMatches;

use super::given;
use super::globals::Globals;
use super::verb::{Arguments, Flag, Value, Verb};
use crate::error::{Context, Result};
use crate::lifecycle;
use crate::lifecycle::create::Options;

/// `--bundle`, which `create`, `run` and `explain` share.
pub const BUNDLE: Flag = Flag {
    long: "bundle",
    short: Some('b'),
    value: Value::Path("DIR"),
    help: "The directory with config.json (default: the working directory)",
    ..Flag::SWITCH
};
/// `--config`, which `create`, `run` and `explain` share.
pub const CONFIG: Flag = Flag {
    long: "config",
    value: Value::Path("FILE"),
    help: "Take the configuration from FILE instead of the bundle's config.json",
    ..Flag::SWITCH
};
/// `--console-socket`, which `create`, `run` and `exec` share.
pub const CONSOLE_SOCKET: Flag = Flag {
    long: "console-socket",
    value: Value::Path("PATH"),
    help: "Send the terminal's master side to this Unix socket",
    ..Flag::SWITCH
};
/// `--pidfd-socket`, which `create`, `run` and `exec` share.
pub const PIDFD_SOCKET: Flag = Flag {
    long: "pidfd-socket",
    value: Value::Path("PATH"),
    help: "Send a pidfd of the process to this Unix socket",
    ..Flag::SWITCH
};
/// `--pid-file`, which `create`, `run` and `exec` share.
pub const PID_FILE: Flag =
    Flag { long: "pid-file", value: Value::Path("FILE"), help: "Write the process id to FILE", ..Flag::SWITCH };
/// `--no-pivot`, which `create` and `run` share.
pub const NO_PIVOT: Flag = Flag {
    long: "no-pivot",
    help: "Enter the root filesystem without pivot_root; only where it lies on a ramdisk, for it isolates less",
    ..Flag::SWITCH
};
/// `--no-new-keyring`, which `create` and `run` share.
pub const NO_NEW_KEYRING: Flag = Flag {
    long: "no-new-keyring",
    help: "Keep the caller's session keyring instead of making one for the container",
    ..Flag::SWITCH
};
/// `--preserve-fds`, which `create`, `run` and `exec` share.
pub const PRESERVE_FDS: Flag = Flag {
    long: "preserve-fds",
    value: Value::Text("N"),
    help: "Pass N descriptors on, beside standard input, output, error and those of $LISTEN_FDS",
    ..Flag::SWITCH
};
/// `--ksm`, which `create` and `run` share.
pub const KSM: Flag = Flag {
    long: "ksm",
    help: "Let the kernel merge the container's memory with equal memory of others, as the annotation dev.ferry.ksm does; \
           others can then find out what it holds by timing",
    ..Flag::SWITCH
};

/// The row of `create`.
pub const VERB: Verb = Verb {
    name: "create",
    about: "Make a container from a bundle, without starting its program",
    arguments: Arguments::ID,
    flags: &[BUNDLE, CONFIG, CONSOLE_SOCKET, PIDFD_SOCKET, PID_FILE, NO_PIVOT, NO_NEW_KEYRING, PRESERVE_FDS, KSM],
    details: &[
        (
            "DESCRIPTION",
            "Makes the container that the bundle's config.json describes: namespaces, cgroup, mounts, limits, hooks up to \
             createContainer. Its program waits until `ferry start`. ID is the name of your choice for it, unique below \
             --root.\n\nWhen process.terminal is set, --console-socket says who receives the terminal.",
        ),
        ("EXIT STATUS", "0 when the container is there, 1 otherwise; then nothing is left of it."),
        ("EXAMPLES", "    ferry create --bundle /srv/web --pid-file /run/web.pid web"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    lifecycle::create::create(&globals.setting, &options(matches)?)?;
    Ok(0)
}

/// The options of `create`, which are also `run`'s.
pub fn options(matches: &ArgMatches) -> Result<Options> {
    Ok(Options {
        id: given::id(matches)?,
        bundle: bundle(matches)?,
        config: given::absolute(matches, "config")?,
        console_socket: given::absolute(matches, "console-socket")?,
        pid_file: given::absolute(matches, "pid-file")?,
        pidfd_socket: given::absolute(matches, "pidfd-socket")?,
        no_pivot: given::switch(matches, "no-pivot"),
        no_new_keyring: given::switch(matches, "no-new-keyring"),
        preserve_fds: given::number(matches, "preserve-fds")?.unwrap_or(0),
        merge_memory: given::switch(matches, "ksm"),
    })
}

/// The bundle, absolute; the working directory unless another was given.
pub fn bundle(matches: &ArgMatches) -> Result<PathBuf> {
    match given::absolute(matches, "bundle")? {
        Some(bundle) => Ok(bundle),
        None => std::env::current_dir().or_cannot("find", "the working directory, which is the bundle"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    #[test]
    fn what_engines_send_becomes_options() {
        let line = "--bundle /b --pid-file /p --console-socket /c -no-pivot --no-new-keyring --preserve-fds 3 \
                    --pidfd-socket=/f --ksm --config=/c.json web";
        let expected = Options {
            id: "web".to_owned(),
            bundle: "/b".into(),
            config: Some("/c.json".into()),
            console_socket: Some("/c".into()),
            pid_file: Some("/p".into()),
            pidfd_socket: Some("/f".into()),
            no_pivot: true,
            no_new_keyring: true,
            preserve_fds: 3,
            merge_memory: true,
        };
        assert_eq!(options(&matches(&VERB, line).unwrap()).unwrap(), expected);
    }

    #[test]
    fn nothing_given_is_the_working_directory_and_nothing_else() {
        let here = std::env::current_dir().unwrap();
        let expected = Options { id: "web".to_owned(), bundle: here.clone(), ..Options::default() };
        assert_eq!(options(&matches(&VERB, "web --pid-file=").unwrap()).unwrap(), expected);
        assert_eq!(options(&matches(&VERB, "-b x/y web").unwrap()).unwrap().bundle, here.join("x/y"));
    }

    #[test]
    fn a_count_that_is_none_is_refused_by_the_flags_name() {
        let error = options(&matches(&VERB, "--preserve-fds -1 web").unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("invalid value \"-1\" for --preserve-fds: "), "{error}");
    }
}
