//! `delete`: removes what is left of a container. With force, whatever state it is in, also one that was cut off while it
//! was made.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::create::PATIENCE;
use super::{Setting, scratch};
use crate::cgroup;
use crate::container::record::Init;
use crate::container::store::Entry;
use crate::container::{Id, Record, State, Status, Store, status};
use crate::error::{Context, Error, Result};
use crate::launch::hooks;
use crate::rootfs::on_host;
use crate::spec::Config;
use crate::sys::signal::pidfd_send;

/// Which containers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that are stopped, as the specification says (runtime.md#delete).
    Stopped,
    /// Created ones as well, which are killed first: runc's way.
    Created,
    /// All, whatever they do, and what was left of one that was never complete; that there is none is no failure.
    Any,
}

/// `delete`.
///
/// # Errors
/// The container is none of `which`; something cannot be removed.
pub fn delete(setting: &Setting, id: &str, which: Which) -> Result<()> {
    let (id, force) = (Id::new(id)?, which == Which::Any);
    let entry = match Store::new(&setting.root).open(&id).and_then(|entry| lock(&entry, force).map(|()| entry)) {
        Ok(entry) => entry,
        Err(error) if force && error.errno().is_none() => return Ok(()),
        Err(error) => return Err(error),
    };
    let record = match entry.record() {
        Ok(record) => record,
        // A record that is none names nothing to stop; its directory is all there is to remove. One that could only not be
        // read this time names a container that may run.
        Err(error) if force && error.errno().is_none() => {
            setting.log.warning(error);
            None
        }
        Err(error) => return Err(error),
    };
    let now = match &record {
        Some(record) => status::of(&entry, record),
        None => Ok(Status::Creating),
    };
    let now = match now {
        // Taken down whatever it is; whether its process lives is asked again.
        Err(_) if force => Status::Running,
        now => now?,
    };
    match now {
        Status::Stopped => (),
        Status::Created if which == Which::Created => (),
        _ if force => (),
        Status::Creating => {
            return Err(Error::plain(format!(
                "cannot delete container {id}: it is being created, or that was cut off"
            ))
            .hint("--force removes what is left of it"));
        }
        now => {
            return Err(Error::plain(format!("cannot delete container {id} that is not stopped: {now}"))
                .hint("kill it first, or use --force"));
        }
    }
    clean_up(setting, &entry, record.as_ref())
}

/// Waits for the lock. With force a checkpoint or restore that has it is interrupted, and a CRIU that outlived its ferry
/// ended: it would hold the processes back from their end.
fn lock(entry: &Entry, force: bool) -> Result<()> {
    if !force {
        return entry.lock();
    }
    match (entry.try_lock()?, entry.worker()) {
        (true, Some(worker)) => {
            worker.end_criu()?;
            // Of an export or import that was cut off.
            scratch::sweep();
            Ok(())
        }
        (true, None) => Ok(()),
        (false, Some(worker)) => worker.interrupt().and_then(|()| entry.lock()),
        (false, None) => entry.lock(),
    }
}

/// Ends what runs, removes the cgroup, then the container's directory: as long as anything is left, the record says what.
/// The poststop hooks come last, and whatever they do, the container is gone.
pub(super) fn clean_up(setting: &Setting, entry: &Entry, record: Option<&Record>) -> Result<()> {
    let config = record.map_or_else(Config::default, |record| config(setting, entry, record));
    if let Some(record) = record {
        take_down(record)?;
    }
    if let Some(store) = record.and_then(|record| record.store.as_deref()) {
        super::run_image::end_all(store, entry.path())?;
    }
    entry.remove()?;
    if let Some(record) = record {
        tell(setting, record, &config);
    }
    Ok(())
}

/// What it is told of at its end: its configuration, where that has hooks.
pub(super) fn config(setting: &Setting, entry: &Entry, record: &Record) -> Config {
    if !record.reads_config {
        return Config::default();
    }
    // Without its poststop hooks rather than not at all.
    entry.config().unwrap_or_else(|error| {
        setting.log.warning(error);
        Config::default()
    })
}

/// Ends what runs, and removes everything outside of the container's directory that was made for it.
pub(super) fn take_down(record: &Record) -> Result<()> {
    if let Some(init) = record.init {
        end(&init)?;
    }
    if let Some(path) = &record.cgroup {
        remove_cgroup(path)?;
    }
    if let Some(groups) = &record.resctrl {
        cgroup::resctrl::remove(groups)?;
    }
    if let Some(unit) = &record.unit {
        cgroup::systemd::Manager::connect()?.stop(unit)?;
    }
    match &record.mounted_over {
        Some(before) => on_host::detach(&record.rootfs, before),
        None => Ok(()),
    }
}

/// Runs the poststop hooks of a container that is down.
pub(super) fn tell(setting: &Setting, record: &Record, config: &Config) {
    if !config.hooks.poststop.is_empty() {
        let state = State::new(record, Status::Stopped, config.annotations.clone(), String::new());
        let streams = hooks::Streams::open(&config.hooks, &config.annotations).unwrap_or_else(|error| {
            setting.log.warning(error);
            hooks::Streams::default()
        });
        hooks::run_each("poststop", &config.hooks.poststop, &state, &streams, &setting.log);
    }
}

/// Kills the container's process, if it is still that one, and waits until it has ended.
fn end(init: &Init) -> Result<()> {
    let Some(pid) = rustix::process::Pid::from_raw(init.pid) else { return Ok(()) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        // EINVAL: it has ended, and its number lives on as that of a session whose other processes run.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(()),
        Err(answer) => return Err(answer).or_cannot("find", "the container's process"),
    };
    // Held by its descriptor, it can no longer become another one; so now is the time to see which one it is.
    if !init.is_alive()? {
        return Ok(());
    }
    match pidfd_send(pidfd.as_fd(), nix::sys::signal::Signal::SIGKILL as i32) {
        Ok(()) | Err(Errno::ESRCH) => (),
        Err(answer) => return Err(Error::kernel("kill", "the container's process", answer)),
    }
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    let ended = loop {
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => (),
            answer => break answer,
        }
    };
    match ended {
        Ok(0) => Err(Error::said("delete container", init.pid.to_string(), "its process does not end after SIGKILL")
            .hint("it hangs in the kernel (state D in ps): wait for what it waits for")),
        Ok(_) => Ok(()),
        Err(answer) => Err(Error::kernel("wait for", "the container's process", answer)),
    }
}

/// Removes the cgroup; what still runs in it is killed.
fn remove_cgroup(path: &std::path::Path) -> Result<()> {
    // One call is enough for nearly all: the first process took the others of its pid namespace along.
    match rustix::fs::unlinkat(rustix::fs::CWD, path, rustix::fs::AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(_) => (),
    }
    let cgroup = match cgroup::fs::open(path) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(()),
        cgroup => cgroup?,
    };
    cgroup::life::kill(&cgroup)?;
    cgroup::life::remove(&cgroup, PATIENCE)
}
