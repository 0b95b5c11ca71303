//! A layer's archive becomes a directory that an overlay can be mounted from.
//!
//! Every layer is unpacked by itself, so that all of them can be at once. What only the layers below can tell (who owns a
//! directory that the archive merely passes through, a hard link to a file further down) is noted in [`Rest`] and made good by
//! [`complete`] once they are there.
//!
//! Entries are placed by descriptor: a parent directory is resolved inside the layer's root by openat2, where no link, `..` or
//! absolute name leads out. OCI image-spec, layer.md

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, fchmod, fchown, fstat, futimens,
    linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno as Answer;
use tar::EntryType;

use super::metered::{Metered, Room};
use super::{tree, whiteout, xattr};
use crate::error::{Context, Error, Result};
use crate::path::{Links, Root, errno, exists};

pub mod body;
pub mod complete;
mod count;
mod entries;
mod header;
mod links;
mod marks;
mod siblings;
mod sparse;
mod way;

pub use count::{Contents, Count};
use entries::{Entries, Entry};
use header::Header;
use links::Links as Waiting;

/// Data is copied in pieces of this size. Bytes.
const PIECE: usize = 128 << 10;
/// A name that begins so removes what follows it from the layers below. OCI image-spec, layer.md#whiteouts
const WHITEOUT: &[u8] = b".wh.";

/// How to unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// In a user namespace: overlay's marks are `user.` attributes, and devices cannot be made.
    pub user_namespace: bool,
    /// Whether only one id is to be had, so that everything is made to belong to it.
    pub one_id: bool,
    /// Whether this process makes files of another group than 0.
    pub other_group: bool,
    /// The largest file, holes included. Bytes.
    pub max_size: u64,
}

/// What the layers below are needed for, and what must come last.
#[derive(Debug, Default)]
pub struct Rest {
    /// Directories that were made because something is in them, parents first.
    implied: BTreeSet<Vec<u8>>,
    /// Hard links to files that are not in this layer.
    links: Waiting,
    /// Times of directories, which anything made in them changes.
    times: BTreeMap<Vec<u8>, Timespec>,
    /// Whether marks are those of a user namespace.
    user: bool,
}

/// Unpacks a layer into the empty directory `dir`; `named` is the layer in errors.
///
/// # Errors
/// The archive is broken, an entry leads out or cannot be made. What was unpacked until then stays for the caller to remove.
pub fn unpack(archive: impl Read, dir: OwnedFd, named: &str, how: &How) -> Result<(Count, Rest)> {
    with_bodies(archive, dir, None, named, how)
}

/// The same, where the content of some files may be in the directory `bodies`, by their numbers.
///
/// # Errors
/// As [`unpack`]; content that is not there.
pub fn with_bodies(
    archive: impl Read,
    dir: OwnedFd,
    bodies: Option<OwnedFd>,
    named: &str,
    how: &How,
) -> Result<(Count, Rest)> {
    let mut layer = Layer {
        root: Root::from_dir(dir, Path::new("")),
        bodies,
        how: *how,
        parent: None,
        count: Count::default(),
        rest: Rest { user: how.user_namespace, ..Rest::default() },
        buffer: vec![0; PIECE],
    };
    // Until an entry says otherwise, the layers below decide on the root directory; where there are none, it is as any other.
    layer.plain(b"").or_cannot("unpack layer", named)?;
    layer.rest.implied.insert(Vec::new());
    let broken = |why: std::io::Error| Error::said("unpack layer", named.to_owned(), why.to_string());
    let room = Room::new();
    let mut entries = Entries::of(Metered::new(archive, &room));
    while let Some(entry) = room.of_a_header(|| entries.advance()).map_err(broken)? {
        layer.entry(entry, &mut entries).map_err(|error| explain(error, how))?;
        std::io::copy(&mut entries, &mut std::io::sink()).map_err(broken)?;
    }
    // To the end: what the archive is judged by may come behind its last entry.
    std::io::copy(&mut entries.into_inner(), &mut std::io::sink()).map_err(broken)?;
    Ok((layer.count, layer.rest))
}

/// What stands behind an answer that would leave a person stuck.
fn explain(error: Error, how: &How) -> Error {
    match error.errno() {
        Some(Errno::EINVAL) if how.user_namespace => error.hint(
            "a file belongs to an id that this user's subordinate ids do not reach: give more in /etc/subuid and /etc/subgid",
        ),
        _ => super::store::full(error),
    }
}

