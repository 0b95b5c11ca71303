//! `snapshot`: what a container of an image has written, kept to go back to; and where that is asked for, what it had in memory.
//!
//! The kernel lets no overlay change its upper layer while it is mounted. So a snapshot is a copy of that layer (which a filesystem
//! with reflinks shares), made while the container's processes stand still; and going back makes the container anew, with an empty
//! upper layer above the snapshot's: see [`rollback`], and [`memory`].

use std::os::fd::AsFd;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use super::archive::Watch;
use super::image::{as_root, with_images};
use super::live::Live;
use super::pause::PATIENCE;
use super::{Setting, live};
use crate::cgroup::{Cgroup, life};
use crate::checkpoint::freezer::Freezer;
use crate::container::{Record, Status};
use crate::error::{Context, Error, Result};
use crate::host;
use crate::image::manifest::MOST_LAYERS;
use crate::image::store::session::Session;
use crate::image::store::snapshots::{self, Snapshot};
use crate::image::store::uses::{Use, User};
use crate::image::store::{Store, layers};

pub mod clone;
pub mod memory;
mod rollback;

pub use rollback::rollback;

/// Takes a snapshot of the container `id`; without a name it gets the first number that is free. With `memory` it has the memory
/// too. Answers it.
///
/// # Errors
/// The container runs from no image; a file cannot be copied; the memory cannot be had. Then there is no snapshot, and the container
/// goes on.
pub fn create(setting: &Setting, id: &str, name: Option<&str>, memory: Option<memory::Flags>) -> Result<Snapshot> {
    if let Some(name) = name.filter(|name| !snapshots::is_name(name)) {
        return Err(Error::plain(format!("{name:?} is no name of a snapshot"))
            .hint("it has letters, digits, _ . and -, at most 64, and begins with none of the last two"));
    }
    let container = live::open_locked(setting, id)?;
    let setting = &of_container(setting, &container.record)?;
    let (store, used) = used(setting, &container)?;
    let all = store.snapshots(&used.user)?;
    let name = name.map_or_else(|| free_number(&all), str::to_owned);
    if all.iter().any(|other| other.name == name) {
        return Err(
            Error::plain(format!("there is a snapshot {name:?} of this container already")).hint("choose another name")
        );
    }
    let below = used.snapshot.as_deref().map_or(Ok(0), |name| snapshots::line(&all, name).map(|line| line.len()))?;
    can_be_stacked(&used, below + 1)?;
    if let Some(flags) = memory {
        memory::check(&container)?;
        return memory::create(setting, &container, (&store, &used, marks(&store, &used)?), &name, flags);
    }
    // Before anything stands still: who has the store alone may have it for long.
    let _guard = store.share()?;
    let cgroup = to_freeze(setting, &container)?;
    if host::probe().privileged {
        // An ordinary user's copy is made by a child, which ends with ferry: what is left of it goes with `image prune`.
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).or_cannot("block", "signals")?;
    }
    let watch = Watch::new()?;
    let own = pidfd_open(getpid(), PidfdFlags::empty()).or_cannot("open", "ferry's own process")?;
    let mut freezer = Freezer::of(cgroup.as_ref())?;
    freezer.watch(own.as_fd(), Some(container.entry.dir()))?;
    // Not by the freezer, which does so only with a watcher.
    let frozen = cgroup.as_ref().map_or(Ok(()), |cgroup| life::freeze(cgroup, PATIENCE));
    let copied = frozen.and_then(|()| {
        as_root(setting, |inside| {
            // Whoever unpacks is root here, and files get the modes they had.
            rustix::process::umask(rustix::fs::Mode::empty());
            let store = with_images(inside)?;
            let session = Session::begin(&store)?;
            let marks = marks(&store, &used)?;
            let created = crate::log::rfc3339(SystemTime::now());
            let go_on = || watch.go_on().map_err(|_| Errno::EINTR);
            session.snapshot(&used.user, &name, used.snapshot.clone(), created, marks, &go_on).map(|_| 0)
        })
    });
    // The processes go on whatever came of it.
    let thawed = freezer.go_on();
    copied.or_else(|error| watch.go_on().and(Err(error))).and(thawed)?;
    find(&store.snapshots(&used.user)?, &name).cloned()
}

/// So many snapshots can lie upon the layers of the container's image: nobody could go back to more.
fn can_be_stacked(used: &Use, snapshots: usize) -> Result<()> {
    // Below an image without layers lies an empty directory.
    let count = used.layers.len().max(1) + snapshots;
    if count <= MOST_LAYERS {
        return Ok(());
    }
    let why = format!("that is {count} layers, and an overlay takes {MOST_LAYERS} at most");
    Err(Error::said("stack", format!("the snapshots upon image {:?}", used.image), why)
        .hint("`ferry bundle create`, and `ferry image import` of its rootfs, make an image of one layer"))
}

