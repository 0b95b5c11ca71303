//! mount(2), for kernels without the calls by descriptor: open_tree, fsopen and move_mount came with Linux 5.2,
//! mount_setattr with 5.12. A filter around ferry may hide them too.
//!
//! mount(2) can only change what is mounted somewhere, so a mount that is not complete yet waits on a stage: a small tmpfs
//! over `/proc/fs`, seen only in the container's own mount namespace, and only until the old root goes. There it gets its
//! attributes; then it is moved. So the callers are the same as by descriptor: a mount is complete before it stands in its
//! place, and the descriptor that was opened on it while it was on the stage stays its descriptor. A mount made in its place
//! would have to be looked up again, by a path that the container's image has a say in.
//!
//! Names are `/proc/self/fd/N`, which the kernel follows to that very mount and directory; after pivot_root, when `/proc` is
//! the container's, `.` for the working directory. What a container holds is the same but for two things: a new filesystem
//! with `ro` is read-only as a whole, and not in this mount alone; and a bind of the host's whole `/proc` hears no more of
//! what the host mounts there, since that procfs is private while the stage is on it.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags as Seen, fstat, fstatfs, mkdirat, openat, statvfs};

use super::options::{Attributes, Options};
use crate::path::{Links, Root, errno, fd_path};
use crate::procfs::mountinfo;
use crate::sys::mount as attr;

/// What the stage covers: a directory that every procfs has, and nothing of which a container needs.
const STAGE: &CStr = c"/proc/fs";

/// `MS_NOSYMFOLLOW`, since Linux 5.10: linux/mount.h.
const MS_NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// A mount point on the stage, with nothing mounted on it yet.
struct Point {
    stage: OwnedFd,
    name: CString,
}

/// As open_tree(2) with OPEN_TREE_CLONE: a copy of the mount at `path` under `dir` (the empty path: `dir` itself), on the
/// stage.
///
/// # Errors
/// What openat(2) and mount(2) answer.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let opened = match path.as_os_str().is_empty() {
        true => None,
        false => Some(openat(dir, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(errno)?),
    };
    let source = opened.as_ref().map_or(dir, |opened| opened.as_fd());
    let point = Point::make(is_directory(source)?)?;
    let flags = if recursive { MsFlags::MS_BIND | MsFlags::MS_REC } else { MsFlags::MS_BIND };
    mount(Some(name(source).as_c_str()), point.path().as_c_str(), None::<&str>, flags, None::<&str>)?;
    point.open()
}

/// As fsopen(2) and fsmount(2): a new mount of a filesystem, on the stage.
///
/// # Errors
/// What mount(2) answers.
pub fn new_filesystem(kind: &str, source: &str, options: &Options) -> Result<OwnedFd, Errno> {
    let point = Point::make(true)?;
    let (flags, data) = superblock(&options.data);
    let flags = flags | ms_flags(options.attributes.set);
    mount(Some(source), point.path().as_c_str(), Some(kind), flags, Some(data.as_str()))?;
    point.open()
}

/// As move_mount(2).
///
/// # Errors
/// What mount(2) answers.
pub fn place(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let (from, to) = (name(tree), name(target));
    let place = || mount(Some(from.as_c_str()), to.as_c_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>);
    match place() {
        // The host side made the stage, and the container's propagation (rshared) was set on all there is since.
        Err(Errno::EINVAL) if !is_procfs(stage()?.as_fd())? => {
            propagation(STAGE, MsFlags::MS_UNBINDABLE)?;
            place()
        }
        answer => answer,
    }
}

/// As mount_setattr(2), on the mount `tree` (`CWD`: the working directory's), but not at one stroke.
///
/// # Errors
/// What mount(2) answers; ESTALE where a mount point below has gone to another place meanwhile.
pub fn change(tree: BorrowedFd<'_>, attributes: Attributes, propagation: u64, recursive: bool) -> Result<(), Errno> {
    if propagation != 0 {
        let below = if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
        let flags = MsFlags::from_bits_retain(propagation) | below;
        attached(tree, || self::propagation(&name(tree), flags))?;
    }
    if attributes.is_empty() {
        return Ok(());
    }
    attached(tree, || remount(tree, attributes))?;
    if recursive && is_directory(tree)? { remount_below(tree, attributes) } else { Ok(()) }
}

/// Does `deed`; a mount that is attached nowhere yet (open_tree is there, mount_setattr is not) is put on the stage first.
fn attached(tree: BorrowedFd<'_>, deed: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
    match deed() {
        Err(Errno::EINVAL) if tree.as_raw_fd() != CWD.as_raw_fd() => {
            let point = Point::make(is_directory(tree)?)?;
            super::mount::place(tree, point.open()?.as_fd())?;
            deed()
        }
        answer => answer,
    }
}

