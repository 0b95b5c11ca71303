//! A directory of an image's as an EROFS image, mounted where the host can see it.
//!
//! One mount serves all containers: each mount of a file is a filesystem of its own to the kernel, with pages of its own, and those
//! of a layer are to be in memory once. It is read-only, and nobody gets rights through it. Documentation/filesystems/erofs.rst

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

use crate::error::{Context, Result};
use crate::path::errno;
use crate::sys::loop_device;

/// EROFS_SUPER_MAGIC_V1: linux/magic.h.
const MAGIC: i64 = 0xE0F5_E1E2;

/// Mounts `image` on the directory `point`: as a file (Linux 6.12), or else through a loop device, which goes with the mount.
///
/// # Errors
/// The kernel's answer: ENODEV without EROFS, EPERM without the right to mount.
pub fn mount(image: &Path, point: &Path) -> Result<()> {
    let hint = "EROFS needs CONFIG_EROFS_FS, and the right to mount; before Linux 6.12 loop devices as well";
    let mounted = match mount_from(image, point) {
        Err(Errno::ENOTBLK) => through_a_loop_device(image, point),
        answer => answer,
    };
    mounted.or_cannot("mount", image.display()).map_err(|error| error.hint(hint))
}

fn mount_from(source: &Path, point: &Path) -> Result<(), Errno> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some(source), point, Some("erofs"), flags, None::<&str>)
}

fn through_a_loop_device(image: &Path, point: &Path) -> Result<(), Errno> {
    let file = File::open(image).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    let (_held, device) = loop_device::attach(file.as_fd(), true)?;
    mount_from(&device, point)
}

/// Whether an EROFS is mounted on `point`.
///
/// # Errors
/// What the kernel answers; ENOENT where `point` is not there.
pub fn is_mounted(point: &Path) -> Result<bool> {
    let found = rustix::fs::statfs(point).map_err(errno).or_cannot("look at", point.display())?;
    Ok(found.f_type == MAGIC)
}

/// Takes away what is mounted there, as often as it is. Containers that run from it keep it.
///
/// # Errors
/// What the kernel answers.
pub fn unmount(point: &Path) -> Result<()> {
    loop {
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => (),
            // Nothing is, or nothing is any more.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            answer => return answer.or_cannot("unmount", point.display()),
        }
    }
}
