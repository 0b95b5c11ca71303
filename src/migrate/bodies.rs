//! What a container changes in the files of its image, sent round by round while it runs, so that little of it is left to be sent when
//! it stands still.
//!
//! A file's content is a body here, and goes by the number of its inode. Its names and what else belongs to it are in the archive that is
//! made once the container stands still, which is as small as they are: it has no content of bodies that are there already. So whatever
//! is renamed, linked, or given to somebody else meanwhile needs no word, and what is removed only that it need not be kept. The other
//! end has bodies in one directory, by their numbers, and no name that the source chooses: [`super::staged`].
//!
//! A body is not read again while its time of change (ctime) and its size are what they were. That would not be seen of
//!
//! - a write in the same tick of the clock as the reading, or one that was under way meanwhile: the time is set when it begins. So a time
//!   of the filesystem's own clock is taken before CRIU has all processes stand still for the round's memory, which they do outside of any
//!   write, and bodies are read after that. Whatever began before has ended; what has begun since has no earlier time. Where
//!   CRIU has no such moment, no body is taken for what it was.
//! - memory that a file is mapped to: the kernel notes the time when a page is written to for the first time since it went to the disk.
//!   So where a process has such memory, a body goes to the disk before it is read; and where the filesystem is none that is known to
//!   note that, no body is taken for what it was.
//!
//! Those are read once more when the container stands still. What is sent then is what differs, block by block ([`super::blocks`]).

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, fdatasync, fstat, fstatfs, openat, seek, statat, unlinkat,
};
use rustix::io::Errno as Answer;

use super::blocks::{self, BLOCK};
use super::link::Link;
use super::message::Message;
use super::pages::Packer;
use super::sum::{Sum, Summed};
use crate::error::{Context, Error, Result};
use crate::image::{copy, pack};
use crate::path::{errno, reopen};

/// The most bodies of a migration: what is beyond is sent once, in the archive.
pub const MOST: usize = 100_000;

/// The most blocks whose sums are remembered, of all bodies: 32 MiB, for 128 GiB of files.
const BLOCKS: usize = 1 << 21;

/// Bytes that are read at once: the most of a piece.
pub const PIECE: usize = 16 * BLOCK;

/// The name of the file that tells the time.
const CLOCK: &CStr = c".clock";

/// Filesystems that note the time of a write by memory: linux/magic.h, of ext4, XFS and Btrfs.
const NOTING: [i64; 3] = [0xef53, 0x5846_5342, 0x9123_683e];

/// A filesystem's time: seconds and nanoseconds.
type Time = (i64, i64);

fn changed(stat: &Stat) -> Time {
    (stat.st_ctime, stat.st_ctime_nsec as i64)
}

/// What a container changed in its files, as it is to be looked through once.
pub struct Tree {
    upper: OwnedFd,
    /// Every write that was begun before this has ended by the time that the tree is looked through; `None`: that is not known.
    before: Option<Time>,
    /// Whether some process can write by memory alone.
    is_mapped: bool,
}

impl Tree {
    /// Of a container that stands still.
    pub fn still(upper: OwnedFd) -> Self {
        Self { upper, before: None, is_mapped: false }
    }

    /// Of one that runs, before it stands still for a moment; `beside` is a directory of ours, where the time is taken.
    ///
    /// # Errors
    /// The time cannot be taken.
    pub fn running(upper: OwnedFd, beside: &Path) -> Result<Self> {
        let dir = super::journal::open_dir(beside)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let clock = openat(&dir, CLOCK, flags, Mode::RUSR | Mode::WUSR).or_cannot("make", beside.display())?;
        unlinkat(&dir, CLOCK, AtFlags::empty()).or_cannot("remove", beside.display())?;
        let (clock, own) = (fstat(&clock), fstat(&upper));
        let (clock, own) = (clock.or_cannot("look at", "a file")?, own.or_cannot("look at", "the upper layer")?);
        let before = (clock.st_dev == own.st_dev).then(|| changed(&clock));
        Ok(Self { upper, before, is_mapped: false })
    }

    /// It had no such moment.
    pub fn unsettled(self) -> Self {
        Self { before: None, ..self }
    }

    /// Some process can write by memory alone.
    pub fn mapped(self) -> Self {
        let notes = fstatfs(&self.upper).is_ok_and(|filesystem| NOTING.contains(&filesystem.f_type));
        Self { before: self.before.filter(|_| notes), is_mapped: true, ..self }
    }
}