struct Layer {
    root: Root,
    bodies: Option<OwnedFd>,
    how: How,
    /// The directory of the last entry: archives are sorted, mostly.
    parent: Option<(Vec<u8>, OwnedFd, Gives)>,
    count: Count,
    rest: Rest,
    buffer: Vec<u8>,
}

/// What a directory gives to whatever is made in it, and the archive does not.
#[derive(Debug, Clone, Copy)]
struct Gives {
    /// A group that may be another than 0: the directory's own, as its mode or how it is mounted has it, or the process'.
    group: bool,
    /// Its default ACL.
    acls: bool,
}

impl Gives {
    fn of(dir: &OwnedFd, how: &How) -> Result<Self, Errno> {
        let group = how.other_group || fstat(dir).map_err(errno)?.st_gid != 0;
        Ok(Self { group, acls: xattr::gives_acls(dir.as_fd()) })
    }
}

fn parted(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|byte| *byte == b'/').map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::EINVAL)
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

impl Layer {
    fn entry(&mut self, entry: Entry, content: &mut impl Read) -> Result<()> {
        let Some(mut header) = Header::read(entry)? else { return Ok(()) };
        self.count.entries += 1;
        self.settle(&mut header).map_err(|answer| Error::kernel("unpack", header.named(), answer))?;
        let cannot = |answer: Errno| Error::kernel("unpack", header.named(), answer);
        if header.path.is_empty() {
            return self.root_itself(&header).map_err(cannot);
        }
        if header.size > self.how.max_size {
            let why = format!("it has {} bytes, more than the limit; --max-size raises it", header.size);
            return Err(Error::said("unpack", header.named(), why));
        }
        let (_, name) = parted(&header.path);
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&header).map_err(cannot);
        }
        let name = c_name(name).map_err(cannot)?;
        let (parent, gives) = self.parent(&header.path).map_err(cannot)?;
        let parent = parent.as_fd();
        self.rest.links.replace(&header.path, header.kind.is_dir());
        match header.kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.file(content, &mut header, parent, &name, gives);
            }
            EntryType::Directory => return self.directory(&header, parent, &name, gives).map_err(cannot),
            EntryType::Link => return self.hard_link(&header, parent, &name).map_err(cannot),
            EntryType::Symlink => {
                let target = c_name(&header.target).map_err(cannot)?;
                self.make(parent, &name, |dir, name| symlinkat(&target, dir, name)).map_err(cannot)?;
            }
            EntryType::Fifo => {
                let mode = Mode::from_raw_mode(header.mode);
                self.make(parent, &name, |dir, name| mknodat(dir, name, FileType::Fifo, mode, 0)).map_err(cannot)?;
            }
            EntryType::Char | EntryType::Block => {
                if !self.device(&header, parent, &name).map_err(cannot)? {
                    return Ok(());
                }
            }
            kind => {
                let why = format!("an entry of type {:?} is none that a layer has", char::from(kind.as_byte()));
                return Err(Error::said("unpack", header.named(), why));
            }
        }
        self.belongings(&header, parent, &name, gives).map_err(cannot)
    }

    /// The directory that an entry is in, made where the archive does not mention it.
    fn parent(&mut self, path: &[u8]) -> Result<(OwnedFd, Gives), Errno> {
        let (parent, _) = parted(path);
        if self.parent.as_ref().is_none_or(|(known, ..)| known != parent) {
            let dir = match self.open_dir(parent) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => self.imply(parent)?,
                answer => answer?,
            };
            let gives = Gives::of(&dir, &self.how)?;
            self.parent = Some((parent.to_vec(), dir, gives));
        }
        match &self.parent {
            Some((_, dir, gives)) => Ok((dir.try_clone().map_err(|_| Errno::EMFILE)?, *gives)),
            None => Err(Errno::ENOENT),
        }
    }

    fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.root.open_inside(as_path(path), OFlags::RDONLY | OFlags::DIRECTORY, Links::Follow)
    }

    /// Makes a directory that was not mentioned, and those above it.
    fn imply(&mut self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut ends: Vec<usize> =
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).collect();
        ends.push(path.len());
        for end in ends {
            let here = &path[..end];
            match self.open_dir(here) {
                Ok(_) => continue,
                Err(Errno::ENOENT) => {
                    let made = self.root.make_dirs(as_path(here), 0o755, Links::Follow);
                    made.map_err(|error| error.errno().unwrap_or(Errno::EIO))?;
                    self.plain(here)?;
                    self.rest.links.replace(here, true);
                    self.rest.implied.insert(here.to_vec());
                }
                Err(Errno::ENOTDIR) => self.reopen_whiteout(here)?,
                Err(answer) => return Err(answer),
            }
        }
        self.open_dir(path)
    }

    /// Takes from a directory that was not mentioned what the one above it, or the process, has given it.
    fn plain(&self, path: &[u8]) -> Result<(), Errno> {
        let dir = self.open_dir(path)?;
        xattr::without_acls(dir.as_fd())?;
        if !self.how.one_id {
            fchown(&dir, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(errno)?;
        }
        fchmod(&dir, Mode::from_raw_mode(0o755)).map_err(errno)
    }

    /// Makes something at a name; what is there from before goes, whatever it is.
    fn make(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CString,
        deed: impl Fn(BorrowedFd<'_>, &CString) -> rustix::io::Result<()>,
    ) -> Result<(), Errno> {
        match deed(dir, name) {
            Err(Answer::EXIST) => {
                self.parent = None;
                self.count.replaced += 1;
                tree::remove(dir, name)?;
                deed(dir, name).map_err(errno)
            }
            answer => answer.map_err(errno),
        }
    }

    fn file(
        &mut self,
        content: &mut impl Read,
        header: &mut Header,
        dir: BorrowedFd<'_>,
        name: &CString,
        gives: Gives,
    ) -> Result<()> {
        let named = header.named();
        let cannot = |answer: Errno| match answer {
            Errno::ESTALE => {
                Error::said("unpack", &named, "the container has run here already, and has written to it since")
                    .hint("its memory, which is as it was when it came, does not belong to its files any more")
            }
            answer => Error::kernel("unpack", &named, answer),
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody but the owner until it is known who that is.
        let open = || match (&self.bodies, header.body) {
            (Some(bodies), Some(number)) => body::placed(bodies.as_fd(), number, (dir, name), header.mtime),
            _ => openat(dir, name, flags, Mode::from_raw_mode(header.mode & 0o700 | 0o600)),
        };
        let file = match open() {
            Err(Answer::EXIST) => {
                self.parent = None;
                self.count.replaced += 1;
                tree::remove(dir, name).map_err(cannot)?;
                open().map_err(|answer| cannot(errno(answer)))?
            }
            answer => answer.map_err(|answer| cannot(errno(answer)))?,
        };
        let mut file = File::from(file);
        if gives.acls {
            xattr::without_acls(file.as_fd()).map_err(cannot)?;
        }
        self.data(content, header, &mut file).or_cannot("unpack", &named)?;
        self.own(header, gives.group, |uid, gid| fchown(&file, Some(uid), Some(gid))).map_err(cannot)?;
        fchmod(&file, Mode::from_raw_mode(header.mode)).or_cannot("unpack", &named)?;
        for (name, value) in &header.xattrs {
            self.attribute(name, |name| xattr::set(file.as_fd(), name, value)).map_err(cannot)?;
        }
        futimens(&file, &both(header.mtime)).or_cannot("unpack", &named)
    }

    fn directory(&mut self, header: &Header, dir: BorrowedFd<'_>, name: &CString, gives: Gives) -> Result<(), Errno> {
        let mut made = true;
        match mkdirat(dir, name, Mode::from_raw_mode(header.mode & 0o777 | 0o700)) {
            Ok(()) => (),
            Err(Answer::EXIST) => {
                let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(errno)?;
                made = FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
                if made {
                    self.parent = None;
                    self.count.replaced += 1;
                    let removed = whiteout::is_one(dir, name, &stat);
                    unlinkat(dir, name, AtFlags::empty()).map_err(errno)?;
                    mkdirat(dir, name, Mode::from_raw_mode(header.mode & 0o777 | 0o700)).map_err(errno)?;
                    if removed {
                        self.renew(&header.path)?;
                    }
                }
            }
            Err(answer) => return Err(errno(answer)),
        }
        self.rest.implied.remove(&header.path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(dir, name, flags, Mode::empty()).map_err(errno)?;
        if made && gives.acls {
            xattr::without_acls(opened.as_fd())?;
        }
        self.directory_belongings(header, &opened, gives.group)?;
        // Its own entries come next, mostly.
        let gives = Gives::of(&opened, &self.how)?;
        self.parent = Some((header.path.clone(), opened, gives));
        Ok(())
    }

    fn root_itself(&mut self, header: &Header) -> Result<(), Errno> {
        if header.kind != EntryType::Directory {
            return Err(Errno::EEXIST);
        }
        self.rest.implied.remove(&Vec::new());
        let dir = self.open_dir(b"")?;
        self.parent = None;
        self.directory_belongings(header, &dir, true)
    }

    fn directory_belongings(&mut self, header: &Header, dir: &OwnedFd, set_group: bool) -> Result<(), Errno> {
        self.own(header, set_group, |uid, gid| fchown(dir, Some(uid), Some(gid)))?;
        fchmod(dir, Mode::from_raw_mode(header.mode)).map_err(errno)?;
        for (name, value) in &header.xattrs {
            self.attribute(name, |name| xattr::set(dir.as_fd(), name, value))?;
        }
        self.rest.times.insert(header.path.clone(), header.mtime);
        Ok(())
    }

    fn hard_link(&mut self, header: &Header, dir: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
        if header.target == header.path {
            return Err(Errno::ELOOP);
        }
        let (above, target) = parted(&header.target);
        let target = c_name(target)?;
        let from = match self.open_dir(above) {
            Ok(from) => match statat(&from, &target, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if whiteout::is_one(&from, &target, &stat) => None,
                Ok(_) => Some(from),
                Err(Answer::NOENT) => None,
                Err(answer) => return Err(errno(answer)),
            },
            Err(Errno::ENOENT | Errno::ENOTDIR) => None,
            Err(answer) => return Err(answer),
        };
        match from {
            Some(from) => self.make(dir, name, |dir, name| linkat(&from, &target, dir, name, AtFlags::empty())),
            None => {
                if exists(dir, name)? {
                    self.parent = None;
                    self.count.replaced += 1;
                    tree::remove(dir, name)?;
                }
                self.rest.links.note(&header.target, &header.path);
                Ok(())
            }
        }
    }

    /// Whether the device was made: in a user namespace none can be.
    fn device(&mut self, header: &Header, dir: BorrowedFd<'_>, name: &CString) -> Result<bool, Errno> {
        let kind = if header.kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
        let (mode, number) = (Mode::from_raw_mode(header.mode), makedev(header.device.0, header.device.1));
        match self.make(dir, name, |dir, name| mknodat(dir, name, kind, mode, number)) {
            Err(Errno::EPERM) if self.how.user_namespace => {
                self.count.devices += 1;
                Ok(false)
            }
            answer => answer.map(|()| true),
        }
    }

    /// Owner, mode, attributes and times of what is neither file nor directory.
    fn belongings(&mut self, header: &Header, dir: BorrowedFd<'_>, name: &CString, gives: Gives) -> Result<(), Errno> {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        self.own(header, gives.group, |uid, gid| chownat(dir, name, Some(uid), Some(gid), nofollow))?;
        if header.kind != EntryType::Symlink {
            if gives.acls {
                xattr::without_acls_at(dir, name)?;
            }
            chmodat(dir, name, Mode::from_raw_mode(header.mode), AtFlags::empty()).map_err(errno)?;
        }
        for (attribute, value) in &header.xattrs {
            self.attribute(attribute, |attribute| xattr::set_at(dir, name, attribute, value))?;
        }
        utimensat(dir, name, &both(header.mtime), nofollow).map_err(errno)
    }

    /// Who unpacks is root, here or in a user namespace, and owns what it makes; `set_group` where that may be of another group.
    fn own(
        &mut self,
        header: &Header,
        set_group: bool,
        chown: impl FnOnce(Uid, Gid) -> rustix::io::Result<()>,
    ) -> Result<(), Errno> {
        let is_roots = (header.uid, header.gid) == (0, 0);
        if self.how.one_id {
            self.count.owners += u64::from(!is_roots);
            return Ok(());
        }
        if is_roots && !set_group {
            return Ok(());
        }
        chown(Uid::from_raw(header.uid), Gid::from_raw(header.gid)).map_err(errno)
    }

    fn attribute(&mut self, name: &CString, set: impl FnOnce(&CString) -> Result<(), Errno>) -> Result<(), Errno> {
        let taken = xattr::is_an_images(name.as_bytes()).then(|| set(name));
        match taken {
            Some(Ok(())) => Ok(()),
            // A filesystem without ACLs, a user namespace that may not give this one: the file is of use without.
            None | Some(Err(Errno::EOPNOTSUPP | Errno::EPERM)) => {
                self.count.attributes += 1;
                Ok(())
            }
            Some(Err(answer)) => Err(answer),
        }
    }
}

/// One time as that of the last access and of the last change.
fn both(time: Timespec) -> Timestamps {
    Timestamps { last_access: time, last_modification: time }
}
