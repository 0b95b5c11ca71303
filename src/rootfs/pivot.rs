//! Attaching the new root, and making it the only one there is.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, chroot, fchdir, pivot_root};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::mount::{clone_tree, place, propagate, read_only};
use super::plan::{MountedIn, Rootfs};
use crate::error::{Context, Result};
use crate::path::{Root, fd_path};
use crate::procfs::mountinfo;

/// Cuts the mount tree off from the host as configured, and binds `directory` onto itself: a root must be a mount of its
/// own, and nothing mounted below it may show up on the host. `handed` is the directory, where the host side opened it.
///
/// # Errors
/// The directory missing, or the kernel's answer.
pub fn attach(rootfs: &Rootfs, directory: &Path, handed: Option<OwnedFd>) -> Result<Root> {
    isolate(rootfs)?;
    let named = || directory.display();
    let target = match handed {
        Some(target) => target,
        None => open_directory(directory)?,
    };
    let tree =
        clone_tree(target.as_fd(), Path::new(""), true).or_cannot("bind root filesystem", directory.display())?;
    let mut place_of_root = target;
    if rootfs.propagation & MsFlags::MS_SHARED.bits() != 0 {
        // The copy is a peer of what it was made from, and would get what is mounted there next.
        propagate(tree.as_fd(), MsFlags::MS_PRIVATE.bits()).or_cannot("make private", named())?;
        // pivot_root takes no shared mounts, neither the new root nor the one around it, and on a shared one the host
        // would see the root mounted over itself.
        match make_private_around(place_of_root.as_fd()) {
            // The root of a user namespace may be kept from walking up. Its mount namespace is only a slave of the host's,
            // so that a private mount put in between reaches nobody.
            Err(Errno::EACCES) => {
                place_of_root = private_copy(place_of_root.as_fd()).or_cannot("bind root filesystem", named())?
            }
            answer => answer.or_cannot("make private the mount around", named())?,
        }
    }
    place(tree.as_fd(), place_of_root.as_fd()).or_cannot("bind root filesystem", named())?;
    Ok(Root::from_dir(tree, directory))
}

/// Cuts the mount tree off from the host as configured, and binds `directory` to `stage`, for somebody else to make it the
/// root: CRIU wants the mount around the new root to be covered by nothing.
///
/// # Errors
/// As [`attach`].
pub fn bind_at(rootfs: &Rootfs, directory: &Path, stage: &Path) -> Result<()> {
    isolate(rootfs)?;
    let (from, place_of_root) = (open_directory(directory)?, open_directory(stage)?);
    let tree = clone_tree(from.as_fd(), Path::new(""), true).or_cannot("bind root filesystem", directory.display())?;
    if rootfs.propagation & MsFlags::MS_SHARED.bits() != 0 {
        propagate(tree.as_fd(), MsFlags::MS_PRIVATE.bits()).or_cannot("make private", directory.display())?;
        make_private_around(place_of_root.as_fd()).or_cannot("make private the mount around", stage.display())?;
    }
    // Nobody makes it so later: what is bound from here on has it from here.
    if rootfs.read_only_root {
        read_only(tree.as_fd(), false).or_cannot("make read-only", directory.display())?;
    }
    place(tree.as_fd(), place_of_root.as_fd()).or_cannot("bind root filesystem", directory.display())
}

/// A copy of the tree at `dir`, mounted over it and private: what is mounted on a shared mount becomes shared, so that it is
/// said twice.
fn private_copy(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let copy = clone_tree(dir, Path::new(""), true)?;
    propagate(copy.as_fd(), MsFlags::MS_PRIVATE.bits())?;
    place(copy.as_fd(), dir)?;
    propagate(copy.as_fd(), MsFlags::MS_PRIVATE.bits())?;
    Ok(copy)
}

/// Makes the mount that holds `dir` private: that of the nearest directory above which is the root of a mount, since
/// anything else is refused.
fn make_private_around(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut above: Option<OwnedFd> = None;
    loop {
        let here = above.as_ref().map_or(dir, |above| above.as_fd());
        match propagate(here, MsFlags::MS_PRIVATE.bits()) {
            Err(Errno::EINVAL) => (),
            answer => return answer,
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        above = Some(openat(here, "..", flags, Mode::empty()).map_err(crate::path::errno)?);
    }
}

/// The directory that is to be the root, by a descriptor that stays with it.
///
/// # Errors
/// What open(2) answers.
pub fn open_directory(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, directory, flags, Mode::empty()).or_cannot("open root filesystem", directory.display())
}

