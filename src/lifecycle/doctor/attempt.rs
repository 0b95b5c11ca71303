//! Trying something in a child with namespaces of its own, which ends at once and takes everything with it.

use std::fs;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};

use crate::error::IntoErrno;
use crate::host::Host;
use crate::namespaces::Kind;
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};

/// How long a trial may take, in milliseconds: beyond it the kernel hangs, and the answer is ETIME.
const PATIENCE: u16 = 5000;

/// Does `deed` in a child in new namespaces of these kinds. Called by a process of one thread, as `clone_either_way` asks.
pub(super) fn attempt(kinds: &[Kind], deed: &dyn Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    let flags = kinds.iter().fold(0, |flags, kind| flags | kind.row().flag as u64);
    match clone_either_way(flags, Parent::Caller)? {
        // The answer is small enough to be an exit status: errnos end at 133.
        Cloned::Child => exit_now(deed().err().map_or(0, |errno| errno as i32)),
        Cloned::Parent { pid, pidfd } => {
            let timeout = PollTimeout::from(PATIENCE);
            if poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout)? == 0 {
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
                waitpid(pid, None)?;
                return Err(Errno::ETIME);
            }
            match waitpid(pid, None)? {
                WaitStatus::Exited(_, 0) => Ok(()),
                WaitStatus::Exited(_, errno) => Err(Errno::from_raw(errno)),
                _ => Err(Errno::EINTR),
            }
        }
    }
}

/// Makes the caller's user root of the user namespace that this process has just been born in.
pub(super) fn become_root(host: &Host) -> Result<(), Errno> {
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {} 1", host.uid))?;
    write("/proc/self/gid_map", &format!("0 {} 1", host.gid))
}

/// Writes a file in one go.
pub(super) fn write(path: &str, text: &str) -> Result<(), Errno> {
    fs::write(path, text).map_err(errno)
}

/// The kernel's answer inside a library's.
pub(super) fn errno(error: impl IntoErrno) -> Errno {
    error.into_errno().unwrap_or(Errno::EIO)
}

/// An empty filesystem of the trial's own, over a directory that every host has. It is gone with the trial.
pub(super) fn scratch() -> Result<&'static str, Errno> {
    const PLACE: &str = "/proc";
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), MsFlags::empty(), none)?;
    Ok(PLACE)
}
