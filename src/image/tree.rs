//! Removing a directory tree that an image made, whatever is in it.
//!
//! An image can nest directories deeper than a process has descriptors or stack for. So a few levels are walked down, which are all
//! that usual trees have, and what is deeper is moved to the top first, and emptied there.
//!
//! Another process may be at the same tree: what it took away is what was wanted.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, openat, renameat, unlinkat};
use rustix::io::Errno as Answer;

use crate::path::errno;

/// How deep directories are emptied where they are. Each level has a descriptor.
const WALKED: u32 = 16;
/// What one call lists of a directory. Bytes.
const LISTED: usize = 4 << 10;

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
    let Some(top) = opened(dir, name)? else { return Ok(()) };
    let mut tree = Tree { top: top.as_fd(), moved: Vec::new(), count: 0 };
    tree.empty(top.as_fd(), 0)?;
    while let Some(next) = tree.moved.pop() {
        tree.directory(top.as_fd(), &next, 0)?;
    }
    remove_empty(dir, name)
}

/// Opens a directory to be emptied, if it is there.
fn opened(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || openat(dir, name, flags, Mode::empty());
    let answer = match open() {
        // A work directory of overlay's, or one whose mode the image made so.
        Err(Answer::ACCESS) => rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty()).and_then(|()| open()),
        answer => answer,
    };
    match answer {
        Ok(dir) => Ok(Some(dir)),
        Err(Answer::NOENT) => Ok(None),
        Err(answer) => Err(errno(answer)),
    }
}

fn remove_empty(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Answer::NOENT) => Ok(()),
        Err(answer) => Err(errno(answer)),
    }
}

/// Every name in a directory with what it is. The list is complete before anything changes: entries that are moved while it is
/// read could be there twice.
fn listed(dir: BorrowedFd<'_>) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut room = [MaybeUninit::uninit(); LISTED];
    let mut entries = RawDir::new(dir, &mut room);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            // It has itself been removed since it was opened.
            Err(Answer::NOENT) => break,
            answer => answer.map_err(errno)?,
        };
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

/// A tree on its way out.
struct Tree<'a> {
    /// Its topmost directory.
    top: BorrowedFd<'a>,
    /// Names of directories that were moved there from far below.
    moved: Vec<CString>,
    /// How many such names were tried.
    count: u64,
}

impl Tree<'_> {
    /// Removes what is in `dir`, which is `depth` levels below where the walk began.
    fn empty(&mut self, dir: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
        for (name, kind) in listed(dir)? {
            if kind != FileType::Directory {
                match unlinkat(dir, &name, AtFlags::empty()) {
                    Ok(()) | Err(Answer::NOENT) => continue,
                    // The filesystem does not tell in its lists what is a directory.
                    Err(Answer::ISDIR | Answer::PERM) => (),
                    Err(answer) => return Err(errno(answer)),
                }
            }
            if remove_empty(dir, &name).is_err() {
                self.directory(dir, &name, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Removes the directory `name` in `dir`, or moves it to the top.
    fn directory(&mut self, dir: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<(), Errno> {
        if depth > WALKED {
            return self.put_off(dir, name);
        }
        let Some(below) = opened(dir, name)? else { return Ok(()) };
        self.empty(below.as_fd(), depth)?;
        remove_empty(dir, name)
    }

    fn put_off(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        let place = loop {
            let place = CString::new(format!(".removed-{}", self.count)).unwrap_or_default();
            self.count += 1;
            match rustix::fs::statat(self.top, &place, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Answer::NOENT) => break place,
                _ => continue,
            }
        };
        match renameat(dir, name, self.top, &place) {
            Ok(()) => self.moved.push(place),
            Err(Answer::NOENT) => (),
            Err(answer) => return Err(errno(answer)),
        }
        Ok(())
    }
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

    #[test]
    fn names_that_the_removal_uses_itself_may_be_there_and_others_may_remove_too() {
        let base = std::env::temp_dir().join(format!("ferry-tree-twice-{}", std::process::id()));
        let deep = "d/".repeat(WALKED as usize * 3);
        for number in 0..40 {
            std::fs::create_dir_all(base.join(format!("tree/{number}/{deep}"))).unwrap();
            std::fs::write(base.join(format!("tree/{number}/{deep}/file")), "x").unwrap();
        }
        std::fs::create_dir_all(base.join("tree/.removed-0/a")).unwrap();
        std::fs::write(base.join("tree/.removed-1"), "x").unwrap();
        let dir = openat(CWD, &base, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        remove(dir.as_fd(), c"tree").unwrap();
        assert!(!base.join("tree").exists());
        for number in 0..400 {
            std::fs::create_dir_all(base.join(format!("tree/{number}/a/b/c"))).unwrap();
        }
        std::thread::scope(|scope| {
            let both: Vec<_> = (0..2).map(|_| scope.spawn(|| remove(dir.as_fd(), c"tree"))).collect();
            both.into_iter().for_each(|one| one.join().unwrap().unwrap());
        });
        assert!(!base.join("tree").exists());
        std::fs::remove_dir(&base).unwrap();
    }
}
