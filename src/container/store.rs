//! Where records are: `<root>/<id>/`, one directory a container, made exclusively and locked while it is changed.
//!
//! In it: `state.json` (the record), `config.json` (a copy: the bundle may change or go), `gate` (the socket on which a
//! created container waits for `start`), `root`, upon which a copy-on-write root is staged, and `notify`, where a container says
//! that it is ready, `worker`, while a checkpoint or restore is at work, and `tracked`, which rounds of memory have begun. Everything ferry leaves on
//! disk is below, so that removing it by name is removing all.

mod claim;

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, Stat, flock, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno as Answer;

use super::worker::Worker;
use super::{Id, Record, record};
use crate::error::{Context, Error, Result};
use crate::path::errno;
use crate::spec::Document;

/// The record's name.
const STATE: &CStr = c"state.json";
const STATE_NEW: &CStr = c"state.json.new";
const CONFIG: &CStr = c"config.json";
const CONFIG_NEW: &CStr = c"config.json.new";
/// The gate's name: a socket.
pub const GATE: &CStr = c"gate";
/// The staging directory's name.
pub const STAGE: &CStr = c"root";

/// The directory that a container is given to say there that it is ready.
const NOTIFY: &CStr = c"notify";
/// Who holds the lock for long.
const WORKER: &CStr = c"worker";
/// The images since which the kernel tracks what the container writes to in memory.
const TRACKED: &CStr = c"tracked";
/// The socket in it, from the container's directory on.
pub const NOTIFY_SOCKET: &str = "notify/notify.sock";

/// What else can be in a container's directory, beside the record, the configuration and the two directories.
const RARE: [&CStr; 6] = [STATE_NEW, CONFIG_NEW, GATE, c"notify/notify.sock", WORKER, TRACKED];

/// A record larger than this is none of ours. Bytes.
const LARGEST: u64 = 1 << 20;

/// The directory of all containers.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// One container's directory, open.
#[derive(Debug)]
pub struct Entry {
    /// The container's id.
    pub id: Id,
    dir: OwnedFd,
    path: PathBuf,
    root: PathBuf,
    before: Option<Record>,
}

impl Store {
    /// The store at `root`, which need not exist yet.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Opens the directory of an existing container.
    ///
    /// # Errors
    /// There is no such container. It is another user's.
    pub fn open(&self, id: &Id) -> Result<Entry> {
        let entry = self.entry(id).map_err(|error| match error.errno() {
            Some(Errno::ENOENT) => Error::plain(format!("container {:?} does not exist", id.as_str())).hint(format!(
                "containers are looked for in {}; another place is named with --root before the verb",
                self.root.display()
            )),
            _ => error,
        })?;
        // Its own owner, and not the root's: nobody can put another's directory into a root, and one root can be everybody's.
        believe(&entry.path, || rustix::fs::fstat(&entry.dir))?;
        Ok(entry)
    }

    /// The ids of all containers, sorted. What is no container's directory is passed over.
    ///
    /// # Errors
    /// The root cannot be read. It is another user's.
    pub fn ids(&self) -> Result<Vec<Id>> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.or_cannot("read", self.root.display())?,
        };
        believe(&self.root, || rustix::fs::stat(&self.root))?;
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.or_cannot("read", self.root.display())?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                ids.extend(entry.file_name().to_str().and_then(|name| Id::new(name).ok()));
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// Whether there is a directory of that name now.
    pub fn has(&self, id: &Id) -> bool {
        self.root.join(id.as_str()).exists()
    }

    fn entry(&self, id: &Id) -> Result<Entry> {
        let path = self.root.join(id.as_str());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, &path, flags, Mode::empty()).or_cannot("open", path.display())?;
        Ok(Entry { id: id.clone(), dir, path, root: self.root.clone(), before: None })
    }
}

impl Entry {
    /// The directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for other ferry processes that change this container, and keeps them waiting until this value goes.
    ///
    /// # Errors
    /// The container was deleted while waiting.
    pub fn lock(&self) -> Result<()> {
        if self.lock_if_there()? { Ok(()) } else { Err(self.missing()) }
    }

