//! The image store: everything that images are, on disk.
//!
//! ```text
//! format                 the version of this layout
//! lock                   shared by whoever adds or uses, exclusive for whoever removes
//! blobs/sha256/HEX       documents and layers as they came, by digest
//! layers/HEX/            a layer, unpacked, by chain id: layer.json and diff/, and erofs/ where that was asked for
//! images.json            names -> manifests; images.spare is room for it on a full disk
//! containers/KEY/        what is in use: use.json, and a container's upper/ and work/, or copy/rootfs/
//! snapshots/KEY/NAME/    what containers had written at some time, and in memory: .memory/NUMBER/
//! tmp/                   what is being made; no part of the store
//! ```
//!
//! Something is made below `tmp`, synced, and renamed to its place: there it is whole or not at all, whenever a process is cut
//! off. What nobody refers to any more goes by [`prune`] alone, which has the store to itself.

use std::ffi::CString;
use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, fsync, mkdirat, openat, renameat, statat};
use rustix::io::Errno as Answer;

use super::digest::Digest;
use super::manifest::LARGEST;
use crate::error::{Context, Error, Result};
use crate::path::errno;

pub mod check;
pub mod copies;
pub mod erofs;
pub mod layers;
pub mod memories;
pub mod names;
pub mod prune;
pub mod session;
pub mod snapshots;
pub mod uses;

/// The version of the layout.
pub const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";
/// Documents are mostly smaller than this. Bytes.
const USUAL: usize = 4096;
const LOCK: &str = "lock";
const DIRECTORIES: [&str; 6] = ["blobs", "blobs/sha256", "blobs/sha512", "layers", "containers", "tmp"];

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    dir: OwnedFd,
}

/// A lock on the whole store, until this value goes.
#[derive(Debug)]
pub struct Guard {
    _file: OwnedFd,
}

/// Where a user's images are: `/var/lib/ferry` for root, `$XDG_DATA_HOME/ferry` for everybody else.
///
/// # Errors
/// An ordinary user without `$XDG_DATA_HOME` and `$HOME`.
pub fn default_location(privileged: bool) -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if privileged {
        return Ok(PathBuf::from("/var/lib/ferry"));
    }
    let data = variable("XDG_DATA_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/share")));
    data.map(|data| data.join("ferry")).ok_or_else(|| {
        Error::plain("there is no place for images: neither $XDG_DATA_HOME nor $HOME is set")
            .hint("name a directory with --store before the verb")
    })
}

/// What stands behind an answer that would leave a person stuck.
pub(super) fn full(error: Error) -> Error {
    match error.errno() {
        Some(Errno::ENOSPC) => error.hint("the image store's filesystem is full; the store is as it was"),
        Some(Errno::EDQUOT) => error.hint("the quota for the image store is used up; the store is as it was"),
        _ => error,
    }
}

impl Store {
    /// Opens the store at `root`, making it where there is none.
    ///
    /// # Errors
    /// It cannot be made, or is of another version.
    pub fn open(root: &Path) -> Result<Self> {
        let hint = "name a directory that this user may write with --store before the verb";
        // Its caller may have no umask, for files to get the modes that an image says.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(root);
        made.or_cannot("make image store", root.display()).map_err(|error| error.hint(hint))?;
        let store = Self::at(root)?;
        for name in DIRECTORIES {
            // Nobody else may reach what an image brings: a set-user-id program would be one on the host.
            match mkdirat(&store.dir, name, Mode::RWXU) {
                Ok(()) | Err(Answer::EXIST) => (),
                Err(answer) => {
                    return Err(Error::kernel(
                        "make image store",
                        root.join(name).display().to_string(),
                        errno(answer),
                    )
                    .hint(hint));
                }
            }
        }
        if store.format()?.is_none() {
            store.replace(FORMAT_FILE, format!("{FORMAT}\n").as_bytes())?;
        }
        Ok(store)
    }

