//! A directory becomes a layer's archive, the same bytes every time: sorted by name, with nothing in it that the files do not
//! say. What a container's upper layer removed becomes whiteouts. OCI image-spec, layer.md
//!
//! Names, times and attributes that the old header has no room for go into PAX records, which all readers of layers know.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat};
use rustix::io::Errno as Answer;
use tar::{EntryType, Header};

use super::merged::is_opaque;
use super::{copy, metered, pax, whiteout, xattr};
use crate::error::{Context, Error, Result};
use crate::path::{errno, fd_path};

/// Descriptors are held for every level; a usual tree has ten.
pub(crate) const DEEPEST: usize = 400;

/// A name longer than this no kernel takes: linux/limits.h, PATH_MAX.
pub(super) const LONGEST_NAME: usize = 4096;

/// As many bytes of records as are read again, with the header that they have and the one they are for.
const LONGEST_RECORDS: usize = metered::LARGEST as usize - 4096;

/// The PAX record of a file whose content comes otherwise: its number among bodies, see [`super::unpack::with_bodies`].
pub(super) const BODY: &str = "FERRY.body";

/// Whether whoever unpacks the archive has the content of this file already, by the number of its inode.
pub type Elsewhere<'a> = &'a dyn Fn(&Stat) -> bool;

/// Writes everything in `dir` as an archive.
///
/// # Errors
/// Something cannot be read, or `out` not written.
pub fn directory(dir: &OwnedFd, out: impl Write) -> Result<()> {
    archive(dir, out, false, None, NOWHERE)
}

/// Writes the upper layer of an overlay as an archive.
///
/// # Errors
/// As [`directory`].
pub fn upper(dir: &OwnedFd, out: impl Write) -> Result<()> {
    archive(dir, out, true, None, NOWHERE)
}

/// The same without the content of some files.
///
/// # Errors
/// As [`directory`].
pub fn upper_without(dir: &OwnedFd, out: impl Write, is_elsewhere: Elsewhere<'_>) -> Result<()> {
    archive(dir, out, true, None, is_elsewhere)
}

/// Writes what the overlay `merged` shows other than its only lower directory, where its upper layer is out of reach: in memory that
/// is mounted nowhere any more. What of the lower nobody changed is shown with the lower's own time of change, which nobody can set;
/// and a directory is copied up before anything in it changes.
///
/// # Errors
/// As [`directory`].
pub fn changes(merged: &OwnedFd, lower: &OwnedFd, out: impl Write) -> Result<()> {
    archive(merged, out, false, Some(lower), NOWHERE)
}

const NOWHERE: Elsewhere<'_> = &|_| false;

fn archive(
    dir: &OwnedFd,
    out: impl Write,
    marks: bool,
    lower: Option<&OwnedFd>,
    is_elsewhere: Elsewhere<'_>,
) -> Result<()> {
    let mut packer = Packer { builder: tar::Builder::new(out), links: HashMap::new(), marks, is_elsewhere };
    let stat = fstat(dir).or_cannot("pack", "the directory")?;
    packer.entry(
        b"./",
        &stat,
        EntryType::Directory,
        b"",
        &xattr::list(dir.as_fd()).or_cannot("pack", "the directory")?,
        io::empty(),
    )?;
    packer.walk(dir.as_fd(), lower, b"", 0)?;
    let mut out = packer.builder.into_inner().or_cannot("write", "the archive")?;
    out.flush().or_cannot("write", "the archive")
}

struct Packer<'a, W: Write> {
    builder: tar::Builder<W>,
    /// Files with several names: the first of them, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Whether overlay's marks mean something here.
    marks: bool,
    is_elsewhere: Elsewhere<'a>,
}

