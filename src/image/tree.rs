//! Removing a directory tree that an image made, whatever is in it.
//!
//! An image can nest directories deeper than a process has descriptors or stack for. So nothing is walked down: each directory
//! found is moved to the top first, and emptied there.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno as Answer;

use crate::path::errno;

/// Removes `name` in `dir` and everything below it, links not followed. What is not there is removed already.
///
/// # Errors
/// What the kernel answers; EACCES or EPERM for what belongs to ids of a user namespace that the caller is not in.
pub fn remove(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Answer::NOENT) => return Ok(()),
        // POSIX has EPERM for unlink of a directory, Linux EISDIR.
        Err(Answer::ISDIR | Answer::PERM) => (),
        Err(answer) => return Err(errno(answer)),
    }
    let top = opened(dir, name)?;
    let mut count = 0_u64;
    let mut waiting = empty(&top, top.as_fd(), &mut count)?;
    while let Some(next) = waiting.pop() {
        let below = opened(top.as_fd(), &next)?;
        waiting.extend(empty(&top, below.as_fd(), &mut count)?);
        unlinkat(&top, &next, AtFlags::REMOVEDIR).map_err(errno)?;
    }
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Answer::NOENT) => Ok(()),
        Err(answer) => Err(errno(answer)),
    }
}

fn opened(dir: BorrowedFd<'_>, name: &CStr) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(dir, name, flags, Mode::empty()) {
        // A work directory of overlay's, or one whose mode the image made so.
        Err(Answer::ACCESS) => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty()).map_err(errno)?;
            openat(dir, name, flags, Mode::empty()).map_err(errno)
        }
        answer => answer.map_err(errno),
    }
}

/// Removes what is in `dir`; directories go into `top` under names that are answered.
fn empty(top: impl AsFd, dir: BorrowedFd<'_>, count: &mut u64) -> Result<Vec<CString>, Errno> {
    let mut moved = Vec::new();
    // The list is complete before anything changes: moving entries while reading could show them twice.
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    for (name, kind) in names {
        if kind != FileType::Directory {
            match unlinkat(dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Answer::NOENT) => continue,
                Err(Answer::ISDIR | Answer::PERM) => (),
                Err(answer) => return Err(errno(answer)),
            }
        }
        match unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Answer::NOENT) => continue,
            Err(_) => (),
        }
        let place = loop {
            let place = CString::new(format!(".removed-{count}")).unwrap_or_default();
            *count += 1;
            match rustix::fs::statat(&top, &place, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Answer::NOENT) => break place,
                _ => continue,
            }
        };
        renameat(dir, &name, &top, &place).map_err(errno)?;
        moved.push(place);
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mkdirat};

    #[test]
    fn a_tree_deeper_than_descriptors_goes_and_links_are_not_followed() {
        let base = std::env::temp_dir().join(format!("ferry-tree-{}", std::process::id()));
        std::fs::create_dir_all(base.join("tree")).unwrap();
        std::fs::write(base.join("kept"), "x").unwrap();
        std::os::unix::fs::symlink("..", base.join("tree/up")).unwrap();
        let dir = openat(CWD, &base, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let mut deep = openat(&dir, "tree", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for _ in 0..3000 {
            mkdirat(&deep, "d", Mode::RWXU).unwrap();
            deep = openat(&deep, "d", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        }
        remove(dir.as_fd(), c"tree").unwrap();
        assert!(!base.join("tree").exists() && base.join("kept").exists());
        remove(dir.as_fd(), c"tree").unwrap();
        remove(dir.as_fd(), c"kept").unwrap();
        std::fs::remove_dir(&base).unwrap();
    }
}