    /// Opens the store at `root`, if there is one.
    ///
    /// # Errors
    /// It is of another version, or cannot be read.
    pub fn existing(root: &Path) -> Result<Option<Self>> {
        let store = match Self::at(root) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            store => store?,
        };
        Ok(store.format()?.map(|_| store))
    }

    fn at(root: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, root, flags, Mode::empty()).or_cannot("open image store", root.display())?;
        let mode = rustix::fs::fstat(&dir).or_cannot("look at image store", root.display())?.st_mode & 0o7777;
        // Whoever can rename what is in it chooses what containers run. A group is somebody's choice, often the user's own.
        if mode & 0o002 != 0 {
            let why = format!("everybody may write there (mode {mode:04o})");
            return Err(Error::said("use image store", root.display().to_string(), why)
                .hint("chmod o-w it, once you know that what is in it is yours"));
        }
        Ok(Self { root: root.to_owned(), dir })
    }

    fn format(&self) -> Result<Option<u32>> {
        let Some(text) = self.read(FORMAT_FILE, 64)? else { return Ok(None) };
        let version = String::from_utf8_lossy(&text).trim().parse::<u32>().ok();
        match version {
            Some(FORMAT) => Ok(version),
            _ => Err(Error::said(
                "use image store",
                self.root.display().to_string(),
                format!("its format is {:?}, and this ferry knows {FORMAT}", String::from_utf8_lossy(&text).trim()),
            )
            .hint("use the ferry that made it, or name another directory with --store before the verb")),
        }
    }

    /// Its directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of something in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// Keeps others from removing anything. Every process that adds to the store or begins to use something of it holds this.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn share(&self) -> Result<Guard> {
        self.lock(FlockOperation::LockShared)
    }

    /// Has the store alone.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn exclude(&self) -> Result<Guard> {
        self.lock(FlockOperation::LockExclusive)
    }

    fn lock(&self, how: FlockOperation) -> Result<Guard> {
        self.lock_file(LOCK, how)
    }

    fn lock_file(&self, name: &str, how: FlockOperation) -> Result<Guard> {
        let named = || self.path(name).display().to_string();
        let open = |flags: OFlags| {
            openat(&self.dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))
        };
        let file = match open(OFlags::RDWR | OFlags::CREATE) {
            // Images can be read all the same, and whoever would write hears of it then.
            Err(Answer::ROFS) => open(OFlags::RDONLY),
            answer => answer,
        };
        let file = file.or_cannot("open", named())?;
        loop {
            match flock(&file, how) {
                Err(Answer::INTR) => (),
                answer => {
                    answer.or_cannot("lock", named())?;
                    return Ok(Guard { _file: file });
                }
            }
        }
    }

    /// Whether something of it is there.
    ///
    /// # Errors
    /// What the kernel answers: then nobody knows.
    fn has(&self, name: impl AsRef<Path>) -> Result<bool> {
        match statat(&self.dir, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Answer::NOENT) => Ok(false),
            Err(answer) => Err(answer).or_cannot("look at", self.path(name).display()),
        }
    }

    /// Reads a small file of the store; `None` where there is none.
    fn read(&self, name: impl AsRef<Path>, most: u64) -> Result<Option<Vec<u8>>> {
        let named = || self.path(name.as_ref()).display().to_string();
        let file = match openat(
            &self.dir,
            name.as_ref(),
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        ) {
            Err(Answer::NOENT) => return Ok(None),
            answer => File::from(answer.or_cannot("open", named())?),
        };
        // Room for most of them, or they would be read in pieces of 32 bytes and more.
        let mut bytes = Vec::with_capacity(USUAL);
        file.take(most + 1).read_to_end(&mut bytes).or_cannot("read", named())?;
        if bytes.len() as u64 > most {
            return Err(Error::said("read", named(), format!("it is larger than {most} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Replaces a small file: a new one is written and synced under another name, then renamed over it.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let named = || self.path(name).display().to_string();
        let new = format!("{name}.{:016x}", session::random());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let temporary = format!("tmp/{}", new.replace('/', "-"));
        let file = openat(&self.dir, &temporary, flags, Mode::from_raw_mode(0o600)).or_cannot("write", named())?;
        let mut file = File::from(file);
        let written = file.write_all(bytes).and_then(|()| file.sync_all()).or_cannot("write", named());
        let saved = written.and_then(|()| renameat(&self.dir, &temporary, &self.dir, name).or_cannot("save", named()));
        if let Err(error) = saved {
            // On a full disk every file less is a help; prune removes what stays.
            rustix::fs::unlinkat(&self.dir, &temporary, AtFlags::empty()).ok();
            return Err(full(error));
        }
        self.sync_directory(Path::new(name).parent().unwrap_or(Path::new("")))
    }

    /// Makes renames into a directory last.
    fn sync_directory(&self, name: &Path) -> Result<()> {
        let name = if name.as_os_str().is_empty() { Path::new(".") } else { name };
        let named = || self.path(name).display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(&self.dir, name, flags, Mode::empty()).or_cannot("open", named())?;
        fsync(&dir).or_cannot("sync", named())
    }

    /// Where a blob is, from the store's directory on.
    pub fn blob_name(digest: &Digest) -> String {
        format!("blobs/{}/{}", digest.directory(), digest.hex())
    }

    /// The size of a blob that is there.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>> {
        match statat(&self.dir, Self::blob_name(digest), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.st_size.unsigned_abs())),
            Err(Answer::NOENT) => Ok(None),
            Err(answer) => Err(answer).or_cannot("look at", self.path(Self::blob_name(digest)).display()),
        }
    }

    /// Opens a blob; what is read from it is not yet verified.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, Self::blob_name(digest), flags, Mode::empty());
        file.map(File::from).map_err(|answer| self.missing(digest, errno(answer)))
    }

    fn missing(&self, digest: &Digest, answer: Errno) -> Error {
        let error = Error::kernel("open", self.path(Self::blob_name(digest)).display().to_string(), answer);
        match answer {
            Errno::ENOENT => error.hint("the image store is damaged: `ferry image check` says what can be repaired"),
            _ => error,
        }
    }

    /// Reads a document and verifies it.
    ///
    /// # Errors
    /// It is not there, too large, or not what its digest says.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.read(Self::blob_name(digest), LARGEST)?.ok_or_else(|| self.missing(digest, Errno::ENOENT))?;
        let mut hasher = super::digest::Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        if hasher.finish() != *digest {
            return Err(Error::said("read", digest.to_string(), "its content is another's")
                .hint("the image store is damaged: `ferry image check` says what can be repaired"));
        }
        Ok(bytes)
    }

    /// The names in one of its directories, sorted.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn names_in(&self, directory: &str) -> Result<Vec<CString>> {
        let named = || self.path(directory).display().to_string();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(&self.dir, directory, flags, Mode::empty()).or_cannot("open", named())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir).or_cannot("read", named())? {
            let entry = entry.or_cannot("read", named())?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes something of it: renamed out of the way first, so that nobody sees it half there.
    fn remove(&self, name: &str) -> Result<()> {
        let away = format!("tmp/removed-{:016x}", session::random());
        let cannot = |answer: Errno| Error::kernel("remove", self.path(name).display().to_string(), answer);
        match renameat(&self.dir, name, &self.dir, &away) {
            Ok(()) => (),
            Err(Answer::NOENT) => return Ok(()),
            Err(answer) => return Err(cannot(errno(answer))),
        }
        self.remove_now(&away)
    }

    fn remove_now(&self, name: &str) -> Result<()> {
        let c_name = CString::new(name).unwrap_or_default();
        super::tree::remove(self.dir(), &c_name).or_cannot("remove", self.path(name).display())
    }
}
