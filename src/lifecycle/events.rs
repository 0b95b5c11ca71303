//! `events`: what a container uses, and when the kernel kills one of its processes for want of memory.
//!
//! One poll(2) waits for whatever comes first: a change of the cgroup's memory events, the end of the container's first
//! process, the end of the interval.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

use super::Setting;
use super::live::{self, Live};
use crate::cgroup::{self, Cgroup, stats::MemoryEvents};
use crate::error::{Context, Error, Result};
use crate::process::memory_merge;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The interval is over: usage now.
    Stats(Value),
    /// The kernel killed a process of the container for want of memory.
    Oom,
}

/// Usage now, in the shape of runc's `data`.
///
/// # Errors
/// The container does not run, or has no cgroup that would count.
pub fn stats(setting: &Setting, id: &str) -> Result<Value> {
    let container = running(setting, id)?;
    usage(&container.cgroup("count the usage of")?, is_merged(&container)?)
}

/// Calls `each` with every event until the container is gone: usage whenever `interval` is over, for the first time after
/// one, and each kill when it happens.
///
/// # Errors
/// As [`stats`], and what `each` answers.
pub fn follow(
    setting: &Setting,
    id: &str,
    interval: Duration,
    each: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<()> {
    let container = running(setting, id)?;
    let cgroup = container.cgroup("count the usage of")?;
    let Some(end) = end_of(&container)? else { return Ok(()) };
    let merged = is_merged(&container)?;
    let mut memory = MemoryEvents::open(&cgroup)?;
    let mut next = Instant::now() + interval;
    loop {
        let ended = wait(&end, memory.as_ref(), next).or_cannot("wait for events of container", format!("{id:?}"))?;
        // Before the end is believed: it may be a kill that ended it.
        for _ in 0..memory.as_mut().map_or(Ok(0), MemoryEvents::new_kills)? {
            each(Event::Oom)?;
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            each(Event::Stats(usage(&cgroup, merged)?))?;
            // Counted from now: a reader that was slow is not owed the lines it missed.
            next = Instant::now() + interval;
        }
    }
}

fn running(setting: &Setting, id: &str) -> Result<Live> {
    let container = live::open(setting, id)?;
    if container.has_process() {
        return Ok(container);
    }
    Err(Error::plain(format!("container with id {id} is not running: it is {}", container.status)))
}

/// Whether the container asked to have its memory merged with that of others.
pub(super) fn is_merged(container: &Live) -> Result<bool> {
    Ok(container.entry.config()?.annotations.get(memory_merge::ANNOTATION).is_some_and(|asked| asked == "true"))
}

/// What merging saved is an addition to runc's shape, where it was asked for: `memory.ksm`.
fn usage(cgroup: &Cgroup, merged: bool) -> Result<Value> {
    let unwritten = |why: serde_json::Error| Error::said("write the usage as", "JSON", why.to_string());
    let mut usage = serde_json::to_value(cgroup::stats::read(cgroup)?).map_err(unwritten)?;
    if merged {
        let saved = memory_merge::merged(&cgroup::life::procs(cgroup)?);
        usage["memory"]["ksm"] = serde_json::to_value(saved).map_err(unwritten)?;
    }
    Ok(usage)
}

/// What becomes readable when the container's first process ends. `None`: it has ended already.
fn end_of(container: &Live) -> Result<Option<OwnedFd>> {
    let Some((init, pid)) = container.init().and_then(|init| Some((init, Pid::from_raw(init.pid)?))) else {
        return Ok(None);
    };
    let end = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
        end => end.or_cannot("watch process", init.pid)?,
    };
    // Asked after the descriptor was opened, so that it is known to be of that process and not of a later one.
    Ok(init.is_alive()?.then_some(end))
}

/// Waits for any of the three; true: the container has ended.
fn wait(end: &OwnedFd, memory: Option<&MemoryEvents>, until: Instant) -> Result<bool, Errno> {
    // Rounded up, else the last millisecond would be spent in a busy loop.
    let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    let mut watched = vec![PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    watched.extend(memory.map(|memory| PollFd::new(memory.as_fd(), PollFlags::POLLPRI)));
    match poll(&mut watched, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(watched[0].any() == Some(true)),
        Err(errno) => Err(errno),
    }
}