/// Bytes that the files below a directory take to be sent, however many names one has. As a body it has no holes to be sent; in the
/// archive, where all go without rounds, it has its length.
///
/// # Errors
/// They cannot be looked at.
pub fn weigh(upper: &OwnedFd, in_rounds: bool) -> Result<u64> {
    const SECTOR: u64 = 512;
    let (mut bytes, mut seen) = (0_u64, HashSet::new());
    let mut room = if in_rounds { (BLOCKS * BLOCK) as u64 } else { 0 };
    walk(upper.as_fd(), 0, &mut |_, _, stat| {
        if stat.st_nlink > 1 && !seen.insert(stat.st_ino) {
            return Ok(());
        }
        let size = stat.st_size.unsigned_abs();
        let takes = match room.checked_sub(size.next_multiple_of(BLOCK as u64)) {
            Some(left) => {
                room = left;
                size.min(stat.st_blocks.unsigned_abs().saturating_mul(SECTOR))
            }
            None => size,
        };
        bytes = bytes.saturating_add(takes);
        Ok(())
    })?;
    Ok(bytes)
}

/// What is known of a body at the other end.
struct Body {
    size: u64,
    sums: Vec<Sum>,
    /// When it was changed for the last time; `None`: it may have been since, unseen.
    changed: Option<Time>,
    /// The pass in which it was there for the last time.
    pass: u32,
}

/// Bodies that are at the other end.
#[derive(Default)]
pub struct Bodies {
    sent: HashMap<u64, Body>,
    /// Blocks whose sums are remembered.
    blocks: usize,
    pass: u32,
}

impl Bodies {
    /// Whether a file's content is there as it is here, which was looked through with the container standing still.
    pub fn has(&self, stat: &Stat) -> bool {
        self.sent.get(&stat.st_ino).is_some_and(|body| body.size == stat.st_size.unsigned_abs())
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Sends what is new since the pass before; of a container that stands `still`, only of bodies that are there already. Answers how
    /// many bytes of files that was.
    ///
    /// # Errors
    /// A file cannot be read; the link's.
    pub fn send(&mut self, link: &mut Link, packer: &mut Packer, tree: &Tree, still: bool) -> Result<u64> {
        self.pass += 1;
        let mut pass = Pass { bodies: self, link, packer, tree, still, bytes: 0, piece: vec![0; PIECE] };
        walk(tree.upper.as_fd(), 0, &mut |dir, name, stat| pass.file(dir, name, stat))?;
        let bytes = pass.bytes;
        let gone: Vec<u64> =
            self.sent.iter().filter(|(_, body)| body.pass != self.pass).map(|(number, _)| *number).collect();
        for number in gone {
            self.blocks -= self.sent.remove(&number).map_or(0, |body| body.sums.len());
            link.send(&Message::Gone(number))?;
        }
        Ok(bytes)
    }

    /// Whether the sums of so many bytes can be remembered in place of what is known of this body.
    fn has_room(&self, number: u64, size: u64) -> bool {
        let known = self.sent.get(&number);
        let blocks = usize::try_from(size.div_ceil(BLOCK as u64)).unwrap_or(usize::MAX);
        let others = self.blocks - known.map_or(0, |body| body.sums.len());
        (known.is_some() || self.sent.len() < MOST) && blocks <= BLOCKS.saturating_sub(others)
    }
}

/// One time through the tree.
struct Pass<'a> {
    bodies: &'a mut Bodies,
    link: &'a mut Link,
    packer: &'a mut Packer,
    tree: &'a Tree,
    still: bool,
    bytes: u64,
    piece: Vec<u8>,
}

impl Pass<'_> {
    fn file(&mut self, dir: BorrowedFd<'_>, name: &CStr, found: &Stat) -> Result<()> {
        self.link.alive()?;
        let (number, pass, size) = (found.st_ino, self.bodies.pass, found.st_size.unsigned_abs());
        if size == 0 || !self.bodies.has_room(number, size) {
            return Ok(());
        }
        match self.bodies.sent.get_mut(&number) {
            // By another of its names.
            Some(body) if body.pass == pass => return Ok(()),
            Some(body) if body.changed == Some(changed(found)) && body.size == size => {
                body.pass = pass;
                return Ok(());
            }
            None if self.still => return Ok(()),
            _ => (),
        }
        let named = || format!("{name:?} of the upper layer");
        let opened = if_there(opened(dir, name, number)).or_cannot("open", named())?;
        let Some(file) = opened.flatten() else { return Ok(()) };
        if self.tree.is_mapped {
            fdatasync(&file).or_cannot("sync", named())?;
        }
        let stat = fstat(&file).or_cannot("look at", named())?;
        if !self.bodies.has_room(number, stat.st_size.unsigned_abs()) {
            return Ok(());
        }
        let known = self.bodies.sent.remove(&number);
        self.bodies.blocks -= known.as_ref().map_or(0, |body| body.sums.len());
        let size = stat.st_size.unsigned_abs();
        let sums = self.content(&File::from(file), (number, size), known).or_cannot("read", named())??;
        self.bodies.blocks += sums.len();
        let changed = Some(changed(&stat)).filter(|changed| self.tree.before.is_some_and(|before| *changed < before));
        self.bodies.sent.insert(number, Body { size, sums, changed, pass });
        Ok(())
    }

    /// Sends what is new in a body. The outer error is that of reading, the inner one the link's.
    fn content(
        &mut self,
        file: &File,
        (number, size): (u64, u64),
        known: Option<Body>,
    ) -> std::io::Result<Result<Vec<Sum>>> {
        let is_as_long = known.as_ref().is_some_and(|body| body.size == size);
        let known = known.map(|body| body.sums).unwrap_or_default();
        let mut out = Sending { link: self.link, packer: self.packer, summed: None, number, size };
        if !is_as_long && let Err(error) = out.begin() {
            return Ok(Err(error));
        }
        let (mut sums, mut at) = (Vec::new(), 0);
        while at < size {
            let length = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
            let piece = &mut self.piece[..length];
            if sums.len() < known.len() || is_data(file, at, length) {
                read_at(file, piece, at)?;
            } else {
                piece.fill(0);
            }
            for run in blocks::differing(piece, &known, &mut sums) {
                self.bytes += run.len() as u64;
                if let Err(error) = out.piece(at + run.start as u64, &piece[run]) {
                    return Ok(Err(error));
                }
            }
            if let Err(error) = out.link.alive() {
                return Ok(Err(error));
            }
            at += length as u64;
        }
        Ok(out.end().map(|()| sums))
    }
}