impl<W: Write> Packer<'_, W> {
    fn walk(&mut self, dir: BorrowedFd<'_>, lower: Option<&OwnedFd>, path: &[u8], depth: usize) -> Result<()> {
        let named = || format!("{:?}", String::from_utf8_lossy(path));
        if depth > DEEPEST {
            return Err(Error::said("pack", named(), "directories are nested too deeply"));
        }
        let names = match names(dir) {
            // It was removed since it was opened.
            Err(Errno::ENOENT) => Vec::new(),
            names => names.or_cannot("read", named())?,
        };
        if self.marks && is_redirected(dir) {
            let why = "the overlay renamed it without copying it, and what it holds is in the layers below";
            return Err(Error::said("pack", named(), why).hint("mount the overlay with redirect_dir=off"));
        }
        if self.marks && is_opaque(dir) {
            self.whiteout(path, b".wh..wh..opq")?;
        }
        if let Some(lower) = lower {
            let below = self::names(lower.as_fd()).or_cannot("read", named())?;
            for gone in below.iter().filter(|name| names.binary_search(name).is_err()) {
                self.whiteout(path, &[b".wh.", gone.to_bytes()].concat())?;
            }
        }
        names.iter().try_for_each(|name| self.name(dir, lower, path, name, depth))
    }

    fn name(
        &mut self,
        dir: BorrowedFd<'_>,
        lower: Option<&OwnedFd>,
        above: &[u8],
        name: &CStr,
        depth: usize,
    ) -> Result<()> {
        let path = if above.is_empty() { name.to_bytes().to_vec() } else { [above, b"/", name.to_bytes()].concat() };
        let named = format!("{:?}", String::from_utf8_lossy(&path));
        // Held from here on: what is renamed or replaced meanwhile is packed as it was found.
        let found = match copy::opened(dir, name, OFlags::PATH) {
            Err(Errno::ENOENT) => return Ok(()),
            found => found.or_cannot("pack", &named)?,
        };
        let stat = fstat(&found).or_cannot("pack", &named)?;
        let below = lower.and_then(|lower| statat(lower, name, AtFlags::SYMLINK_NOFOLLOW).ok());
        if below.as_ref().is_some_and(|below| is_unchanged(below, &stat)) {
            return Ok(());
        }
        if self.marks && whiteout::is_device(&stat) {
            return self.whiteout(above, &[b".wh.", name.to_bytes()].concat());
        }
        if name.to_bytes().starts_with(b".wh.") {
            let why = "in a layer a name that begins with .wh. removes another file";
            return Err(Error::said("pack", named, why).hint("give it another name"));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket {
            // Of use only to the process that made it, and no archive has any. What it replaced must not come back.
            return match self.marks || below.is_some() {
                true => self.whiteout(above, &[b".wh.", name.to_bytes()].concat()),
                false => Ok(()),
            };
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
                return self.entry(&path, &stat, EntryType::Link, &first, &[], io::empty());
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        match kind {
            FileType::Directory => {
                let open = |dir: BorrowedFd<'_>, name: &CStr| {
                    copy::opened(dir, name, OFlags::RDONLY | OFlags::DIRECTORY).or_cannot("pack", &named)
                };
                let inside = open(found.as_fd(), c".")?;
                drop(found);
                let was_directory =
                    below.is_some_and(|below| FileType::from_raw_mode(below.st_mode) == FileType::Directory);
                let lower = lower.filter(|_| was_directory).map(|lower| open(lower.as_fd(), name)).transpose()?;
                let attributes = xattr::list(inside.as_fd()).or_cannot("pack", &named)?;
                let with_slash = [path.as_slice(), b"/"].concat();
                self.entry(&with_slash, &stat, EntryType::Directory, b"", &attributes, io::empty())?;
                self.walk(inside.as_fd(), lower.as_ref(), &path, depth + 1)
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(CWD, fd_path(found.as_fd()).as_c_str(), flags, Mode::empty());
                let file = file.or_cannot("pack", &named)?;
                let attributes = xattr::list(file.as_fd()).or_cannot("pack", &named)?;
                let data = Exactly { file: File::from(file), left: stat.st_size.unsigned_abs() };
                self.entry(&path, &stat, EntryType::Regular, b"", &attributes, data)
            }
            FileType::Symlink => {
                let target = readlinkat(&found, c"", Vec::new()).map_err(errno).or_cannot("pack", &named)?;
                self.entry(&path, &stat, EntryType::Symlink, target.as_bytes(), &[], io::empty())
            }
            FileType::CharacterDevice => self.entry(&path, &stat, EntryType::Char, b"", &[], io::empty()),
            FileType::BlockDevice => self.entry(&path, &stat, EntryType::Block, b"", &[], io::empty()),
            FileType::Fifo => self.entry(&path, &stat, EntryType::Fifo, b"", &[], io::empty()),
            _ => Ok(()),
        }
    }

    fn whiteout(&mut self, above: &[u8], name: &[u8]) -> Result<()> {
        let path = if above.is_empty() { name.to_vec() } else { [above, b"/", name].concat() };
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_size(0);
        header.set_mode(0);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        self.append(header, &path, b"", Vec::new(), io::empty())
    }

    fn entry(
        &mut self,
        path: &[u8],
        stat: &Stat,
        kind: EntryType,
        target: &[u8],
        attributes: &[(CString, Vec<u8>)],
        data: impl Read,
    ) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        let is_regular = kind == EntryType::Regular;
        let is_elsewhere = is_regular && (self.is_elsewhere)(stat);
        let size = if is_regular && !is_elsewhere { stat.st_size.unsigned_abs() } else { 0 };
        header.set_size(size);
        header.set_mtime(stat.st_mtime.try_into().unwrap_or(0));
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(major(stat.st_rdev)).or_cannot("pack", "a device")?;
            header.set_device_minor(minor(stat.st_rdev)).or_cannot("pack", "a device")?;
        }
        let mut records = Vec::new();
        if stat.st_mtime_nsec != 0 || stat.st_mtime < 0 {
            pax::add(&mut records, b"mtime", seconds(stat.st_mtime, stat.st_mtime_nsec as i64).as_bytes());
        }
        if is_elsewhere {
            pax::add(&mut records, BODY.as_bytes(), stat.st_ino.to_string().as_bytes());
        }
        for (name, value) in attributes {
            pax::add(&mut records, &pax::attribute_key(name.to_bytes()), value);
        }
        self.append(header, path, target, records, data.take(size))
    }

    fn append(
        &mut self,
        mut header: Header,
        path: &[u8],
        target: &[u8],
        mut records: Vec<u8>,
        data: impl Read,
    ) -> Result<()> {
        let named = format!("{:?}", String::from_utf8_lossy(path));
        // Nothing is written that could not be unpacked again: what has been packed may be all that there is of a container.
        if path.len() > LONGEST_NAME {
            let why = format!("its path has more than {LONGEST_NAME} bytes, and could not be unpacked again");
            return Err(Error::said("pack", named, why).hint("move it, or give the directories above it shorter names"));
        }
        if let Some(ustar) = header.as_ustar_mut() {
            for (field, value, key) in [(&mut ustar.name, path, "path"), (&mut ustar.linkname, target, "linkpath")] {
                let fitting = value.len().min(field.len());
                field[..fitting].copy_from_slice(&value[..fitting]);
                if fitting < value.len() {
                    pax::add(&mut records, key.as_bytes(), value);
                }
            }
        }
        header.set_cksum();
        if records.len() > LONGEST_RECORDS {
            let why = format!("its extended attributes have more than {LONGEST_RECORDS} bytes");
            return Err(Error::said("pack", named, why));
        }
        if !records.is_empty() {
            let mut extended = Header::new_ustar();
            extended.set_entry_type(EntryType::XHeader);
            extended.set_size(records.len() as u64);
            extended.set_cksum();
            self.builder.append(&extended, records.as_slice()).or_cannot("pack", &named)?;
        }
        self.builder.append(&header, data).or_cannot("pack", &named)
    }
}

