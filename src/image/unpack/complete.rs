//! What a layer needs of those below it, made good once they are unpacked: directories that it only passes through look like
//! theirs, hard links reach down, and entries that went through what is a link further down are moved to where it leads.
//!
//! It is what unpacking one layer over the other would have given, with the layers still apart.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use rustix::fs::{
    AtFlags, FileType, OFlags, Stat, Timestamps, fstat, linkat, readlinkat, renameat, statat, unlinkat, utimensat,
};
use rustix::io::Errno as Answer;

use super::links::inside;
use super::marks::hide_below;
use super::siblings::Siblings;
use super::{Rest, as_path, both, c_name, parted};
use crate::error::{Context, Error, Result};
use crate::image::merged::{Found, Merged, Parts, is_opaque, step};
use crate::image::{copy, pack, tree, whiteout};
use crate::path::{Links, Root, errno};

/// Completes the layer in `dir` over `lowers`, the uppermost first; answers how many of its files took the place of others.
///
/// # Errors
/// A hard link to nothing, and what the kernel answers.
pub fn complete(rest: Rest, dir: &Rc<OwnedFd>, lowers: &Parts) -> Result<u64> {
    let own = dir.try_clone().or_cannot("open", "the layer")?;
    let root = Root::from_dir(own, Path::new(""));
    let cannot = |path: &[u8]| {
        let named = format!("{:?}", String::from_utf8_lossy(path));
        move |answer: Errno| Error::kernel("unpack", named.clone(), answer)
    };
    let below = Merged::new(lowers.clone());
    let whole = Merged::new([std::slice::from_ref(dir), lowers].concat());
    let mut times: Times = rest.times.iter().map(|(path, time)| (path.clone(), both(*time))).collect();
    let mut left = rest.implied;
    let mut replaced = 0;
    // Parents first: what a directory is called decides what is in it.
    while let Some(path) = left.pop_first() {
        match implied(&root, &whole, &path).map_err(cannot(&path))? {
            Implied::Like(stamp) => drop(times.insert(path, stamp)),
            Implied::Alone => (),
            Implied::Elsewhere(to) => {
                let to = to.as_os_str().as_bytes();
                // Those in it are looked at again there, unless the layer has them there anyhow.
                let renamed: Vec<(Vec<u8>, Vec<u8>)> =
                    left.range(inside(&path)).map(|old| (old.clone(), moved(old, &path, to))).collect();
                for (old, new) in renamed {
                    left.remove(&old);
                    if matches!(root.resolve(as_path(&new), Links::Refuse), Err(Errno::ENOENT)) {
                        left.insert(new);
                    }
                }
                replaced += relocate(&root, &whole, &path, to, &mut times, rest.user).map_err(cannot(&path))?;
            }
        }
    }
    let (mut siblings, mut copies) = (Siblings::default(), HashMap::new());
    for (link, target, is_hidden) in rest.links.iter() {
        let views = Views { whole: &whole, below: &below, is_hidden };
        hard_link(&root, &views, target, link, &mut siblings, &mut copies).map_err(|answer| match answer {
            Errno::ENOENT | Errno::ENOTDIR => {
                let why = format!("it is a hard link to {:?}, which is not there", String::from_utf8_lossy(target));
                Error::said("unpack", format!("{:?}", String::from_utf8_lossy(link)), why)
            }
            answer => cannot(link)(answer),
        })?;
    }
    // The deepest first: setting one's times changes no other's, but the order tells that nothing comes after.
    times.iter().rev().try_for_each(|(path, stamp)| stamp_directory(&root, path, stamp).map_err(cannot(path)))?;
    Ok(replaced)
}

/// Times that directories get in the end.
type Times = BTreeMap<Vec<u8>, Timestamps>;

/// What `path`, which is in `from`, is called once that is `to`.
pub(super) fn moved(path: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let behind = &path[from.len()..];
    if to.is_empty() { behind[1..].to_vec() } else { [to, behind].concat() }
}

enum Implied {
    /// Made like the directory below, whose times it gets in the end.
    Like(Timestamps),
    /// Nothing is below.
    Alone,
    /// Below is a link, which leads there.
    Elsewhere(PathBuf),
}

