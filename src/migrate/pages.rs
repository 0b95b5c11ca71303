//! Memory pages on their way: those of zeros are only named, one that was sent before is named by how far back that was, one
//! that was written to since is sent as what is new in it, and all of that is compressed together.
//!
//! ```text
//! a block:  codec u8 | length u32 | body                                             little-endian
//! a body:   count u16 | kind u8 × count | back u64 × same and changed pages | length of runs u32
//!           | runs of changed pages… | their literals… | fresh pages…                see delta
//! ```
//!
//! Every page of a migration has a number, in the order they are sent; both ends keep where each lies in their own files, and
//! nothing else of it. That two pages are the same is guessed by a hash and then compared; which page one was before is known by
//! its address ([`super::addresses`]). What that takes is bounded: a table that is full learns no more.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use zstd::bulk::{Compressor, Decompressor};

use super::addresses::{History, Layout};
use super::delta;
use super::effort::Effort;
use super::frame::refused;
use super::sum::short;
use crate::error::{Context, Error, Result};

/// Bytes of a page, here; larger ones of the machine are several of these.
pub const PAGE: usize = 4096;

/// The most pages in a block.
pub const BLOCK: usize = 256;

/// How many pages are remembered by their hash: 16 MiB of table.
const REMEMBERED: usize = 512 << 10;

/// How many files are held open to be compared with.
const FILES: usize = 256;

const ZERO: u8 = 0;
const FRESH: u8 = 1;
const SAME: u8 = 2;
const CHANGED: u8 = 3;

/// The most bytes of a body.
const LONGEST: usize = 2 + BLOCK * (1 + 8 + PAGE) + 4;

const STORED: u8 = 0;
const ZSTD: u8 = 1;

/// Pages by what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All of them.
    pub pages: u64,
    /// Of zeros.
    pub zero: u64,
    /// Like one that was sent before.
    pub same: u64,
    /// Sent as what is new in them.
    #[serde(default)]
    pub changed: u64,
    /// Bytes that did not have to be sent of those.
    #[serde(default)]
    pub unchanged_away: u64,
    /// Bytes that compression saved.
    pub compressed_away: u64,
}

/// Where pages lie: runs of numbers, each in one file from its beginning.
#[derive(Debug, Default)]
struct Places {
    runs: Vec<(u64, Arc<File>)>,
    next: u64,
}

impl Places {
    /// Pages from the next number on lie in this file. False: too many files are held already, and these are not found again.
    fn begin(&mut self, file: &Arc<File>) -> bool {
        let held = self.runs.len() < FILES;
        if held {
            self.runs.push((self.next, Arc::clone(file)));
        }
        held
    }

    /// Reads the page of that number.
    fn read(&self, number: u64, page: &mut [u8]) -> Result<()> {
        let at = self.runs.partition_point(|(first, _)| *first <= number);
        let (first, file) =
            at.checked_sub(1).and_then(|at| self.runs.get(at)).ok_or_else(|| refused("no such page"))?;
        file.read_exact_at(page, (number - first) * PAGE as u64).or_cannot("read", "a page that was sent before")
    }
}

/// The sending end.
pub struct Packer {
    places: Places,
    seen: HashMap<u64, u64>,
    learns: bool,
    history: History,
    layout: Option<Layout>,
    /// The number of the first page of this file.
    first: u64,
    compressor: Compressor<'static>,
    effort: Effort,
    /// What it saved so far.
    pub counts: Counts,
}

/// The parts of a body, as they come about.
#[derive(Default)]
struct Body {
    kinds: Vec<u8>,
    backs: Vec<u8>,
    runs: Vec<u8>,
    literals: Vec<u8>,
    fresh: Vec<u8>,
}

impl Body {
    fn joined(self) -> Result<Vec<u8>> {
        let count = u16::try_from(self.kinds.len()).map_err(|_| Error::plain("a block of pages is too long"))?;
        let runs = u32::try_from(self.runs.len()).map_err(|_| Error::plain("a block of pages is too long"))?;
        let (count, length) = (count.to_le_bytes(), runs.to_le_bytes());
        Ok([&count[..], &self.kinds, &self.backs, &length, &self.runs, &self.literals, &self.fresh].concat())
    }
}

impl Packer {
    /// With a level of zstd, of which 0 is without; `None`: as the link is fast or slow.
    ///
    /// # Errors
    /// A level that zstd does not have.
    pub fn new(level: Option<i32>) -> Result<Self> {
        let effort = Effort::new(level);
        Ok(Self {
            places: Places::default(),
            seen: HashMap::new(),
            learns: false,
            history: History::default(),
            layout: None,
            first: 0,
            compressor: Compressor::new(effort.level()).or_cannot("use", "zstd")?,
            effort,
            counts: Counts::default(),
        })
    }

