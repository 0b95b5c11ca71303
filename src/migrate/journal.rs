//! The journal of a migration: one small file an end, on disk before the deed that it allows.
//!
//! It lies in `migrations/TOKEN.source` or `TOKEN.destination` of ferry's permanent directory, since it must outlive the
//! machine going down, with the images beside it: `images/1`, `images/2` and so on. Whoever works on a migration holds the
//! directory locked.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, fsync, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::message::{Choices, Last, Token};
use super::ownership::{Role, State};
use crate::checkpoint::root::Image;
use crate::container::record::{Init, Record};
use crate::error::{Context, Error, Result};
use crate::log::Log;

/// What it is about to say.
const PREPARED: &CStr = c"journal.prepared";

/// The version of the format.
pub const FORMAT: u32 = 1;

/// The directory of bodies, beside those of rounds, which have numbers.
const BODIES: &str = "bodies";

/// A file larger than this is no journal. Bytes.
const LARGEST: u64 = 64 << 10;

/// What is kept of a migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Entry {
    /// [`FORMAT`].
    pub format: u32,
    /// The migration.
    pub token: Token,
    /// Which end this is.
    pub role: Role,
    /// The container's id at this end.
    pub id: String,
    /// Source: which of those that have had this id; journals of an older ferry do not say.
    #[serde(default)]
    pub which: Option<Which>,
    /// Where this end keeps containers.
    pub root: PathBuf,
    /// The other end: at the source as it was named on the command line, at the destination the source's host name.
    pub peer: String,
    /// How far it is.
    pub state: State,
    /// The bundle at the destination.
    pub bundle: PathBuf,
    /// The image that it runs from, where it has no bundle.
    #[serde(default)]
    pub image: Option<Image>,
    /// How it is restored.
    pub choices: Choices,
    /// Destination: what to restore from, once that is known.
    pub last: Option<Last>,
    /// Destination: what puts memory that comes later in its place, once that is at work.
    #[serde(default)]
    pub daemon: Option<Init>,
}

/// A container among all that have ever had its id: a journal outlives the record, and the id is free once that is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Which {
    /// When it was made: after the machine has gone down, pids and the ticks that they are told apart by begin anew.
    created: String,
    init: Option<Init>,
}

impl Which {
    /// The one that this is the record of.
    pub fn of(record: &Record) -> Self {
        Self { created: record.created.clone(), init: record.init }
    }
}

/// An entry's directory, locked.
#[derive(Debug)]
pub struct Journal {
    dir: OwnedFd,
    path: PathBuf,
    /// What it says.
    pub entry: Entry,
}

/// The directory of all of them.
#[derive(Debug, Clone)]
pub struct Journals {
    path: PathBuf,
    log: Log,
}

