//! A cgroup as a whole: freezing, killing, waiting for its end, removing.
//!
//! States are waited for by poll(2) on cgroup.events, which wakes at each change; nothing sleeps and looks again. The
//! event counter that poll compares with is set by reading, so reading first and polling after loses no change.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno as NixErrno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

use super::file;
use super::fs::Cgroup;

/// Stops every process of the cgroup and of those below it, and waits until all have stopped.
///
/// # Errors
///
/// The kernel has no freezer (before Linux 5.2), or a process does not stop in `patience` (it hangs in the kernel); the
/// cgroup is then thawed again.
pub fn freeze(cgroup: &Cgroup, patience: Duration) -> Result<()> {
    set_frozen(cgroup, "1")?;
    if wait(cgroup, "frozen", "1", patience)? {
        return Ok(());
    }
    set_frozen(cgroup, "0")?;
    Err(Error::said("freeze the cgroup", cgroup.path.display().to_string(), "a process in it does not stop")
        .hint("one that waits inside the kernel (state D in ps) stops only when that wait is over"))
}

/// Lets the processes go on.
///
/// # Errors
///
/// The kernel has no freezer, or a cgroup above is frozen, so that this one stays so.
pub fn thaw(cgroup: &Cgroup, patience: Duration) -> Result<()> {
    set_frozen(cgroup, "0")?;
    if wait(cgroup, "frozen", "0", patience)? {
        return Ok(());
    }
    Err(Error::said("thaw the cgroup", cgroup.path.display().to_string(), "a cgroup above it is frozen"))
}

/// Whether the cgroup is asked to be frozen, which is what a paused container is.
///
/// # Errors
///
/// The cgroup is gone. A kernel without a freezer answers no.
pub fn is_frozen(cgroup: &Cgroup) -> Result<bool> {
    match file::read(cgroup.as_fd(), "cgroup.freeze") {
        Ok(state) => Ok(state.trim_end() == "1"),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno).or_cannot("read the state of the cgroup", cgroup.path.display()),
    }
}

fn set_frozen(cgroup: &Cgroup, state: &str) -> Result<()> {
    match file::write(cgroup.as_fd(), "cgroup.freeze", state) {
        Err(Errno::NOENT) => Err(Error::said(
            "freeze or thaw the cgroup",
            cgroup.path.display().to_string(),
            "this kernel has no freezer for cgroup v2 (it came with Linux 5.2), or the cgroup is gone",
        )),
        answer => answer.or_cannot("freeze or thaw the cgroup", cgroup.path.display()),
    }
}

/// Waits until no process is left in the cgroup nor below it. False: there still are some when `patience` is over.
///
/// # Errors
///
/// cgroup.events cannot be read. A cgroup that is gone is empty.
pub fn wait_empty(cgroup: &Cgroup, patience: Duration) -> Result<bool> {
    wait(cgroup, "populated", "0", patience)
}

fn wait(cgroup: &Cgroup, key: &str, value: &str, patience: Duration) -> Result<bool> {
    let until = Instant::now() + patience;
    let object = || cgroup.path.join("cgroup.events").display().to_string();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let events = match openat(cgroup, "cgroup.events", flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NODEV) => return Ok(true),
        events => events.or_cannot("open", object())?,
    };
    loop {
        match file::read_all(&events) {
            Ok(text) if file::value_of(&text, key).is_none_or(|now| now == value) => return Ok(true),
            // Removed while it was held open.
            Err(Errno::NODEV) => return Ok(true),
            answer => answer.or_cannot("read", object())?,
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        wait_for_change(&events, left).or_cannot("wait on", object())?;
    }
}

