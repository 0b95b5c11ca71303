//! `delete`: removes what is left of a container. With force, whatever state it is in, also one that was cut off while it
//! was made.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::create::PATIENCE;
use super::{Setting, kill, scratch};
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
        take_down(setting, entry, record)?;
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
pub(super) fn take_down(setting: &Setting, entry: &Entry, record: &Record) -> Result<()> {
    if let Some(init) = record.init {
        end(&init)?;
    }
    let removed = match &record.cgroup {
        Some(path) => remove_cgroup(setting, entry, record, path)?,
        None => true,
    };
    if let Some(groups) = &record.resctrl {
        cgroup::resctrl::remove(groups)?;
    }
    // A scope is made around a process that is noted right after. One that was cut off in between ends by itself, with that
    // process: what has the name then is another container's, and so it is where its cgroup stays.
    if let Some(unit) = record.unit.as_ref().filter(|_| removed && record.init.is_some()) {
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

/// How long processes that nobody kills may take to end.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// Removes the cgroup; what still runs in it is killed if it can be the container's. False: it stays, with what another
/// container, or somebody else, has put there.
fn remove_cgroup(setting: &Setting, entry: &Entry, record: &Record, path: &Path) -> Result<bool> {
    // One call is enough for nearly all: the first process took the others of its pid namespace along.
    match rustix::fs::unlinkat(rustix::fs::CWD, path, rustix::fs::AtFlags::REMOVEDIR) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(true),
        Err(_) => (),
    }
    let cgroup = match cgroup::fs::open(path) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(true),
        cgroup => cgroup?,
    };
    if has_survivors(entry, record) {
        cgroup::life::kill(&cgroup)?;
    } else if !cgroup::life::wait_empty(&cgroup, LAST_BREATH)? {
        let pids: Vec<String> = cgroup::life::procs(&cgroup)?.iter().take(8).map(ToString::to_string).collect();
        let (path, id, pids) = (path.display(), &record.id, pids.join(", "));
        setting
            .log
            .warning(format!("cgroup {path} stays: processes run in it that are not container {id:?}'s: {pids}"));
        return Ok(false);
    }
    cgroup::life::remove(&cgroup, PATIENCE).map(|()| true)
}

/// Whether processes of the container may be left when its first one has ended. A pid namespace of its own has ended with that
/// one, and what was being launched ends when nobody is there to let it go on: who is in the cgroup all the same has come since.
/// A restore that was cut off has no such bounds.
fn has_survivors(entry: &Entry, record: &Record) -> bool {
    let restores = || entry.worker().is_some_and(|worker| worker.restores);
    record.init.is_some() && (kill::may_outlive_first(entry, record) || restores())
}
