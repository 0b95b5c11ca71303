//! `kill`: a signal to a container's first process, or to all of its processes.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use super::{Setting, ps};
use crate::cgroup::{self, Cgroup};
use crate::container::store::Entry;
use crate::container::{Id, Record, Status, Store, status};
use crate::error::{Context, Error, Result};
use crate::namespaces::Kind;
use crate::spec::Config;

/// `kill`.
///
/// # Errors
/// The container does not run; a migration has given it up, and it may go on elsewhere.
pub fn kill(setting: &Setting, id: &str, signal: i32, all: bool) -> Result<()> {
    let id = Id::new(id)?;
    let entry = Store::new(&setting.root).open(&id)?;
    let record = entry.record()?.filter(|record| record.init.is_some());
    let record = record.ok_or_else(|| Error::plain(format!("container {id} is not created yet")))?;
    record.is_here()?;
    signal_to(&entry, &record, signal, all)?;
    // A migration looks for signals once it has said that it gives the container up: either it sees this one, or this sees that.
    entry.record()?.map_or(Ok(()), |record| record.is_here())
}

fn signal_to(entry: &Entry, record: &Record, signal: i32, all: bool) -> Result<()> {
    let stopped = status::of(entry, record)? == Status::Stopped;
    let kills = signal == Signal::SIGKILL as i32;
    // Otherwise the others end with the first: whom its cgroup may have then is another's.
    let outlive = (all || kills) && may_outlive_first(entry, record);
    if all && stopped && !outlive && record.cgroup.is_some() {
        // Nothing is left to be signalled: what was wanted is so.
        return Ok(());
    }
    let every = if outlive { all || has_processes(record) } else { all && !kills };
    if every && let Some(path) = &record.cgroup {
        return match cgroup::fs::open(path) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            cgroup => kill_all(&cgroup?, signal),
        };
    }
    let (Some(init), false) = (record.init, stopped) else {
        return Err(not_running());
    };
    if every {
        // All at once: with the first one gone the others are not found any more.
        let list = || if init.is_alive()? { ps::related(record, init.pid) } else { Ok(Vec::new()) };
        return signal_listed(&list()?, list, signal);
    }
    if send(init.pid, signal, || init.is_alive())? { Ok(()) } else { Err(not_running()) }
}

fn not_running() -> Error {
    Error::plain("container not running")
}

/// Whether processes of the container need not end with its first one: it has no pid namespace of its own. One whose configuration is
/// lost is not said to.
pub(super) fn may_outlive_first(entry: &Entry, record: &Record) -> bool {
    let shares = |config: &Config| {
        !config
            .linux
            .namespaces
            .iter()
            .any(|namespace| namespace.kind == "pid" && namespace.path.as_os_str().is_empty())
    };
    !record.namespaces.contains(&Kind::Pid) || entry.config().is_ok_and(|config| shares(&config))
}

/// Whether the container's cgroup is there and has any.
fn has_processes(record: &Record) -> bool {
    let found = record.cgroup.as_ref().map(|path| cgroup::fs::open(path).and_then(|found| cgroup::life::procs(&found)));
    matches!(found, Some(Ok(pids)) if !pids.is_empty())
}

fn kill_all(cgroup: &Cgroup, signal: i32) -> Result<()> {
    if signal == Signal::SIGKILL as i32 {
        return cgroup::life::kill(cgroup);
    }
    let list = || cgroup::life::procs(cgroup).map(|pids| pids.into_iter().map(Pid::as_raw).collect());
    let pids: Vec<i32> = list()?;
    pids.chunks(MOST_HELD).try_for_each(|pids| signal_listed(pids, list, signal))
}

/// So many are held at a time: descriptors are not without end.
const MOST_HELD: usize = 256;

/// Signals processes of a list. It is asked for again once they are held: who is in it before and after has not become another's in
/// between. Those that end meanwhile need no signal.
fn signal_listed(pids: &[i32], list: impl Fn() -> Result<Vec<i32>>, signal: i32) -> Result<()> {
    let mut held = Vec::new();
    for pid in pids {
        held.extend(hold(*pid)?.map(|pidfd| (*pid, pidfd)));
    }
    let still = list()?;
    held.retain(|(pid, _)| still.contains(pid));
    held.iter().try_for_each(|(pid, pidfd)| signal_held(*pid, pidfd, signal).map(drop))
}

/// Signals a process by its descriptor, once `still` says that it is the one. False: it has ended.
fn send(pid: i32, signal: i32, still: impl Fn() -> Result<bool>) -> Result<bool> {
    match hold(pid)? {
        Some(pidfd) if still()? => signal_held(pid, &pidfd, signal),
        _ => Ok(false),
    }
}

fn hold(pid: i32) -> Result<Option<OwnedFd>> {
    let Some(raw) = rustix::process::Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(raw, PidfdFlags::empty()) {
        // EINVAL: its number lives on as that of a session or a group.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
        pidfd => pidfd.or_cannot("signal process", pid).map(Some),
    }
}

fn signal_held(pid: i32, pidfd: &OwnedFd, signal: i32) -> Result<bool> {
    match crate::sys::signal::pidfd_send(pidfd.as_fd(), signal) {
        Err(Errno::ESRCH) => Ok(false),
        answer => answer.or_cannot("signal process", pid).map(|()| true),
    }
}
