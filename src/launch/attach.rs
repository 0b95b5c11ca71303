//! Mounts into a container that runs, and out of it.
//!
//! ferry itself goes there. What it takes along is made before, on the host's side: detached copies of the sources of binds,
//! locked against the container's user namespace where it has one, as those are that it was created with (see `sources`).
//! Inside, it acts on descriptors below the container's root alone; links and renames of the container's do not lead out of
//! it. There is no way back: the verb ends there.
//!
//! An ordinary user has the right to mount only inside the user namespace, and enters it first; a mount namespace of its own
//! there is a copy of the host's, from which sources can be taken. mount_namespaces(7), user_namespaces(7)

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, fchdir, pipe2, read, write};
use rustix::fs::OFlags;

use super::init::become_root;
use super::sources;
use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::path::{Links, Root};
use crate::process::hidden;
use crate::rootfs::mount::{self, CgroupView};
use crate::rootfs::plan::Mount;
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now, setns};

/// A container that runs, to be entered.
#[derive(Debug, Clone, Copy)]
pub struct Inside<'a> {
    /// Its first process.
    pub init: BorrowedFd<'a>,
    /// The same, as the host counts.
    pub pid: Pid,
    /// Whether it has a user namespace of its own.
    pub user_namespace: bool,
    /// Who ferry is.
    pub host: &'a Host,
}

/// Makes the mounts, in order; `propagation` is that of the container's own tree. All or none.
///
/// # Errors
/// The mount that cannot be made, and the kernel's answer.
pub fn add(inside: Inside<'_>, mounts: &[Mount], propagation: u64) -> Result<()> {
    let sources = inside.sources(mounts, propagation)?;
    let root = inside.enter()?;
    // Filesystems that show a namespace's inside are not added, cgroup among them.
    let view = CgroupView { namespaced: false, host_path: None };
    for (index, (mount, source)) in mounts.iter().zip(sources).enumerate() {
        if let Err(error) = mount::make(&root, mount, source, &view) {
            let mut made = mounts[..index].iter().rev();
            let undone = made.try_for_each(|mount| detach(&root, &mount.destination, Links::Follow));
            return Err(error.and_then(undone));
        }
    }
    Ok(())
}

/// Takes away what is mounted on each of `places`, in order.
///
/// # Errors
/// Nothing is mounted there, a link is on the way, and the kernel's answer.
pub fn remove(inside: Inside<'_>, places: &[&Path]) -> Result<()> {
    if !inside.host.privileged && inside.user_namespace {
        inside.become_its_root()?;
    }
    let root = inside.enter()?;
    // A link of the container's could lead to what covers a masked path.
    places.iter().try_for_each(|place| detach(&root, place, Links::Refuse))
}

impl Inside<'_> {
    fn sources(&self, mounts: &[Mount], propagation: u64) -> Result<Vec<Option<OwnedFd>>> {
        match (self.host.privileged, self.user_namespace) {
            (true, false) => sources::copies(mounts, propagation, self.pid, None),
            (true, true) => {
                let beside = self.beside()?;
                let copies = sources::copies(mounts, propagation, self.pid, Some(beside.pid));
                copies.and_then(|copies| beside.end().map(|()| copies))
            }
            (false, _) => {
                self.become_its_root()?;
                unshare(CloneFlags::CLONE_NEWNS).or_cannot("make", "a mount namespace to take sources from")?;
                sources::copies(mounts, propagation, self.pid, None)
            }
        }
    }

    /// Enters the user namespace, in which every right is there.
    fn become_its_root(&self) -> Result<()> {
        hidden::hide()?;
        setns(self.init, CloneFlags::CLONE_NEWUSER.bits())
            .or_cannot("join", "the container's user namespace")
            .map_err(|error| error.hint("the container belongs to another user"))?;
        become_root(false)
    }

    /// Enters the mount namespace, and the user namespace unless ferry is in it: what is made there belongs to its root.
    fn enter(&self) -> Result<Root> {
        // A container that shares the host's pid namespace could look into ferry otherwise.
        hidden::hide()?;
        let user = self.user_namespace && self.host.privileged;
        let flags = if user { CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER } else { CloneFlags::CLONE_NEWNS };
        setns(self.init, flags.bits()).or_cannot("join", "the container's mount namespace")?;
        if user {
            become_root(false)?;
        }
        Root::open(Path::new("/"))
    }

    /// A process in a copy of the host's mount namespace that belongs to the container's user namespace.
    fn beside(&self) -> Result<Beside> {
        let (wait, hold) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
        let (told, tell) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
        match clone_either_way(0, Parent::Caller).or_cannot("clone", "a process to take sources beside")? {
            Cloned::Child => {
                drop(hold);
                let hidden = hidden::hide().map_err(|_| Errno::EPERM);
                let entered = hidden
                    .and_then(|()| setns(self.init, CloneFlags::CLONE_NEWUSER.bits()))
                    .and_then(|()| unshare(CloneFlags::CLONE_NEWNS))
                    .and_then(|()| write(&tell, &[1]));
                // It ends with ferry in any case.
                exit_now(i32::from(entered.and_then(|_| read(&wait, &mut [0])).is_err()))
            }
            Cloned::Parent { pid, .. } => {
                drop(tell);
                let beside = Beside { pid, _hold: hold };
                match read(&told, &mut [0]) {
                    Ok(1) => Ok(beside),
                    _ => {
                        let why = "the container's user namespace cannot be entered";
                        let error = Error::said("take sources for", "the container", why);
                        beside.end().and(Err(error))
                    }
                }
            }
        }
    }
}

/// A process that waits until it is no longer needed.
struct Beside {
    pid: Pid,
    /// Its end of the pipe: it waits for this to be closed.
    _hold: OwnedFd,
}

impl Beside {
    fn end(self) -> Result<()> {
        let pid = self.pid;
        drop(self);
        loop {
            match waitpid(pid, Some(WaitPidFlag::__WALL)) {
                Err(Errno::EINTR) => (),
                answer => return answer.map(drop).or_cannot("wait for", "the process beside the container"),
            }
        }
    }
}

/// Unmounts what is on `place`: by name, in a directory that is held, since umount2(2) takes no descriptor. Whatever else the
/// container puts there in the meantime is inside of it as well.
fn detach(root: &Root, place: &Path, links: Links) -> Result<()> {
    let cannot = |answer: Errno| {
        let error = Error::kernel("unmount", place.display().to_string(), answer);
        match answer {
            Errno::EINVAL => error.hint("nothing is mounted there, or it is locked to the mount around it"),
            Errno::ELOOP => error.hint("a symbolic link is on the way: name the place itself"),
            _ => error,
        }
    };
    let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else { return Err(cannot(Errno::EINVAL)) };
    let directory = root.open_inside(parent, OFlags::PATH | OFlags::DIRECTORY, links).map_err(cannot)?;
    fchdir(directory.as_fd()).map_err(cannot)?;
    umount2(name, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(cannot)
}
