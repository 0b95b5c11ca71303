//! Copying a small tree by descriptor: what `tmpcopyup` puts into a new tmpfs, and the loose files beside the directories
//! of a copy-on-write root.
//!
//! Links are copied as links and never followed; pipes and sockets are made anew, and devices where that is permitted. Mode
//! and owner come along, times and extended attributes do not.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chmodat, chownat, fchmod, fchown, fstat, mkdirat, mknodat,
    openat, readlinkat, statat, symlinkat,
};

use crate::path::errno;

/// Copies everything in the directory `from` into the directory `to`, which gets its owner too. Both are opened for
/// reading.
///
/// # Errors
/// What the first call that fails answers.
pub fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    own(to, c"", &fstat(from).map_err(errno)?)?;
    for entry in Dir::read_from(from).map_err(errno)? {
        let entry = entry.map_err(errno)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                directory(to, name, &stat)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let (from, to) = (openat(from, name, flags, Mode::empty()), openat(to, name, flags, Mode::empty()));
                tree(from.map_err(errno)?.as_fd(), to.map_err(errno)?.as_fd())?;
            }
            FileType::RegularFile => file(from, name, to, &stat)?,
            FileType::Symlink => link(from, name, to, &stat)?,
            kind => node(kind, to, name, &stat)?,
        }
    }
    Ok(())
}

/// Makes a directory like the one `stat` describes: mode, and owner where it may be given.
///
/// # Errors
/// What mkdirat(2) answers.
pub fn directory(to: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(stat.st_mode);
    mkdirat(to, name, mode).map_err(errno)?;
    own(to, name, stat)?;
    // mkdir makes no set-group-id directory, and a change of owner would take the bit away again.
    if mode.intersects(Mode::SUID | Mode::SGID) {
        chmodat(to, name, mode, AtFlags::empty()).map_err(errno)
    } else {
        Ok(())
    }
}

/// Copies a regular file.
///
/// # Errors
/// What the calls answer.
pub fn file(from: BorrowedFd<'_>, name: &std::ffi::CStr, to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    let failed = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut source = File::from(openat(from, name, read, Mode::empty()).map_err(errno)?);
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut copy = File::from(openat(to, name, write, Mode::from_raw_mode(0o600)).map_err(errno)?);
    std::io::copy(&mut source, &mut copy).map_err(failed)?;
    // Owner before mode: a change of owner takes set-user-id bits away.
    match fchown(&copy, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))) {
        Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => (),
        Err(answer) => return Err(errno(answer)),
    }
    fchmod(&copy, Mode::from_raw_mode(stat.st_mode)).map_err(errno)
}

/// Copies a symbolic link.
///
/// # Errors
/// What the calls answer.
pub fn link(from: BorrowedFd<'_>, name: &std::ffi::CStr, to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
    let target = readlinkat(from, name, Vec::new()).map_err(errno)?;
    symlinkat(target.as_c_str(), to, name).map_err(errno)?;
    own(to, name, stat)
}

/// Makes a pipe, a socket or a device. In a user namespace no device can be made.
fn node(kind: FileType, to: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(stat.st_mode);
    match mknodat(to, name, kind, mode, stat.st_rdev) {
        Err(rustix::io::Errno::PERM) => return Ok(()),
        made => made.map_err(errno)?,
    }
    own(to, name, stat)?;
    // The umask may have taken something from it.
    chmodat(to, name, mode, AtFlags::empty()).map_err(errno)
}

/// Gives `name` (the empty name: `dir` itself) its owner. In a user namespace most ids cannot be given: then it stays the container root's.
fn own(dir: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH) {
        Ok(()) | Err(rustix::io::Errno::PERM | rustix::io::Errno::INVAL) => Ok(()),
        Err(answer) => Err(errno(answer)),
    }
}

/// A directory opened for reading, links not followed.
///
/// # Errors
/// What openat(2) answers.
pub fn open_dir(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).map_err(errno)
}

/// The stat of an open directory.
///
/// # Errors
/// What fstat(2) answers.
pub fn stat_of(dir: BorrowedFd<'_>) -> Result<Stat, Errno> {
    fstat(dir).map_err(errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
    use std::path::{Path, PathBuf};

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("ferry-copy-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn open(path: &Path) -> std::os::fd::OwnedFd {
        openat(rustix::fs::CWD, path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn modes_links_and_special_files_come_along() {
        let (from, to) = (scratch("from"), scratch("to"));
        let mode = |path: &str, bits| {
            std::fs::set_permissions(from.join(path), std::fs::Permissions::from_mode(bits)).unwrap();
        };
        std::fs::create_dir_all(from.join("dir/below")).unwrap();
        std::fs::write(from.join("dir/program"), "text").unwrap();
        mode("dir/program", 0o4751);
        mode("dir", 0o2770);
        symlink("/etc/passwd", from.join("link")).unwrap();
        let make = |name: &str, kind, device| mknodat(rustix::fs::CWD, from.join(name), kind, Mode::RUSR, device);
        make("pipe", FileType::Fifo, 0).unwrap();
        make("socket", FileType::Socket, 0).unwrap();
        mode("pipe", 0o622);
        let device = make("zero", FileType::CharacterDevice, rustix::fs::makedev(1, 5));
        tree(open(&from).as_fd(), open(&to).as_fd()).unwrap();
        let seen = |path: &str| std::fs::symlink_metadata(to.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((seen("dir/program"), seen("dir")), (0o4751, 0o2770));
        assert_eq!(std::fs::read_to_string(to.join("dir/program")).unwrap(), "text");
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert!(to.join("dir/below").is_dir());
        let type_of = |path: &str| std::fs::symlink_metadata(to.join(path)).unwrap().file_type();
        assert!(type_of("pipe").is_fifo() && type_of("socket").is_socket());
        assert_eq!(seen("pipe"), 0o622);
        // An ordinary user can make none.
        if device.is_ok() {
            let copied = std::fs::symlink_metadata(to.join("zero")).unwrap();
            assert!(copied.file_type().is_char_device() && copied.rdev() == rustix::fs::makedev(1, 5));
        }
        std::process::Command::new("rm").arg("-r").arg(&from).arg(&to).status().unwrap();
    }
}
