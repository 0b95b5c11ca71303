//! mount_setattr(2): attributes of a mount or of a whole tree of them, and id mappings, by descriptor.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use super::answer;

/// The read-only bit of a mount's attributes: linux/mount.h.
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// Set-user-id bits are ignored.
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// Device nodes cannot be opened.
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
/// Nothing can be executed.
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;
/// The field of access-time modes; relatime is zero in it.
pub const MOUNT_ATTR_ATIME: u64 = 0x70;
/// No access times.
pub const MOUNT_ATTR_NOATIME: u64 = 0x10;
/// Every access time.
pub const MOUNT_ATTR_STRICTATIME: u64 = 0x20;
/// No access times of directories.
pub const MOUNT_ATTR_NODIRATIME: u64 = 0x80;
/// The mount's ids are mapped through a user namespace.
pub const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;
/// Symbolic links are not followed.
pub const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// What [`mount_setattr`] changes. The layout of the kernel's `struct mount_attr`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// One of MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, or 0.
    pub propagation: u64,
    /// Descriptor of a user namespace, with MOUNT_ATTR_IDMAP.
    pub userns: u64,
}

/// Changes the mount at `path` under `dir` (the empty path: `dir` itself), and everything below it when `recursive`.
///
/// # Errors
/// ENOSYS before Linux 5.12; EPERM for bits that are locked in this user namespace; EINVAL for a descriptor that is not
/// a mount's root.
pub fn mount_setattr(dir: BorrowedFd<'_>, path: &CStr, recursive: bool, attr: &MountAttr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: `path` is NUL-terminated and `attr` has the kernel's layout; both outlive the call, which only reads them.
    answer(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}