/// Changes one mount, whose other attributes stay: mount(2) replaces them all.
fn remount(tree: BorrowedFd<'_>, attributes: Attributes) -> Result<(), Errno> {
    let name = name(tree);
    let now = seen(statvfs(name.as_c_str()).map_err(errno)?.f_flag);
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | ms_flags((now & !attributes.clear) | attributes.set);
    mount(None::<&str>, name.as_c_str(), None::<&str>, flags, None::<&str>)
}

/// Changes everything mounted below `tree`. A mount that is covered by another at the same place cannot be reached and
/// stays: nobody sees it.
fn remount_below(tree: BorrowedFd<'_>, attributes: Attributes) -> Result<(), Errno> {
    let rows = mountinfo::read()?;
    let by_id: BTreeMap<u64, &mountinfo::Row> = rows.iter().map(|row| (row.id, row)).collect();
    let top = mountinfo::id_of(tree)?;
    let Some(own) = by_id.get(&top) else { return Err(Errno::ESTALE) };
    let is_below = |row: &mountinfo::Row| {
        std::iter::successors(by_id.get(&row.parent), |row| by_id.get(&row.parent).filter(|up| up.id != row.id))
            .any(|above| above.id == top)
    };
    let is_covered = |row: &mountinfo::Row| rows.iter().any(|on| on.parent == row.id && on.point == row.point);
    let root = Root::from_dir(tree.try_clone_to_owned().map_err(|_| Errno::EMFILE)?, &own.point);
    for row in rows.iter().filter(|row| row.id != top && is_below(row) && !is_covered(row)) {
        let inside = row.point.strip_prefix(&own.point).map_err(|_| Errno::ESTALE)?;
        let found = root.resolve(inside, Links::Refuse)?;
        if mountinfo::id_of(found.as_fd())? != row.id {
            return Err(Errno::ESTALE);
        }
        remount(found.as_fd(), attributes)?;
    }
    Ok(())
}

impl Point {
    /// A new mount point; the stage is made if there is none that this process may write to.
    fn make(directory: bool) -> Result<Self, Errno> {
        let point = Self::on(stage()?, directory);
        if point.is_ok() {
            return point;
        }
        make_stage()?;
        Self::on(stage()?, directory)
    }

    fn on(stage: OwnedFd, directory: bool) -> Result<Self, Errno> {
        for number in 0u32.. {
            let name = CString::new(number.to_string()).unwrap_or_default();
            let made = if directory {
                mkdirat(&stage, &name, Mode::RWXU)
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(&stage, &name, flags, Mode::RUSR).map(drop)
            };
            match made {
                Ok(()) => return Ok(Self { stage, name }),
                Err(rustix::io::Errno::EXIST) => (),
                Err(answer) => return Err(errno(answer)),
            }
        }
        Err(Errno::ENOSPC)
    }

    /// The point's path, for mount(2).
    fn path(&self) -> CString {
        let mut path = fd_path(self.stage.as_fd()).into_bytes();
        path.push(b'/');
        path.extend(self.name.as_bytes());
        CString::new(path).unwrap_or_default()
    }

