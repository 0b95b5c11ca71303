//! `checkpoint`: a container's state to files. It is gone afterwards, unless it is to go on.

use std::io::ErrorKind;
use std::path::Path;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::Pid;

use super::live::{self, Live};
use super::{Setting, delete};
use crate::cgroup::{self, Cgroup};
use crate::checkpoint::dump::{self, Afterwards, DumpChoice, Subject};
use crate::checkpoint::freezer::Freezer;
use crate::checkpoint::progress::{self, Progress};
use crate::checkpoint::{obstacles, root};
use crate::container::Status;
use crate::container::worker::Worker;
use crate::error::{Context, Error, Result};

/// Looks at a container with a root of its own, before it is dumped; answers what is to be done when its processes stand still.
pub(super) type KeepRoot = fn(&Live, &Path) -> Result<KeptRoot>;
/// Writes down what it changed there.
pub(super) type KeptRoot = Box<dyn Fn() -> Result<()>>;

/// Dumps a container.
///
/// # Errors
/// It does not run, or cannot be dumped; then it goes on as before.
pub fn checkpoint(setting: &Setting, id: &str, choice: &DumpChoice, progress: &dyn Progress) -> Result<()> {
    with(setting, id, choice, Deeds { keep_root: None, complete: &|| Ok(()), after: &mut |_| Ok(()), progress })
}

/// Whether a container's root is an overlay of its own, which must be saved with it.
///
/// # Errors
/// There is no such container.
pub fn has_own_root(setting: &Setting, id: &str) -> Result<bool> {
    live::open(setting, id).map(|container| has_own(&container))
}

fn has_own(container: &Live) -> bool {
    container.record.store.is_some() || container.entry.has_stage()
}

/// What is done beside a dump.
pub(super) struct Deeds<'a> {
    /// Keeps a root of the container's own, where the program has that.
    pub keep_root: Option<KeepRoot>,
    /// Everything is in the images, and the container is about to end, or to go on.
    pub complete: &'a dyn Fn() -> Result<()>,
    /// The container has ended or goes on, and what is left of it is still there.
    pub after: &'a mut dyn FnMut(&Live) -> Result<()>,
    /// Hears of it all.
    pub progress: &'a dyn Progress,
}

/// Dumps a container, with what is to be done beside that.
///
/// # Errors
/// As [`checkpoint`], or those of the deeds.
pub(super) fn with(setting: &Setting, id: &str, choice: &DumpChoice, deeds: Deeds<'_>) -> Result<()> {
    dump_locked(setting, &live::open_locked(setting, id)?, choice, deeds)
}

/// The same with a container that is open, and locked.
///
/// # Errors
/// As [`with`].
pub(super) fn dump_locked(setting: &Setting, container: &Live, choice: &DumpChoice, deeds: Deeds<'_>) -> Result<()> {
    let Deeds { keep_root, complete, after, progress } = deeds;
    // An interrupt ends the dump where that can be, and not in the middle of it.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).or_cannot("block", "signals")?;
    container.record.is_here()?;
    let id = container.entry.id.as_str();
    let init = match (container.status, container.record.init) {
        (Status::Running | Status::Paused, Some(init)) if !container.entry.has_gate()? => init,
        (status, _) => {
            return Err(Error::plain(format!("container {id:?} cannot be checkpointed: it is {status}"))
                .hint("only one whose program runs, or is paused, has anything to keep"));
        }
    };
    if container.record.mounted_over.is_some() {
        let why = format!("container {id:?} cannot be checkpointed: its mounts are the host's");
        return Err(Error::plain(why).hint("give it a mount namespace of its own"));
    }
    let images = &choice.choice.images;
    let kept = match (has_own(container) && !choice.pre_dump, keep_root) {
        (true, Some(keep_root)) => Some(keep_root(container, images)?),
        (true, None) => {
            return Err(Error::plain(format!("the root of container {id:?} goes with it, and is not saved")));
        }
        (false, _) => None,
    };
    if kept.is_none() {
        // What another container left there is not this one's.
        forget_root(images)?;
    }
    container.entry.note_worker(&Worker::own(None)?)?;
    let all = || kept.as_ref().map_or(Ok(()), |kept| kept()).and_then(|()| complete());
    let dumped = dump_container(setting, container, init.pid(), choice, progress, &all);
    let done = match &dumped {
        Ok(()) => after(container),
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

fn forget_root(images: &Path) -> Result<()> {
    match std::fs::remove_file(images.join(root::ORIGIN)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).or_cannot("remove", images.join(root::ORIGIN).display())
        }
        _ => Ok(()),
    }
}

/// Says which processes are not saved, of a container that ends.
pub(super) fn warn_of_lost(setting: &Setting, first: Pid, cgroup: &Cgroup) -> Result<()> {
    let lost = obstacles::not_below(first, &cgroup::life::procs(cgroup)?);
    if !lost.is_empty() {
        let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
        setting.log.warning(format!(
            "CRIU saves the first process and those below it: {} of `exec` will be lost",
            lost.join(", ")
        ));
    }
    Ok(())
}

fn dump_container(
    setting: &Setting,
    container: &Live,
    pid: Pid,
    choice: &DumpChoice,
    progress: &dyn Progress,
    complete: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let config = container.entry.config()?;
    let cgroup = container.record.cgroup.as_ref().map(|path| cgroup::fs::open(path)).transpose()?;
    if let Some(cgroup) = cgroup.as_ref().filter(|_| !choice.leave_running && !choice.pre_dump) {
        warn_of_lost(setting, pid, cgroup)?;
    }
    let subject = Subject {
        id: container.entry.id.as_str(),
        config: &config,
        bundle: &container.record.bundle,
        rootfs: &container.record.rootfs,
        pid,
        cgroup: cgroup.as_ref(),
        entry: Some(&container.entry),
        lock: Some(container.entry.dir()),
    };
    let mut heard = |script: &str, _: &mut Freezer<'_>| {
        progress::heard(progress, script, &choice.choice.images);
        if script == dump::STANDS_STILL {
            complete()?;
        }
        Ok(Afterwards::End)
    };
    dump::dump_then(&subject, choice, &mut heard).map(drop)
}
