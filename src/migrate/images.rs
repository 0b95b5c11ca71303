//! A round's directory of images, from one end to the other: file by file, each held to its size and its sum; and before them what is
//! new in bodies of files ([`super::bodies`]).
//!
//! What arrives is hostile until it is verified: plain names only, in a directory that nobody else can write, each file made
//! anew; the link to the round before is made here and not sent.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{CWD, Mode, OFlags, fstat, fsync, openat, symlinkat};

use super::addresses;
use super::frame::refused;
use super::journal::Journal;
use super::link::{Frame, Link};
use super::message::{Last, Message, is_image_name};
use super::pages::{BLOCK, PAGE, Packer, Unpacker};
use super::staged::{self, Staged};
use super::sum::Summed;
use crate::error::{Context, Error, Result};
use crate::sys::fd;

/// Bytes of a piece of a file that is no pages.
const PIECE: usize = 1 << 20;

/// So many bytes of a file are waited for at once, which takes a slow disk a few seconds.
const SETTLED: u64 = 4 << 20;

/// The most files of one round.
const FILES: u32 = 100_000;

/// The most rounds, of which a person may ask for one less before the last.
const ROUNDS: u32 = 1001;

/// What was sent of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Files.
    pub files: u32,
    /// Bytes of files of pages, as they lie there.
    pub pages: u64,
    /// Bytes of the other files.
    pub others: u64,
    /// Bytes of bodies of files.
    pub bodies: u64,
}

/// What goes in a round before its images. Answers how many bytes of bodies.
pub type Before<'a> = dyn FnMut(&mut Link, &mut Packer) -> Result<u64> + 'a;

/// Sends a directory as this round; `still`: it is the last, and the container stands still meanwhile.
///
/// # Errors
/// What reading it answers; the link's; those of `before`.
pub fn send(
    link: &mut Link,
    directory: &Path,
    round: u32,
    packer: &mut Packer,
    still: bool,
    before: &mut Before<'_>,
) -> Result<Sent> {
    link.send(&Message::Round(round))?;
    let mut sent = Sent { bodies: before(link, packer)?, ..Sent::default() };
    let names = names(directory)?;
    let mut layouts = addresses::layouts(directory, &names);
    for name in names {
        let path = directory.join(&name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(CWD, &path, flags, Mode::empty()).or_cannot("open", path.display())?);
        let size = file.metadata().or_cannot("look at", path.display())?.len();
        let pages = name.starts_with("pages-") && size.is_multiple_of(PAGE as u64);
        let layout = layouts.remove(&name).filter(|layout| layout.pages() == size / PAGE as u64);
        link.send(&Message::File { name, size, pages })?;
        let file = Arc::new(file);
        if pages {
            packer.begin(&file, layout);
        }
        send_file(link, &file, &path, pages, packer)?;
        if pages {
            packer.end();
        }
        *(if pages { &mut sent.pages } else { &mut sent.others }) += size;
        sent.files += 1;
    }
    link.send(&Message::RoundEnd { round, files: sent.files, still })?;
    Ok(sent)
}

/// The plain files of a directory, in an order; logs and figures of CRIU's stay.
fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).or_cannot("read", directory.display())? {
        let entry = entry.or_cannot("read", directory.display())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry.file_type().or_cannot("look at", entry.path().display())?.is_file();
        if is_file && is_image_name(&name) && !name.ends_with(".log") && !name.starts_with("stats-") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn send_file(link: &mut Link, file: &Arc<File>, path: &Path, pages: bool, packer: &mut Packer) -> Result<()> {
    let mut summed = Summed::nothing();
    let mut piece = vec![0; if pages { BLOCK * PAGE } else { PIECE }];
    loop {
        let filled = fill(file, &mut piece).or_cannot("read", path.display())?;
        if filled == 0 {
            return link.send(&Message::FileEnd(summed.finish()));
        }
        summed.update(&piece[..filled]);
        let begun = Instant::now();
        let packed = if pages { packer.block(&piece[..filled])? } else { packer.bytes(&piece[..filled])? };
        let packing = begun.elapsed();
        link.send_data(&packed)?;
        packer.took(packing, begun.elapsed() - packing);
    }
}

fn fill(mut file: &File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

/// Waits until a round that was taken is on disk: its files, and nothing else of that disk, which others write to. `waiting` is
/// called as by [`settle_file`].
///
/// # Errors
/// The disk fails; those of `waiting`.
pub fn settle(directory: &Path, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    for name in names(directory)? {
        let path = directory.join(name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::empty()).or_cannot("open", path.display())?;
        settle_file(&file, &path.display(), waiting)?;
    }
    for directory in [Some(directory), directory.parent()].into_iter().flatten() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, directory, flags, Mode::empty()).or_cannot("open", directory.display())?;
        fsync(opened).or_cannot("sync", directory.display())?;
    }
    Ok(())
}

