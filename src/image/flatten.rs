//! The layers of an image as one directory tree, for runtimes that stack none: what an overlay of them shows, copied. And a
//! container's upper layer as another, with overlay's marks.
//!
//! The layers are looked at and not mounted, so that nobody need have the right to. Files with several names in a layer are one
//! file in the tree too.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fchmod, fstat, linkat, mkdirat, mknodat, statat, utimensat};
use rustix::io::Errno as Answer;

use super::copy::GoOn;
use super::merged::{Found, Merged, OPAQUE, Parts, is_opaque, names, step};
use super::{copy, whiteout, xattr};
use crate::error::{Error, Result};
use crate::path::errno;

/// Descriptors are held for every level; a usual tree has ten.
const DEEPEST: usize = 400;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Files and whatever else has a name.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// What becomes of overlay's marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// They are obeyed.
    Obeyed,
    /// They are copied; whether they are those of a user namespace.
    Kept(bool),
}

/// A directory on the way down.
struct Level {
    /// What it is in the layers.
    parts: Parts,
    /// Its copy.
    copy: OwnedFd,
    /// From the root on.
    path: PathBuf,
    /// What of it is still to be copied, the last first.
    names: Vec<CString>,
    /// Its times are set once it is full.
    stat: Stat,
}

/// Copies everything into the empty directory `to`, which becomes the root.
///
/// # Errors
/// What the kernel answers, with the path that it answers to; EPERM for a device without the right to make one.
pub fn flatten(merged: &Merged, to: BorrowedFd<'_>) -> Result<Copied> {
    // Of no layer at all: no layer says how its root is.
    if merged.root().is_empty() {
        let made = fchmod(to, Mode::from_raw_mode(0o755)).map_err(errno);
        return made.map_err(cannot(Path::new(""))).map(|()| Copied::default());
    }
    tree(merged.root(), to, Marks::Obeyed, &|| Ok(()))
}

/// Copies an upper layer as it is into the empty directory `to`; `user` tells whether its marks are those of a user namespace.
///
/// # Errors
/// As [`flatten`]; what `go_on` answers.
pub fn upper(layer: OwnedFd, to: BorrowedFd<'_>, user: bool, go_on: GoOn<'_>) -> Result<Copied> {
    tree(&[Rc::new(layer)], to, Marks::Kept(user), go_on)
}

/// An answer to a path from the root on.
fn cannot(path: &Path) -> impl FnOnce(Errno) -> Error {
    let named = Path::new("/").join(path).display().to_string();
    move |answer| Error::kernel("copy", named, answer)
}

fn tree(parts: &[Rc<OwnedFd>], to: BorrowedFd<'_>, marks: Marks, go_on: GoOn<'_>) -> Result<Copied> {
    let mut copied = Copied::default();
    // Files that have several names: where the first of them was copied to.
    let mut links: HashMap<(u64, u64), PathBuf> = HashMap::new();
    let mut levels = vec![top(parts, to, marks).map_err(cannot(Path::new("")))?];
    loop {
        let depth = levels.len();
        let Some(here) = levels.last_mut() else { return Ok(copied) };
        let Some(name) = here.names.pop() else {
            let stamped = utimensat(&here.copy, c".", &copy::times(&here.stat), AtFlags::empty());
            stamped.map_err(errno).map_err(cannot(&here.path))?;
            levels.pop();
            continue;
        };
        let path = here.path.join(OsStr::from_bytes(name.to_bytes()));
        copied.entries += 1;
        match step(&here.parts, &name) {
            Err(Errno::ENOENT) => mark(here, &name, marks).map_err(cannot(&path))?,
            Err(answer) => return Err(cannot(&path)(answer)),
            Ok(Found::Other(dir, name, stat)) => {
                let shared = (stat.st_nlink > 1).then_some((stat.st_dev, stat.st_ino));
                let first = shared.and_then(|file| links.get(&file));
                let made = match first {
                    Some(first) => linkat(to, first, &here.copy, &name, AtFlags::empty()).map_err(errno),
                    None => copy::entry_while(dir.as_fd(), &name, &stat, here.copy.as_fd(), &name, go_on),
                };
                made.map_err(cannot(&path))?;
                if first.is_none() && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                    copied.bytes += stat.st_size.unsigned_abs();
                }
                if let (Some(file), None) = (shared, first) {
                    links.insert(file, path);
                }
            }
            Ok(Found::Directory(_)) if depth > DEEPEST => {
                let why = "directories are nested too deeply";
                return Err(Error::said("copy", path.display().to_string(), why));
            }
            Ok(Found::Directory(parts)) => {
                let next = directory(parts, here.copy.as_fd(), &name, &path, marks).map_err(cannot(&path))?;
                levels.push(next);
            }
        }
    }
}