    /// Pages of this file follow, from its beginning to its end, which belong there.
    pub fn begin(&mut self, file: &Arc<File>, layout: Option<Layout>) {
        self.learns = self.places.begin(file);
        self.first = self.places.next;
        self.layout = layout;
    }

    /// Packs pages that lie in no file at the other end: no later one can be like them. As [`Packer::block`].
    ///
    /// # Errors
    /// As [`Packer::block`].
    pub fn passing(&mut self, pages: &[u8]) -> Result<Vec<u8>> {
        (self.learns, self.layout) = (false, None);
        self.block(pages)
    }

    /// That were all pages of the file: it may be the base of later ones.
    pub fn end(&mut self) {
        if let (Some(layout), true) = (self.layout.take(), self.learns) {
            self.history.learn(self.first, layout);
        }
    }

    /// Packs some pages: a number of whole ones, at most [`BLOCK`].
    ///
    /// # Errors
    /// Earlier pages cannot be read; zstd fails.
    pub fn block(&mut self, pages: &[u8]) -> Result<Vec<u8>> {
        let (mut body, first) = (Body::default(), self.places.next);
        for (number, page) in (first..).zip(pages.chunks_exact(PAGE)) {
            if is_zero(page) {
                body.kinds.push(ZERO);
                self.counts.zero += 1;
            } else if let Some(earlier) = self.earlier(page, first, pages)? {
                body.kinds.push(SAME);
                body.backs.extend_from_slice(&(number - earlier).to_le_bytes());
                self.counts.same += 1;
            } else {
                match self.changed(page, number, &mut body)? {
                    Some(base) => {
                        body.kinds.push(CHANGED);
                        body.backs.extend_from_slice(&(number - base).to_le_bytes());
                        self.counts.changed += 1;
                    }
                    None => {
                        body.kinds.push(FRESH);
                        body.fresh.extend_from_slice(page);
                    }
                }
                self.remember(page, number);
            }
        }
        let count = body.kinds.len() as u64;
        self.places.next += count;
        self.counts.pages += count;
        let (block, saved) = self.pack(&body.joined()?)?;
        self.counts.compressed_away += saved;
        Ok(block)
    }

    /// Packs what is no pages.
    ///
    /// # Errors
    /// zstd fails.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.pack(bytes).map(|(packed, _)| packed)
    }

    /// A block took so long to be packed, and so long until the link had taken it.
    pub fn took(&mut self, packing: Duration, sending: Duration) {
        self.effort.took(packing, sending);
    }

    /// The number of an earlier page that is the same.
    fn earlier(&self, page: &[u8], first: u64, block: &[u8]) -> Result<Option<u64>> {
        let Some(&number) = self.seen.get(&short(page)) else { return Ok(None) };
        let same = match number.checked_sub(first) {
            Some(index) => block[index as usize * PAGE..][..PAGE] == *page,
            None => {
                let mut earlier = [0; PAGE];
                self.places.read(number, &mut earlier)?;
                earlier == *page
            }
        };
        Ok(same.then_some(number))
    }

    /// The number of the page that this one was, if what is new is worth it: that is in the body then.
    fn changed(&mut self, page: &[u8], number: u64, body: &mut Body) -> Result<Option<u64>> {
        let before = self.layout.as_ref().and_then(|layout| self.history.before(layout, number - self.first));
        let Some(before) = before else { return Ok(None) };
        let mut base = [0; PAGE];
        self.places.read(before, &mut base)?;
        let had = body.runs.len() + body.literals.len();
        if !delta::encode(&base, page, &mut body.runs, &mut body.literals) {
            return Ok(None);
        }
        self.counts.unchanged_away += (PAGE - (body.runs.len() + body.literals.len() - had)) as u64;
        Ok(Some(before))
    }

    fn remember(&mut self, page: &[u8], number: u64) {
        if self.learns && self.seen.len() < REMEMBERED {
            self.seen.insert(short(page), number);
        }
    }

    /// Codec, length and bytes; and how many were saved.
    fn pack(&mut self, bytes: &[u8]) -> Result<(Vec<u8>, u64)> {
        let packed = match self.effort.level() {
            0 => None,
            level => {
                self.compressor.set_compression_level(level).or_cannot("use", "zstd")?;
                Some(self.compressor.compress(bytes).or_cannot("compress", "pages")?)
            }
        };
        let packed = packed.filter(|packed| packed.len() < bytes.len());
        let (codec, packed) = packed.as_deref().map_or((STORED, bytes), |packed| (ZSTD, packed));
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        Ok(([&[codec][..], &length, packed].concat(), (bytes.len() - packed.len()) as u64))
    }
}

