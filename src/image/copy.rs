//! Copying one file of a layer with everything that belongs to it: owner, mode, times to the nanosecond, attributes, holes.
//!
//! Data is shared where the filesystem can (FICLONE), copied inside the kernel otherwise.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, chownat, copy_file_range, fchmod,
    fchown, ftruncate, ioctl_ficlone, mkdirat, mknodat, openat, readlinkat, seek, symlinkat, utimensat,
};
use rustix::io::Errno as Answer;

use super::xattr;
use crate::path::errno;

/// Asked between a piece and the next; an error ends the copy.
pub type GoOn<'a> = &'a dyn Fn() -> Result<(), Errno>;

/// The most bytes that the kernel copies at once: it is not to be interrupted in between.
const PIECE: usize = 64 << 20;

/// The times of a file, to be given to another.
pub fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Copies `name` of `from` to `new` in `to`, where nothing is. Of a directory the directory itself, and no times yet: they are
/// its owner's to set once it is filled.
///
/// # Errors
/// What the first call that fails answers; EPERM for a device without the right to make one.
pub fn entry(from: BorrowedFd<'_>, name: &CStr, stat: &Stat, to: BorrowedFd<'_>, new: &CStr) -> Result<(), Errno> {
    entry_while(from, name, stat, to, new, &|| Ok(()))
}

/// The same, for as long as `go_on` says so.
///
/// # Errors
/// As [`entry`]; what `go_on` answers.
pub fn entry_while(
    from: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    to: BorrowedFd<'_>,
    new: &CStr,
    go_on: GoOn<'_>,
) -> Result<(), Errno> {
    go_on()?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    let kind = FileType::from_raw_mode(stat.st_mode);
    match kind {
        FileType::RegularFile => {
            let source = opened(from, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let copy = openat(to, new, flags, Mode::RUSR | Mode::WUSR).map_err(errno)?;
            data(&source, &copy, stat.st_size.unsigned_abs(), go_on)?;
            fchown(&copy, uid, gid).map_err(errno)?;
            fchmod(&copy, mode).map_err(errno)?;
            if xattr::gives_acls(to) {
                xattr::without_acls(copy.as_fd())?;
            }
            xattr::copy(source.as_fd(), copy.as_fd())?;
            return rustix::fs::futimens(&copy, &times(stat)).map_err(errno);
        }
        FileType::Directory => {
            mkdirat(to, new, Mode::RWXU).map_err(errno)?;
            return directory(opened(from, name, OFlags::RDONLY | OFlags::DIRECTORY)?.as_fd(), stat, to, new);
        }
        FileType::Symlink => {
            let target = readlinkat(from, name, Vec::new()).map_err(errno)?;
            symlinkat(&target, to, new).map_err(errno)?;
        }
        kind => mknodat(to, new, kind, mode, stat.st_rdev).map_err(errno)?,
    }
    chownat(to, new, uid, gid, nofollow).map_err(errno)?;
    if kind != FileType::Symlink {
        if xattr::gives_acls(to) {
            xattr::without_acls_at(to, new)?;
        }
        rustix::fs::chmodat(to, new, mode, AtFlags::empty()).map_err(errno)?;
    }
    utimensat(to, new, &times(stat), nofollow).map_err(errno)
}

/// Gives the directory `new` in `to` what belongs to the directory `from`, but its times.
///
/// # Errors
/// What the first call that fails answers.
pub fn directory(from: BorrowedFd<'_>, stat: &Stat, to: BorrowedFd<'_>, new: &CStr) -> Result<(), Errno> {
    let copy = opened(to, new, OFlags::RDONLY | OFlags::DIRECTORY)?;
    fchown(&copy, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).map_err(errno)?;
    fchmod(&copy, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(errno)?;
    xattr::without_acls(copy.as_fd())?;
    xattr::copy(from, copy.as_fd())
}

/// Opens for reading, the last link not followed.
pub fn opened(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(errno)
}

fn data(from: &OwnedFd, to: &OwnedFd, size: u64, go_on: GoOn<'_>) -> Result<(), Errno> {
    if size == 0 || ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    ftruncate(to, size).map_err(errno)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(from, at)? {
        span(from, to, start, end, go_on)?;
        at = end;
    }
    Ok(())
}

/// The next part of a file from `at` on that is no hole.
fn next_data(file: &OwnedFd, at: u64) -> Result<Option<(u64, u64)>, Errno> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some((start, seek(file, SeekFrom::Hole(start)).map_err(errno)?))),
        Err(Answer::NXIO) => Ok(None),
        Err(answer) => Err(errno(answer)),
    }
}

fn span(from: &OwnedFd, to: &OwnedFd, start: u64, end: u64, go_on: GoOn<'_>) -> Result<(), Errno> {
    let (mut read, mut write) = (start, start);
    while read < end {
        go_on()?;
        let count = usize::try_from(end - read).unwrap_or(usize::MAX).min(PIECE);
        match copy_file_range(from, Some(&mut read), to, Some(&mut write), count) {
            Ok(0) => return Ok(()),
            Ok(_) => (),
            // Between two filesystems, or on one that cannot.
            Err(Answer::XDEV | Answer::INVAL | Answer::OPNOTSUPP | Answer::NOSYS) => {
                return by_hand(from, to, read, end, go_on);
            }
            Err(answer) => return Err(errno(answer)),
        }
    }
    Ok(())
}

fn by_hand(from: &OwnedFd, to: &OwnedFd, mut at: u64, end: u64, go_on: GoOn<'_>) -> Result<(), Errno> {
    let mut buffer = vec![0; 128 << 10];
    while at < end {
        go_on()?;
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let count = rustix::io::pread(from, &mut buffer[..want], at).map_err(errno)?;
        if count == 0 {
            return Ok(());
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let written = rustix::io::pwrite(to, rest, at).map_err(errno)?;
            at += written as u64;
            rest = &rest[written..];
        }
    }
    Ok(())
}
