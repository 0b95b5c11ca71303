//! A file's content: from the archive; or there before its name is, under which it comes to be without being copied. It stays where
//! it was then, so that what was unpacked can be unpacked again.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, linkat, openat};
use rustix::io::{Errno, Result};

use super::header::Header;
use super::{Layer, PIECE};

/// Puts the body of this number at `name` in `dir`, where nothing may be, and opens it there to be given what else belongs to it.
///
/// # Errors
/// EEXIST; ENOENT: there is no such body; what else the kernel answers.
pub fn placed(bodies: BorrowedFd<'_>, number: u64, dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let body = number.to_string();
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
        let gnu = header.kind.is_gnu_sparse();
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
        let mut left = header.size;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(PIECE);
            let count = entry.read(&mut self.buffer[..want])?;
            if count == 0 {
                return Err(std::io::Error::other("the archive ends in the middle of it"));
            }
            let piece = &self.buffer[..count];
            // The parser has filled the holes with zeros.
            if gnu && piece.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Current(count as i64))?;
            } else {
                file.write_all(piece)?;
            }
            left -= count as u64;
            self.count.bytes += count as u64;
        }
        if gnu { file.set_len(header.size) } else { Ok(()) }
    }
}
