//! How an unpacked layer says that something of the layers below is removed: by overlay's own mark, a character device 0:0.
//!
//! Nobody can make one on a filesystem that is an overlay itself. There it is an empty file with an attribute, as Linux 6.7 knows it
//! too. No layers can be stacked there, and whoever copies them looks here. Documentation/filesystems/overlayfs.rst, "Nesting
//! overlayfs mounts"

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstatfs, mknodat, openat, unlinkat};
use rustix::io::Errno as Answer;

use super::xattr;
use crate::path::errno;

/// As root, and in a user namespace.
const MARKS: [&CStr; 2] = [c"trusted.overlay.whiteout", c"user.overlay.whiteout"];

/// Whether this is overlay's own mark.
pub fn is_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether `name` in `dir`, which is this, is one.
pub fn is_one(dir: impl AsFd, name: &CStr, stat: &Stat) -> bool {
    let may_be = || FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0;
    is_device(stat) || may_be() && MARKS.iter().any(|mark| xattr::has_at(dir.as_fd(), name, mark))
}

/// Makes one where nothing is; `user` tells whether marks are those of a user namespace.
///
/// # Errors
/// EEXIST, and what else the kernel answers.
pub fn make(dir: BorrowedFd<'_>, name: &CStr, user: bool) -> Result<(), Errno> {
    match mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Answer::PERM) if is_on_overlay(dir) => marked(dir, name, user),
        answer => answer.map_err(errno),
    }
}

fn is_on_overlay(dir: BorrowedFd<'_>) -> bool {
    const OVERLAY: i64 = 0x794c_7630;
    fstatfs(dir).is_ok_and(|filesystem| filesystem.f_type == OVERLAY)
}

fn marked(dir: BorrowedFd<'_>, name: &CStr, user: bool) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty()).map_err(errno)?;
    xattr::set(file.as_fd(), MARKS[usize::from(user)], b"y").inspect_err(|_| {
        // Without its mark it would be a file of the image's. That it cannot be marked is what there is to tell.
        unlinkat(dir, name, AtFlags::empty()).ok();
    })
}