/// Sets the propagation of the whole tree the container starts from.
///
/// # Errors
/// The kernel's answer.
pub fn isolate(rootfs: &Rootfs) -> Result<()> {
    let slash = openat(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).or_cannot("open", "/")?;
    propagate(slash.as_fd(), rootfs.propagation).or_cannot("set mount propagation of", "/")
}

/// Takes away the whole procfs and sysfs mounts of the host. chroot(2) leaves them in the mount namespace, and as long as
/// there is one with nothing mounted over it, the kernel lets a user namespace inside the container mount another like it,
/// without the masks (mount_too_revealing in fs/namespace.c).
fn hide_kernel_views(root: &Root) -> Result<()> {
    let own = fd_path(root.dir());
    let own = std::fs::read_link(OsStr::from_bytes(own.as_bytes())).or_cannot("name", root)?;
    let table = mountinfo::read().or_cannot("read", "/proc/self/mountinfo")?;
    for row in table.iter().filter(|row| is_whole_view(row) && !row.point.starts_with(&own)) {
        match umount_or_cover(&row.point) {
            // One above it has taken it along, the procfs at /proc among them.
            Ok(()) | Err(Errno::ENOENT) => (),
            Err(answer) => return Err(answer).or_cannot("hide", row.point.display()),
        }
    }
    Ok(())
}

/// Whether procfs or sysfs is mounted from its root.
fn is_whole_view(row: &mountinfo::Row) -> bool {
    row.top == Path::new("/") && matches!(row.kind.as_str(), "proc" | "sysfs")
}

/// Without the right to unmount, which a user namespace has over its own mounts only, something is put over it.
fn umount_or_cover(place: &Path) -> std::result::Result<(), Errno> {
    mount(None::<&str>, place, None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
    match umount2(place, MntFlags::MNT_DETACH) {
        Err(Errno::EINVAL | Errno::EPERM) => {
            mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>)
        }
        answer => answer,
    }
}

/// Makes `root` the root of this mount namespace and drops the old one; then its propagation and read-only attribute,
/// which nothing above may still need to write through.
///
/// # Errors
/// The kernel's answer; EINVAL from pivot_root on an initramfs, where `--no-pivot` serves.
pub fn enter(root: &Root, rootfs: &Rootfs) -> Result<()> {
    if rootfs.pivot {
        let old = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .or_cannot("open", "/")?;
        fchdir(root.dir()).or_cannot("enter", root)?;
        pivot_root(".", ".")
            .or_cannot("pivot_root to", root)
            .map_err(|error| error.hint("on an initramfs, use --no-pivot"))?;
        // The old root now lies over the new one.
        fchdir(old.as_fd()).or_cannot("enter", "the old root")?;
        // Its unmounting must not reach the host, whatever was configured.
        if rootfs.propagation & MsFlags::MS_SHARED.bits() != 0 {
            propagate(CWD, (MsFlags::MS_SLAVE | MsFlags::MS_REC).bits()).or_cannot("make slave", "the old root")?;
        }
        umount2(".", MntFlags::MNT_DETACH).or_cannot("unmount", "the old root")?;
    } else {
        fchdir(root.dir()).or_cannot("enter", root)?;
        if rootfs.mounted_in == MountedIn::Own {
            hide_kernel_views(root)?;
            // By names that need no /proc: the host's has just gone.
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).or_cannot("move to /", root)?;
        }
        chroot(".").or_cannot("chroot to", root)?;
    }
    chdir("/").or_cannot("enter", "/")?;
    // By the working directory: from here on /proc/self/fd is the container's, and may be anything.
    if let Some(flags) = rootfs.root_propagation {
        propagate(CWD, flags).or_cannot("set mount propagation of", "the root")?;
    }
    if rootfs.read_only_root {
        read_only(CWD, false).or_cannot("make read-only", "the root")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_views_of_the_kernel() {
        let table = b"\
20 1 0:19 / /proc rw shared:1 - proc proc rw
21 20 0:19 /sys /proc/sys ro - proc proc rw
22 1 0:20 / /a\\040b rw - sysfs sysfs rw
23 1 8:1 / / rw - ext4 /dev/sda1 rw
24 1 0:19 / /mnt/\xff rw shared:1 - proc proc rw
";
        let rows = mountinfo::rows(table);
        let found: Vec<&Path> = rows.iter().filter(|row| is_whole_view(row)).map(|row| row.point.as_path()).collect();
        assert_eq!(found, [Path::new("/proc"), Path::new("/a b"), Path::new(OsStr::from_bytes(b"/mnt/\xff"))]);
    }
}