fn wait_for_change(events: &OwnedFd, left: Duration) -> Result<(), NixErrno> {
    // Rounded up, else the last millisecond would be spent in a busy loop.
    let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout) {
        Ok(_) | Err(NixErrno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Sends SIGKILL to every process of the cgroup and of those below it, also to those that fork at the same time.
///
/// It does not wait for their end: see [`wait_empty`].
///
/// # Errors
///
/// The kernel refuses.
pub fn kill(cgroup: &Cgroup) -> Result<()> {
    match file::write(cgroup.as_fd(), "cgroup.kill", "1") {
        // No such file before Linux 5.14; not in a threaded cgroup.
        Err(Errno::NOENT | Errno::OPNOTSUPP) => kill_one_by_one(cgroup),
        Err(Errno::NODEV) => Ok(()),
        answer => answer.or_cannot("kill the cgroup", cgroup.path.display()),
    }
}

/// How long one round of kills is given to show that none forked past it.
const ROUND: Duration = Duration::from_millis(100);
const ROUNDS: u32 = 100;

/// Frozen processes cannot fork, so that each is met; SIGKILL ends a frozen process of cgroup v2 without thawing it.
/// Where there is no freezer either, rounds are repeated until nothing is left.
fn kill_one_by_one(cgroup: &Cgroup) -> Result<()> {
    let frozen = file::write(cgroup.as_fd(), "cgroup.freeze", "1").is_ok();
    let killed = kill_rounds(cgroup);
    // Thawed in any case: who comes next must not find it frozen.
    if frozen {
        set_frozen(cgroup, "0")?;
    }
    killed
}

fn kill_rounds(cgroup: &Cgroup) -> Result<()> {
    for _ in 0..ROUNDS {
        for pid in procs(cgroup)? {
            match signal(pid, Signal::SIGKILL) {
                Ok(()) | Err(NixErrno::ESRCH) => {}
                answer => answer.or_cannot("kill process", pid)?,
            }
        }
        if wait_empty(cgroup, ROUND)? {
            return Ok(());
        }
    }
    Err(Error::said("kill the cgroup", cgroup.path.display().to_string(), "its processes do not end"))
}

/// Every process of the cgroup and of those below it. Processes outside of our pid namespace are left out.
///
/// # Errors
///
/// The cgroup cannot be read. One that is removed meanwhile has no processes.
pub fn procs(cgroup: &Cgroup) -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    collect(cgroup.as_fd(), &mut pids).or_cannot("list the processes of the cgroup", cgroup.path.display())?;
    Ok(pids)
}

fn collect(dir: BorrowedFd<'_>, pids: &mut Vec<Pid>) -> Result<(), Errno> {
    let list = match file::read(dir, "cgroup.procs") {
        // A threaded cgroup lists threads only; a signal to one of them reaches its process.
        Err(Errno::OPNOTSUPP) => file::read(dir, "cgroup.threads"),
        list => list,
    };
    match list {
        Ok(list) => {
            pids.extend(list.lines().filter_map(|pid| pid.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw))
        }
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    for name in children(dir)? {
        match file::open_dir(dir, &name) {
            Ok(child) => collect(child.as_fd(), pids)?,
            Err(Errno::NOENT | Errno::NODEV) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn children(dir: BorrowedFd<'_>) -> Result<Vec<std::ffi::CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let is_own = matches!(entry.file_name().to_bytes(), b"." | b"..");
        if entry.file_type() == FileType::Directory && !is_own {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Removes the cgroup and all below it, and waits up to `patience` for processes that are about to end.
///
/// # Errors
///
/// Processes remain, with their ids. A cgroup that is gone already is as good as removed.
pub fn remove(cgroup: &Cgroup, patience: Duration) -> Result<()> {
    let until = Instant::now() + patience;
    loop {
        match remove_tree(cgroup) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno).or_cannot("remove the cgroup", cgroup.path.display()),
        }
        let left = until.saturating_duration_since(Instant::now());
        // Empty and busy all the same: something was made or moved in between, so it is tried again while time remains.
        if left.is_zero() || !wait_empty(cgroup, left)? {
            return Err(busy(cgroup));
        }
    }
}

fn busy(cgroup: &Cgroup) -> Error {
    let pids = procs(cgroup).unwrap_or_default();
    let listed: Vec<String> = pids.iter().take(8).map(ToString::to_string).collect();
    let why = if pids.is_empty() { "it is busy".into() } else { format!("processes run in it: {}", listed.join(", ")) };
    Error::said("remove the cgroup", cgroup.path.display().to_string(), why).hint("kill the container first")
}

fn remove_tree(cgroup: &Cgroup) -> Result<(), Errno> {
    // Most containers make no cgroups of their own: try the one call first, and walk only if that fails.
    match unlinkat(CWD, &cgroup.path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(errno) => return Err(errno),
    }
    remove_children(cgroup.as_fd())?;
    match unlinkat(CWD, &cgroup.path, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        answer => answer,
    }
}

fn remove_children(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in children(dir)? {
        match file::open_dir(dir, &name) {
            Ok(child) => remove_children(child.as_fd())?,
            Err(Errno::NOENT | Errno::NODEV) => continue,
            Err(errno) => return Err(errno),
        }
        match unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
