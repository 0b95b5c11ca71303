//! Directories for the time, and files that are not whole yet. Whoever makes one holds a lock on it for as long as it lives: what
//! bears such a name and is locked by nobody was left by a ferry that was killed, and the next one removes it. flock(2)
//!
//! What is all there is of a container has another name, and is removed by nobody but a person.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, flock, fstat, fsync, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno as Answer;

use crate::error::{Context, Error, Result};
use crate::image::tree;

/// What is in the way of being made: `ferry-checkpoint-XXXXXX`, `ferry-restore-XXXXXX`.
const PURPOSES: [&str; 2] = ["checkpoint", "restore"];
/// What stays: `ferry-saved-XXXXXX`.
const SAVED: &str = "saved";
/// As many letters mkdtemp(3) puts.
const LETTERS: usize = 6;

/// A directory for the time, of nobody else's.
pub(super) struct Scratch {
    /// Where it is.
    pub path: PathBuf,
    kept: bool,
    _lock: Option<OwnedFd>,
}

/// Where they are: where TMPDIR says, else where files may be large, since /tmp is in memory on many hosts.
fn above() -> PathBuf {
    std::env::var_os("TMPDIR").filter(|path| !path.is_empty()).map_or_else(|| "/var/tmp".into(), PathBuf::from)
}

impl Scratch {
    /// A new one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn make(purpose: &str) -> Result<Self> {
        let template = above().join(format!("ferry-{purpose}-XXXXXX"));
        loop {
            let path = nix::unistd::mkdtemp(&template).or_cannot("make directory", template.display())?;
            if let Some(lock) = locked(CWD, &path, OFlags::DIRECTORY)? {
                return Ok(Self { path, kept: false, _lock: Some(lock) });
            }
        }
    }

    /// A directory that a person named, which stays.
    pub fn named(path: &Path) -> Self {
        Self { path: path.to_owned(), kept: true, _lock: None }
    }

    /// What is in it is all there is of a container from here on: it gets a name under which it stays, whatever happens to ferry.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn save(&mut self) -> Result<()> {
        if self.kept {
            return Ok(());
        }
        self.rename(SAVED)
    }

    fn rename(&mut self, purpose: &str) -> Result<()> {
        let name = self.path.to_string_lossy();
        let letters = name.rsplit('-').next().unwrap_or_default();
        let other = self.path.with_file_name(format!("ferry-{purpose}-{letters}"));
        renameat(CWD, &self.path, CWD, &other).or_cannot("rename", self.path.display())?;
        self.path = other;
        Ok(())
    }

    /// Leaves it where it is.
    pub fn keep(mut self) -> PathBuf {
        self.kept = true;
        std::mem::take(&mut self.path)
    }

    /// Removes it, unless a person named it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove(mut self) -> Result<()> {
        if std::mem::replace(&mut self.kept, true) {
            return Ok(());
        }
        // Before it is half gone: that is not a container any more.
        let named = self.rename(PURPOSES[0]);
        named.and_then(|()| remove(CWD, &self.path).or_cannot("remove", self.path.display()))
    }

    /// Removes it, of something that failed. Where the error sends its reader to a log in it, that stays until the next
    /// [`sweep`], and nothing else: in images is everything that was in memory.
    pub fn fail(mut self, error: Error) -> Error {
        if self.kept || !error.to_string().contains(&*self.path.to_string_lossy()) {
            return error.and_then(self.remove());
        }
        self.kept = true;
        let others = || -> Result<()> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let shown = || self.path.display();
            let directory = openat(CWD, &self.path, flags, Mode::empty()).or_cannot("open directory", shown())?;
            for entry in Dir::read_from(&directory).or_cannot("read directory", shown())? {
                let entry = entry.or_cannot("read directory", shown())?;
                let name = entry.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") && !name.to_bytes().ends_with(b".log") {
                    tree::remove(directory.as_fd(), name).or_cannot("remove what is in", shown())?;
                }
            }
            Ok(())
        };
        let removed = others();
        error.and_then(removed)
    }
}

/// Of one that is forgotten on the way of an error; that error is told.
impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            remove(CWD, &self.path).ok();
        }
    }
}

/// Opens something that was just made and locks it; `None`: somebody took it for left over in between, and it is gone.
///
/// # Errors
/// What the kernel answers.
fn locked(dir: BorrowedFd<'_>, name: &Path, flags: OFlags) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | flags;
    let opened = match openat(dir, name, flags, Mode::empty()) {
        Err(Answer::NOENT) => return Ok(None),
        answer => answer.or_cannot("open", name.display())?,
    };
    hold(opened.as_fd());
    let found = fstat(&opened).or_cannot("look at", name.display())?;
    Ok((found.st_nlink > 0).then_some(opened))
}

/// Locks it. A filesystem without locks has no way to tell what is left over, and nothing is removed there.
pub(super) fn hold(file: BorrowedFd<'_>) {
    while flock(file, FlockOperation::LockExclusive) == Err(Answer::INTR) {}
}