/// What is in a directory, sorted.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(errno)? {
        let name = entry.map_err(errno)?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Whether the overlay shows the lower's own.
fn is_unchanged(lower: &Stat, shown: &Stat) -> bool {
    let of = |stat: &Stat| {
        let times = (stat.st_ctime, stat.st_ctime_nsec, stat.st_mtime, stat.st_mtime_nsec);
        (times, stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, stat.st_rdev)
    };
    of(lower) == of(shown)
}

/// Whether overlay has more of a directory under another name, which ferry's own mounts never let it do.
fn is_redirected(dir: BorrowedFd<'_>) -> bool {
    // Too long for the buffer is there too; an empty buffer would be answered without asking.
    let found = |name: &&str| {
        !matches!(rustix::fs::fgetxattr(dir, *name, &mut [0_u8; 1][..]), Err(Answer::NODATA | Answer::OPNOTSUPP))
    };
    ["trusted.overlay.redirect", "user.overlay.redirect"].iter().any(found)
}

/// A time as PAX writes it.
fn seconds(whole: i64, nanoseconds: i64) -> String {
    match (whole < 0, nanoseconds) {
        (_, 0) => whole.to_string(),
        // Before 1970 the fraction counts the other way.
        (true, _) => format!("-{}.{:09}", -(whole + 1), 1_000_000_000 - nanoseconds),
        (false, _) => format!("{whole}.{nanoseconds:09}"),
    }
}

