//! A layer's archive: unpacked and completed over another layer, it leaves nothing outside of its directory, whatever it is.
//!
//! Headers whose sums are wrong are refused at once, and nearly every change makes a sum wrong: so they are mended first, but for
//! archives whose last byte is odd.
//!
//! As root, in memory, after `fuzz/seeds`: `cargo +nightly fuzz run layer -- -dict=fuzz/layer.dict -max_len=16384 -timeout=10`, with
//! `FERRY_FUZZ` naming an empty directory (default /dev/shm).

#![no_main]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;

use ferry::image::tree;
use ferry::image::unpack::{How, complete, unpack};
use libfuzzer_sys::fuzz_target;
use rustix::fs::{CWD, Mode, OFlags, openat};

fn opened(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .expect("a directory of our own")
}

/// A directory with a lower layer, and what must not change: a canary beside it.
fn base() -> &'static PathBuf {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let above = std::env::var_os("FERRY_FUZZ").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
        let base = above.join(format!("ferry-fuzz-{}", std::process::id()));
        fs::create_dir_all(base.join("lower/usr/lib")).expect("a directory of our own");
        for (file, text) in [("canary", "sings"), ("lower/file", "low"), ("lower/usr/lib/so", "so")] {
            fs::write(base.join(file), text).expect("a file of our own");
        }
        std::os::unix::fs::symlink("usr/lib", base.join("lower/lib")).expect("a link of our own");
        std::os::unix::fs::symlink("../..", base.join("lower/up")).expect("a link of our own");
        base
    })
}

/// What a header and the data of an entry are padded to. Bytes.
const BLOCK: usize = 512;
/// Where a header has its size and its sum.
const SIZE: std::ops::Range<usize> = 124..136;
const SUM: std::ops::Range<usize> = 148..156;

/// The archive with the sum of each header made right. Headers are looked for where a reader expects them.
fn mended(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        if header.iter().any(|byte| *byte != 0) {
            header[SUM].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = String::from_utf8_lossy(&header[SIZE]);
        let size = usize::from_str_radix(size.trim_matches([' ', '\0']), 8).unwrap_or(0);
        at += BLOCK + size.min(archive.len()).next_multiple_of(BLOCK);
    }
    archive
}

fuzz_target!(|archive: &[u8]| {
    let base = base();
    let archive = if archive.last().is_some_and(|last| last % 2 == 0) { mended(archive) } else { archive.to_vec() };
    let upper = base.join("upper");
    fs::create_dir(&upper).expect("the one before was removed");
    let how = How { user_namespace: false, one_id: false, max_size: 1 << 20 };
    if let Ok((_, rest)) = unpack(archive.as_slice(), opened(&upper), "fuzzed", &how) {
        // It may be a link to nothing; what it leads to is all that matters here.
        drop(complete::complete(rest, &Rc::new(opened(&upper)), &vec![Rc::new(opened(&base.join("lower")))]));
    }
    tree::remove(opened(base).as_fd(), c"upper").expect("whatever it is, it can be removed");
    let mut names: Vec<_> = fs::read_dir(base).expect("ours").flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    assert_eq!(names, ["canary", "lower"]);
    assert_eq!(fs::read(base.join("canary")).expect("the canary"), b"sings");
    assert_eq!(fs::read(base.join("lower/file")).expect("the lower layer"), b"low");
    assert_eq!(fs::read_dir(base.join("lower")).expect("the lower layer").count(), 4);
});
