//! A file's content: from the archive; or there before its name is, under which it comes to be without being copied. It stays where
//! it was then, so that what was unpacked can be unpacked again, for as long as nobody has written to it: its time of change tells.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, futimens, linkat, openat, statat};
use rustix::io::{Errno, Result};

use super::header::Header;
use super::{Layer, PIECE};

/// When a body that has no name yet was last changed: no program's file bears this time by being written to.
const NAMELESS: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Says of a body that it is whole, and has no name yet.
///
/// # Errors
/// What the kernel answers.
pub fn is_whole(body: impl AsFd) -> Result<()> {
    futimens(body, &Timestamps { last_access: NAMELESS, last_modification: NAMELESS })
}

/// Puts the body of this number at `name` in `dir`, where nothing may be, and opens it there to be given what else belongs to it:
/// `mtime`, its time of change, among others.
///
/// # Errors
/// EEXIST; ENOENT: there is no such body; ESTALE: it was here before, and has been written to since; what else the kernel answers.
pub fn placed(
    bodies: BorrowedFd<'_>,
    number: u64,
    (dir, name): (BorrowedFd<'_>, &CStr),
    mtime: Timespec,
) -> Result<OwnedFd> {
    let body = number.to_string();
    let stat = statat(bodies, &body, AtFlags::SYMLINK_NOFOLLOW)?;
    let changed = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(-1));
    if [NAMELESS, mtime].iter().all(|time| (time.tv_sec, time.tv_nsec) != changed) {
        return Err(Errno::STALE);
    }
    let open = |dir, name: &CStr, flags: OFlags| {
        openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
    };
    match linkat(bodies, &body, dir, name, AtFlags::empty()) {
        Ok(()) => open(dir, name, OFlags::WRONLY),
        // Another filesystem, or one without hard links.
        Err(Errno::XDEV | Errno::PERM | Errno::MLINK) => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut from = File::from(openat(bodies, &body, flags, Mode::empty())?);
            let mut to = File::from(open(dir, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
            let copied = std::io::copy(&mut from, &mut to);
            copied.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            Ok(to.into())
        }
        Err(answer) => Err(answer),
    }
}

impl Layer {
    /// Writes an entry's content to its file.
    ///
    /// # Errors
    /// The archive ends in the middle; the disk's.
    pub(super) fn data(&mut self, entry: &mut impl Read, header: &mut Header, file: &mut File) -> std::io::Result<()> {
        if let Some(map) = &mut header.sparse {
            map.read(entry, u64::MAX)?;
            for (offset, length) in &map.parts {
                file.seek(SeekFrom::Start(*offset))?;
                let copied = std::io::copy(&mut entry.by_ref().take(*length), file)?;
                if copied != *length {
                    return Err(std::io::Error::other("it ends in the middle"));
                }
                self.count.bytes += copied;
            }
            return file.set_len(map.size);
        }
        let (mut left, mut ends_in_hole) = (header.size, false);
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
            let count = entry.read(&mut self.buffer[..want])?;
            if count == 0 {
                return Err(std::io::Error::other("the archive ends in the middle of it"));
            }
            left -= count as u64;
            self.count.bytes += count as u64;
            // Archives that everybody reads have zeros where files had holes: they are to take no room again.
            ends_in_hole = self.buffer[..count].iter().all(|byte| *byte == 0);
            match ends_in_hole {
                true => drop(file.seek(SeekFrom::Start(header.size - left))?),
                false => file.write_all(&self.buffer[..count])?,
            }
        }
        if ends_in_hole { file.set_len(header.size) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_was_written_to_is_not_placed_again() {
        let path = std::env::temp_dir().join(format!("ferry-body-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("7"), "content").unwrap();
        let directory = File::open(&path).unwrap();
        let dir = directory.as_fd();
        let mtime = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
        let place = |name: &CStr| placed(dir, 7, (dir, name), mtime).map(File::from);
        assert_eq!(place(c"early").unwrap_err(), Errno::STALE, "it is not whole yet");
        is_whole(File::options().write(true).open(path.join("7")).unwrap()).unwrap();
        let file = place(c"first").unwrap();
        futimens(&file, &Timestamps { last_access: mtime, last_modification: mtime }).unwrap();
        drop(place(c"second").unwrap());
        assert_eq!(path.join("second").metadata().unwrap().ino(), path.join("7").metadata().unwrap().ino());
        (&file).write_all(b"changed").unwrap();
        assert_eq!(place(c"third").unwrap_err(), Errno::STALE);
        assert!(!path.join("third").exists());
        ["7", "first", "second"].iter().for_each(|name| std::fs::remove_file(path.join(name)).unwrap());
        std::fs::remove_dir(&path).unwrap();
    }
}
