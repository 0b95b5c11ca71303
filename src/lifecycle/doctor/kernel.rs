//! The kernel: its version, and the calls that ferry is made of.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::mount::{FsOpenFlags, fsopen};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::Finding;
use super::attempt::{attempt, errno};
use crate::cgroup::location;
use crate::namespaces::TABLE;
use crate::sys::clone::{Cloned, Parent, clone3, exit_now};
use crate::sys::mount::{MountAttr, mount_setattr};
use crate::sys::{fd, stub};

/// The version that has every call: mount_setattr(2), which is the youngest of them.
const COMPLETE: (u32, u32) = (5, 12);

/// What was found.
pub(super) fn findings() -> Vec<Finding> {
    vec![version(), clone(), into_cgroup(), calls(), namespaces(), program()]
}

fn version() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    match numbers(&release) {
        Some(version) if version < COMPLETE => {
            let (major, minor) = COMPLETE;
            let found = format!("Linux {release}: some things are done in older ways or not at all");
            Finding::warning("kernel", found, format!("Linux {major}.{minor} or later"))
        }
        _ => Finding::ok("kernel", format!("Linux {release}")),
    }
}

/// Whether the kernel says that it is of this version or later.
pub(super) fn is_at_least(version: (u32, u32)) -> bool {
    numbers(&rustix::system::uname().release().to_string_lossy()) >= Some(version)
}

fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn clone() -> Finding {
    let subject = "clone, pidfd";
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).map(drop).map_err(errno);
    match attempt(&[], &|| Ok(())).and(pidfd) {
        Ok(()) => Finding::ok(subject, "available"),
        Err(answer) => {
            Finding::missing(subject, answer.desc(), "Linux 5.3 or later, and no filter around ferry that hides them")
                .needed()
        }
    }
}

/// The cgroup is ferry's own, so that nothing moves: what counts is whether the kernel understands.
fn into_cgroup() -> Finding {
    let subject = "clone into a cgroup";
    let Ok(Some(tree)) = location::find_tree() else {
        return Finding::warning(subject, "not tried: there is no cgroup v2 tree", "mount one");
    };
    let own = location::own_path().unwrap_or_else(|_| "/".into());
    let dir = tree.mount.join(own.strip_prefix("/").unwrap_or(&own));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = openat(CWD, &dir, flags, Mode::empty()) else {
        return Finding::warning(subject, "not tried: ferry's own cgroup is outside of its view", "see cgroup below");
    };
    match clone3(0, Some(dir.as_fd()), Parent::Caller) {
        Ok(Cloned::Child) => exit_now(0),
        Ok(Cloned::Parent { pid, .. }) => match nix::sys::wait::waitpid(pid, None) {
            Ok(_) => Finding::ok(subject, "available"),
            Err(answer) => {
                Finding::warning(subject, answer.desc(), "run ferry as a process that waits for its own children")
            }
        },
        Err(Errno::ENOSYS | Errno::E2BIG | Errno::EINVAL) => {
            Finding::warning(subject, "not in this kernel: processes are moved instead", "Linux 5.7 or later")
        }
        // Understood and refused: this very cgroup is not the caller's to start processes in.
        Err(_) => Finding::ok(subject, "available"),
    }
}

/// A call that is missing, and the version it came with.
type Call = (&'static str, &'static str, bool);

fn calls() -> Finding {
    let subject = "system calls";
    let calls = probe_calls();
    let missing: Vec<String> =
        calls.iter().filter(|call| !call.2).map(|(name, since, _)| format!("{name} (Linux {since})")).collect();
    if missing.is_empty() {
        let names: Vec<&str> = calls.iter().map(|call| call.0).collect();
        return Finding::ok(subject, format!("{}: available", names.join(", ")));
    }
    let found = format!("not in this kernel, or hidden by a filter: {}", missing.join(", "));
    Finding::missing(subject, found, "a kernel that has them; older ways are taken where there are any")
}

/// What is refused for want of a right is there.
fn probe_calls() -> Vec<Call> {
    let is_there = |answer: Result<(), Errno>| !matches!(answer, Err(Errno::ENOSYS));
    let root = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let nothing = MountAttr::default();
    let set = root.map_err(errno).and_then(|root| mount_setattr(root.as_fd(), c"", false, &nothing));
    let resolved = openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_MAGICLINKS);
    let opened = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC);
    vec![
        ("openat2", "5.6", is_there(resolved.map(drop).map_err(errno))),
        ("fsopen", "5.2", is_there(opened.map(drop).map_err(errno))),
        ("mount_setattr", "5.12", is_there(set)),
        ("close_range", "5.11", fd::cloexec_from(i32::MAX).is_ok()),
    ]
}

fn namespaces() -> Finding {
    let missing: Vec<&str> =
        TABLE.iter().filter(|row| !Path::new("/proc/self/ns").join(row.file).exists()).map(|row| row.name).collect();
    if missing.is_empty() {
        return Finding::ok("namespaces", TABLE.map(|row| row.name).join(", "));
    }
    let found = format!("not in this kernel: {}", missing.join(", "));
    Finding::missing("namespaces", found, "a kernel built with them, or a config.json without them")
}

/// Every program is started through a sealed file in memory: without it nothing starts.
fn program() -> Finding {
    let subject = "executable memory files";
    match stub::sealed(stub::Report::On(2), None, &[], 0) {
        Ok(_) => Finding::ok(subject, "available"),
        Err(answer) => Finding::missing(subject, answer.desc(), "sysctl vm.memfd_noexec=1").needed(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions() {
        assert_eq!(numbers("6.12.43+deb13-amd64"), Some((6, 12)));
        assert_eq!(numbers("5.4-custom"), Some((5, 4)));
        assert_eq!(numbers("next"), None);
        assert!(numbers("4.19.0") < Some(COMPLETE));
    }

    #[test]
    fn a_kernel_that_runs_these_tests_has_the_calls() {
        assert!(probe_calls().iter().all(|call| call.2), "{:?}", probe_calls());
    }
}
