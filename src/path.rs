//! Paths inside a container's root, which the container controls: resolved once, inside the root, to a descriptor that
//! everything after acts on.
//!
//! A symbolic link, `..` or a rename in the middle of a walk cannot lead out: the kernel resolves with
//! `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)`, and where it has no openat2 a walk by descriptors does the same,
//! component by component. (pathrs does this too, but makes directories by way of a procfs handle, which costs more than
//! all mounts of a usual container together.)

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat, statat};
use rustix::io::Errno as Answer;

use crate::error::{Context, Error, Result};

/// How many times a walk that was disturbed by a rename is tried again before it is given up.
const ATTEMPTS: u32 = 256;
/// As the kernel's own limit: path_resolution(7).
pub const MAX_LINKS: u32 = 40;

/// A directory that nothing resolved through it can leave.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
}

/// Whether symbolic links on the way may be followed (inside the root).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Followed, the last component's too.
    Follow,
    /// The path may hold none: for procfs and sysfs, whose place decides what is written where.
    Refuse,
}

impl Root {
    /// Opens `path` of the host as a root. It must be a directory.
    ///
    /// # Errors
    /// What open(2) answers.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(rustix::fs::CWD, path, flags, Mode::empty()).or_cannot("open root", path.display())?;
        Ok(Self { dir, path: path.to_owned() })
    }

    /// A root on a directory that is already open; `path` is its name in errors.
    pub fn from_dir(dir: OwnedFd, path: &Path) -> Self {
        Self { dir, path: path.to_owned() }
    }

    /// The root directory itself.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Resolves `path` to an O_PATH descriptor.
    ///
    /// # Errors
    /// ENOENT and what else openat2(2) answers; ELOOP for a link where none may be.
    pub fn resolve(&self, path: &Path, links: Links) -> Result<OwnedFd, Errno> {
        self.open_inside(path, OFlags::PATH, links)
    }

    /// Resolves `path` and opens it with `flags`.
    ///
    /// # Errors
    /// As [`Root::resolve`].
    pub fn open_inside(&self, path: &Path, flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
        let relative = relative(path);
        let flags = flags | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT
            | ResolveFlags::NO_MAGICLINKS
            | if links == Links::Refuse { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
        for _ in 0..ATTEMPTS {
            match openat2(&self.dir, relative, flags, Mode::empty(), resolve) {
                Err(Answer::AGAIN) => (),
                Err(Answer::NOSYS) => return self.walk(relative, flags, links),
                answer => return answer.map_err(errno),
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Resolves `path`, making the directories that are missing with `mode`; answers the last one. Where a link of the image
    /// leads to nothing, what it names is made, inside the root: images have `/etc/resolv.conf` like that.
    ///
    /// # Errors
    /// ENOTDIR where something else is in the way, EROFS, EACCES, and what [`Root::resolve`] answers.
    pub fn make_dirs(&self, path: &Path, mode: u32, links: Links) -> Result<OwnedFd> {
        self.make_dirs_behind(path, mode, links, MAX_LINKS)
    }

    fn make_dirs_behind(&self, path: &Path, mode: u32, links: Links, most: u32) -> Result<OwnedFd> {
        let cannot = |answer: Errno| Error::kernel("make directory", self.name(path), answer);
        match self.open_inside(path, OFlags::PATH | OFlags::DIRECTORY, links) {
            Err(Errno::ENOENT) => (),
            answer => return answer.map_err(cannot),
        }
        let (parent, name) = split(path).ok_or_else(|| cannot(Errno::EINVAL))?;
        let parent_dir = self.make_dirs_behind(parent, mode, links, most)?;
        match mkdirat(&parent_dir, name, Mode::from_raw_mode(mode)) {
            Ok(()) | Err(Answer::EXIST) => (),
            Err(answer) => return Err(cannot(errno(answer)).hint(READ_ONLY_HINT)),
        }
        // Resolved anew, in the root: what stands there now may be a link that was in the way of mkdir.
        match (self.open_inside(path, OFlags::PATH | OFlags::DIRECTORY, links), link_behind(&parent_dir, parent, name))
        {
            (Err(Errno::ENOENT), Some(target)) if most > 0 => self.make_dirs_behind(&target, mode, links, most - 1),
            (answer, _) => answer.map_err(cannot),
        }
    }

    /// Resolves `path`; where nothing is there, makes an empty file (and the directories above it) to mount upon.
    ///
    /// # Errors
    /// As [`Root::make_dirs`].
    pub fn make_file(&self, path: &Path) -> Result<OwnedFd> {
        self.make_file_behind(path, MAX_LINKS)
    }

    fn make_file_behind(&self, path: &Path, most: u32) -> Result<OwnedFd> {
        let cannot = |answer: Errno| Error::kernel("make file", self.name(path), answer);
        match self.resolve(path, Links::Follow) {
            Err(Errno::ENOENT) => (),
            answer => return answer.map_err(cannot),
        }
        let (parent, name) = split(path).ok_or_else(|| cannot(Errno::EINVAL))?;
        let parent_dir = self.make_dirs(parent, 0o755, Links::Follow)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(&parent_dir, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) | Err(Answer::EXIST) => (),
            Err(answer) => return Err(cannot(errno(answer)).hint(READ_ONLY_HINT)),
        }
        match (self.resolve(path, Links::Follow), link_behind(&parent_dir, parent, name)) {
            (Err(Errno::ENOENT), Some(target)) if most > 0 => self.make_file_behind(&target, most - 1),
            (answer, _) => answer.map_err(cannot),
        }
    }

    /// `path` as a person names it: under this root.
    pub fn name(&self, path: &Path) -> String {
        self.path.join(relative(path)).display().to_string()
    }

    /// openat2(RESOLVE_IN_ROOT) for a kernel without it: every component is opened without following, and a link's text
    /// is put in front of what remains. `..` goes back to a directory that is still held.
    fn walk(&self, path: &Path, flags: OFlags, links: Links) -> Result<OwnedFd, Errno> {
        let mut rest: Vec<OsString> = components(path.as_os_str());
        let mut dirs: Vec<OwnedFd> = Vec::new();
        let mut followed = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                dirs.pop();
                continue;
            }
            let here = dirs.last().map_or(self.dir.as_fd(), |dir| dir.as_fd());
            let step = openat(here, &name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
            let step = step.map_err(errno)?;
            if FileType::from_raw_mode(fstat(&step).map_err(errno)?.st_mode) != FileType::Symlink {
                dirs.push(step);
                continue;
            }
            followed += 1;
            if followed > MAX_LINKS || links == Links::Refuse || is_magic(&step)? {
                return Err(Errno::ELOOP);
            }
            let target = readlinkat(&step, c"", Vec::new()).map_err(errno)?.into_bytes();
            if target.first() == Some(&b'/') {
                dirs.clear();
            }
            rest.extend(components(OsStr::from_bytes(&target)));
        }
        let last = dirs.pop().map_or_else(|| self.dir.try_clone().map_err(|_| Errno::EMFILE), Ok)?;
        if flags.contains(OFlags::DIRECTORY)
            && FileType::from_raw_mode(fstat(&last).map_err(errno)?.st_mode) != FileType::Directory
        {
            return Err(Errno::ENOTDIR);
        }
        if flags.contains(OFlags::PATH) { Ok(last) } else { reopen(last.as_fd(), flags) }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

const READ_ONLY_HINT: &str = "the mount point is missing in the root filesystem and cannot be made there";

/// Opens what an O_PATH descriptor stands for, by way of the process' own descriptor table.
///
/// # Errors
/// What open(2) answers; ENOENT without a procfs at /proc.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(rustix::fs::CWD, fd_path(fd).as_c_str(), flags | OFlags::CLOEXEC, Mode::empty()).map_err(errno)
}

/// The path of a descriptor for calls that take only paths: `/proc/self/fd/N`. Only while `/proc` is the host's.
pub fn fd_path(fd: BorrowedFd<'_>) -> CString {
    use std::os::fd::AsRawFd;
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// Whether a name in `dir` exists, links not followed.
///
/// # Errors
/// What fstatat(2) answers apart from ENOENT.
pub fn exists(dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Answer::NOENT) => Ok(false),
        Err(answer) => Err(errno(answer)),
    }
}

/// rustix's errno as nix's.
pub fn errno(answer: Answer) -> Errno {
    Errno::from_raw(answer.raw_os_error())
}

/// A path as the kernel takes it.
///
/// # Errors
/// A path with a NUL byte.
pub fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::said("use path", path.display().to_string(), "it holds a NUL byte"))
}

