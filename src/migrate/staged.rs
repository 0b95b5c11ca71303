//! Bodies of files that arrive round by round ([`super::bodies`]), until the container is made of them. What comes is hostile until then:
//! a body has a number and no name, lies in a directory that nobody else can write, and takes no more room than there is.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fsync, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use super::bodies::{MOST, PIECE};
use super::frame::refused;
use super::images::settle_file;
use super::journal::open_dir;
use super::link::{Frame, Link};
use super::message::{self, Message};
use super::pages::Unpacker;
use super::sum::Summed;
use crate::error::{Context, Error, Result};
use crate::image::unpack::body;
use crate::sys::fd;

/// Bytes before those of a piece: where it belongs.
const OFFSET: usize = 8;

/// What there is so far.
pub struct Staged {
    path: PathBuf,
    dir: Option<OwnedFd>,
    /// What each takes of the disk. Bytes.
    taken: HashMap<u64, u64>,
    /// What all of them take. Bytes.
    pub all: u64,
    unsettled: BTreeSet<u64>,
}

impl Staged {
    /// Nothing yet; the directory is made when something comes.
    pub fn new(path: PathBuf) -> Self {
        Self { path, dir: None, taken: HashMap::new(), all: 0, unsettled: BTreeSet::new() }
    }

    /// Takes a body, after [`Message::Body`]: anew, or what is new in it. All of them may take `most` bytes of the disk.
    ///
    /// # Errors
    /// The far end breaks a rule; the disk is full; the link's.
    pub fn take(
        &mut self,
        link: &mut Link,
        unpacker: &mut Unpacker,
        (number, size): (u64, u64),
        most: u64,
    ) -> Result<()> {
        let (file, mut summed) = (self.open(number)?, Summed::nothing());
        let named = || format!("body {number}");
        file.set_len(size).or_cannot("make", named())?;
        loop {
            let data = match link.receive()? {
                Frame::Data(data) => data,
                Frame::Message(Message::FileEnd(sum)) if summed.finish() == sum => break,
                Frame::Message(Message::FileEnd(_)) => {
                    return Err(refused(format!("{} arrived damaged: its sum is another", named())));
                }
                Frame::Message(Message::Abort(why)) => {
                    return Err(Error::plain(format!("the source gave up: {}", message::shown(&why))));
                }
                Frame::Message(other) => return Err(other.out_of_turn()),
            };
            let piece = unpacker.unpack(&data, PIECE + OFFSET)?;
            summed.update(&piece);
            let (offset, bytes) = piece.split_first_chunk::<OFFSET>().filter(|(_, bytes)| !bytes.is_empty()).unzip();
            let (Some(offset), Some(bytes)) = (offset.copied().map(u64::from_le_bytes), bytes) else {
                return Err(refused(format!("a piece of {} has nothing in it", named())));
            };
            if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > size) {
                return Err(refused(format!("{} is longer than it was said to be", named())));
            }
            file.write_all_at(bytes, offset).or_cannot("write", named())?;
            self.weigh(&file, number, most)?;
            link.alive()?;
        }
        self.weigh(&file, number, most)?;
        body::is_whole(&file).or_cannot("set the times of", named())?;
        // The disk begins now. One that cannot does all later.
        fd::start_writeback(&file).ok();
        self.unsettled.insert(number);
        Ok(())
    }

    fn open(&mut self, number: u64) -> Result<File> {
        if self.dir.is_none() {
            match mkdirat(CWD, &self.path, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => (),
                Err(answer) => return Err(answer).or_cannot("make directory", self.path.display()),
            }
            self.dir = Some(open_dir(&self.path)?);
        }
        let dir = self.dir.as_ref().ok_or_else(|| Error::plain("there is no directory for bodies"))?;
        let is_new = !self.taken.contains_key(&number);
        if is_new && self.taken.len() >= MOST {
            return Err(refused("it sends too many bodies"));
        }
        let new = if is_new { OFlags::CREATE | OFlags::EXCL } else { OFlags::empty() };
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | new;
        let file = openat(dir, number.to_string(), flags, Mode::RUSR | Mode::WUSR);
        self.taken.entry(number).or_default();
        file.map(File::from).or_cannot("make", format!("body {number}"))
    }

    /// Notes what a body takes of the disk.
    fn weigh(&mut self, file: &File, number: u64, most: u64) -> Result<()> {
        const SECTOR: u64 = 512;
        let takes = file.metadata().or_cannot("look at", format!("body {number}"))?.blocks().saturating_mul(SECTOR);
        let before = self.taken.insert(number, takes).unwrap_or(0);
        self.all = (self.all - before).saturating_add(takes);
        if self.all <= most {
            Ok(())
        } else {
            Err(refused(format!("it sends more than was asked for: {} bytes of files", self.all)))
        }
    }

    /// A body is not needed any more.
    ///
    /// # Errors
    /// There is none of that number; the kernel's answer.
    pub fn remove(&mut self, number: u64) -> Result<()> {
        let (Some(dir), Some(takes)) = (&self.dir, self.taken.remove(&number)) else {
            return Err(refused(format!("it has body {number} removed, and has sent none")));
        };
        self.all -= takes;
        self.unsettled.remove(&number);
        unlinkat(dir, number.to_string(), AtFlags::empty()).or_cannot("remove", format!("body {number}"))
    }

    /// Those that may not be on disk yet, which this one forgets.
    pub fn unsettled(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.unsettled)
    }
}

/// Waits until these bodies of a directory are on disk. `waiting` is called as by [`settle_file`].
///
/// # Errors
/// The disk fails; those of `waiting`.
pub fn settle(directory: &Path, bodies: &BTreeSet<u64>, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    if bodies.is_empty() {
        return Ok(());
    }
    let dir = open_dir(directory)?;
    for number in bodies {
        let named = || format!("body {number}");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&dir, number.to_string(), flags, Mode::empty()).or_cannot("open", named())?;
        settle_file(&file, &named(), waiting)?;
    }
    fsync(dir).or_cannot("sync", directory.display())
}

#[cfg(test)]
#[path = "staged_tests.rs"]
mod tests;
