//! `kill`: a signal to a container's first process, or to all of its processes.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use rustix::process::{PidfdFlags, pidfd_open};

use super::Setting;
use crate::cgroup::{self, Cgroup};
use crate::container::store::Entry;
use crate::container::{Id, Record, Status, Store, status};
use crate::error::{Context, Error, Result};
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
    // Without a pid namespace of its own the other processes do not end with the first.
    let every = all || signal == Signal::SIGKILL as i32 && shares_pids(&entry.config()?) && has_processes(record);
    if every && let Some(path) = &record.cgroup {
        return match cgroup::fs::open(path) {
            // Nothing is left to be signalled: what was wanted is so.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            cgroup => kill_all(&cgroup?, signal),
        };
    }
    let (Some(init), false) = (record.init, stopped) else {
        return Err(not_running());
    };
    if send(init.pid, signal, || init.is_alive())? { Ok(()) } else { Err(not_running()) }
}

fn not_running() -> Error {
    Error::plain("container not running")
}

fn shares_pids(config: &Config) -> bool {
    !config.linux.namespaces.iter().any(|namespace| namespace.kind == "pid" && namespace.path.as_os_str().is_empty())
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
    // Those that end meanwhile need none.
    cgroup::life::procs(cgroup)?.into_iter().try_for_each(|pid| send(pid.as_raw(), signal, || Ok(true)).map(drop))
}

/// Signals a process by its descriptor, once `still` says that it is the one. False: it has ended.
fn send(pid: i32, signal: i32, still: impl Fn() -> Result<bool>) -> Result<bool> {
    let Some(raw) = rustix::process::Pid::from_raw(pid) else { return Ok(false) };
    let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
        // EINVAL: its number lives on as that of a session or a group.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(false),
        pidfd => pidfd.or_cannot("signal process", pid)?,
    };
    if !still()? {
        return Ok(false);
    }
    match crate::sys::signal::pidfd_send(pidfd.as_fd(), signal) {
        Err(Errno::ESRCH) => Ok(false),
        answer => answer.or_cannot("signal process", pid).map(|()| true),
    }
}
