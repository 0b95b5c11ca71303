//! Attacks that container runtimes have fallen to, tried for real. `SECURITY.md` has the list, and says which of these shows
//! what.
//!
//! A trial fails if the attack works. How the runtime withstands it (an error, or a container that is unharmed) is left to
//! it, so that the trials are fair to any runtime; one that no runtime could ever fail would prove nothing.

pub mod image;
pub mod input;
pub mod neighbours;
pub mod processes;
pub mod races;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use serde_json::Value;

use super::case::{Case, names_in};
use super::output::Output;
use crate::rootfs_fixtures::config;

/// A sum over a file's bytes that a change of any of them alters (FNV-1a).
fn hash(path: &Path) -> Result<u64, Failed> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// A directory of the host that no container has any business in, with one file.
fn outside(case: &Case) -> Result<PathBuf, Failed> {
    let path = case.host_directory("outside")?;
    fs::write(path.join("treasure"), "the host's")?;
    Ok(path)
}

/// That it is as it was.
fn assert_unharmed(outside: &Path) -> Result<(), Failed> {
    assert_eq!(names_in(outside), ["treasure"]);
    assert_eq!(fs::read_to_string(outside.join("treasure"))?, "the host's");
    Ok(())
}

/// Takes the mounts on and below `/dev` out, so that the image's own is used.
fn without_dev(case: &mut Case) {
    for destination in ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev"] {
        config::without_mount(&mut case.config, destination);
    }
}

/// What a program inside printed as JSON, where the container came into being at all; an error of the runtime's must say
/// something.
fn told(end: Output) -> Result<Option<Value>, Failed> {
    if end.code == 0 { end.json().map(Some) } else { end.failure().map(|_| None) }
}

/// The mounts of a report for which `is` holds.
fn mounts_where(report: &Value, is: impl Fn(&Value) -> bool) -> usize {
    report["mounts"].as_array().into_iter().flatten().filter(|mount| is(mount)).count()
}
