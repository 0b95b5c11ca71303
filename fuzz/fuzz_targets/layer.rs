//! A layer's archive: unpacked and completed over another layer, it leaves nothing outside of its directory, whatever it is.
//!
//! As root, in memory: `cargo +nightly fuzz run layer -- -max_len=8192 -timeout=10`, with `FERRY_FUZZ` naming an empty directory
//! (default /dev/shm).

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

fuzz_target!(|archive: &[u8]| {
    let base = base();
    let upper = base.join("upper");
    fs::create_dir(&upper).expect("the one before was removed");
    let how = How { user_namespace: false, one_id: false, max_size: 1 << 20 };
    if let Ok((_, rest)) = unpack(archive, opened(&upper), "fuzzed", &how) {
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