/// So many bytes of a file, whatever happens to it meanwhile: the header has said how many.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut count = self.file.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            // It has become shorter.
            buffer[..most].fill(0);
            count = most;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_have_a_fraction_too() {
        assert_eq!(seconds(12, 0), "12");
        assert_eq!(seconds(12, 5), "12.000000005");
        assert_eq!(seconds(-2, 750_000_000), "-1.250000000");
        assert_eq!(seconds(-1, 500_000_000), "-0.500000000");
    }

    /// A program that changes a directory once this has come of it.
    struct Meanwhile<'a> {
        archive: Vec<u8>,
        begins: &'a [u8],
        deed: &'a dyn Fn(),
    }

    impl Write for Meanwhile<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if bytes.starts_with(self.begins) {
                (self.deed)();
            }
            self.archive.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_goes_away_meanwhile_is_not_packed() {
        let base = std::env::temp_dir().join(format!("ferry-pack-gone-{}", std::process::id()));
        std::fs::create_dir_all(base.join("dir")).unwrap();
        for name in ["dir/x", "gone", "kept"] {
            std::fs::write(base.join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("kept", base.join("link")).unwrap();
        let deed = || {
            std::fs::remove_file(base.join("dir/x")).unwrap();
            std::fs::remove_dir(base.join("dir")).unwrap();
            std::fs::remove_file(base.join("gone")).unwrap();
        };
        let dir = rustix::fs::open(&base, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let mut out = Meanwhile { archive: Vec::new(), begins: b"dir/\0", deed: &deed };
        upper(&dir, &mut out).unwrap();
        let mut archive = tar::Archive::new(out.archive.as_slice());
        let paths = archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned());
        let paths: Vec<String> = paths.map(|path| String::from_utf8(path).unwrap()).collect();
        std::process::Command::new("rm").arg("-r").arg(&base).status().unwrap();
        assert_eq!(paths, ["./", "dir/", "kept", "link"]);
    }

    #[test]
    fn a_name_that_would_remove_another_is_refused() {
        let base = std::env::temp_dir().join(format!("ferry-pack-{}", std::process::id()));
        std::fs::create_dir_all(base.join("dir")).unwrap();
        std::fs::write(base.join("dir/.wh.x"), "mine").unwrap();
        let dir = rustix::fs::open(&base, OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty()).unwrap();
        let refused = directory(&dir, io::sink()).unwrap_err().to_string();
        std::process::Command::new("rm").arg("-r").arg(&base).status().unwrap();
        assert!(refused.starts_with("cannot pack \"dir/.wh.x\": in a layer a name"), "{refused}");
    }
}
