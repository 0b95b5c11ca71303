//! `ferry image mount` and `ferry image unmount`.

use std::path::PathBuf;

use clap::ArgMatches;

use super::delegate;
use crate::cli::given;
use crate::cli::globals::Globals;
use crate::cli::verb::{Arguments, CommandLine, Verb};
use crate::error::{Context, Result};
use crate::lifecycle::image::mount;

/// The row of `image mount`.
pub const VERB: Verb = Verb {
    name: "image mount",
    about: "Mount an image's files on a directory of the host",
    arguments: Arguments { usage: "IMAGE DIR", min: 2, max: 2, command: CommandLine::None },
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "Stacks the image's layers on DIR, to be looked at: nothing can be written there, and neither devices nor set-id \
             bits of the image mean anything. `ferry image prune` leaves the layers alone until the image is unmounted. Only \
             root can mount.",
        ),
        ("EXIT STATUS", "0, or 1 when there is no such image or the kernel refuses."),
        ("EXAMPLES", "    ferry image mount debian:12 /mnt\n    cat /mnt/etc/os-release\n    ferry image unmount /mnt"),
    ],
    run: delegate::run,
};

/// The row of `image unmount`.
pub const UNMOUNT: Verb = Verb {
    name: "image unmount",
    about: "Unmount an image from a directory of the host",
    arguments: Arguments { usage: "DIR...", min: 1, max: usize::MAX, command: CommandLine::None },
    flags: &[],
    details: &[
        ("DESCRIPTION", "Undoes `ferry image mount`."),
        ("EXIT STATUS", "0, or 1 when no image is mounted there or something still works in it."),
        ("EXAMPLES", "    ferry image unmount /mnt"),
    ],
    run: delegate::run,
};

/// Carries `image mount` out.
///
/// # Errors
/// As [`mount::mount`].
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    mount::mount(&globals.setting, &words[0], &absolute(&words[1])?).map(|()| 0)
}

/// Carries `image unmount` out.
///
/// # Errors
/// As [`mount::unmount`].
pub fn unmount(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    for word in given::arguments(matches)? {
        mount::unmount(&globals.setting, &absolute(&word)?)?;
    }
    Ok(0)
}

fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).or_cannot("find the working directory for", path)
}
