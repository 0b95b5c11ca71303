//! What the host side opens for a child that could not: the root filesystem and the sources of bind mounts, where the
//! root of its user namespace may not walk, and id-mapped mounts.
//!
//! They are opened in the child's own mount namespace, which ferry enters for it. There every mount is a copy that the
//! kernel has locked against the user namespace: a host's read-only mount stays read-only whatever the container's root
//! may do, and nothing mounted on it reaches the host. A copy made in the host's namespace would be free of both.
//! mount_namespaces(7)

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, chroot, fchdir};

use super::Plan;
use super::parent::Child;
use super::protocol::Message;
use crate::error::{Context, Result};
use crate::namespaces::{User, mapped};
use crate::rootfs::idmapped::{self, Idmap, Map};
use crate::rootfs::plan::{Mount, What};
use crate::rootfs::{Base, Rootfs, mount, pivot};

/// Opens what the plan says and sends it. `joined` is the mount namespace that the child is going to join; otherwise it is
/// in its own already.
///
/// # Errors
/// The source and the kernel's answer.
pub fn hand(plan: &Plan, child: &Child, joined: Option<OwnedFd>) -> Result<()> {
    let rootfs = &plan.rootfs;
    let handed = || rootfs.mounts.iter().enumerate().filter(|(_, mount)| mount.handed);
    let namespaces = user_namespaces(handed().map(|(_, mount)| mount), &|| mapped::of_process(child.pid))?;
    let place = Place::of(child.pid, joined)?;
    let opened = place.visit(|| {
        let root = match &rootfs.base {
            Base::Directory(directory) if rootfs.handed => Some(pivot::open_directory(directory)?),
            _ => None,
        };
        let sources = handed().map(|(index, mount)| Ok((index, source(mount, rootfs.propagation, &namespaces)?)));
        Ok((root, sources.collect::<Result<Vec<_>>>()?))
    });
    let (root, sources) = opened?;
    if let Some(directory) = root {
        child.channel.send(&Message::Root, Some(directory.as_fd()))?;
    }
    for (index, tree) in sources.iter().filter_map(|(index, tree)| Some((index, tree.as_ref()?))) {
        child.channel.send(&Message::Source(u32::try_from(*index).unwrap_or(u32::MAX)), Some(tree.as_fd()))?;
    }
    Ok(())
}

/// Detached copies of the sources of `mounts`, for a container that runs: by the mount's index. `init` is its first process;
/// `beside` is a process in a mount namespace to take them from, or they are taken from ferry's own.
///
/// # Errors
/// The source and the kernel's answer.
pub fn copies(mounts: &[Mount], propagation: u64, init: Pid, beside: Option<Pid>) -> Result<Vec<Option<OwnedFd>>> {
    let namespaces = user_namespaces(mounts.iter(), &|| mapped::of_process(init))?;
    let copy = || mounts.iter().map(|mount| source(mount, propagation, &namespaces)).collect();
    match beside {
        Some(pid) => Place::of(pid, None)?.visit(copy),
        None => copy(),
    }
}

/// Detached copies of the sources of id-mapped mounts, for a container whose own user namespace is not there yet: by the mount's index.
///
/// # Errors
/// The source and the kernel's answer.
pub fn mapped(rootfs: &Rootfs, user: &User) -> Result<Vec<(usize, OwnedFd)>> {
    let of_container = || match user {
        User::Make { uids, gids } => mapped::user_namespace(uids, gids),
        User::Join(path) => handle(&path.to_string_lossy()),
        User::Inherit => mapped::of_process(Pid::this()),
    };
    let mounts = || rootfs.mounts.iter().enumerate().filter(|(_, mount)| mount.idmap.is_some());
    let namespaces = user_namespaces(mounts().map(|(_, mount)| mount), &of_container)?;
    let sources = mounts().map(|(index, mount)| Ok(Some(index).zip(source(mount, rootfs.propagation, &namespaces)?)));
    sources.filter_map(Result::transpose).collect()
}

/// The user namespaces that the mappings of mounts are taken from. Equal mappings share one.
fn user_namespaces<'a>(
    mounts: impl Iterator<Item = &'a Mount>,
    of_container: &dyn Fn() -> Result<OwnedFd>,
) -> Result<Vec<(&'a Map, OwnedFd)>> {
    let mut namespaces: Vec<(&Map, OwnedFd)> = Vec::new();
    for Idmap { map, .. } in mounts.filter_map(|mount| mount.idmap.as_ref()) {
        if !namespaces.iter().any(|(known, _)| *known == map) {
            namespaces.push((map, user_namespace(map, of_container)?));
        }
    }
    Ok(namespaces)
}