    /// What stands there: after a mount, its root.
    fn open(&self) -> Result<OwnedFd, Errno> {
        openat(&self.stage, &self.name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(errno)
    }
}

fn stage() -> Result<OwnedFd, Errno> {
    openat(CWD, STAGE, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(errno)
}

/// Mounts the stage. Unbindable, so that a container that has the host's `/proc` bound does not get the stage with it, and
/// not shared, since nothing can be moved out of a shared mount. The procfs below it is made private first: whatever
/// propagation the container is to have, the stage must not show up on the host.
fn make_stage() -> Result<(), Errno> {
    if is_procfs(stage()?.as_fd())? {
        match propagation(STAGE, MsFlags::MS_PRIVATE) {
            // Not a mount of its own, but a directory of the procfs: the usual case.
            Err(Errno::EINVAL) => propagation(c"/proc", MsFlags::MS_PRIVATE)?,
            answer => answer?,
        }
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The host side may make it for a child whose root is another user. Nobody else is in the mount namespace.
    mount(Some("tmpfs"), STAGE, Some("tmpfs"), flags, Some("mode=1777"))?;
    propagation(STAGE, MsFlags::MS_UNBINDABLE)
}

fn propagation(path: &CStr, flags: MsFlags) -> Result<(), Errno> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
}

fn is_procfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(fstatfs(fd).map_err(errno)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

fn name(fd: BorrowedFd<'_>) -> CString {
    if fd.as_raw_fd() == CWD.as_raw_fd() { c".".to_owned() } else { fd_path(fd) }
}

pub(super) fn is_directory(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(fstat(fd).map_err(errno)?.st_mode) == FileType::Directory)
}

/// The attributes of a mount, as statvfs(3) shows them.
fn seen(flags: Seen) -> u64 {
    let atime = match () {
        () if flags.contains(Seen::NOATIME) => attr::MOUNT_ATTR_NOATIME,
        () if flags.contains(Seen::RELATIME) => 0,
        () => attr::MOUNT_ATTR_STRICTATIME,
    };
    // ST_NOSYMFOLLOW: linux/statfs.h.
    let nosymfollow = Seen::from_bits_retain(0x2000);
    [
        (Seen::RDONLY, attr::MOUNT_ATTR_RDONLY),
        (Seen::NOSUID, attr::MOUNT_ATTR_NOSUID),
        (Seen::NODEV, attr::MOUNT_ATTR_NODEV),
        (Seen::NOEXEC, attr::MOUNT_ATTR_NOEXEC),
        (Seen::NODIRATIME, attr::MOUNT_ATTR_NODIRATIME),
        (nosymfollow, attr::MOUNT_ATTR_NOSYMFOLLOW),
    ]
    .into_iter()
    .filter(|(seen, _)| flags.contains(*seen))
    .fold(atime, |attributes, (_, bit)| attributes | bit)
}

/// Attribute bits as the flags of mount(2). The access-time mode is always named: none at all would keep the old one.
fn ms_flags(attributes: u64) -> MsFlags {
    let atime = match attributes & attr::MOUNT_ATTR_ATIME {
        attr::MOUNT_ATTR_NOATIME => MsFlags::MS_NOATIME,
        attr::MOUNT_ATTR_STRICTATIME => MsFlags::MS_STRICTATIME,
        _ => MsFlags::MS_RELATIME,
    };
    [
        (attr::MOUNT_ATTR_RDONLY, MsFlags::MS_RDONLY),
        (attr::MOUNT_ATTR_NOSUID, MsFlags::MS_NOSUID),
        (attr::MOUNT_ATTR_NODEV, MsFlags::MS_NODEV),
        (attr::MOUNT_ATTR_NOEXEC, MsFlags::MS_NOEXEC),
        (attr::MOUNT_ATTR_NODIRATIME, MsFlags::MS_NODIRATIME),
        (attr::MOUNT_ATTR_NOSYMFOLLOW, MS_NOSYMFOLLOW),
    ]
    .into_iter()
    .filter(|(bit, _)| attributes & bit != 0)
    .fold(atime, |flags, (_, flag)| flags | flag)
}

/// The options of a superblock: those that mount(2) takes as flags, and the others as the filesystem reads them.
fn superblock(options: &[(String, Option<String>)]) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for (key, value) in options {
        match (key.as_str(), value) {
            ("sync", None) => flags |= MsFlags::MS_SYNCHRONOUS,
            ("dirsync", None) => flags |= MsFlags::MS_DIRSYNC,
            ("lazytime", None) => flags |= MsFlags::MS_LAZYTIME,
            ("mand", None) => flags |= MsFlags::MS_MANDLOCK,
            ("async", None) => flags &= !MsFlags::MS_SYNCHRONOUS,
            ("nolazytime", None) => flags &= !MsFlags::MS_LAZYTIME,
            ("nomand", None) => flags &= !MsFlags::MS_MANDLOCK,
            (key, None) => data.push(key.to_owned()),
            // Only SELinux reads the quotes, and only its categories hold commas.
            (key, Some(value)) if key.ends_with("context") => data.push(format!("{key}=\"{value}\"")),
            (key, Some(value)) => data.push(format!("{key}={value}")),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were() {
        let now = seen(Seen::RDONLY | Seen::NODEV | Seen::RELATIME);
        assert_eq!(ms_flags(now), MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_RELATIME);
        assert_eq!(
            ms_flags(seen(Seen::empty())),
            MsFlags::MS_STRICTATIME,
            "neither noatime nor relatime is strictatime"
        );
        let later = ms_flags(seen(Seen::NOATIME | Seen::NODIRATIME | Seen::NOSUID));
        assert_eq!(later, MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME | MsFlags::MS_NOSUID);
    }

    #[test]
    fn options_that_are_flags() {
        let option = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
        let options =
            [option("sync", None), option("size", Some("4k")), option("lazytime", None), option("async", None)];
        assert_eq!(superblock(&options), (MsFlags::MS_LAZYTIME, "size=4k".to_owned()));
        let label = superblock(&[option("context", Some("u:r:t:s0:c1,c2"))]).1;
        assert_eq!(label, "context=\"u:r:t:s0:c1,c2\"");
        assert_eq!(superblock(&[option("newinstance", None), option("mode", Some("1"))]).1, "newinstance,mode=1");
    }
}
