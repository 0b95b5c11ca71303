//! Memory pages on their way: those of zeros are only named, one that was sent before is named by its number, and the rest is
//! compressed together.
//!
//! ```text
//! a block:  count u16 | kind u8 × count | number u64 × same pages | codec u8 | length u32 | fresh pages…   little-endian
//! ```
//!
//! Every page of a migration has a number, in the order they are sent; both ends keep where each lies in their own files, and
//! nothing else of it. That two pages are the same is guessed by a hash and then compared. What the guesses take is bounded:
//! a table that is full learns no more.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hasher;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use zstd::bulk::{Compressor, Decompressor};

use super::frame::refused;
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
    compressor: Option<Compressor<'static>>,
    /// What it saved so far.
    pub counts: Counts,
}

impl Packer {
    /// With a level of zstd; 0 is without.
    ///
    /// # Errors
    /// A level that zstd does not have.
    pub fn new(level: i32) -> Result<Self> {
        let compressor = match level {
            0 => None,
            level => Some(Compressor::new(level).or_cannot("use", "zstd")?),
        };
        Ok(Self {
            places: Places::default(),
            seen: HashMap::new(),
            learns: false,
            compressor,
            counts: Counts::default(),
        })
    }

    /// Pages of this file follow, from its beginning to its end.
    pub fn begin(&mut self, file: &Arc<File>) {
        self.learns = self.places.begin(file);
    }

    /// Packs some pages: a number of whole ones, at most [`BLOCK`].
    ///
    /// # Errors
    /// Earlier pages cannot be read; zstd fails.
    pub fn block(&mut self, pages: &[u8]) -> Result<Vec<u8>> {
        let count = pages.len() / PAGE;
        let (mut kinds, mut numbers, mut fresh) = (Vec::with_capacity(count), Vec::new(), Vec::new());
        let first = self.places.next;
        for (index, page) in pages.chunks_exact(PAGE).enumerate() {
            if is_zero(page) {
                kinds.push(ZERO);
                self.counts.zero += 1;
            } else if let Some(number) = self.earlier(page, first, pages)? {
                kinds.push(SAME);
                numbers.extend_from_slice(&number.to_le_bytes());
                self.counts.same += 1;
            } else {
                kinds.push(FRESH);
                fresh.extend_from_slice(page);
                self.remember(page, first + index as u64);
            }
        }
        self.places.next += count as u64;
        self.counts.pages += count as u64;
        let length = u16::try_from(count).map_err(|_| Error::plain("a block of pages is too long"))?;
        let mut block = Vec::with_capacity(16 + kinds.len() + numbers.len() + fresh.len());
        block.extend_from_slice(&length.to_le_bytes());
        block.append(&mut kinds);
        block.append(&mut numbers);
        self.counts.compressed_away += pack(self.compressor.as_mut(), &fresh, &mut block)?;
        Ok(block)
    }

    /// Packs what is no pages.
    ///
    /// # Errors
    /// zstd fails.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut packed = Vec::with_capacity(16 + bytes.len());
        pack(self.compressor.as_mut(), bytes, &mut packed)?;
        Ok(packed)
    }

    /// The number of an earlier page that is the same.
    fn earlier(&self, page: &[u8], first: u64, block: &[u8]) -> Result<Option<u64>> {
        let Some(&number) = self.seen.get(&hash(page)) else { return Ok(None) };
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

    fn remember(&mut self, page: &[u8], number: u64) {
        if self.learns && self.seen.len() < REMEMBERED {
            self.seen.insert(hash(page), number);
        }
    }
}

fn is_zero(page: &[u8]) -> bool {
    page == [0; PAGE]
}

fn hash(page: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(page);
    hasher.finish()
}

/// Codec, length and bytes; answers how many were saved.
fn pack(compressor: Option<&mut Compressor<'static>>, bytes: &[u8], to: &mut Vec<u8>) -> Result<u64> {
    let packed = compressor.map(|compressor| compressor.compress(bytes).or_cannot("compress", "pages")).transpose()?;
    let packed = packed.filter(|packed| packed.len() < bytes.len());
    let (codec, packed) = packed.as_deref().map_or((STORED, bytes), |packed| (ZSTD, packed));
    to.push(codec);
    to.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    to.extend_from_slice(packed);
    Ok((bytes.len() - packed.len()) as u64)
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
        let (count, rest) = block.split_at_checked(2).ok_or_else(broken)?;
        let count = usize::from(u16::from_le_bytes([count[0], count[1]]));
        if count == 0 || count > BLOCK {
            return Err(broken());
        }
        let (kinds, rest) = rest.split_at_checked(count).ok_or_else(broken)?;
        if kinds.iter().any(|kind| *kind > SAME) {
            return Err(broken());
        }
        let of = |wanted: u8| kinds.iter().filter(|kind| **kind == wanted).count();
        let (numbers, rest) = rest.split_at_checked(of(SAME) * 8).ok_or_else(broken)?;
        let fresh = self.unpack(rest, of(FRESH) * PAGE)?;
        if fresh.len() != of(FRESH) * PAGE {
            return Err(broken());
        }
        let (mut fresh, mut numbers) = (fresh.chunks_exact(PAGE), numbers.chunks_exact(8));
        let mut pages = vec![0; count * PAGE];
        for (index, kind) in kinds.iter().enumerate() {
            let (before, page) = pages.split_at_mut(index * PAGE);
            let page = &mut page[..PAGE];
            match *kind {
                FRESH => page.copy_from_slice(fresh.next().ok_or_else(broken)?),
                SAME => {
                    let number = numbers.next().and_then(|number| number.try_into().ok()).ok_or_else(broken)?;
                    self.earlier(u64::from_le_bytes(number), before, page)?;
                }
                _ => (),
            }
        }
        self.places.next += count as u64;
        Ok(pages)
    }

    fn earlier(&self, number: u64, before: &[u8], page: &mut [u8]) -> Result<()> {
        match number.checked_sub(self.places.next) {
            None => self.places.read(number, page),
            Some(index) => {
                let at = usize::try_from(index).ok().and_then(|index| index.checked_mul(PAGE));
                let earlier = at.and_then(|at| before.get(at..)?.get(..PAGE)).ok_or_else(|| refused("no such page"))?;
                page.copy_from_slice(earlier);
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

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;
