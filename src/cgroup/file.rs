//! Reading and writing one interface file of a cgroup, by name under its held directory.
//!
//! By descriptor, so that a cgroup that is removed and made anew under the same path in the meantime is never touched by
//! mistake: its files answer ENOENT or ENODEV.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// Writes `value` to `name` in one write(2): the kernel takes each write as one command.
pub(super) fn write(dir: BorrowedFd<'_>, name: &str, value: &str) -> Result<(), Errno> {
    let file = openat(dir, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let written = rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes()))?;
    if written == value.len() { Ok(()) } else { Err(Errno::IO) }
}

/// Reads the whole of `name`. Interface files are text; what is not UTF-8 would be a kernel's fault and is replaced.
pub(super) fn read(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> Result<String, Errno> {
    read_all(&openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Reads an open interface file from its beginning.
pub(super) fn read_all(file: &OwnedFd) -> Result<String, Errno> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut buffer, text.len() as u64))?;
        if count == 0 {
            return Ok(
                String::from_utf8(text).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned())
            );
        }
        text.extend_from_slice(&buffer[..count]);
    }
}

/// Opens the directory `name` below `dir`; `.` for `dir` itself.
pub(super) fn open_dir(dir: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The value beside `key` in a file of `key value` lines.
pub(super) fn value_of<'text>(text: &'text str, key: &str) -> Option<&'text str> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

/// The same answer in the type that errors are made of.
pub(super) fn answer(errno: Errno) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(errno.raw_os_error())
}
