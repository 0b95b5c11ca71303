//! The clone: into the cgroup where the kernel can, and otherwise moved there before it does anything.
//!
//! A child that was not born in its cgroup must not go on before it is there: its cgroup namespace would have the wrong
//! root, and show it the host's tree. So it waits to be placed, and both sides know.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use rustix::process::{Signal, pidfd_send_signal};

use crate::cgroup::{self, Cgroup};
use crate::error::{Context, Error, Result};
use crate::sys::clone::{Cloned, Parent, clone_either_way, clone3};

/// Clones this process with `namespaces` into `cgroup`. True: it was moved there (or is about to be, as the child sees it), and
/// the child has to wait for that.
///
/// # Errors
/// What clone3(2) answers, or writing to cgroup.procs; the child is gone then.
pub fn clone_into(namespaces: u64, cgroup: Option<&Cgroup>, parent: Parent) -> Result<(Cloned, bool)> {
    let first = match cgroup {
        Some(cgroup) => clone3(namespaces, Some(cgroup.dir.as_fd()), parent),
        None => clone_either_way(namespaces, parent),
    };
    match (first, cgroup) {
        // Before Linux 5.7, or 5.3, or with a filter around ferry that does not know the call.
        (Err(Errno::EINVAL | Errno::E2BIG | Errno::ENOSYS | Errno::EPERM), Some(cgroup)) => {
            let cloned = refused(clone_either_way(namespaces, parent))?;
            if let Cloned::Parent { pid, pidfd } = &cloned
                && let Err(error) = cgroup::fs::attach(cgroup, *pid)
            {
                // Nobody has told it to go on.
                pidfd_send_signal(pidfd, Signal::KILL).or_cannot("kill", "the container's process")?;
                if parent == Parent::Caller {
                    waitpid(*pid, Some(WaitPidFlag::__WALL)).or_cannot("wait for", "the container's process")?;
                }
                return Err(error);
            }
            Ok((cloned, true))
        }
        (first, _) => Ok((refused(first)?, false)),
    }
}

fn refused(cloned: std::result::Result<Cloned, Errno>) -> Result<Cloned> {
    cloned.or_cannot("clone", "the container's process").map_err(hint)
}

fn hint(error: Error) -> Error {
    match error.errno() {
        Some(Errno::EPERM) => error.hint("see `ferry doctor`: namespaces may be switched off for this user"),
        Some(Errno::ENOSPC | Errno::EUSERS) => error.hint("a limit on namespaces is reached: see /proc/sys/user"),
        Some(Errno::ENOSYS) => {
            error.hint("pidfds are missing: Linux 5.3 has them, or a filter around ferry hides them")
        }
        Some(Errno::EAGAIN) => error.hint("a limit on processes is reached: ulimit -u, or pids.max"),
        _ => error,
    }
}
