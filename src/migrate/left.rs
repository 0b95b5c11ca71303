//! Memory that stays at the source while the container goes on elsewhere, and is asked for from there.
//!
//! A dump has everything in its images, and says of each run of pages whether it may come later. What may is taken out of those
//! that are sent, which then are what CRIU's own lazy dump makes; it stays beside them, in files that are not sent:
//!
//! ```text
//! pagemap-1.img  lazy and present  ->  lazy                pages-1.img  all  ->  those that may not come later
//!                present           ->  present             .left-1           <-  all, as they were
//! ```
//!
//! So the source has the whole of it until the destination has, whatever becomes of the processes, of CRIU and of ferry.
//! criu/include/pagemap.h

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::frame::refused;
use super::link::Link;
use super::message::Message;
use super::page_server::Pages;
use super::pages::{BLOCK, PAGE, Packer};
use crate::checkpoint::images::{self, Kind, all, one};
use crate::checkpoint::wire::{self, Value};
use crate::error::{Context, Error, Result};

const IN_PARENT: u64 = 1;
const LAZY: u64 = 2;
const PRESENT: u64 = 4;

/// The field of a run's flags.
const FLAGS: u32 = 4;

/// The most bytes of an answer: whoever waits for one page waits for what was asked for before.
pub const MOST: usize = BLOCK * PAGE / 2;

/// So many questions may be open.
pub const OPEN: usize = 4096;

/// The most bytes of an image that is read to find out what is left. Where it is longer, nothing is asked for before it is needed.
const LONGEST_MAP: u64 = 16 << 20;

/// Pages in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// The first one's address. Bytes.
    address: u64,
    /// How many.
    count: u64,
    /// Where they lie in the file. Bytes.
    offset: u64,
}

/// What is left of one process.
#[derive(Debug)]
struct Memory {
    file: File,
    /// Rising by address.
    runs: Vec<Run>,
}

/// What is left.
#[derive(Debug, Default)]
pub struct Left {
    of: HashMap<u64, Memory>,
    /// How many pages.
    pub pages: u64,
}

impl Left {
    /// Takes what may come later out of a directory of images.
    ///
    /// # Errors
    /// What the kernel answers; they are no images.
    pub fn take_out(directory: &Path) -> Result<Self> {
        let mut left = Self::default();
        for entry in std::fs::read_dir(directory).or_cannot("read", directory.display())? {
            let name = entry.or_cannot("read", directory.display())?.file_name().to_string_lossy().into_owned();
            let number = name.strip_prefix("pagemap-").and_then(|name| name.strip_suffix(".img"));
            let Some(Ok(image)) = number.map(str::parse::<u64>) else { continue };
            if let Some(memory) = take_out(directory, &name)? {
                left.pages += memory.runs.iter().map(|run| run.count).sum::<u64>();
                left.of.insert(image, memory);
            }
        }
        Ok(left)
    }

    /// Some of the pages that are asked for, from the first on; and how many.
    fn read(&self, asked: Pages) -> Result<(u64, Vec<u8>)> {
        let page = page();
        let none = || refused(format!("it asks for memory that is not left here: {:#x}", asked.address));
        let memory = self.of.get(&asked.image).filter(|_| asked.address.is_multiple_of(page)).ok_or_else(none)?;
        let at = memory.runs.partition_point(|run| run.address <= asked.address);
        let run = at.checked_sub(1).map(|at| memory.runs[at]).ok_or_else(none)?;
        let index = (asked.address - run.address) / page;
        let count = run.count.saturating_sub(index).min(asked.count).min(MOST as u64 / page);
        if count == 0 {
            return Err(none());
        }
        let mut pages = vec![0; usize::try_from(count * page).unwrap_or(0)];
        let object = "memory that was left here";
        memory.file.read_exact_at(&mut pages, run.offset + index * page).or_cannot("read", object)?;
        Ok((count, pages))
    }
}

/// What the source answers to who asks for memory.
pub struct Giving<'a> {
    /// What it has.
    pub left: &'a Left,
    /// How it is packed.
    pub packer: &'a mut Packer,
    /// What is asked for and was not given yet.
    asked: VecDeque<Pages>,
    /// How many pages are given at most while the container stands still, and waits for its destination.
    most: Option<u64>,
}

impl<'a> Giving<'a> {
    /// Nothing is asked for yet.
    pub fn new(left: &'a Left, packer: &'a mut Packer) -> Self {
        // Some may be asked for by who needs them and in the background at once.
        let most = left.pages.saturating_mul(2).saturating_add(OPEN as u64);
        Self { left, packer, asked: VecDeque::new(), most: Some(most) }
    }

    /// The container is the destination's: however much it asks for, nobody waits for it here.
    pub fn without_bound(&mut self) {
        self.most = None;
    }

    /// The next message that does not ask for memory; what does is answered.
    ///
    /// # Errors
    /// As [`Link::hear`]; it asks for what is not left here.
    pub fn hear(&mut self, link: &mut Link) -> Result<Message> {
        loop {
            let heard = match self.asked.is_empty() {
                // Nobody asks while CRIU restores, or has processes that touch nothing.
                true => Some(link.hear_and_answer()?),
                false => link.hear_now()?,
            };
            match heard {
                Some(Message::Want(asked)) if self.asked.len() < OPEN => self.asked.push_back(asked),
                Some(Message::Want(_)) => return Err(refused("it asks for too much at once")),
                Some(other) => return Ok(other),
                None => self.give(link)?,
            }
        }
    }

