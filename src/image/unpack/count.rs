//! What unpacking a layer came to, for its record and for warnings.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, OFlags, statat};

use crate::image::copy::opened;
use crate::image::pack;
use crate::path::errno;

/// What was unpacked, and what was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Count {
    /// Entries of the archive.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Devices left out, since only root can make them.
    pub devices: u64,
    /// Attributes left out, which are not an image's to have or which the filesystem does not take.
    pub attributes: u64,
    /// Files made to belong to the one id there is.
    pub owners: u64,
    /// Entries that came again, and took the place of what they were before.
    pub replaced: u64,
}

impl Count {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.devices += other.devices;
        self.attributes += other.attributes;
        self.owners += other.owners;
        self.replaced += other.replaced;
    }
}

/// What is in a layer's directory, for what is lost of it to be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Contents {
    /// Names, in all directories.
    pub entries: u64,
    /// The sizes of all files, each inode once.
    pub bytes: u64,
}

impl Contents {
    /// Counts what is in a directory. An archive can nest directories deeper than a process has descriptors: the way up is by `..`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn of(top: &OwnedFd) -> Result<Self, Errno> {
        let open = |dir: &OwnedFd, name: &CStr| opened(dir.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY);
        let (mut found, mut seen) = (Self::default(), HashSet::new());
        let mut dir = open(top, c".")?;
        let mut levels = vec![found.level(&dir, &mut seen)?];
        while let Some(below) = levels.last_mut() {
            if let Some(name) = below.pop() {
                dir = open(&dir, &name)?;
                levels.push(found.level(&dir, &mut seen)?);
            } else {
                levels.pop();
                if !levels.is_empty() {
                    dir = open(&dir, c"..")?;
                }
            }
        }
        Ok(found)
    }
    /// Counts one level; answers the directories in it.
    fn level(&mut self, dir: &OwnedFd, seen: &mut HashSet<u64>) -> Result<Vec<CString>, Errno> {
        let mut directories = Vec::new();
        for name in pack::names(dir.as_fd())? {
            self.entries += 1;
            let stat = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => directories.push(name),
                FileType::RegularFile if stat.st_nlink == 1 || seen.insert(stat.st_ino) => {
                    self.bytes += stat.st_size.unsigned_abs();
                }
                _ => (),
            }
        }
        Ok(directories)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, mkdirat, openat};

    #[test]
    fn names_on_all_levels_and_bytes_of_inodes() {
        let base = std::env::temp_dir().join(format!("ferry-contents-{}", std::process::id()));
        std::fs::create_dir_all(base.join("empty")).unwrap();
        std::fs::write(base.join("file"), "12345").unwrap();
        std::fs::hard_link(base.join("file"), base.join("empty/twin")).unwrap();
        std::os::unix::fs::symlink("file", base.join("link")).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = openat(CWD, &base, flags, Mode::empty()).unwrap();
        assert_eq!(Contents::of(&top), Ok(Contents { entries: 4, bytes: 5 }));
        // More levels than a process has descriptors, in most places.
        let mut deep = openat(&top, "empty", flags, Mode::empty()).unwrap();
        for _ in 0..1100 {
            mkdirat(&deep, "d", Mode::RWXU).unwrap();
            deep = openat(&deep, "d", flags, Mode::empty()).unwrap();
        }
        assert_eq!(Contents::of(&top), Ok(Contents { entries: 1104, bytes: 5 }));
        assert_eq!(Contents::of(&deep), Ok(Contents::default()));
        let above = openat(&top, "..", flags, Mode::empty()).unwrap();
        crate::image::tree::remove(above.as_fd(), &CString::new(base.file_name().unwrap().as_encoded_bytes()).unwrap())
            .unwrap();
    }
}