/// Makes a directory of the layer, which is the first of `whole`, like the one below.
fn implied(root: &Root, whole: &Merged, path: &[u8]) -> Result<Implied, Errno> {
    let here = match root.open_inside(as_path(path), OFlags::RDONLY | OFlags::DIRECTORY, Links::Refuse) {
        // Replaced by another entry since.
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(Implied::Alone),
        answer => answer?,
    };
    let (above, name) = parted(path);
    let below = |parts: &Parts| parts.get(1..).unwrap_or_default().to_vec();
    // What the layer itself hides is not below. Its own part is the first of all that it is in.
    let found = match whole.find(as_path(above), false)? {
        Found::Directory(parts) if path.is_empty() => Ok(Found::Directory(below(&parts))),
        Found::Directory(parts) => step(&below(&parts), &c_name(name)?),
        Found::Other(..) => return Err(Errno::ENOTDIR),
    };
    match found {
        Ok(Found::Directory(parts)) => {
            let Some(lower) = parts.first() else { return Ok(Implied::Alone) };
            let stat = fstat(lower).map_err(errno)?;
            copy::directory(lower.as_fd(), &stat, here.as_fd(), c".")?;
            Ok(Implied::Like(copy::times(&stat)))
        }
        Ok(Found::Other(dir, name, stat)) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
            let target = readlinkat(&dir, &name, Vec::new()).map_err(errno)?;
            let target = as_path(above).join(OsStr::from_bytes(target.as_bytes()));
            match (whole.find(&target, true), whole.real_path(&target)) {
                // A link into what has its name is one to itself below.
                (Ok(Found::Directory(_)), Ok(real)) if !real.starts_with(as_path(path)) => Ok(Implied::Elsewhere(real)),
                _ => Ok(Implied::Alone),
            }
        }
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(Implied::Alone),
        Err(answer) => Err(answer),
    }
}

/// Makes the directory `path` in the layer, each on the way like the one below where there is none yet.
fn make_dirs(root: &Root, whole: &Merged, path: &Path, mut made: impl FnMut(&[u8], Timestamps)) -> Result<(), Errno> {
    let mut here = PathBuf::new();
    for part in path.components() {
        here.push(part);
        if matches!(root.resolve(&here, Links::Refuse), Err(Errno::ENOENT)) {
            root.make_dirs(&here, 0o755, Links::Refuse).map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
            if let Implied::Like(stamp) = implied(root, whole, here.as_os_str().as_bytes())? {
                made(here.as_os_str().as_bytes(), stamp);
            }
        }
    }
    Ok(())
}

/// Moves what was unpacked into the directory `from` to the path `to`, where the layers below have the directory that is meant;
/// answers how many files it replaces there.
fn relocate(root: &Root, whole: &Merged, from: &[u8], to: &[u8], times: &mut Times, user: bool) -> Result<u64, Errno> {
    make_dirs(root, whole, as_path(to), |path, stamp| {
        times.insert(path.to_vec(), stamp);
    })?;
    let open = |path: &[u8]| root.open_inside(as_path(path), OFlags::RDONLY | OFlags::DIRECTORY, Links::Refuse);
    let replaced = merge(open(from)?.as_fd(), open(to)?.as_fd(), user, 0)?;
    let (above, name) = parted(from);
    unlinkat(open(above)?, c_name(name)?, AtFlags::REMOVEDIR).map_err(errno)?;
    let noted: Vec<Vec<u8>> = times.range(inside(from)).map(|(path, _)| path.clone()).collect();
    for path in noted {
        if let Some(stamp) = times.remove(&path) {
            times.insert(moved(&path, from, to), stamp);
        }
    }
    Ok(replaced)
}

/// Deeper than this nothing is merged. A usual tree has ten levels.
const DEEPEST: u32 = 128;

/// What a layer has of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    Nothing,
    Whiteout,
    Directory,
    File,
}

impl Own {
    fn of(dir: BorrowedFd<'_>, name: &CString) -> Result<Self, Errno> {
        match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(Self::Directory),
            Ok(stat) if whiteout::is_one(dir, name, &stat) => Ok(Self::Whiteout),
            Ok(_) => Ok(Self::File),
            Err(Answer::NOENT) => Ok(Self::Nothing),
            Err(answer) => Err(errno(answer)),
        }
    }
}