/// A whiteout, or what has gone since its directory was read.
fn mark(here: &Level, name: &CStr, marks: Marks) -> Result<(), Errno> {
    let (Marks::Kept(_), Some(part)) = (marks, here.parts.first()) else { return Ok(()) };
    match statat(part, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if whiteout::is_device(&stat) => {
            mknodat(&here.copy, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(errno)
        }
        Ok(_) | Err(Answer::NOENT) => Ok(()),
        Err(answer) => Err(errno(answer)),
    }
}

fn top(parts: &[Rc<OwnedFd>], to: BorrowedFd<'_>, marks: Marks) -> Result<Level, Errno> {
    let uppermost = parts.first().ok_or(Errno::ENOENT)?;
    let stat = fstat(uppermost).map_err(errno)?;
    copy::directory(uppermost.as_fd(), &stat, to, c".")?;
    level(parts.to_vec(), copy::opened(to, c".", OFlags::RDONLY | OFlags::DIRECTORY)?, PathBuf::new(), stat, marks)
}

/// Makes a directory like the uppermost of its parts.
fn directory(parts: Parts, to: BorrowedFd<'_>, name: &CStr, path: &Path, marks: Marks) -> Result<Level, Errno> {
    let uppermost = parts.first().ok_or(Errno::ENOENT)?;
    let stat = fstat(uppermost).map_err(errno)?;
    mkdirat(to, name, Mode::RWXU).map_err(errno)?;
    copy::directory(uppermost.as_fd(), &stat, to, name)?;
    let copy = copy::opened(to, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    level(parts, copy, path.to_owned(), stat, marks)
}

fn level(parts: Parts, copy: OwnedFd, path: PathBuf, stat: Stat, marks: Marks) -> Result<Level, Errno> {
    if let (Marks::Kept(user), Some(part)) = (marks, parts.first())
        && is_opaque(part)
    {
        let name = CString::new(OPAQUE[usize::from(user)]).unwrap_or_default();
        xattr::set(copy.as_fd(), &name, b"y")?;
    }
    let names: Vec<CString> = names(&parts)?.into_iter().rev().collect();
    Ok(Level { parts, copy, path, names, stat })
}

/// Copies what the image has at `path` into the empty directory `to`; nothing where that is no directory.
///
/// # Errors
/// As [`flatten`].
pub fn part(merged: &Merged, path: &Path, to: BorrowedFd<'_>) -> Result<()> {
    match merged.find(path, true) {
        Ok(Found::Directory(parts)) => flatten(&Merged::new(parts), to).map(drop),
        Ok(Found::Other(..)) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
        Err(answer) => Err(Error::kernel("look in the image for", path.display().to_string(), answer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, openat};
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn upper_layers_win_and_names_of_one_file_stay_so() {
        let base = std::env::temp_dir().join(format!("ferry-flatten-{}", std::process::id()));
        for dir in ["low/etc", "low/srv/data", "up/etc", "to"] {
            std::fs::create_dir_all(base.join(dir)).unwrap();
        }
        for (file, text) in [
            ("low/etc/a", "low"),
            ("low/etc/b", "b"),
            ("low/etc/gone", "x"),
            ("up/etc/a", "up"),
            ("low/srv/data/x", "x"),
        ] {
            std::fs::write(base.join(file), text).unwrap();
        }
        std::fs::hard_link(base.join("low/etc/b"), base.join("low/twin")).unwrap();
        symlink("/nowhere", base.join("low/link")).unwrap();
        let whiteout = mknodat(CWD, base.join("up/etc/gone"), FileType::CharacterDevice, Mode::empty(), 0).is_ok();
        let open = |name: &str| openat(CWD, base.join(name), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let merged = Merged::new(vec![Rc::new(open("up")), Rc::new(open("low"))]);
        flatten(&merged, open("to").as_fd()).unwrap();
        let to = base.join("to");
        assert_eq!(std::fs::read_to_string(to.join("etc/a")).unwrap(), "up");
        let (one, other) = (std::fs::metadata(to.join("etc/b")).unwrap(), std::fs::metadata(to.join("twin")).unwrap());
        assert_eq!((one.ino(), one.nlink()), (other.ino(), 2));
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/nowhere"));
        let (from, made) =
            (std::fs::metadata(base.join("up/etc")).unwrap(), std::fs::metadata(to.join("etc")).unwrap());
        assert_eq!((from.mtime(), from.mtime_nsec()), (made.mtime(), made.mtime_nsec()));
        assert_eq!(to.join("etc/gone").exists(), !whiteout);
        std::fs::create_dir(base.join("part")).unwrap();
        part(&merged, Path::new("/srv"), open("part").as_fd()).unwrap();
        assert_eq!(std::fs::read_to_string(base.join("part/data/x")).unwrap(), "x");
        part(&merged, Path::new("/none"), open("part").as_fd()).unwrap();
        // An upper layer keeps what it says of the layers below.
        std::fs::create_dir(base.join("kept")).unwrap();
        let copied = upper(open("up"), open("kept").as_fd(), false, &|| Ok(())).unwrap();
        assert_eq!((copied.entries, copied.bytes), (2 + u64::from(whiteout), 2));
        let kept = statat(open("kept"), c"etc/gone", AtFlags::SYMLINK_NOFOLLOW);
        assert_eq!(kept.is_ok_and(|stat| whiteout::is_device(&stat)), whiteout);
        std::process::Command::new("rm").arg("-r").arg(&base).status().unwrap();
    }
}