    /// As [`Entry::lock`]. False: the container was deleted.
    fn lock_if_there(&self) -> Result<bool> {
        loop {
            match flock(&self.dir, FlockOperation::LockExclusive) {
                Err(Answer::INTR) => (),
                answer => break answer.or_cannot("lock", self.path.display())?,
            }
        }
        // The lock is on the directory that was opened, which may have been deleted meanwhile.
        self.is_gone().map(|gone| !gone)
    }

    /// Whether the container was deleted since its directory was opened.
    fn is_gone(&self) -> Result<bool> {
        rustix::fs::fstat(&self.dir).or_cannot("look at", self.path.display()).map(|stat| stat.st_nlink == 0)
    }

    /// As [`Entry::lock`], without waiting. False: another process has it.
    ///
    /// # Errors
    /// The container was deleted.
    pub fn try_lock(&self) -> Result<bool> {
        match flock(&self.dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Answer::WOULDBLOCK) => Ok(false),
            answer => answer.or_cannot("lock", self.path.display()).and_then(|()| self.lock()).map(|()| true),
        }
    }

    /// Whether no other ferry process changes the container just now.
    ///
    /// # Errors
    /// None in practice; the kernel's answer is passed on.
    pub fn is_at_rest(&self) -> Result<bool> {
        match flock(&self.dir, FlockOperation::NonBlockingLockShared) {
            Err(Answer::WOULDBLOCK) => Ok(false),
            answer => answer.or_cannot("lock", self.path.display()).and_then(|()| self.unlock()).map(|()| true),
        }
    }

    /// Notes who works on the container for long. [`Entry::rest`] takes the note away.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn note_worker(&self, worker: &Worker) -> Result<()> {
        let text = serde_json::to_vec(worker).unwrap_or_default();
        self.write(WORKER, &text)
    }

    /// Who works on the container for long. A note that is none names nobody.
    pub fn worker(&self) -> Option<Worker> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, WORKER, flags, Mode::empty()).ok()?);
        let mut text = Vec::new();
        file.take(LARGEST).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Whether a restore is at work on it: what is there is not the container yet.
    ///
    /// # Errors
    /// As [`Worker::is_restoring`].
    pub fn is_being_restored(&self) -> Result<bool> {
        self.worker().map_or(Ok(false), |worker| worker.is_restoring())
    }

    /// The work is done.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn rest(&self) -> Result<()> {
        self.unlink(WORKER)
    }

    /// Notes the number of the images that the next ones can build on: since they were made, the kernel tracks what the container
    /// writes to. [`Entry::forget_tracked`] takes the note away.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn note_tracked(&self, number: u64) -> Result<()> {
        self.write(TRACKED, number.to_string().as_bytes())
    }

    /// The number of the images that the next ones can build on. A note that is none names none.
    pub fn tracked(&self) -> Option<u64> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.dir, TRACKED, flags, Mode::empty()).ok()?);
        let mut text = String::new();
        file.take(LARGEST).read_to_string(&mut text).ok()?;
        text.parse().ok()
    }

    /// Tracking begins anew, by whomever: what was written to until now is not told any more.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn forget_tracked(&self) -> Result<()> {
        self.unlink(TRACKED)
    }

    /// Has the container, which has ended, be made anew in the directory it has: with the configuration `text`, and with nothing
    /// else of the former one but its record, `before`. Whenever this is cut off, there is a container that has ended.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn renew(mut self, before: Record, text: &[u8]) -> Result<Self> {
        self.replace_config(text)?;
        self.remove_beside()?;
        self.before = Some(before);
        Ok(self)
    }

    /// The record that a container has which is made anew.
    pub fn before(&self) -> Option<&Record> {
        self.before.as_ref()
    }

    /// Makes it what it was before it was to be made anew: a container that has ended.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn end_again(&self, before: &Record) -> Result<()> {
        self.save(before)?;
        self.remove_beside()
    }

    fn missing(&self) -> Error {
        Error::plain(format!("container {:?} does not exist", self.id.as_str()))
    }

    /// Lets other ferry processes change this container. Said and not left to the closing of the descriptor: a created
    /// container waits at its gate with a copy of it.
    ///
    /// # Errors
    /// None in practice; the kernel's answer is passed on.
    pub fn unlock(&self) -> Result<()> {
        flock(&self.dir, FlockOperation::Unlock).or_cannot("unlock", self.path.display())
    }

    /// Reads the record. `Ok(None)`: there is none yet, or creating it was cut off.
    ///
    /// # Errors
    /// A file that is no record of this version.
    pub fn record(&self) -> Result<Option<Record>> {
        let file = match openat(&self.dir, STATE, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Err(Answer::NOENT) => return Ok(None),
            answer => File::from(answer.or_cannot("open", self.path.join("state.json").display())?),
        };
        let mut text = Vec::with_capacity(1024);
        file.take(LARGEST).read_to_end(&mut text).or_cannot("read", self.path.join("state.json").display())?;
        let corrupt = |why: String| {
            Error::said("read", self.path.join("state.json").display().to_string(), why)
                .hint(format!("`ferry delete --force {}` removes what is left of it", self.id))
        };
        let record: Record = serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        if record.format != record::FORMAT || record.id != self.id.as_str() {
            return Err(corrupt(format!("it is of format {} for container {:?}", record.format, record.id)));
        }
        Ok(Some(record))
    }

    /// Saves the record: whole, under a name of its own, then renamed over the old one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn save(&self, record: &Record) -> Result<()> {
        let named = self.write_new(record)?;
        renameat(&self.dir, STATE_NEW, &self.dir, STATE).or_cannot("save", named)
    }

    /// Writes a record under the name that it does not stay under; answers what it is called in errors.
    fn write_new(&self, record: &Record) -> Result<String> {
        let named = self.path.join("state.json").display().to_string();
        let text = serde_json::to_vec(record).map_err(|error| Error::said("save", &named, error.to_string()))?;
        self.write(STATE_NEW, &text).map(|()| named)
    }

    /// Keeps another configuration in place of the copy, which others may be reading.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn replace_config(&self, text: &[u8]) -> Result<()> {
        self.write(CONFIG_NEW, text)?;
        renameat(&self.dir, CONFIG_NEW, &self.dir, CONFIG).or_cannot("save", self.path.join("config.json").display())
    }

    /// Keeps a copy of the configuration.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn keep_config(&self, text: &[u8]) -> Result<()> {
        // One that is made anew has it, and shall not be without it for a moment.
        if self.before.is_some() { Ok(()) } else { self.write(CONFIG, text) }
    }

    /// The copy of the configuration.
    ///
    /// # Errors
    /// As [`crate::spec::load`].
    pub fn config(&self) -> Result<crate::spec::Config> {
        self.config_document()?.parse()
    }

    /// The copy of the configuration, as it was written.
    ///
    /// # Errors
    /// It cannot be read. The container was deleted.
    pub fn config_document(&self) -> Result<Document> {
        let path = self.path.join("config.json");
        match openat(&self.dir, CONFIG, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            // It goes after the record, and comes before a process is in that.
            Err(Answer::NOENT) if !crate::path::exists(self.dir(), STATE).or_cannot("look for", path.display())? => {
                Err(self.missing())
            }
            answer => Document::of(&path, File::from(answer.or_cannot("open", path.display())?)),
        }
    }

    /// Makes the directory that a copy-on-write root is staged upon.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn make_stage(&self) -> Result<PathBuf> {
        let path = self.path.join("root");
        mkdirat(&self.dir, STAGE, Mode::from_raw_mode(0o755)).or_cannot("make directory", path.display())?;
        Ok(path)
    }

    /// Whether there is one: the root is copy-on-write, or about to be restored.
    pub fn has_stage(&self) -> bool {
        crate::path::exists(self.dir(), STAGE).unwrap_or(false)
    }

    /// Removes it, once nothing is staged upon it any more.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove_stage(&self) -> Result<()> {
        unlinkat(&self.dir, STAGE, AtFlags::REMOVEDIR).or_cannot("remove", self.path.join("root").display())
    }

    /// Makes the directory in which the container may say that it is ready.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn make_notify(&self) -> Result<()> {
        mkdirat(&self.dir, NOTIFY, Mode::from_raw_mode(0o755))
            .or_cannot("make directory", self.path.join("notify").display())
    }

    /// Whether there is one.
    pub fn has_notify(&self) -> bool {
        crate::path::exists(self.dir(), NOTIFY).unwrap_or(false)
    }

    /// Whether the container waits at its gate.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn has_gate(&self) -> Result<bool> {
        crate::path::exists(self.dir(), GATE).or_cannot("look for", self.path.join("gate").display())
    }

    /// Removes the gate's name: nobody else can open it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove_gate(&self) -> Result<()> {
        self.unlink(GATE)
    }

    /// Removes everything, by name: nothing is walked into.
    ///
    /// # Errors
    /// What the kernel answers; ENOTEMPTY where somebody put something there.
    pub fn remove(&self) -> Result<()> {
        self.unlink(STATE)?;
        self.unlink(CONFIG)?;
        // Most often there was nothing else, and the answer is one call's instead of seven.
        match unlinkat(CWD, &self.path, AtFlags::REMOVEDIR) {
            Err(Answer::NOTEMPTY | Answer::EXIST) => (),
            answer => return self.removed(answer),
        }
        self.remove_beside()?;
        self.removed(unlinkat(CWD, &self.path, AtFlags::REMOVEDIR))
    }

    /// Removes what there can be beside the record and the configuration.
    fn remove_beside(&self) -> Result<()> {
        for name in RARE {
            self.unlink(name)?;
        }
        for (name, text) in [(STAGE, "root"), (NOTIFY, "notify")] {
            match unlinkat(&self.dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Answer::NOENT) => (),
                Err(answer) => {
                    return Err(Error::kernel("remove", self.path.join(text).display().to_string(), errno(answer)));
                }
            }
        }
        Ok(())
    }

    fn removed(&self, answer: Result<(), Answer>) -> Result<()> {
        match answer {
            Ok(()) | Err(Answer::NOENT) => Ok(()),
            Err(answer) => Err(Error::kernel("remove", self.path.display().to_string(), errno(answer))),
        }
    }

    /// The path of the store, for what a person is told to type.
    pub fn store_root(&self) -> &Path {
        &self.root
    }

    fn write(&self, name: &CStr, text: &[u8]) -> Result<()> {
        let named = || self.path.join(name.to_string_lossy().as_ref()).display().to_string();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, name, flags, Mode::from_raw_mode(0o600)).or_cannot("write", named())?;
        File::from(file).write_all(text).or_cannot("write", named())
    }

    fn unlink(&self, name: &CStr) -> Result<()> {
        match unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Answer::NOENT) => Ok(()),
            Err(answer) => {
                let path = self.path.join(name.to_string_lossy().as_ref());
                Err(Error::kernel("remove", path.display().to_string(), errno(answer)))
            }
        }
    }
}

/// A record says which processes are a container's, and so whom a signal goes to: another user's is not believed. Root may look at
/// anybody's, which it only does where it was told to.
fn believe(path: &Path, found: impl FnOnce() -> rustix::io::Result<Stat>) -> Result<()> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { own("use", path, found()) }
}

/// What another user made (in a directory where everybody may) is that user's to make up, and to change under our feet.
fn own(deed: &'static str, path: &Path, found: rustix::io::Result<Stat>) -> Result<()> {
    let owner = found.or_cannot("look at", path.display())?.st_uid;
    if owner == nix::unistd::geteuid().as_raw() || owner == 0 {
        return Ok(());
    }
    // As the kernel would have answered, so that nobody takes it for a container that is not there.
    Err(Error::kernel(deed, path.display().to_string(), Errno::EPERM)
        .hint(format!("it belongs to user {owner}: name a directory of your own with --root")))
}
