//! `checkpoint`: a container's state to files. It is gone afterwards, unless it is to go on.

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::Pid;

use super::live::{self, Live};
use super::{Setting, delete};
use crate::cgroup;
use crate::checkpoint::dump::{self, DumpChoice, Subject};
use crate::container::Status;
use crate::container::worker::Worker;
use crate::error::{Context, Error, Result};

/// Dumps a container.
///
/// # Errors
/// It does not run, or cannot be dumped; then it goes on as before.
pub fn checkpoint(setting: &Setting, id: &str, choice: &DumpChoice) -> Result<()> {
    with(setting, id, choice, &mut |_| Ok(()))
}

/// Dumps a container, and does `after` once the images are whole, while what is left of the container is still there.
///
/// # Errors
/// As [`checkpoint`], or `after`'s own.
pub(super) fn with(
    setting: &Setting,
    id: &str,
    choice: &DumpChoice,
    after: &mut dyn FnMut(&Live) -> Result<()>,
) -> Result<()> {
    // An interrupt ends the dump where that can be, and not in the middle of it.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).or_cannot("block", "signals")?;
    let container = live::open_locked(setting, id)?;
    let init = match (container.status, container.record.init) {
        (Status::Running | Status::Paused, Some(init)) => init,
        (status, _) => {
            return Err(Error::plain(format!("container {id:?} cannot be checkpointed: it is {status}"))
                .hint("only one whose program runs, or is paused, has anything to keep"));
        }
    };
    if container.entry.has_stage() || container.record.store.is_some() {
        return Err(Error::plain(format!("container {id:?} cannot be checkpointed: its root goes with it"))
            .hint("run it from a bundle, whose root filesystem is still there when it is restored"));
    }
    container.entry.note_worker(&Worker::own(None)?)?;
    let dumped = dump_container(&container, init.pid(), choice);
    let done = match &dumped {
        Ok(()) => after(&container),
        Err(error) => Err(error.clone()),
    };
    let mut undone = container.entry.rest();
    if dumped.is_ok() && !choice.leave_running && !choice.pre_dump {
        // Its processes have ended; what is left of it is in the images.
        undone = undone.and_then(|()| delete::clean_up(setting, &container.entry, Some(&container.record)));
    }
    match done {
        Ok(()) => undone,
        Err(error) => Err(error.and_then(undone)),
    }
}

fn dump_container(container: &Live, pid: Pid, choice: &DumpChoice) -> Result<()> {
    let config = container.entry.config()?;
    let cgroup = container.record.cgroup.as_ref().map(|path| cgroup::fs::open(path)).transpose()?;
    let subject = Subject {
        id: container.entry.id.as_str(),
        config: &config,
        bundle: &container.record.bundle,
        rootfs: &container.record.rootfs,
        pid,
        cgroup: cgroup.as_ref(),
        entry: Some(&container.entry),
    };
    dump::dump(&subject, choice)
}