fn is_zero(page: &[u8]) -> bool {
    page == [0; PAGE]
}

/// The receiving end.
pub struct Unpacker {
    places: Places,
    decompressor: Decompressor<'static>,
}

impl Unpacker {
    /// A new one.
    ///
    /// # Errors
    /// zstd fails.
    pub fn new() -> Result<Self> {
        Ok(Self { places: Places::default(), decompressor: Decompressor::new().or_cannot("use", "zstd")? })
    }

    /// The files that earlier pages are read from.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.places.runs.iter().map(|(_, file)| &**file)
    }

    /// Pages of this file follow; they are read again from it.
    pub fn begin(&mut self, file: &Arc<File>) {
        self.places.begin(file);
    }

    /// The pages of a block. What it returns must be in the file before the next one is asked for.
    ///
    /// # Errors
    /// It is no block.
    pub fn block(&mut self, block: &[u8]) -> Result<Vec<u8>> {
        let broken = || refused("a block of pages is broken");
        let body = self.unpack(block, LONGEST)?;
        let mut parts = Parts::of(&body).ok_or_else(broken)?;
        let mut pages = vec![0; parts.kinds.len() * PAGE];
        for (index, kind) in parts.kinds.iter().enumerate() {
            let (before, page) = pages.split_at_mut(index * PAGE);
            let page = &mut page[..PAGE];
            match *kind {
                FRESH => page.copy_from_slice(take(&mut parts.rest, PAGE).ok_or_else(broken)?),
                SAME | CHANGED => {
                    let back = take(&mut parts.backs, 8).and_then(|back| back.try_into().ok()).ok_or_else(broken)?;
                    self.earlier(u64::from_le_bytes(back), before, page)?;
                    if *kind == CHANGED {
                        delta::apply(page, &mut parts.runs, &mut parts.literals).ok_or_else(broken)?;
                    }
                }
                _ => (),
            }
        }
        if !(parts.rest.is_empty() && parts.runs.is_empty() && parts.literals.is_empty()) {
            return Err(broken());
        }
        self.places.next += parts.kinds.len() as u64;
        Ok(pages)
    }

    /// The page so far back; `before` is what there is of this block.
    fn earlier(&self, back: u64, before: &[u8], page: &mut [u8]) -> Result<()> {
        let inside = (before.len() / PAGE) as u64;
        let number = (self.places.next + inside).checked_sub(back).filter(|_| back > 0);
        let number = number.ok_or_else(|| refused("no such page"))?;
        match number.checked_sub(self.places.next) {
            None => self.places.read(number, page),
            Some(index) => {
                let earlier = before.chunks_exact(PAGE).nth(usize::try_from(index).unwrap_or(usize::MAX));
                page.copy_from_slice(earlier.ok_or_else(|| refused("no such page"))?);
                Ok(())
            }
        }
    }

    /// What [`Packer::bytes`] packed; at most `longest` bytes.
    ///
    /// # Errors
    /// It is nothing of the kind.
    pub fn unpack(&mut self, packed: &[u8], longest: usize) -> Result<Vec<u8>> {
        let broken = || refused("a piece of a file is broken");
        let (head, bytes) = packed.split_at_checked(5).ok_or_else(broken)?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > longest {
            return Err(broken());
        }
        let unpacked = match head[0] {
            STORED => bytes.to_vec(),
            ZSTD => self.decompressor.decompress(bytes, length).map_err(|_| broken())?,
            _ => return Err(broken()),
        };
        if unpacked.len() == length { Ok(unpacked) } else { Err(broken()) }
    }
}

/// A body, taken apart; `rest` is the fresh pages.
struct Parts<'a> {
    kinds: &'a [u8],
    backs: &'a [u8],
    runs: &'a [u8],
    literals: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    /// `None`: the lengths do not fit together, or it has too many pages or none.
    fn of(body: &'a [u8]) -> Option<Self> {
        let mut rest = body;
        let count = usize::from(u16::from_le_bytes(take(&mut rest, 2)?.try_into().ok()?));
        let kinds = take(&mut rest, count)?;
        if count == 0 || count > BLOCK || kinds.iter().any(|kind| *kind > CHANGED) {
            return None;
        }
        let of = |wanted: &[u8]| kinds.iter().filter(|kind| wanted.contains(kind)).count();
        let backs = take(&mut rest, of(&[SAME, CHANGED]) * 8)?;
        let length = u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?);
        let runs = take(&mut rest, usize::try_from(length).ok()?)?;
        let (literals, rest) = rest.split_at(rest.len().checked_sub(of(&[FRESH]) * PAGE)?);
        Some(Self { kinds, backs, runs, literals, rest })
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
