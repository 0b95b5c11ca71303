//! What a layer needs of those below it, made good once they are unpacked: directories that it only passes through look like
//! theirs, hard links reach down, and entries that went through what is a link further down are moved to where it leads.
//!
//! It is what unpacking one layer over the other would have given, with the layers still apart.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use rustix::fs::{
    AtFlags, Dir, FileType, OFlags, Stat, Timestamps, fstat, linkat, renameat, statat, unlinkat, utimensat,
};
use rustix::io::Errno as Answer;

use super::siblings::Siblings;
use super::{Rest, as_path, both, c_name, parted};
use crate::error::{Context, Error, Result};
use crate::image::merged::{Found, Merged, Parts};
use crate::image::{copy, tree};
use crate::path::{Links, Root, errno};

/// Completes the layer in `dir` over `lowers`, the uppermost first.
///
/// # Errors
/// A hard link to nothing, and what the kernel answers.
pub fn complete(rest: Rest, dir: &Rc<OwnedFd>, lowers: &Parts) -> Result<()> {
    let own = dir.try_clone().or_cannot("open", "the layer")?;
    let root = Root::from_dir(own, Path::new(""));
    let cannot = |path: &[u8]| {
        let named = format!("{:?}", String::from_utf8_lossy(path));
        move |answer: Errno| Error::kernel("unpack", named.clone(), answer)
    };
    let below = Merged::new(lowers.clone());
    let mut times: Times = rest.times.iter().map(|(path, time)| (path.clone(), both(*time))).collect();
    let mut moved: BTreeMap<Vec<u8>, PathBuf> = BTreeMap::new();
    for path in &rest.implied {
        if above(path).any(|above| moved.contains_key(above)) {
            continue;
        }
        match implied(&root, &below, path).map_err(cannot(path))? {
            Implied::Like(stamp) => drop(times.insert(path.clone(), stamp)),
            Implied::Alone => (),
            Implied::Elsewhere(to) => drop(moved.insert(path.clone(), to)),
        }
    }
    for (from, to) in &moved {
        relocate(&root, &below, from, to, &mut times).map_err(cannot(from))?;
    }
    if !rest.links.is_empty() {
        let whole = Merged::new([std::slice::from_ref(dir), lowers].concat());
        let mut siblings = Siblings::default();
        for (target, link) in &rest.links {
            hard_link(&root, (&whole, &below), target, link, &mut siblings).map_err(|answer| match answer {
                Errno::ENOENT | Errno::ENOTDIR => {
                    let why = format!("it is a hard link to {:?}, which is not there", String::from_utf8_lossy(target));
                    Error::said("unpack", format!("{:?}", String::from_utf8_lossy(link)), why)
                }
                answer => cannot(link)(answer),
            })?;
        }
    }
    // The deepest first: setting one's times changes no other's, but the order tells that nothing comes after.
    times.iter().rev().try_for_each(|(path, stamp)| stamp_directory(&root, path, stamp).map_err(cannot(path)))
}

/// Times that directories get in the end.
type Times = BTreeMap<Vec<u8>, Timestamps>;

/// The directories that a path is in, the uppermost first.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at])
}

enum Implied {
    /// Made like the directory below, whose times it gets in the end.
    Like(Timestamps),
    /// Nothing is below.
    Alone,
    /// Below is a link, which leads there.
    Elsewhere(PathBuf),
}

fn implied(root: &Root, below: &Merged, path: &[u8]) -> Result<Implied, Errno> {
    let here = match root.open_inside(as_path(path), OFlags::RDONLY | OFlags::DIRECTORY, Links::Refuse) {
        // Replaced by another entry since.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(Implied::Alone),
        answer => answer?,
    };
    match below.find(as_path(path), false) {
        Ok(Found::Directory(parts)) => {
            let Some(lower) = parts.first() else { return Ok(Implied::Alone) };
            let stat = fstat(lower).map_err(errno)?;
            let opaque = crate::image::merged::is_opaque(&here);
            if !opaque {
                copy::directory(lower.as_fd(), &stat, here.as_fd(), c".")?;
            }
            Ok(Implied::Like(copy::times(&stat)))
        }
        Ok(Found::Other(_, _, stat)) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
            match (below.find(as_path(path), true), below.real_path(as_path(path))) {
                (Ok(Found::Directory(_)), Ok(real)) => Ok(Implied::Elsewhere(real)),
                _ => Ok(Implied::Alone),
            }
        }
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(Implied::Alone),
        Err(answer) => Err(answer),
    }
}