impl Journals {
    /// Those below `store`, ferry's permanent directory, which need not exist yet. `log` hears of those that are none.
    pub fn new(store: &Path, log: &Log) -> Self {
        Self { path: store.join("migrations"), log: log.clone() }
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn begin(&self, entry: Entry) -> Result<Journal> {
        make_dirs(&self.path)?;
        self.sweep(entry.role)?;
        let mut journal = self.make(entry)?;
        mkdirat(&journal.dir, c"images", Mode::from_raw_mode(0o700)).or_cannot("make", journal.images().display())?;
        let state = journal.entry.state;
        if let Err(error) = journal.note(state) {
            return Err(error.and_then(journal.remove()));
        }
        sync(&open_dir(&self.path)?, &self.path)?;
        Ok(journal)
    }

    /// An empty directory, locked. Before it is locked it may be taken for one that was cut off, and be swept away.
    fn make(&self, entry: Entry) -> Result<Journal> {
        let path = self.path.join(directory(&entry.token, entry.role));
        loop {
            mkdirat(CWD, &path, Mode::from_raw_mode(0o700)).or_cannot("make directory", path.display())?;
            let dir = match open_dir(&path) {
                Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => continue,
                dir => dir?,
            };
            let journal = Journal { dir, path: path.clone(), entry: entry.clone() };
            journal.lock()?;
            if fstat(&journal.dir).or_cannot("lock", path.display())?.st_nlink > 0 {
                return Ok(journal);
            }
        }
    }

    /// Removes those that were cut off while they were made or removed: nothing was allowed by them, or nothing is any more.
    ///
    /// # Errors
    /// What the kernel answers.
    fn sweep(&self, role: Role) -> Result<()> {
        for token in self.tokens(role)? {
            let path = self.path.join(directory(&token, role));
            let dir = match open_dir(&path) {
                Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => continue,
                dir => dir?,
            };
            // Whoever has it locked is at work on it.
            match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK | Errno::INTR) => continue,
                answer => answer.or_cannot("lock", path.display())?,
            }
            let journal = Journal { dir, path, entry: Entry::none(token, role) };
            if matches!(journal.read(), Ok(None)) && fstat(&journal.dir).is_ok_and(|stat| stat.st_nlink > 0) {
                journal.remove()?;
            }
        }
        Ok(())
    }

    /// Opens one by its name, and waits until nobody else works on it. `None`: there is none.
    ///
    /// # Errors
    /// What the kernel answers; it is no journal.
    pub fn open(&self, token: &Token, role: Role) -> Result<Option<Journal>> {
        let path = self.path.join(directory(token, role));
        let dir = match open_dir(&path) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => return Ok(None),
            dir => dir?,
        };
        let entry = Entry::none(token.clone(), role);
        let mut journal = Journal { dir, path, entry };
        journal.lock()?;
        match journal.read()? {
            Some(entry) if entry.token == *token && entry.role == role => {
                journal.entry = entry;
                Ok(Some(journal))
            }
            Some(_) => {
                Err(Error::said("use journal", journal.path.display().to_string(), "it is of another migration"))
            }
            // It was cut off while it was made, or removed: nothing was allowed by it.
            None => Ok(None),
        }
    }

    /// Those of a container, by its id and the directory it is kept in. What cannot be read may be any container's, and is passed over:
    /// no other is to wait for it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn of(&self, id: &str, root: &Path, role: Role) -> Result<Vec<Journal>> {
        self.sweep(role)?;
        let mut found = Vec::new();
        for token in self.tokens(role)? {
            match self.glance(&token, role) {
                Ok(Some(entry)) if entry.id == id && entry.root == root => found.extend(self.open(&token, role)?),
                Ok(_) => (),
                Err(error) => self.log.warning(error),
            }
        }
        Ok(found)
    }

    /// What an entry says, without waiting for whoever works on it.
    fn glance(&self, token: &Token, role: Role) -> Result<Option<Entry>> {
        let path = self.path.join(directory(token, role));
        match open_dir(&path) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => Ok(None),
            dir => Journal { dir: dir?, path, entry: Entry::none(token.clone(), role) }.read(),
        }
    }

    fn tokens(&self, role: Role) -> Result<Vec<Token>> {
        let entries = match std::fs::read_dir(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.or_cannot("read", self.path.display())?,
        };
        let mut tokens = Vec::new();
        for entry in entries {
            let name = entry.or_cannot("read", self.path.display())?.file_name();
            let name = name.to_string_lossy();
            let token = name.strip_suffix(suffix(role)).and_then(|name| Token::try_from(name.to_owned()).ok());
            tokens.extend(token);
        }
        Ok(tokens)
    }
}

impl Entry {
    fn none(token: Token, role: Role) -> Self {
        Self {
            format: FORMAT,
            token,
            role,
            id: String::new(),
            which: None,
            root: PathBuf::new(),
            peer: String::new(),
            state: State::Open,
            bundle: PathBuf::new(),
            choices: Choices::default(),
            image: None,
            last: None,
            daemon: None,
        }
    }
}