/// Moves what is in `from` into `to`, with what it hides; answers how many files are replaced.
fn merge(from: BorrowedFd<'_>, to: BorrowedFd<'_>, user: bool, depth: u32) -> Result<u64, Errno> {
    if depth > DEEPEST {
        return Err(Errno::ELOOP);
    }
    if is_opaque(from) {
        hide_below(to, user)?;
    }
    let open = |dir, name: &CString| copy::opened(dir, name, OFlags::RDONLY | OFlags::DIRECTORY);
    let mut replaced = 0;
    for name in pack::names(from)? {
        let (ours, there) = (Own::of(from, &name)?, Own::of(to, &name)?);
        match (ours, there) {
            (Own::Directory, Own::Directory) => {
                replaced += merge(open(from, &name)?.as_fd(), open(to, &name)?.as_fd(), user, depth + 1)?;
                unlinkat(from, &name, AtFlags::REMOVEDIR).map_err(errno)?;
            }
            // It removes what is below, not what the layer has there itself.
            (Own::Whiteout, Own::Directory | Own::File | Own::Whiteout) => {
                if there == Own::Directory {
                    hide_below(open(to, &name)?.as_fd(), user)?;
                }
                unlinkat(from, &name, AtFlags::empty()).map_err(errno)?;
            }
            _ => {
                if there != Own::Nothing {
                    replaced += u64::from(there != Own::Whiteout);
                    tree::remove(to, &name)?;
                }
                renameat(from, &name, to, &name).map_err(errno)?;
                if (ours, there) == (Own::Directory, Own::Whiteout) {
                    hide_below(open(to, &name)?.as_fd(), user)?;
                }
            }
        }
    }
    Ok(replaced)
}

/// What is looked at for a hard link.
struct Views<'a> {
    /// The layer with all below it.
    whole: &'a Merged,
    /// Those below alone.
    below: &'a Merged,
    /// Whether the layer hides the target there: it did not yet when the link was made.
    is_hidden: bool,
}

/// A hard link to a file of a layer below: that file is copied up, as overlay would, and linked there, under all names that it has.
/// `copies` are those that have been, by device and inode: where to.
fn hard_link(
    root: &Root,
    views: &Views<'_>,
    target: &[u8],
    link: &[u8],
    siblings: &mut Siblings,
    copies: &mut HashMap<(u64, u64), Vec<u8>>,
) -> Result<(), Errno> {
    let hidden = views.is_hidden.then(|| views.below.find(as_path(target), false)).and_then(Result::ok);
    let is_hidden = hidden.is_some();
    let found = hidden.map_or_else(|| views.whole.find(as_path(target), false), Ok)?;
    let Found::Other(dir, name, stat) = found else { return Err(Errno::EPERM) };
    let copied = copies.get(&(stat.st_dev, stat.st_ino));
    // Under its own name, where it still has that one.
    let at = if is_hidden { copied.map_or(link, Vec::as_slice) } else { target }.to_vec();
    let (at_dir, at_name) = place(root, views.whole, &at)?;
    match statat(&at_dir, &at_name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) if is_hidden && at != link => (),
        // In this layer after all: it came behind its link.
        Ok(found) if is_same(&found, &stat) => (),
        Ok(_) if !is_hidden => return Err(Errno::ENOENT),
        _ => {
            // Those that are hidden, by this layer or another, stay so.
            let is_shown = |name: &&Vec<u8>| {
                let found = views.whole.find(as_path(name), false);
                matches!(found, Ok(Found::Other(_, _, found)) if is_same(&found, &stat))
            };
            let others = siblings.of(&stat, &views.below.root().to_vec())?;
            let others: Vec<&Vec<u8>> = others.iter().filter(|name| **name != at).filter(is_shown).collect();
            tree::remove(at_dir.as_fd(), &at_name)?;
            copy::entry(dir.as_fd(), &name, &stat, at_dir.as_fd(), &at_name)?;
            for other in others {
                let (other_dir, other_name) = place(root, views.whole, other)?;
                match linkat(&at_dir, &at_name, &other_dir, &other_name, AtFlags::empty()) {
                    // Two of its names lead to one place, by a link that another layer has put there.
                    Ok(()) | Err(Answer::EXIST) => (),
                    Err(answer) => return Err(errno(answer)),
                }
            }
            copies.insert((stat.st_dev, stat.st_ino), at.clone());
        }
    }
    if at == link {
        return Ok(());
    }
    let (link_dir, link_name) = place(root, views.whole, link)?;
    tree::remove(link_dir.as_fd(), &link_name)?;
    linkat(&at_dir, &at_name, &link_dir, &link_name, AtFlags::empty()).map_err(errno)
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// The directory of this layer in which a path is, made like the one below where there is none; and the last name.
fn place(root: &Root, whole: &Merged, path: &[u8]) -> Result<(OwnedFd, CString), Errno> {
    let (above, name) = parted(path);
    let real = whole.real_path(as_path(above))?;
    let mut stamps = Vec::new();
    make_dirs(root, whole, &real, |path, stamp| stamps.push((path.to_vec(), stamp)))?;
    stamps.iter().try_for_each(|(path, stamp)| stamp_directory(root, path, stamp))?;
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