/// Moves what was unpacked into the directory `from` to the path `to`, where the layers below have the directory that is meant.
fn relocate(root: &Root, below: &Merged, from: &[u8], to: &Path, times: &mut Times) -> Result<(), Errno> {
    use std::os::unix::ffi::OsStrExt;
    let mut path = PathBuf::new();
    for part in to.components() {
        path.push(part);
        if matches!(root.resolve(&path, Links::Refuse), Err(Errno::ENOENT)) {
            root.make_dirs(&path, 0o755, Links::Refuse).map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
            if let Implied::Like(stamp) = implied(root, below, path.as_os_str().as_bytes())? {
                times.insert(path.as_os_str().as_bytes().to_vec(), stamp);
            }
        }
    }
    let open = |path: &Path| root.open_inside(path, OFlags::RDONLY | OFlags::DIRECTORY, Links::Refuse);
    merge(open(as_path(from))?.as_fd(), open(to)?.as_fd(), 0)?;
    let (above, name) = parted(from);
    let above = open(as_path(above))?;
    unlinkat(&above, c_name(name)?, AtFlags::REMOVEDIR).map_err(errno)?;
    // Times noted for what was moved go along: everything from `FROM/` up to the next byte after the slash.
    let (first, behind) = ([from, b"/"].concat(), [from, b"0"].concat());
    let noted: Vec<Vec<u8>> = times.range(first..behind).map(|(path, _)| path.clone()).collect();
    for path in noted {
        if let Some(stamp) = times.remove(&path) {
            times.insert([to.as_os_str().as_bytes(), &path[from.len()..]].concat(), stamp);
        }
    }
    Ok(())
}

/// Deeper than this nothing is merged. A usual tree has ten levels.
const DEEPEST: u32 = 128;

fn merge(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<(), Errno> {
    if depth > DEEPEST {
        return Err(Errno::ELOOP);
    }
    let mut names = Vec::new();
    for entry in Dir::read_from(from).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        let is_dir = |dir: BorrowedFd<'_>| match statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)),
            Err(Answer::NOENT) => Ok(None),
            Err(answer) => Err(errno(answer)),
        };
        match (is_dir(from)?, is_dir(to)?) {
            (Some(true), Some(true)) => {
                let open = |dir| copy::opened(dir, &name, OFlags::RDONLY | OFlags::DIRECTORY);
                merge(open(from)?.as_fd(), open(to)?.as_fd(), depth + 1)?;
                unlinkat(from, &name, AtFlags::REMOVEDIR).map_err(errno)?;
            }
            (_, there) => {
                if there.is_some() {
                    tree::remove(to, &name)?;
                }
                renameat(from, &name, to, &name).map_err(errno)?;
            }
        }
    }
    Ok(())
}

/// A hard link to a file of a layer below: that file is copied up, as overlay would, and linked there, under all names that it has.
/// `views` are the layer with all below it, and those below alone.
fn hard_link(
    root: &Root,
    views: (&Merged, &Merged),
    target: &[u8],
    link: &[u8],
    siblings: &mut Siblings,
) -> Result<(), Errno> {
    let Found::Other(dir, name, stat) = views.0.find(as_path(target), false)? else { return Err(Errno::EPERM) };
    let (target_dir, target_name) = place(root, views, target)?;
    match statat(&target_dir, &target_name, AtFlags::SYMLINK_NOFOLLOW) {
        // In this layer after all: it came behind its link.
        Ok(found) if is_same(&found, &stat) => (),
        Ok(_) => return Err(Errno::ENOENT),
        Err(_) => {
            // Those that are hidden, by this layer or another, stay so.
            let is_shown = |name: &&Vec<u8>| {
                let found = views.0.find(as_path(name), false);
                matches!(found, Ok(Found::Other(_, _, found)) if is_same(&found, &stat))
            };
            let others = siblings.of(&stat, &views.1.root().to_vec())?;
            let others: Vec<&Vec<u8>> = others.iter().filter(|name| *name != target).filter(is_shown).collect();
            copy::entry(dir.as_fd(), &name, &stat, target_dir.as_fd(), &target_name)?;
            for other in others {
                let (other_dir, other_name) = place(root, views, other)?;
                match linkat(&target_dir, &target_name, &other_dir, &other_name, AtFlags::empty()) {
                    // Two of its names lead to one place, by a link that another layer has put there.
                    Ok(()) | Err(Answer::EXIST) => (),
                    Err(answer) => return Err(errno(answer)),
                }
            }
        }
    }
    let (link_dir, link_name) = place(root, views, link)?;
    tree::remove(link_dir.as_fd(), &link_name)?;
    linkat(&target_dir, &target_name, &link_dir, &link_name, AtFlags::empty()).map_err(errno)
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// The directory of this layer in which a path is, made like the one below where there is none; and the last name.
fn place(root: &Root, (whole, below): (&Merged, &Merged), path: &[u8]) -> Result<(OwnedFd, CString), Errno> {
    use std::os::unix::ffi::OsStrExt;
    let (above, name) = parted(path);
    let real = whole.real_path(as_path(above))?;
    let mut here = PathBuf::new();
    for part in real.components() {
        here.push(part);
        if matches!(root.resolve(&here, Links::Refuse), Err(Errno::ENOENT)) {
            root.make_dirs(&here, 0o755, Links::Refuse).map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
            if let Implied::Like(stamp) = implied(root, below, here.as_os_str().as_bytes())? {
                stamp_directory(root, here.as_os_str().as_bytes(), &stamp)?;
            }
        }
    }
    Ok((root.open_inside(&real, OFlags::RDONLY | OFlags::DIRECTORY, Links::Refuse)?, c_name(name)?))
}

fn stamp_directory(root: &Root, path: &[u8], stamp: &Timestamps) -> Result<(), Errno> {
    match root.open_inside(as_path(path), OFlags::RDONLY | OFlags::DIRECTORY, Links::Refuse) {
        Ok(dir) => utimensat(&dir, c".", stamp, AtFlags::empty()).map_err(errno),
        // Replaced by another entry since.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
        Err(answer) => Err(answer),
    }
}