/// A body on its way, which is begun with its first piece.
struct Sending<'a> {
    link: &'a mut Link,
    packer: &'a mut Packer,
    summed: Option<Summed>,
    number: u64,
    size: u64,
}

impl Sending<'_> {
    fn begin(&mut self) -> Result<()> {
        self.summed = Some(Summed::nothing());
        self.link.send(&Message::Body { number: self.number, size: self.size })
    }

    fn piece(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.summed.is_none() {
            self.begin()?;
        }
        let piece = [&offset.to_le_bytes()[..], bytes].concat();
        if let Some(summed) = &mut self.summed {
            summed.update(&piece);
        }
        let begun = Instant::now();
        let packed = self.packer.bytes(&piece)?;
        let packing = begun.elapsed();
        self.link.send_data(&packed)?;
        self.packer.took(packing, begun.elapsed() - packing);
        Ok(())
    }

    fn end(self) -> Result<()> {
        self.summed.map_or(Ok(()), |summed| self.link.send(&Message::FileEnd(summed.finish())))
    }
}

/// Opens the regular file of this number, if it has still the name. Somebody in the container may have put a device there meanwhile:
/// that is not opened.
fn opened(dir: BorrowedFd<'_>, name: &CStr, number: u64) -> std::result::Result<Option<OwnedFd>, Errno> {
    let found = copy::opened(dir, name, OFlags::PATH)?;
    let stat = fstat(&found).map_err(errno)?;
    let is_it = stat.st_ino == number && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    is_it.then(|| reopen(found.as_fd(), OFlags::RDONLY)).transpose()
}

/// Fills the piece with what the file has there; with zeros, where it has become shorter.
fn read_at(file: &File, piece: &mut [u8], at: u64) -> std::io::Result<()> {
    let mut filled = 0;
    while filled < piece.len() {
        match file.read_at(&mut piece[filled..], at + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    piece[filled..].fill(0);
    Ok(())
}

/// Whether some of these bytes are in no hole.
fn is_data(file: &File, at: u64, length: usize) -> bool {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => data < at + length as u64,
        Err(Answer::NXIO) => false,
        // A filesystem that does not tell.
        Err(_) => true,
    }
}

/// What was there a moment ago, in a tree that somebody works in.
fn if_there<T>(answer: std::result::Result<T, Errno>) -> std::result::Result<Option<T>, Errno> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ESTALE) => Ok(None),
        Err(answer) => Err(answer),
    }
}

/// Visits every regular file below a directory that somebody works in. What lies deeper than an archive reaches is left to that to tell.
fn walk(
    dir: BorrowedFd<'_>,
    depth: usize,
    visit: &mut dyn FnMut(BorrowedFd<'_>, &CStr, &Stat) -> Result<()>,
) -> Result<()> {
    let cannot = |answer: Errno| Error::kernel("look through", "the upper layer", answer);
    let names = if_there(pack::names(dir)).map_err(cannot)?.unwrap_or_default();
    for name in names.iter().filter(|_| depth <= pack::DEEPEST) {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno);
        let Some(stat) = if_there(stat).map_err(cannot)? else { continue };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inside = copy::opened(dir, name, OFlags::RDONLY | OFlags::DIRECTORY);
                if let Some(inside) = if_there(inside).map_err(cannot)? {
                    walk(inside.as_fd(), depth + 1, visit)?;
                }
            }
            FileType::RegularFile => visit(dir, name, &stat)?,
            _ => (),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "bodies_tests.rs"]
mod tests;