fn user_namespace(map: &Map, of_container: &dyn Fn() -> Result<OwnedFd>) -> Result<OwnedFd> {
    match map {
        Map::Container => of_container(),
        Map::Own { uids, gids } => mapped::user_namespace(uids, gids),
    }
}

/// Maps the ids of `tree`, which the child copied inside for the mount of this index: its source was not there before.
///
/// # Errors
/// No such mount, or the kernel's answer.
pub fn map(plan: &Plan, child: &Child, index: u32, tree: BorrowedFd<'_>) -> Result<()> {
    let mount = plan.rootfs.mounts.get(index as usize);
    let Some((mount, Idmap { map, recursive })) = mount.and_then(|mount| Some((mount, mount.idmap.as_ref()?))) else {
        return Err(plan.told(Message::Map(index)));
    };
    let namespace = user_namespace(map, &|| mapped::of_process(child.pid))?;
    idmapped::apply(tree, namespace.as_fd(), *recursive, &format!("the source of {}", mount.destination.display()))
}

/// A detached copy of a bind's source, its ids mapped.
fn source(mount: &Mount, propagation: u64, namespaces: &[(&Map, OwnedFd)]) -> Result<Option<OwnedFd>> {
    let What::Bind(source) = &mount.what else { return Ok(None) };
    let tree = mount::clone_source(source, &mount.options, mount.destination.display())?;
    if let Some(Idmap { map, recursive }) = &mount.idmap
        && let Some((_, namespace)) = namespaces.iter().find(|(known, _)| *known == map)
    {
        idmapped::apply(tree.as_fd(), namespace.as_fd(), *recursive, &source.display().to_string())?;
    }
    // The tree that the child starts from gets its propagation from the child; a copy made before that needs it as well.
    mount::propagate(tree.as_fd(), propagation).or_cannot("set mount propagation of", "a bind mount")?;
    Ok(Some(tree))
}

/// A mount namespace, the root directory to have in it (none: its own), and the way back.
#[derive(Debug)]
pub struct Place {
    namespace: OwnedFd,
    root: Option<OwnedFd>,
    own_namespace: OwnedFd,
    own_root: OwnedFd,
    /// None: ferry was called in a directory that its user may not enter, and goes on in its root; all its paths are absolute.
    own_directory: Option<OwnedFd>,
}

impl Place {
    /// Where a process is, or is about to be: in the mount namespace it joins.
    ///
    /// # Errors
    /// It is gone.
    pub fn of(pid: Pid, joined: Option<OwnedFd>) -> Result<Self> {
        let (namespace, root) = match joined {
            Some(namespace) => (namespace, None),
            None => (handle(&format!("/proc/{pid}/ns/mnt"))?, Some(handle(&format!("/proc/{pid}/root"))?)),
        };
        let own_namespace = handle("/proc/self/ns/mnt")?;
        Ok(Self { namespace, root, own_namespace, own_root: handle("/")?, own_directory: handle(".").ok() })
    }

    /// Does `work` in there. Paths mean there what they mean here: setns(2) alone would lead out of a root that ferry
    /// itself was put in.
    ///
    /// # Errors
    /// `work`'s own; ferry cannot enter, or cannot come back.
    pub fn visit<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        enter(&self.namespace, self.root.as_ref())?;
        let done = work();
        enter(&self.own_namespace, Some(&self.own_root))?;
        if let Some(directory) = &self.own_directory {
            fchdir(directory).or_cannot("return to", "the working directory")?;
        }
        done
    }
}

fn enter(namespace: &OwnedFd, root: Option<&OwnedFd>) -> Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNS).or_cannot("enter", "a mount namespace")?;
    let Some(root) = root else { return Ok(()) };
    fchdir(root).and_then(|()| chroot(".")).or_cannot("enter", "the root of a mount namespace")
}

fn handle(path: &str) -> Result<OwnedFd> {
    let flags = if path.contains("/ns/") { OFlag::O_RDONLY } else { OFlag::O_PATH };
    open(path, flags | OFlag::O_CLOEXEC, Mode::empty()).or_cannot("open", path)
}