/// Whether the layers below have the marks of a user namespace.
fn marks(store: &Store, used: &Use) -> Result<bool> {
    let top = used.layers.last().map(|top| store.layer(top)).transpose()?.flatten();
    Ok(top.is_some_and(|layer| layer.user_namespace))
}

/// The container's snapshots, the oldest first.
///
/// # Errors
/// The container runs from no image; they cannot be read.
pub fn list(setting: &Setting, id: &str) -> Result<Vec<Snapshot>> {
    let container = live::open(setting, id)?;
    let (store, used) = used(&of_container(setting, &container.record)?, &container)?;
    store.snapshots(&used.user)
}

/// What `snapshot show` answers.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// It.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// Whether the container's upper layer lies upon it.
    pub current: bool,
    /// The image below it all.
    pub image: String,
    /// The directories whose files it shows, the uppermost first.
    pub directories: Vec<std::path::PathBuf>,
    /// The directory of CRIU's images, where it has the memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<std::path::PathBuf>,
}

/// Everything about one.
///
/// # Errors
/// There is none of that name.
pub fn show(setting: &Setting, id: &str, name: &str) -> Result<Shown> {
    let container = live::open(setting, id)?;
    let (store, used) = used(&of_container(setting, &container.record)?, &container)?;
    let all = store.snapshots(&used.user)?;
    let line = snapshots::line(&all, name)?;
    let own = line.iter().map(|snapshot| store.snapshot_path(&used.user, &snapshot.name));
    let images = used.layers.iter().rev().map(|id| store.path(layers::directory(id)).join("diff"));
    let memory = line[0].memory.as_ref();
    Ok(Shown {
        images: memory.map(|memory| store.memory_path(&used.user, memory.number)),
        snapshot: line[0].clone(),
        current: used.snapshot.as_deref() == Some(name),
        image: used.image.clone(),
        directories: own.chain(images).collect(),
    })
}

/// Removes snapshots.
///
/// # Errors
/// One of them is not there, or something lies upon it; then none is removed.
pub fn remove(setting: &Setting, id: &str, names: &[String]) -> Result<()> {
    let container = live::open_locked(setting, id)?;
    let setting = &of_container(setting, &container.record)?;
    let (store, used) = used(setting, &container)?;
    let all = store.snapshots(&used.user)?;
    for name in names {
        find(&all, name)?;
        if used.snapshot.as_ref() == Some(name) {
            return Err(Error::plain(format!("the container's own files lie upon snapshot {name:?}"))
                .hint("roll back to another one first"));
        }
        let above = all.iter().find(|other| other.parent.as_ref() == Some(name) && !names.contains(&other.name));
        if let Some(above) = above {
            return Err(Error::plain(format!("snapshot {:?} lies upon {name:?}", above.name)).hint("remove that first"));
        }
    }
    as_root(setting, |inside| {
        let store = with_images(inside)?;
        let _guard = store.share()?;
        names.iter().try_for_each(|name| store.remove_snapshot(&used.user, name))?;
        store.collect_memories(&used.user).map(|()| 0)
    })
    .map(drop)
}

/// The setting with the store that the container has its files in.
pub(super) fn of_container(setting: &Setting, record: &Record) -> Result<Setting> {
    let store = record.store.clone().ok_or_else(|| {
        Error::plain(format!("container {:?} does not run from an image", record.id))
            .hint("only what `ferry run --image` made has a layer of its own to take snapshots of")
    })?;
    Ok(Setting { store: Some(store), ..setting.clone() })
}

pub(super) fn used(setting: &Setting, container: &Live) -> Result<(Store, Use)> {
    let store = with_images(setting)?;
    let user = User::Container(container.entry.path().to_owned());
    let found = store.uses()?.into_iter().filter_map(|(_, used)| used).find(|used| used.user == user);
    let missing = || Error::plain(format!("the image store knows nothing of container {:?}", container.record.id));
    let found = found.ok_or_else(missing)?;
    found.has_upper()?;
    Ok((store, found))
}

fn find<'a>(all: &'a [Snapshot], name: &str) -> Result<&'a Snapshot> {
    snapshots::line(all, name).map(|line| line[0])
}

fn free_number(all: &[Snapshot]) -> String {
    let mut numbers = (1_u64..).map(|number| number.to_string());
    numbers.find(|number| !all.iter().any(|other| other.name == *number)).unwrap_or_default()
}

/// The cgroup by which the container's processes are to stand still, where they do not and can be made to.
fn to_freeze(setting: &Setting, container: &Live) -> Result<Option<Cgroup>> {
    match (container.status, &container.record.cgroup) {
        (Status::Running, Some(_)) => container.cgroup("pause").map(Some),
        (Status::Running, None) => {
            setting.log.warning(
                "the container has no cgroup to be paused by: what it writes meanwhile may be half in the snapshot",
            );
            Ok(None)
        }
        _ => Ok(None),
    }
}