/// Removes directories that nobody works with any more. What stands in the way of that is no error of whoever is at work now.
pub(super) fn sweep() {
    let is_one = |name: &[u8]| {
        PURPOSES.iter().any(|purpose| {
            let rest = name.strip_prefix(format!("ferry-{purpose}-").as_bytes());
            rest.is_some_and(|rest| rest.len() == LETTERS && rest.iter().all(u8::is_ascii_alphanumeric))
        })
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let Ok(directory) = openat(CWD, above(), flags, Mode::empty()) {
        sweep_in(directory.as_fd(), FileType::Directory, &is_one);
    }
}

/// The same with files `.NAME.PID` beside the file `name`, which it was to become.
pub(super) fn sweep_parts(directory: BorrowedFd<'_>, name: &[u8]) {
    let is_one = |other: &[u8]| {
        let rest = other.strip_prefix(b".").and_then(|rest| rest.strip_prefix(name)?.strip_prefix(b"."));
        rest.is_some_and(|pid| !pid.is_empty() && pid.iter().all(u8::is_ascii_digit))
    };
    sweep_in(directory, FileType::RegularFile, &is_one);
}

fn sweep_in(directory: BorrowedFd<'_>, kind: FileType, is_one: &dyn Fn(&[u8]) -> bool) {
    let own = rustix::process::geteuid().as_raw();
    for entry in Dir::read_from(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !is_one(name.to_bytes()) {
            continue;
        }
        // In a directory that all may write to, only one's own is touched, and never followed anywhere.
        let is_own = |stat: &rustix::fs::Stat| stat.st_uid == own && FileType::from_raw_mode(stat.st_mode) == kind;
        if !statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| is_own(&stat)) {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let Ok(opened) = openat(directory, name, flags, Mode::empty()) else { continue };
        if fstat(&opened).is_ok_and(|stat| is_own(&stat))
            && flock(&opened, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            // Held until it is gone: its maker, had it only just made it, waits, and sees that it is.
            tree::remove(directory, name).ok();
        }
    }
}

fn remove(dir: BorrowedFd<'_>, path: &Path) -> std::result::Result<(), nix::errno::Errno> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| nix::errno::Errno::EINVAL)?;
    tree::remove(dir, &name)
}

/// A file that comes into being under another name: `.NAME.PID`.
pub(super) struct Part {
    /// Open for writing, and locked.
    pub file: File,
    directory: OwnedFd,
    part: CString,
    name: CString,
}

impl Part {
    /// Makes it beside `to`; what was left there of another one goes.
    ///
    /// # Errors
    /// What the kernel answers; a path that names no file.
    pub fn make(to: &Path) -> Result<Self> {
        let name = to.file_name().ok_or_else(|| Error::plain(format!("{}: it names no file", to.display())))?;
        let above = to.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, above, flags, Mode::empty()).or_cannot("open directory", above.display())?;
        sweep_parts(directory.as_fd(), name.as_bytes());
        let part = [b".", name.as_bytes(), format!(".{}", std::process::id()).as_bytes()].concat();
        let c_name = |bytes: &[u8]| CString::new(bytes).map_err(|_| Error::plain("a file's name has no NUL"));
        let (part, name) = (c_name(&part)?, c_name(name.as_bytes())?);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let file = openat(&directory, &part, flags, Mode::RUSR | Mode::WUSR).or_cannot("make", to.display())?;
            hold(file.as_fd());
            match fstat(&file).or_cannot("look at", to.display()) {
                Ok(found) if found.st_nlink > 0 => {
                    return Ok(Self { file: File::from(file), directory, part, name });
                }
                // Somebody took it for left over before it was locked.
                Ok(_) => (),
                Err(error) => {
                    let removed = unlinkat(&directory, &part, AtFlags::empty()).or_cannot("remove", to.display());
                    return Err(error.and_then(removed));
                }
            }
        }
    }

    /// Gives it its name, when all of it has reached the disk; the name has too when this returns.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn name(&self, shown: &Path) -> Result<()> {
        self.file.sync_all().or_cannot("write", shown.display())?;
        renameat(&self.directory, &self.part, &self.directory, &self.name).or_cannot("name", shown.display())?;
        fsync(&self.directory).or_cannot("sync the directory of", shown.display())
    }

    /// Takes it away, unless it has its name.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove(&self, shown: &Path) -> Result<()> {
        match unlinkat(&self.directory, &self.part, AtFlags::empty()) {
            Err(Answer::NOENT) => Ok(()),
            answer => answer.or_cannot("remove", shown.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_removed() {
        let base = std::env::temp_dir().join(format!("ferry-scratch-{}", std::process::id()));
        std::fs::create_dir(&base).unwrap();
        for name in [".a.1", ".a.2", ".a.x", ".b.1", "a"] {
            std::fs::write(base.join(name), "x").unwrap();
        }
        std::fs::create_dir(base.join(".a.3")).unwrap();
        let held = File::open(base.join(".a.2")).unwrap();
        hold(held.as_fd());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, &base, flags, Mode::empty()).unwrap();
        sweep_parts(directory.as_fd(), b"a");
        let mut left: Vec<String> = std::fs::read_dir(&base)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        std::process::Command::new("rm").arg("-r").arg(&base).status().unwrap();
        assert_eq!(left, [".a.2", ".a.3", ".a.x", ".b.1", "a"]);
    }
}
