//! Snapshots that have the memory too: CRIU's images of the processes, made while the container goes on afterwards, and the copy of
//! its upper layer from the same standstill.
//!
//! Where the kernel tracks what is written to in memory, the images hold what was written since the snapshot before, and share the
//! rest with it. That one must be what the kernel tracks since, which is noted beside the container's record: any other dump that
//! has the kernel begin anew takes the note away, and the next snapshot is whole.
//!
//! Whoever the container is connected to knows nothing of going back. So connections are not kept: who goes back finds them closed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::checkpoint::dump::{Choice, DumpChoice};
use crate::checkpoint::progress::Silent;
use crate::checkpoint::restore::RestoreChoice;
use crate::checkpoint::rpc::Feature;
use crate::checkpoint::streams::Streams;
use crate::checkpoint::{criu, root, saved};
use crate::error::{Context, Error, Result};
use crate::host;
use crate::image::store::Store;
use crate::image::store::session::Session;
use crate::image::store::snapshots::{Memory, Snapshot};
use crate::image::store::uses::{Use, User};
use crate::lifecycle::Setting;
use crate::lifecycle::checkpoint::{Deeds, dump_locked};
use crate::lifecycle::live::Live;
use crate::lifecycle::scratch::{self, Scratch};
use crate::namespaces::Kind;

/// What of a dump can be chosen, and is needed again when going back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// Allow UNIX sockets that lead out.
    pub ext_unix_sk: bool,
    /// Allow a terminal from outside.
    pub shell_job: bool,
}

const EXT_UNIX_SK: &str = "ext-unix-sk";
const SHELL_JOB: &str = "shell-job";

impl Flags {
    fn names(self) -> BTreeSet<String> {
        let all = [(EXT_UNIX_SK, self.ext_unix_sk), (SHELL_JOB, self.shell_job)];
        all.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_owned()).collect()
    }

    fn of(memory: &Memory) -> Self {
        let has = |name| memory.flags.contains(name);
        Self { ext_unix_sk: has(EXT_UNIX_SK), shell_job: has(SHELL_JOB) }
    }

    /// What CRIU is told, both ways.
    pub(super) fn choice(self, images: PathBuf) -> Choice {
        let Self { ext_unix_sk, shell_job } = self;
        Choice { images, ext_unix_sk, shell_job, tcp_close: true, file_locks: true, ..Choice::default() }
    }
}

/// What is said of a container's memory before anything is done.
///
/// # Errors
/// It cannot be had.
pub(super) fn check(container: &Live) -> Result<()> {
    if !host::probe().privileged || container.record.namespaces.contains(&Kind::User) {
        return Err(Error::plain(format!(
            "the memory of container {:?} cannot be kept: its root is an overlay in a user namespace, which nobody outside of it \
             can make again",
            container.record.id
        ))
        .hint("leave out --memory to keep its files, or run it as root"));
    }
    Ok(())
}

/// Takes a snapshot of a container that is locked; `marks` as in [`Session::copy_upper`].
///
/// # Errors
/// The container cannot be dumped, or a file not copied. It goes on, and there is no snapshot.
pub(super) fn create(
    setting: &Setting,
    container: &Live,
    (store, used, marks): (&Store, &Use, bool),
    name: &str,
    flags: Flags,
) -> Result<Snapshot> {
    let tracks = criu::check_feature(&criu::find()?, Feature::MemoryTracking).is_ok();
    let session = Session::begin(store)?;
    let user = &used.user;
    scratch::sweep();
    // What is kept of a snapshot is gone when it fails, and the log is to be read then.
    let logs = Scratch::make("checkpoint")?;
    let (number, parent) = store.make_memory(user, container.entry.tracked().filter(|_| tracks))?;
    let choice = DumpChoice {
        choice: Choice { work: Some(logs.path.clone()), ..flags.choice(store.memory_path(user, number)) },
        // From one directory to the one beside it.
        parent: parent.map(|before| PathBuf::from(format!("../{before}"))),
        leave_running: true,
        track: tracks,
        tcp_skip_in_flight: true,
        ..DumpChoice::default()
    };
    let kept = dump(setting, container, (&session, user, marks), &choice).and_then(|upper| {
        if tracks {
            container.entry.note_tracked(number)?;
        }
        let saved = saved::read(&choice)?;
        // CRIU tells by them which processes the next one has in common with this.
        let statistics = logs.path.join(saved::FILE);
        std::fs::copy(&statistics, choice.choice.images.join(saved::FILE)).or_cannot("copy", statistics.display())?;
        let memory = Memory {
            number,
            bytes: saved.bytes,
            unchanged_bytes: saved.unchanged_bytes,
            frozen_milliseconds: saved.frozen_milliseconds,
            flags: flags.names(),
        };
        let created = crate::log::rfc3339(std::time::SystemTime::now());
        session.keep_upper(user, upper, name, used.snapshot.clone(), created, Some(memory))
    });
    match kept {
        Ok(snapshot) => logs.remove().map(|()| snapshot),
        Err(error) => Err(logs.fail(error.and_then(store.remove_memory(user, number)))),
    }
}

fn dump(
    setting: &Setting,
    container: &Live,
    (session, user, marks): (&Session<'_>, &User, bool),
    choice: &DumpChoice,
) -> Result<crate::image::store::snapshots::CopiedUpper> {
    let copied = RefCell::new(None);
    let complete = || {
        *copied.borrow_mut() = Some(session.copy_upper(user, marks, &|| Ok(()))?);
        Ok(())
    };
    // Files get the modes they had.
    let mask = rustix::process::umask(rustix::fs::Mode::empty());
    // The root is kept by the copy.
    let deeds = Deeds {
        keep_root: Some(|_, _| Ok(Box::new(|| Ok(())))),
        complete: &complete,
        after: &mut |_| Ok(()),
        progress: &Silent,
    };
    let dumped = dump_locked(setting, container, choice, deeds);
    rustix::process::umask(mask);
    dumped?;
    let config = container.entry.path().join("config.json");
    std::fs::copy(&config, choice.choice.images.join(root::CONFIG)).or_cannot("copy", config.display())?;
    copied.into_inner().ok_or_else(|| Error::plain("CRIU did not tell when the processes stood still"))
}

/// What is needed to bring the processes of a snapshot back, looked for before anything is ended.
///
/// # Errors
/// It is not there.
pub(super) fn restored(store: &Store, user: &User, memory: &Memory) -> Result<RestoreChoice> {
    let program = criu::find()?;
    criu::check_version(&program)?;
    let images = store.memory_path(user, memory.number);
    let inventory = images.join("inventory.img");
    std::fs::metadata(&inventory).or_cannot("find", inventory.display())?;
    Streams::load(&images)?.check(&images)?;
    let choice = Flags::of(memory).choice(images);
    Ok(RestoreChoice { choice, criu: Some(program), ..RestoreChoice::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_needed_again() {
        for flags in [
            Flags::default(),
            Flags { ext_unix_sk: true, shell_job: false },
            Flags { ext_unix_sk: true, shell_job: true },
        ] {
            let memory = Memory { flags: flags.names(), ..Memory::default() };
            assert_eq!(Flags::of(&memory), flags);
        }
        let choice = Flags { ext_unix_sk: true, shell_job: false }.choice("/i".into());
        assert!(choice.ext_unix_sk && !choice.shell_job && choice.tcp_close && !choice.tcp_established);
    }
}