    /// Answers one question: a process waits for a page that is asked for alone, and nobody yet for what comes in the background.
    fn give(&mut self, link: &mut Link) -> Result<()> {
        let first = self.asked.iter().position(|asked| asked.count == 1).unwrap_or(0);
        let Some(asked) = self.asked.remove(first) else { return Ok(()) };
        let (count, pages) = self.left.read(asked)?;
        if let Some(most) = &mut self.most {
            let again = || refused("it asks for the same memory over and over");
            *most = most.checked_sub(count).ok_or_else(again)?;
        }
        link.send(&Message::Pages(Pages { count, ..asked }))?;
        link.send_data(&self.packer.passing(&pages)?)
    }
}

/// What is left elsewhere of these images, as far as that is found out: it is only what is asked for before it is needed.
pub fn missing(directory: &Path) -> Vec<Pages> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut missing = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("pagemap-").and_then(|name| name.strip_suffix(".img"));
        let (Some(Ok(image)), Ok(found)) = (number.map(str::parse::<u64>), entry.metadata()) else { continue };
        if found.len() > LONGEST_MAP {
            continue;
        }
        let messages = images::read(&entry.path(), Kind::Pages).unwrap_or_default();
        missing.extend(messages.iter().skip(1).filter_map(|entry| {
            let field = |number| one(entry, number).map(Value::number);
            let is_left = field(FLAGS)? & (LAZY | PRESENT | IN_PARENT) == LAZY;
            let pages = Pages { image, address: field(1)?, count: field(5).or_else(|| field(2))? };
            is_left.then_some(pages)
        }));
    }
    missing
}

/// Bytes of a page of the machine's.
pub fn page() -> u64 {
    rustix::param::page_size() as u64
}

fn take_out(directory: &Path, name: &str) -> Result<Option<Memory>> {
    let path = directory.join(name);
    let wrong = || Error::said("read", path.display().to_string(), "it does not say where memory is");
    let messages = images::read(&path, Kind::Pages)?;
    let (head, entries) = messages.split_first().ok_or_else(wrong)?;
    let number = all(head, 1).last().ok_or_else(wrong)?.number();
    let (mut runs, mut kept, mut offset) = (Vec::new(), Vec::new(), 0);
    let mut written = vec![head.clone()];
    for entry in entries {
        let field = |number| one(entry, number).map(Value::number);
        let flags = field(FLAGS).unwrap_or(PRESENT);
        let count = field(5).or_else(|| field(2)).ok_or_else(wrong)?;
        let run = Run { address: field(1).ok_or_else(wrong)?, count, offset };
        let is_here = flags & PRESENT != 0 && flags & IN_PARENT == 0 && field(3) != Some(1);
        let length = count.checked_mul(page()).ok_or_else(wrong)?;
        if is_here {
            offset = run.offset.checked_add(length).ok_or_else(wrong)?;
        }
        match is_here && flags & LAZY != 0 {
            true => {
                runs.push(run);
                written.push(with_flags(entry, flags & !PRESENT));
            }
            false => {
                kept.extend(is_here.then_some((run.offset, length)));
                written.push(entry.clone());
            }
        }
    }
    if runs.is_empty() {
        return Ok(None);
    }
    if runs.windows(2).any(|pair| pair[1].address < pair[0].address + pair[0].count * page()) {
        return Err(wrong());
    }
    let (pages, beside) = (directory.join(format!("pages-{number}.img")), directory.join(format!(".left-{number}")));
    std::fs::rename(&pages, &beside).or_cannot("rename", pages.display())?;
    let file = File::open(&beside).or_cannot("open", beside.display())?;
    copy(&file, &kept, &pages)?;
    std::fs::write(&path, images::written(Kind::Pages, &written)).or_cannot("write", path.display())?;
    Ok(Some(Memory { file, runs }))
}

/// A run's message, with these flags.
fn with_flags(entry: &[u8], flags: u64) -> Vec<u8> {
    let mut message = wire::Message::default();
    for (number, value) in wire::fields(entry).flatten().filter(|(number, _)| *number != FLAGS) {
        match value {
            Value::Number(value) => message.number(number, value),
            Value::Bytes(bytes) => message.bytes(number, bytes),
        };
    }
    message.number(FLAGS, flags);
    message.into_bytes()
}

fn copy(from: &File, runs: &[(u64, u64)], to: &Path) -> Result<()> {
    let mut file = BufWriter::new(File::create_new(to).or_cannot("make", to.display())?);
    let mut piece = vec![0; 1 << 20];
    for (offset, length) in runs {
        let mut at = *offset;
        while at < offset + length {
            let wanted = usize::try_from(offset + length - at).unwrap_or(usize::MAX).min(piece.len());
            from.read_exact_at(&mut piece[..wanted], at).or_cannot("read", to.display())?;
            file.write_all(&piece[..wanted]).or_cannot("write", to.display())?;
            at += wanted as u64;
        }
    }
    file.flush().or_cannot("write", to.display())
}

#[cfg(test)]
#[path = "left_tests.rs"]
pub mod tests;
