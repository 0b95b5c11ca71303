//! `ferry spec`.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use clap::ArgMatches;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{getegid, geteuid};

use super::create::BUNDLE;
use super::given;
use super::globals::Globals;
use super::verb::{Arguments, Flag, Verb};
use crate::error::{Context, Error, Result};
use crate::spec::template;

/// The row of `spec`.
pub const VERB: Verb = Verb {
    name: "spec",
    about: "Write a config.json to begin with",
    arguments: Arguments::NONE,
    flags: &[
        BUNDLE,
        Flag { long: "rootless", help: "Write one that this user can run without being root", ..Flag::SWITCH },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Writes config.json, for a shell in the directory rootfs beside it, with the usual mounts and few rights. It \
             is a beginning: change what it runs under process.args. A config.json that is there already stays as it \
             is.\n\nWith --rootless the container has a user namespace in which the calling user is root, and the \
             host's network.",
        ),
        ("EXIT STATUS", "0, or 1 when config.json is there already or cannot be written."),
        (
            "EXAMPLES",
            "    mkdir -p hello/rootfs && cd hello\n    cp --parents /bin/busybox rootfs && ln -s busybox rootfs/bin/sh\n    \
             ferry spec\n    ferry run hello",
        ),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let rootless = given::switch(matches, "rootless");
    let config = template::config(unified());
    let config = if rootless { template::rootless(config, geteuid().as_raw(), getegid().as_raw()) } else { config };
    let bundle = given::path(matches, "bundle").map_or(Path::new(""), Path::new);
    write(&bundle.join("config.json"), &template::text(&config)?)?;
    if !rootless && !geteuid().is_root() {
        globals.setting.log.warning("only root can run this configuration; `ferry spec --rootless` writes one for you");
    }
    Ok(0)
}

/// Whether the host has cgroup v2 alone.
fn unified() -> bool {
    statfs("/sys/fs/cgroup").is_ok_and(|filesystem| filesystem.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Makes the file, never through one that is there: that would be somebody's work.
fn write(path: &Path, text: &[u8]) -> Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(mut file) => file.write_all(text).or_cannot("write", path.display()),
        Err(refused) if refused.kind() == ErrorKind::AlreadyExists => {
            Err(Error::plain(format!("{} is there already", path.display()))
                .hint("remove it first, or give another --bundle"))
        }
        refused => refused.map(drop).or_cannot("make", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_is_there_stays() {
        let path = std::env::temp_dir().join(format!("ferry-spec-{}.json", std::process::id()));
        write(&path, b"mine").unwrap();
        let error = write(&path, b"other").unwrap_err().to_string();
        let kept = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("is there already (hint: remove it first"), "{error}");
        assert_eq!(kept, b"mine");
    }

    #[test]
    fn a_bundle_that_is_not_there_is_named() {
        let error = write(Path::new("/nonexistent/config.json"), b"").unwrap_err().to_string();
        assert_eq!(error, "cannot make /nonexistent/config.json: ENOENT: No such file or directory");
    }
}
