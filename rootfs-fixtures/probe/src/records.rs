//! A program whose files and memory must say the same: what it remembers of its files it finds in them.

#![allow(clippy::disallowed_methods, reason = "the beat between two numbers is part of the deed")]

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{kernel, say};

const PAGE: usize = 4096;

/// Between two numbers.
const BEAT: Duration = Duration::from_millis(20);

/// So many numbers a small file is there.
const LASTS: u64 = 100;

/// Counts while it writes its number to `rate` pages of two files of `megabytes` in the directory, one after the other: to one by
/// memory, to the other by calls. It finds in each what it wrote there the time before. With every tenth number a small file comes,
/// and an earlier one goes.
pub fn record(directory: &Path, megabytes: usize, rate: usize) -> Result<()> {
    let (mapped, written) =
        (filled(&directory.join("mapped"), megabytes)?, filled(&directory.join("written"), megabytes)?);
    let memory = kernel::shared(&mapped)?;
    let mut expected = vec![0_u64; memory.len() / PAGE];
    let mut at = 0;
    for number in 0_u64.. {
        for _ in 0..rate {
            let place = (at * PAGE) as u64;
            for (file, name) in [(&mapped, "mapped"), (&written, "written")] {
                let mut found = [0; 8];
                file.read_exact_at(&mut found, place)?;
                if found != expected[at].to_le_bytes() {
                    let found = u64::from_le_bytes(found);
                    return Err(Error::other(format!("page {at} of {name} has {found} and not {}", expected[at])));
                }
            }
            memory[at * PAGE..][..8].copy_from_slice(&number.to_le_bytes());
            written.write_all_at(&number.to_le_bytes(), place)?;
            expected[at] = number;
            at = (at + 1) % expected.len();
        }
        if number % 10 == 0 {
            small(directory, number)?;
        }
        say(&number)?;
        std::thread::sleep(BEAT);
    }
    Ok(())
}

/// A file of which no two pages are alike, and none compresses to nothing; each begins with 0.
fn filled(path: &Path, megabytes: usize) -> Result<File> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0_u8; megabytes << 20];
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&(state >> 16).to_le_bytes());
    }
    bytes.chunks_exact_mut(PAGE).for_each(|page| page[..8].fill(0));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    file.write_all_at(&bytes, 0)?;
    Ok(file)
}

fn small(directory: &Path, number: u64) -> Result<()> {
    let path = |number: u64| -> PathBuf { directory.join(format!("number-{number}")) };
    fs::write(path(number), number.to_string())?;
    let Some(earlier) = number.checked_sub(LASTS) else { return Ok(()) };
    match fs::read_to_string(path(earlier))? == earlier.to_string() {
        true => fs::remove_file(path(earlier)),
        false => Err(Error::other(format!("{} is another", path(earlier).display()))),
    }
}
