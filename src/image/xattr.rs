//! Extended attributes of an image's files: which are an image's to have, and how they are listed, given and copied.
//!
//! An overlay reads marks of its own from `trusted.overlay.` (in a user namespace `user.overlay.`): an image that could bring
//! some could redirect one file to another. Security labels are the host's to give, file capabilities excepted.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr, lgetxattr, lremovexattr, lsetxattr};
use rustix::io::Errno as Answer;

use crate::path::{errno, fd_path};

/// The most bytes of a value or a list that the kernel gives: linux/limits.h, XATTR_SIZE_MAX.
const MOST: usize = 64 << 10;
/// As many bytes of names as are asked for first.
const FEW: usize = 1 << 10;

/// Whom a file is open to besides its owner and group, and what a directory gives to whatever is made in it: acl(5).
const ACLS: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];

/// Whether an image's file may have this attribute.
pub fn is_an_images(name: &[u8]) -> bool {
    let starts = |prefix: &str| name.starts_with(prefix.as_bytes());
    (starts("user.") && !starts("user.overlay."))
        || name == b"security.capability"
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
}

/// Gives an open file or directory an attribute.
///
/// # Errors
/// What fsetxattr(2) answers.
pub fn set(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    fsetxattr(fd, name, value, XattrFlags::empty()).map_err(errno)
}

/// Gives `name` in `dir`, which is no file that could be opened (a link, a device), an attribute.
///
/// # Errors
/// What lsetxattr(2) answers: EPERM for `user.` on anything but files and directories.
pub fn set_at(dir: BorrowedFd<'_>, file: &CStr, name: &CStr, value: &[u8]) -> Result<(), Errno> {
    // By way of the descriptor of the directory: only the last name is looked up, and a link there is not followed.
    let path = [fd_path(dir).as_bytes(), b"/", file.to_bytes()].concat();
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    lsetxattr(&path, name, value, XattrFlags::empty()).map_err(errno)
}

/// Whether whatever is made in a directory gets ACLs from it.
pub fn gives_acls(dir: BorrowedFd<'_>) -> bool {
    // Too long for the buffer is there too.
    !matches!(fgetxattr(dir, ACLS[1], &mut [0_u8; 1][..]), Err(Answer::NODATA | Answer::OPNOTSUPP))
}

/// Takes from a file or directory the ACLs that it was made with: its mode alone says who may what, until it is given its own.
///
/// # Errors
/// What fremovexattr(2) answers; a filesystem without any has none.
pub fn without_acls(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    ACLS.iter().try_for_each(|name| gone(fremovexattr(fd, *name)))
}

/// The same with `file` in `dir`, which is no file that could be opened.
///
/// # Errors
/// As [`without_acls`].
pub fn without_acls_at(dir: BorrowedFd<'_>, file: &CStr) -> Result<(), Errno> {
    let path = [fd_path(dir).as_bytes(), b"/", file.to_bytes()].concat();
    let path = CString::new(path).map_err(|_| Errno::EINVAL)?;
    ACLS.iter().try_for_each(|name| gone(lremovexattr(&path, *name)))
}

fn gone(answer: rustix::io::Result<()>) -> Result<(), Errno> {
    match answer {
        Ok(()) | Err(Answer::NODATA | Answer::OPNOTSUPP) => Ok(()),
        Err(answer) => Err(errno(answer)),
    }
}

/// Whether `file` in `dir`, whatever it is, has an attribute.
pub fn has_at(dir: BorrowedFd<'_>, file: &CStr, name: &CStr) -> bool {
    let path = [fd_path(dir).as_bytes(), b"/", file.to_bytes()].concat();
    CString::new(path).is_ok_and(|path| lgetxattr(&path, name, &mut [0_u8; 8][..]).is_ok())
}

/// Name and value of every attribute that is an image's, sorted by name.
///
/// # Errors
/// What flistxattr(2) and fgetxattr(2) answer; a filesystem without any has none.
pub fn list(fd: BorrowedFd<'_>) -> Result<Vec<(CString, Vec<u8>)>, Errno> {
    // Nearly all files have none, and the others few.
    let mut names = vec![0; FEW];
    let length = match flistxattr(fd, &mut names[..]) {
        Ok(0) | Err(Answer::OPNOTSUPP) => return Ok(Vec::new()),
        Err(Answer::RANGE) => {
            names.resize(MOST, 0);
            flistxattr(fd, &mut names[..]).map_err(errno)?
        }
        answer => answer.map_err(errno)?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| is_an_images(name)) {
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let mut value = vec![0; MOST];
        match fgetxattr(fd, &name, &mut value[..]) {
            Ok(length) => value.truncate(length),
            Err(Answer::NODATA) => continue,
            Err(answer) => return Err(errno(answer)),
        }
        found.push((name, value));
    }
    found.sort();
    Ok(found)
}

/// Copies the attributes that are an image's.
///
/// # Errors
/// As [`list`] and [`set`].
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    list(from)?.into_iter().try_for_each(|(name, value)| set(to, &name, &value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn marks_of_overlay_and_labels_are_not_an_images() {
        for name in ["user.x", "security.capability", "system.posix_acl_access"] {
            assert!(is_an_images(name.as_bytes()), "{name}");
        }
        for name in ["trusted.overlay.redirect", "user.overlay.opaque", "trusted.x", "security.selinux", "system.x", ""]
        {
            assert!(!is_an_images(name.as_bytes()), "{name}");
        }
    }

    /// A filesystem that has none is nothing to try it on.
    #[test]
    fn attributes_are_listed_and_copied() {
        let base = std::env::temp_dir().join(format!("ferry-xattr-{}", std::process::id()));
        std::fs::create_dir_all(&base).unwrap();
        let file = |name: &str| std::fs::File::create(base.join(name)).unwrap();
        let (from, to) = (file("from"), file("to"));
        // More names than fit at first.
        let long: Vec<CString> =
            (0..10).map(|index| CString::new(format!("user.{index}{}", "x".repeat(200))).unwrap()).collect();
        let taken = long.iter().take(4).all(|name| set(from.as_fd(), name, b"v").is_ok());
        let more = long.iter().skip(4).all(|name| set(from.as_fd(), name, b"v").is_ok());
        if taken {
            copy(from.as_fd(), to.as_fd()).unwrap();
            let found = list(to.as_fd()).unwrap();
            assert_eq!(found.len(), if more { 10 } else { found.len().max(4) });
            assert_eq!(found[0], (long[0].clone(), b"v".to_vec()));
        }
        std::process::Command::new("rm").arg("-r").arg(&base).status().unwrap();
    }
}
