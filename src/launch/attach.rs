//! Mounts into a container that runs, and out of it.
//!
//! ferry itself goes there. What it takes along is made before, on the host's side: detached copies of the sources of binds,
//! locked against the container's user namespace where it has one, as those are that it was created with (see `sources`), and
//! new filesystems, whose devices and layers would be the container's to choose if they were looked up inside. Inside, it acts
//! on descriptors below the container's root alone; links and renames of the container's do not lead out of it. There is no
//! way back: the verb ends there.
//!
//! New filesystems belong to the container's user namespace, and an ordinary user has the right to mount only inside of it. So
//! it is entered first; a mount namespace of ferry's own there is a copy of the host's. mount_namespaces(7), user_namespaces(7)

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
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
use crate::rootfs::plan::{Mount, What};
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
    // A container whose user namespace is joined, or that shares the host's pid namespace, could look into ferry otherwise.
    hidden::hide()?;
    // Inside, `/proc` is the container's.
    let descriptors = open("/proc/self/fd", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let descriptors = descriptors.or_cannot("open", "/proc/self/fd")?;
    let trees = inside.trees(mounts, propagation)?;
    let root = inside.enter()?;
    // Filesystems that show a namespace's inside are not added, cgroup among them.
    let view = CgroupView { namespaced: false, host_path: None };
    let mut made = Vec::with_capacity(mounts.len());
    for (mount, tree) in mounts.iter().zip(trees) {
        match mount::make(&root, mount, tree, &view) {
            Ok(tree) => made.extend(tree),
            Err(error) => return Err(error.and_then(take_back(&descriptors, &made))),
        }
    }
    Ok(())
}

/// Takes away what is mounted on each of `places`, in order.
///
/// # Errors
/// Nothing is mounted there, a link is on the way, and the kernel's answer.
pub fn remove(inside: Inside<'_>, places: &[&Path]) -> Result<()> {
    hidden::hide()?;
    if inside.user_namespace {
        inside.become_its_root()?;
    }
    let root = inside.enter()?;
    places.iter().try_for_each(|place| detach(&root, place))
}

impl Inside<'_> {
    /// What is made on the host's side, by the mount's index. From here on ferry is in the user namespace that the mounts are to
    /// belong to, and in a mount namespace of its own.
    fn trees(&self, mounts: &[Mount], propagation: u64) -> Result<Vec<Option<OwnedFd>>> {
        // With the host's rights, which the container's root does not have.
        let copies = match self.host.privileged && self.user_namespace {
            true => {
                let beside = self.beside()?;
                let copies = sources::copies(mounts, propagation, self.pid, Some(beside.pid))?;
                beside.end()?;
                Some(copies)
            }
            false => None,
        };
        if !self.host.privileged || self.user_namespace {
            self.become_its_root()?;
        }
        unshare(CloneFlags::CLONE_NEWNS).or_cannot("make", "a mount namespace to take sources from")?;
        let mut trees = copies.map_or_else(|| sources::copies(mounts, propagation, self.pid, None), Ok)?;
        for (tree, mount) in trees.iter_mut().zip(mounts) {
            if let What::Filesystem { kind, source } = &mount.what {
                *tree = filesystem(kind, source, mount)?;
            }
        }
        Ok(trees)
    }

    /// Enters the user namespace, in which every right is there.
    fn become_its_root(&self) -> Result<()> {
        setns(self.init, CloneFlags::CLONE_NEWUSER.bits())
            .or_cannot("join", "the container's user namespace")
            .map_err(|error| error.hint("the container belongs to another user"))?;
        become_root(false)
    }

    /// Enters the mount namespace.
    fn enter(&self) -> Result<Root> {
        setns(self.init, CloneFlags::CLONE_NEWNS.bits()).or_cannot("join", "the container's mount namespace")?;
        Root::open(Path::new("/"))
    }

    /// A process in a copy of the host's mount namespace that belongs to the container's user namespace.
    fn beside(&self) -> Result<Beside> {
        let (wait, hold) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
        let (told, tell) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
        match clone_either_way(0, Parent::Caller).or_cannot("clone", "a process to take sources beside")? {
            Cloned::Child => {
                drop(hold);
                let entered = setns(self.init, CloneFlags::CLONE_NEWUSER.bits())
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

/// A new filesystem, detached. A tmpfs looks nothing up, and is left to be made inside: it asks there for the mode of the
/// directory that it covers.
fn filesystem(kind: &str, source: &str, mount: &Mount) -> Result<Option<OwnedFd>> {
    if kind == "tmpfs" {
        return Ok(None);
    }
    let tree = mount::filesystem(kind, source, &mount.options, mount.destination.display())?;
    // One that mount(2) made is attached, and can be taken along as a copy.
    match mount::detached(tree.as_fd(), Path::new(""), false) {
        Err(Errno::EINVAL) => Ok(Some(tree)),
        copy => copy.map(Some).or_cannot("take along", format!("{kind} for {}", mount.destination.display())),
    }
}

/// Unmounts what was made, the last first: by its descriptor, since the container may have led the way there elsewhere by now.
/// `descriptors` are ferry's, in the host's procfs.
fn take_back(descriptors: &OwnedFd, made: &[OwnedFd]) -> Result<()> {
    fchdir(descriptors.as_fd()).or_cannot("enter", "/proc/self/fd")?;
    let unmounted =
        made.iter().rev().map(|tree| match umount2(tree.as_raw_fd().to_string().as_str(), MntFlags::MNT_DETACH) {
            // The container has unmounted it itself.
            Err(Errno::EINVAL) => Ok(()),
            answer => answer.or_cannot("unmount", "what was added before"),
        });
    unmounted.fold(Ok(()), Result::and)
}

/// Unmounts what is on `place`: by name, in a directory that is held, since umount2(2) takes no descriptor. Whatever else the
/// container puts there in the meantime is inside of it as well.
fn detach(root: &Root, place: &Path) -> Result<()> {
    let cannot = |answer: Errno| {
        let error = Error::kernel("unmount", place.display().to_string(), answer);
        match answer {
            Errno::EINVAL => error.hint("nothing is mounted there, or it is locked to the mount around it"),
            Errno::ELOOP => error.hint("a symbolic link is on the way: name the place itself"),
            _ => error,
        }
    };
    let (Some(parent), Some(name)) = (place.parent(), place.file_name()) else { return Err(cannot(Errno::EINVAL)) };
    // A link of the container's could lead to what covers a masked path.
    let directory = root.open_inside(parent, OFlags::PATH | OFlags::DIRECTORY, Links::Refuse).map_err(cannot)?;
    fchdir(directory.as_fd()).map_err(cannot)?;
    umount2(name, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(cannot)
}