impl Journal {
    /// The directory of a round's images, which is made where it is missing.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn round(&self, round: u32) -> Result<PathBuf> {
        let path = self.images().join(round.to_string());
        match mkdirat(CWD, &path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => Ok(path),
            Err(answer) => Err(answer).or_cannot("make directory", path.display()),
        }
    }

    /// The directory of images.
    pub fn images(&self) -> PathBuf {
        self.path.join("images")
    }

    /// Where bodies of files come to.
    pub fn bodies(&self) -> PathBuf {
        bodies(&self.images())
    }

    /// The directory of images, opened.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn open_images(&self) -> Result<OwnedFd> {
        open_dir(&self.images())
    }

    /// Says how far it is. It is on disk when this returns.
    ///
    /// # Errors
    /// What the kernel answers; then either of the two states may be the one that is on disk.
    pub fn note(&mut self, state: State) -> Result<()> {
        let entry = self.write(c"journal.new", state)?;
        self.put(c"journal.new", entry)
    }

    /// Writes what it is about to say, so that a disk that is full by then does not keep it from that.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn prepare(&mut self, state: State) -> Result<()> {
        self.write(PREPARED, state).map(drop)
    }

    /// Says what was prepared, as [`Journal::note`] does.
    ///
    /// # Errors
    /// What the kernel answers; then either of the two states may be the one that is on disk.
    pub fn note_prepared(&mut self, state: State) -> Result<()> {
        self.put(PREPARED, Entry { state, ..self.entry.clone() })
    }

    fn object(&self) -> String {
        self.path.join("journal.json").display().to_string()
    }

    fn write(&self, name: &CStr, state: State) -> Result<Entry> {
        let entry = Entry { state, ..self.entry.clone() };
        let object = || self.object();
        let text = serde_json::to_vec(&entry).map_err(|why| Error::said("save", object(), why.to_string()))?;
        if text.len() as u64 > LARGEST {
            return Err(Error::said(
                "save",
                object(),
                format!("with {} bytes it is longer than one may be", text.len()),
            ));
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, name, flags, Mode::from_raw_mode(0o600)).or_cannot("save", object())?;
        let mut file = File::from(file);
        file.write_all(&text).and_then(|()| file.sync_all()).or_cannot("save", object())?;
        Ok(entry)
    }

    fn put(&mut self, name: &CStr, entry: Entry) -> Result<()> {
        renameat(&self.dir, name, &self.dir, c"journal.json").or_cannot("save", self.object())?;
        self.entry = entry;
        sync(&self.dir, &self.path)
    }

    /// Removes it with its images: nothing is left to be decided.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove(self) -> Result<()> {
        // The journal first: images without one are nobody's.
        for name in [c"journal.json", c"journal.new", PREPARED] {
            match unlinkat(&self.dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => (),
                Err(answer) => return Err(answer).or_cannot("remove", self.path.display()),
            }
        }
        sync(&self.dir, &self.path)?;
        clear(self.dir.as_fd(), 3).or_cannot("empty", self.path.display())?;
        unlinkat(CWD, &self.path, AtFlags::REMOVEDIR).or_cannot("remove", self.path.display())
    }

    /// How long ago it was said how far it is. One of which that is not known is new.
    pub fn age(&self) -> Duration {
        let said = std::fs::metadata(self.object()).and_then(|found| found.modified());
        said.ok().and_then(|said| said.elapsed().ok()).unwrap_or_default()
    }

    /// Removes its images.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn forget_images(&self) -> Result<()> {
        clear(self.open_images()?.as_fd(), 2).or_cannot("empty", self.images().display())
    }

    fn lock(&self) -> Result<()> {
        loop {
            match flock(&self.dir, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => (),
                answer => return answer.or_cannot("lock", self.path.display()),
            }
        }
    }

    fn read(&self) -> Result<Option<Entry>> {
        let path = self.path.join("journal.json");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match openat(&self.dir, c"journal.json", flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(None),
            file => File::from(file.or_cannot("open", path.display())?),
        };
        let mut text = Vec::new();
        file.take(LARGEST).read_to_end(&mut text).or_cannot("read", path.display())?;
        let wrong = |why: String| Error::said("use journal", path.display().to_string(), why);
        let entry: Entry = serde_json::from_slice(&text).map_err(|why| wrong(why.to_string()))?;
        match entry.format {
            FORMAT => Ok(Some(entry)),
            other => Err(wrong(format!("it is of format {other}"))),
        }
    }
}

/// Where bodies of files come to, beside these images: see [`super::staged`].
pub fn bodies(images: &Path) -> PathBuf {
    images.join(BODIES)
}

fn suffix(role: Role) -> &'static str {
    match role {
        Role::Source => ".source",
        Role::Destination => ".destination",
    }
}

fn directory(token: &Token, role: Role) -> String {
    format!("{token}{}", suffix(role))
}

pub(super) fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).or_cannot("open", path.display())
}

fn make_dirs(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).or_cannot("make directory", path.display())
}

fn sync(dir: &OwnedFd, path: &Path) -> Result<()> {
    fsync(dir).or_cannot("sync", path.display())
}

/// Removes what is in a directory; links are removed and not followed. Nothing of ours lies deeper than `depth`.
fn clear(dir: BorrowedFd<'_>, depth: u32) -> std::result::Result<(), Errno> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            unlinkat(dir, name, AtFlags::empty())?;
            continue;
        }
        if depth == 0 {
            return Err(Errno::NOTEMPTY);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        clear(openat(dir, name, flags, Mode::empty())?.as_fd(), depth - 1)?;
        unlinkat(dir, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
pub(super) mod tests;