/// Waits until a file is on disk. `waiting` is called between two pieces of it, and at its end.
///
/// # Errors
/// The disk fails; those of `waiting`.
pub(super) fn settle_file(file: &OwnedFd, name: &dyn Display, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let size = fstat(file).or_cannot("look at", name)?.st_size;
    let mut offset = 0;
    while offset < size.cast_unsigned() {
        fd::await_writeback(file, offset, SETTLED).or_cannot("sync", name)?;
        offset += SETTLED;
        waiting()?;
    }
    fsync(file).or_cannot("sync", name)?;
    waiting()
}

/// The receiving end, over all rounds.
pub struct Intake {
    unpacker: Unpacker,
    left: u64,
    staged: Staged,
}

impl Intake {
    /// Takes so many bytes of files in all, of which bodies come to the directory `bodies`.
    ///
    /// # Errors
    /// zstd fails.
    pub fn new(most: u64, bodies: PathBuf) -> Result<Self> {
        Ok(Self { unpacker: Unpacker::new()?, left: most, staged: Staged::new(bodies) })
    }

    /// Takes a round, after [`Message::Round`], into its empty directory. Answers whether it is the last, for which a container
    /// stands still. The disk has begun to write it, and [`settle`] waits for that.
    ///
    /// # Errors
    /// The far end breaks a rule; the disk is full; the link's.
    pub fn take(&mut self, link: &mut Link, directory: &Path, round: u32) -> Result<bool> {
        if round > ROUNDS {
            return Err(refused("it sends too many rounds"));
        }
        self.charge(0, &format!("round {round}"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, directory, flags, Mode::empty()).or_cannot("open", directory.display())?;
        if round > 1 {
            let before = format!("../{}", round - 1);
            symlinkat(before, &dir, c"parent").or_cannot("link", directory.display())?;
        }
        let mut taken = 0;
        loop {
            match link.hear()? {
                Message::File { name, size, pages } => {
                    taken += 1;
                    if taken > FILES {
                        return Err(refused("it sends too many files"));
                    }
                    self.file(link, &dir, &name, size, pages)?;
                }
                Message::Body { number, size } => {
                    self.staged.take(link, &mut self.unpacker, (number, size), self.left)?;
                }
                Message::Gone(number) => self.staged.remove(number)?,
                Message::RoundEnd { round: number, files, still } if number == round && files == taken => {
                    return Ok(still);
                }
                other => return Err(other.out_of_turn()),
            }
        }
    }

    /// Counts what so many bytes take; an empty file, or directory, takes room too.
    fn charge(&mut self, size: u64, name: &str) -> Result<()> {
        let left = self.left.checked_sub(size.max(PAGE as u64)).filter(|left| self.staged.all <= *left);
        let more = || refused(format!("it sends more than was asked for: {name} would have {size} bytes"));
        self.left = left.ok_or_else(more)?;
        Ok(())
    }

    fn file(&mut self, link: &mut Link, dir: &OwnedFd, name: &str, size: u64, pages: bool) -> Result<()> {
        if !is_image_name(name) {
            return Err(refused(format!("it sends a file called {:?}", super::message::shown(name))));
        }
        self.charge(size, name)?;
        if pages && !size.is_multiple_of(PAGE as u64) {
            return Err(refused(format!("{name} has {size} bytes, which are no pages")));
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(dir, name, flags, Mode::from_raw_mode(0o600)).or_cannot("make", name)?;
        let file = Arc::new(File::from(file));
        if pages {
            self.unpacker.begin(&file);
        }
        let (mut summed, mut left) = (Summed::nothing(), size);
        loop {
            let data = match link.receive()? {
                Frame::Data(data) => data,
                Frame::Message(Message::FileEnd(sum)) => {
                    return match (left, summed.finish() == sum) {
                        (0, true) => {
                            // The disk begins now, while the rest comes, and while CRIU restores. One that cannot does all later.
                            fd::start_writeback(&file).ok();
                            Ok(())
                        }
                        (0, false) => Err(refused(format!("{name} arrived damaged: its sum is another"))),
                        (left, _) => Err(refused(format!("{name} lacks {left} bytes"))),
                    };
                }
                Frame::Message(Message::Abort(why)) => {
                    return Err(Error::plain(format!("the source gave up: {}", super::message::shown(&why))));
                }
                Frame::Message(other) => return Err(other.out_of_turn()),
            };
            let bytes = if pages { self.unpacker.block(&data)? } else { self.unpacker.unpack(&data, PIECE)? };
            left = left
                .checked_sub(bytes.len() as u64)
                .filter(|_| !bytes.is_empty())
                .ok_or_else(|| refused(format!("{name} is longer than it was said to be")))?;
            summed.update(&bytes);
            (&*file).write_all(&bytes).or_cannot("write", name)?;
            // The source has sent everything long before the last of it comes out of a slow line.
            link.alive()?;
        }
    }
}

/// All rounds.
pub struct Taken {
    /// What to restore from.
    pub last: Last,
    /// What has taken them apart, for what else comes.
    pub unpacker: Unpacker,
    /// Bodies that may not be on disk yet.
    pub unsettled: BTreeSet<u64>,
}

/// Takes rounds until there is nothing more to come.
///
/// # Errors
/// As [`Intake::take`]; another order.
pub fn rounds(link: &mut Link, journal: &Journal, most: u64) -> Result<Taken> {
    let mut intake = Intake::new(most, journal.bodies())?;
    let (mut round, mut still) = (0, false);
    loop {
        match link.hear()? {
            Message::Round(number) if number == round + 1 && !still => {
                round = number;
                let directory = journal.round(round)?;
                still = intake.take(link, &directory, round)?;
                link.send(&Message::RoundTaken(round))?;
                // The source is at its next dump, and need not wait for this disk.
                if !still {
                    settle(&directory, &mut || link.alive())?;
                    staged::settle(&journal.bodies(), &intake.staged.unsettled(), &mut || link.alive())?;
                }
            }
            Message::Finish(last) if last.round == round && still => {
                let Intake { unpacker, mut staged, .. } = intake;
                return Ok(Taken { last: *last, unpacker, unsettled: staged.unsettled() });
            }
            other => return Err(other.out_of_turn()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::journal::tests::Scratch;
    use super::super::link::tests::pair;
    use super::super::sum::Sum;
    use super::*;

    fn directories(name: &str) -> (Scratch, std::path::PathBuf, std::path::PathBuf) {
        let scratch = Scratch::new(name);
        let (from, to) = (scratch.0.join("from"), scratch.0.join("to"));
        [&from, &to].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        (scratch, from, to)
    }

    #[test]
    fn a_directory_arrives_as_it_is() {
        let (_scratch, from, to) = directories("arrives");
        std::fs::write(from.join("core-1.img"), b"core").unwrap();
        std::fs::write(from.join("pages-1.img"), [vec![0; PAGE * 3], vec![7; PAGE * 500]].concat()).unwrap();
        std::fs::write(from.join("empty.img"), b"").unwrap();
        std::fs::write(from.join("dump.log"), b"not sent").unwrap();
        std::os::unix::fs::symlink("../1", from.join("parent")).unwrap();
        let (mut one, mut other) = pair(Duration::from_secs(30));
        let sending = std::thread::spawn({
            let from = from.clone();
            move || send(&mut one, &from, 2, &mut Packer::new(Some(1)).unwrap(), true, &mut |_, _| Ok(0)).unwrap()
        });
        assert_eq!(other.hear().unwrap(), Message::Round(2));
        assert!(Intake::new(1 << 30, to.join("bodies")).unwrap().take(&mut other, &to, 2).unwrap(), "it is the last");
        let settled = || {
            let mut waited = 0;
            settle(&to, &mut || {
                waited += 1;
                Ok(())
            })
            .unwrap();
            waited
        };
        assert_eq!(settled(), 5, "the empty one has no pieces");
        File::create(to.join("large.img")).unwrap().set_len(3 * SETTLED).unwrap();
        assert_eq!(settled(), 9, "piece by piece");
        std::fs::remove_file(to.join("large.img")).unwrap();
        assert_eq!(sending.join().unwrap(), Sent { files: 3, pages: 503 * PAGE as u64, others: 4, bodies: 0 });
        for name in ["core-1.img", "pages-1.img", "empty.img"] {
            assert!(std::fs::read(from.join(name)).unwrap() == std::fs::read(to.join(name)).unwrap(), "{name}");
        }
        assert_eq!(std::fs::read_link(to.join("parent")).unwrap(), Path::new("../1"));
        assert!(!to.join("dump.log").exists());
        assert!(other.received < 20_000, "500 pages that are the same: {}", other.received);
    }

    /// What a hostile source sends, and what is said of it.
    #[test]
    fn a_source_that_breaks_a_rule_is_refused() {
        let file = |name: &str, size| Message::File { name: name.into(), size, pages: false };
        let data = |text: &[u8]| Frame::Data(Packer::new(Some(0)).unwrap().bytes(text).unwrap());
        let said = |message| Frame::Message(message);
        let cases: Vec<(&str, Vec<Frame>, &str)> = vec![
            ("out", vec![said(file("../x", 1))], "a file called \"../x\""),
            ("link", vec![said(file("parent", 1))], "a file called \"parent\""),
            ("much", vec![said(file("a", 1 << 40))], "more than was asked for"),
            ("long", vec![said(file("a", 1)), data(b"ab")], "longer than it was said to be"),
            ("short", vec![said(file("a", 3)), data(b"ab"), said(Message::FileEnd(Sum::of(b"ab")))], "lacks 1 bytes"),
            ("other", vec![said(file("a", 2)), data(b"ab"), said(Message::FileEnd(Sum::of(b"cd")))], "damaged"),
            ("turn", vec![said(file("a", 2)), said(Message::Prepared)], "out of turn"),
            ("data", vec![data(b"ab")], "out of turn"),
            ("count", vec![said(Message::RoundEnd { round: 1, files: 1, still: false })], "out of turn"),
            ("idle", vec![said(file("a", 2)), Frame::Data(vec![0, 0, 0, 0, 0])], "longer than"),
            ("pages", vec![said(Message::File { name: "a".into(), size: 5, pages: true })], "no pages"),
            (
                "twice",
                vec![said(file("a", 0)), said(Message::FileEnd(Sum::of(b""))), said(file("a", 0))],
                "cannot make a: EEXIST",
            ),
        ];
        for (name, frames, expected) in cases {
            let (_scratch, _, to) = directories(name);
            let (mut one, mut other) = pair(Duration::from_secs(30));
            for frame in frames {
                match frame {
                    Frame::Data(data) => one.send_data(&data).unwrap(),
                    Frame::Message(message) => one.send(&message).unwrap(),
                }
            }
            let error =
                Intake::new(1 << 20, to.join("bodies")).unwrap().take(&mut other, &to, 1).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }

    /// What has nothing in it fills a disk in the end, too.
    #[test]
    fn rounds_and_files_are_counted() {
        let (_scratch, _, to) = directories("counted");
        let (mut one, mut other) = pair(Duration::from_secs(30));
        for name in ["a", "b"] {
            one.send(&Message::File { name: name.into(), size: 0, pages: false }).unwrap();
            one.send(&Message::FileEnd(Sum::of(b""))).unwrap();
        }
        let mut intake = Intake::new(2 * PAGE as u64, to.join("bodies")).unwrap();
        let said = intake.take(&mut other, &to, 1).unwrap_err().to_string();
        assert!(said.contains("more than was asked for: b would have 0 bytes"), "{said}");
        let said = intake.take(&mut other, &to, 2).unwrap_err().to_string();
        assert!(said.contains("more than was asked for: round 2"), "{said}");
        let mut intake = Intake::new(1 << 20, to.join("bodies")).unwrap();
        let said = intake.take(&mut other, &to, ROUNDS + 1).unwrap_err().to_string();
        assert!(said.contains("too many rounds"), "{said}");
    }
}
