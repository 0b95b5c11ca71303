//! The other names of a file: where a layer makes a hard link to a file further down that has several names, all of them are one
//! file afterwards. An overlay would leave those that the layer does not mention with the file as it was.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat, statat};

use crate::image::copy;
use crate::image::merged::Parts;
use crate::path::errno;

/// Directories that are deeper are not looked through. A usual tree has ten levels.
const DEEPEST: u32 = 128;

/// Names from a layer's root on, by device and inode.
type Names = HashMap<(u64, u64), Vec<Vec<u8>>>;

/// Files of several names in the layers below. They are looked for once, and only when one is asked for.
#[derive(Default)]
pub struct Siblings {
    found: Option<Names>,
}

impl Siblings {
    /// All names of a file of the layers in `lowers`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn of(&mut self, stat: &Stat, lowers: &Parts) -> Result<&[Vec<u8>], Errno> {
        if stat.st_nlink < 2 {
            return Ok(&[]);
        }
        let found = match self.found.take() {
            Some(found) => found,
            None => {
                let mut found = Names::new();
                lowers.iter().try_for_each(|lower| note(lower.as_fd(), b"", 0, &mut found))?;
                found
            }
        };
        let names = self.found.insert(found).get(&(stat.st_dev, stat.st_ino));
        Ok(names.map(Vec::as_slice).unwrap_or_default())
    }
}

/// Notes the files of several names in a directory and below it.
fn note(dir: BorrowedFd<'_>, path: &[u8], depth: u32, found: &mut Names) -> Result<(), Errno> {
    for entry in Dir::read_from(dir).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        let name: &CStr = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let here = if path.is_empty() { name.to_bytes().to_vec() } else { [path, b"/", name.to_bytes()].concat() };
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if depth < DEEPEST {
                let below = copy::opened(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                note(below.as_fd(), &here, depth + 1, found)?;
            }
        } else if stat.st_nlink > 1 {
            found.entry((stat.st_dev, stat.st_ino)).or_default().push(here);
        }
    }
    Ok(())
}
