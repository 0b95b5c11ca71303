//! Which devices a container may use: rules compiled to a BPF program on its cgroup.
//!
//! Rules are applied in order: for each access (read, write, mknod) the last rule that names it decides, and a request is
//! allowed when all its accesses are. What no rule names is denied.
//!
//! **An empty list** still denies everything but [`ALWAYS`], as runc and crun do. The specification does not say; but a
//! container with `CAP_MKNOD` and no rules could otherwise make and read the host's disks, and a bundle that runs safely
//! under runc must not run less safely here. Whoever wants no filter says so: `{"allow": true, "access": "rwm"}`, for
//! which no program is loaded at all.
//!
//! Source: runtime-spec config-linux.md#allowed-device-list.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::error::{Context, Error, Result};
use crate::procfs;
use crate::spec::resources::DeviceRule;
use crate::sys::bpf::{self, Instruction};

use super::device_program::compile;

/// The name of ferry's programs, by which a person finds them among those of systemd and others.
const NAME: &bpf::Name = b"ferry_devices\0\0\0";

/// Devices that every container may use, whatever its rules say: type, major, minor (-1: any), access.
///
/// The specification's default devices, pseudo-terminals, /dev/net/tun (which orchestrators have come to rely on), and
/// making any node: a node that may not be opened is harmless, and packages are unpacked with them.
pub const ALWAYS: &[(&str, i64, i64, &str)] = &[
    ("c", -1, -1, "m"),
    ("b", -1, -1, "m"),
    ("c", 1, 3, "rwm"),    // null
    ("c", 1, 5, "rwm"),    // zero
    ("c", 1, 7, "rwm"),    // full
    ("c", 1, 8, "rwm"),    // random
    ("c", 1, 9, "rwm"),    // urandom
    ("c", 5, 0, "rwm"),    // tty
    ("c", 5, 1, "rwm"),    // console
    ("c", 5, 2, "rwm"),    // ptmx
    ("c", 136, -1, "rwm"), // pts/*
    ("c", 10, 200, "rwm"), // net/tun
];

/// What came of installing rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Installed {
    /// A program filters the cgroup's devices.
    Filter,
    /// The rules allow everything, so there is no program.
    Everything,
    /// The kernel lets this user load no programs. It lets a user namespace make no device nodes either, nor open those
    /// on its own mounts: what is left are the host's nodes that the user could open anyway.
    NotPermitted,
}

/// The rules that hold for a container: those asked for, then [`ALWAYS`].
pub fn in_force(asked: &[DeviceRule]) -> Vec<DeviceRule> {
    let always = ALWAYS.iter().map(|&(kind, major, minor, access)| DeviceRule {
        allow: true,
        kind: kind.into(),
        major: Some(major),
        minor: Some(minor),
        access: access.into(),
    });
    asked.iter().cloned().chain(always).collect()
}

/// Puts rules into force on a cgroup that has just been made, which therefore has no program of ours.
///
/// # Errors
///
/// A rule is malformed, or the kernel refuses the program.
pub fn install(cgroup: BorrowedFd<'_>, rules: &[DeviceRule]) -> Result<Installed> {
    let Some(program) = compile(rules)? else { return Ok(Installed::Everything) };
    let Some(program) = load(&program)? else { return Ok(Installed::NotPermitted) };
    bpf::attach(cgroup, program.as_fd()).or_cannot("attach the device filter to", "the container's cgroup")?;
    Ok(Installed::Filter)
}

fn load(program: &[Instruction]) -> Result<Option<OwnedFd>> {
    match bpf::load_device_filter(program, NAME) {
        Ok(program) => Ok(Some(program)),
        Err(refusal) if refusal.errno == Errno::EPERM && unprivileged() => Ok(None),
        Err(refusal) if refusal.errno == Errno::EPERM => {
            Err(Error::kernel("load the container's device filter", "", refusal.errno)
                .hint("it takes CAP_BPF or CAP_SYS_ADMIN, and before Linux 5.11 a higher ulimit -l"))
        }
        Err(refusal) => {
            let error = Error::kernel("load the container's device filter", "", refusal.errno);
            Err(if refusal.log.is_empty() { error } else { error.hint(format!("the kernel says: {}", refusal.log)) })
        }
    }
}

/// Whether the kernel takes us for an ordinary user: not root, or root of a user namespace only.
fn unprivileged() -> bool {
    let whole_map = |map: String| map.split_whitespace().eq(["0", "0", "4294967295"]);
    !nix::unistd::geteuid().is_root() || !procfs::text("/proc/self/uid_map").is_ok_and(whole_map)
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