/// A path without `.` and `..`, as an absolute one would be reduced by its text alone (config.md#mounts: destinations).
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => (),
        }
    }
    cleaned
}

fn relative(path: &Path) -> &Path {
    let stripped = path.strip_prefix("/").unwrap_or(path);
    if stripped.as_os_str().is_empty() { Path::new(".") } else { stripped }
}

fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    Some((path.parent()?, path.file_name()?))
}

/// Where the link `name` in the directory `parent` leads, as a path in the same root.
fn link_behind(dir: &OwnedFd, parent: &Path, name: &OsStr) -> Option<PathBuf> {
    let target = readlinkat(dir, name, Vec::new()).ok()?.into_bytes();
    Some(parent.join(OsStr::from_bytes(&target)))
}

/// The components of a path, last first.
fn components(path: &OsStr) -> Vec<OsString> {
    let parts = path.as_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(|part| OsString::from_vec(part.to_vec())).collect()
}

/// Whether a link is one of procfs, which may lead anywhere.
fn is_magic(link: &OwnedFd) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(link).map_err(errno)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A directory that is removed by the test that made it, by name.
    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("ferry-path-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn clean_paths() {
        assert_eq!(clean(Path::new("a/../b/./c")), Path::new("/b/c"));
        assert_eq!(clean(Path::new("/../../etc")), Path::new("/etc"));
        assert_eq!(clean(Path::new("")), Path::new("/"));
    }

    #[test]
    fn links_stay_inside_by_openat2_and_by_walk() {
        let dir = scratch("links");
        let (inside, outside) = (dir.join("root"), dir.join("outside"));
        std::fs::create_dir_all(inside.join("outside")).unwrap();
        std::fs::create_dir_all(&outside).unwrap();
        symlink("/outside", inside.join("absolute")).unwrap();
        symlink("../../outside", inside.join("upwards")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        let root = Root::open(&inside).unwrap();
        let expected = fstat(root.resolve(Path::new("outside"), Links::Follow).unwrap()).unwrap().st_ino;
        for name in ["absolute", "upwards", "/../absolute", "upwards/../outside"] {
            let path = relative(Path::new(name));
            for found in [root.resolve(path, Links::Follow), root.walk(path, OFlags::PATH, Links::Follow)] {
                assert_eq!(fstat(found.unwrap()).unwrap().st_ino, expected, "{name}");
            }
            assert_eq!(root.resolve(path, Links::Refuse).unwrap_err(), Errno::ELOOP, "{name}");
            assert_eq!(root.walk(path, OFlags::PATH, Links::Refuse).unwrap_err(), Errno::ELOOP, "{name}");
        }
        let looping = Path::new("loop");
        assert_eq!(root.resolve(looping, Links::Follow).unwrap_err(), Errno::ELOOP);
        assert_eq!(root.walk(looping, OFlags::PATH, Links::Follow).unwrap_err(), Errno::ELOOP);
        std::process::Command::new("rm").arg("-r").arg(&dir).status().unwrap();
    }

    #[test]
    fn missing_directories_are_made_inside() {
        let dir = scratch("make");
        symlink("/made", dir.join("link")).unwrap();
        let root = Root::open(&dir).unwrap();
        root.make_dirs(Path::new("/a/b/c"), 0o755, Links::Follow).unwrap();
        assert!(dir.join("a/b/c").is_dir());
        root.make_file(Path::new("/a/file")).unwrap();
        assert!(dir.join("a/file").is_file());
        root.make_dirs(Path::new("/link/x"), 0o755, Links::Follow).unwrap();
        assert!(dir.join("made/x").is_dir());
        assert!(!Path::new("/made").exists());
        symlink("../../run/resolve/conf", dir.join("a/conf")).unwrap();
        root.make_file(Path::new("/a/conf")).unwrap();
        assert!(dir.join("run/resolve/conf").is_file());
        symlink("loop", dir.join("loop")).unwrap();
        assert_eq!(root.make_file(Path::new("/loop")).unwrap_err().errno(), Some(Errno::ELOOP));
        assert_eq!(
            root.make_dirs(Path::new("/link/loop/y"), 0o755, Links::Refuse).unwrap_err().errno(),
            Some(Errno::ELOOP)
        );
        std::process::Command::new("rm").arg("-r").arg(&dir).status().unwrap();
    }
}
