//! A copy-on-write root over a directory of the host, its upper layer in memory.
//!
//! An overlay does not show what is mounted below its lower directory, and in a user namespace the kernel refuses a lower
//! directory with mounts below it, since their being in the way is all that hides what they cover. So a directory that has
//! mounts below it is rebuilt as a plain directory in memory, and its entries are overlaid one by one: for `/` that is one
//! overlay for `/usr`, one for `/etc`, and so on.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, mkdirat, openat, statat};

use super::copy;
use super::mount::{clone_tree, new_filesystem, place, read_only};
use super::options::Options;
use crate::error::{Context, Error, Result};
use crate::path::{Root, fd_path};
use crate::procfs::mountinfo;

/// Top-level directories that a container gets its own of: what they show of the host is the kernel's and the running
/// system's, its sockets among them.
const OWN: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

/// The root's directory below its stage.
pub const ROOT: &str = "root";

/// What the kernel shows for an id that a user namespace does not map: /proc/sys/kernel/overflowuid, as it is everywhere.
const OVERFLOW_ID: u32 = 65534;

/// A loose file up to this size is copied into memory and can be written; a larger one is bound read-only. Bytes.
const COPY_LIMIT: i64 = 1 << 20;

/// Puts into an upper directory what is to be in it before anything is mounted upon it.
pub type Fill<'a> = &'a dyn Fn(OwnedFd) -> Result<()>;

/// The overlays of one root as they come about.
struct Stage<'a> {
    /// Mount points of the host.
    mount_points: BTreeSet<PathBuf>,
    upper: OwnedFd,
    work: OwnedFd,
    /// How many overlays there are; each has an upper and a work directory of that name.
    count: usize,
    /// In a user namespace an overlay keeps its marks in `user.` attributes.
    userxattr: bool,
    /// What could not be shown, and why.
    warnings: &'a mut Vec<String>,
}

/// Builds the root on `stage`, an empty directory of the host; `userxattr` in a user namespace. The mount tree must be cut
/// off from the host already. With `fill` the upper directory is not empty to begin with, and must be a single one.
///
/// # Errors
/// The kernel's answer; `fill`'s own. What of the host cannot be shown is left out with a line in `warnings`.
pub fn build(
    lower: &Path,
    stage: &Path,
    userxattr: bool,
    fill: Option<Fill<'_>>,
    warnings: &mut Vec<String>,
) -> Result<Root> {
    // Before the stage itself is a mount: the directory that it is in need not be taken apart for it.
    let mount_points = mount_points()?;
    let memory = tmpfs().or_cannot("mount tmpfs for", stage.display())?;
    let dir = |name: &str| -> Result<OwnedFd> {
        mkdirat(&memory, name, Mode::from_raw_mode(0o755)).or_cannot("make directory in", stage.display())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&memory, name, flags, Mode::empty()).or_cannot("open directory in", stage.display())
    };
    // Attached before anything is mounted on it: overlay wants its layers in this mount namespace.
    let stage_dir = openat(CWD, stage, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    place(memory.as_fd(), stage_dir.or_cannot("open", stage.display())?.as_fd())
        .or_cannot("mount tmpfs on", stage.display())?;
    let (root, upper, work) = (dir(ROOT)?, dir("upper")?, dir("work")?);
    let mut overlays = Stage { mount_points, upper, work, count: 0, userxattr, warnings };

    let lower_dir = openat(CWD, lower, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let lower_dir = lower_dir.or_cannot("open root filesystem", lower.display())?;
    if !overlays.has_mounts_below(lower) {
        let cannot = |answer: Result<OwnedFd, Errno>| answer.or_cannot("overlay", lower.display()).map_err(hint);
        let upper = cannot(overlays.upper(lower_dir.as_fd()))?;
        if let Some(fill) = fill {
            fill(cannot(copy::open_dir(upper.as_fd(), c"."))?)?;
        }
        let mount = cannot(overlays.mounted(lower_dir.as_fd(), upper.as_fd()))?;
        place(mount.as_fd(), root.as_fd()).or_cannot("overlay", lower.display())?;
        return Ok(Root::from_dir(mount, lower));
    }
    if fill.is_some() {
        return Err(Error::said("overlay", lower.display().to_string(), "there are mounts below it now")
            .hint("take them away, or bring a directory with the same files that has none"));
    }
    let mount = clone_tree(root.as_fd(), Path::new(""), false).or_cannot("bind", stage.display())?;
    place(mount.as_fd(), root.as_fd()).or_cannot("bind", stage.display())?;
    overlays.rebuild(lower, lower_dir.as_fd(), mount.as_fd())?;
    Ok(Root::from_dir(mount, lower))
}

fn hint(error: Error) -> Error {
    match error.errno() {
        Some(Errno::EPERM | Errno::ENODEV) => error.hint("overlayfs in a user namespace needs Linux 5.11"),
        _ => error,
    }
}

/// Copies what the image has at `place` into the tmpfs that will cover it (`tmpcopyup`).
///
/// # Errors
/// The kernel's answer.
pub fn copy_up(place: BorrowedFd<'_>, tmpfs: BorrowedFd<'_>, named: &str) -> Result<()> {
    let readable = |fd| copy::open_dir(fd, c".").or_cannot("copy into the tmpfs on", named);
    let copied = copy::tree(readable(place)?.as_fd(), readable(tmpfs)?.as_fd());
    copied.or_cannot("copy into the tmpfs on", named).map_err(|error| match error.errno() {
        Some(Errno::EACCES) => error.hint("the image has something there that the container's root may not read"),
        Some(Errno::ENOSPC) => {
            error.hint("what the image has there is larger than the tmpfs may grow: see its size option")
        }
        _ => error,
    })
}

/// A filesystem in memory for a stage.
///
/// # Errors
/// The kernel's answer.
pub fn tmpfs() -> Result<OwnedFd, Errno> {
    let options = Options { data: vec![("mode".into(), Some("0755".into()))], ..Options::default() };
    new_filesystem("tmpfs", "ferry", &options).map_err(|refusal| refusal.answer)
}

impl Stage<'_> {
    fn has_mounts_below(&self, path: &Path) -> bool {
        self.mount_points.range(path.to_owned()..).any(|point| point != path && point.starts_with(path))
    }

    /// In a user namespace the host's root has no id, and is shown as nobody. What is rebuilt in memory in its place belongs
    /// to the container's root, who can then write there.
    fn owned(&self, mut stat: Stat) -> Stat {
        for id in [&mut stat.st_uid, &mut stat.st_gid] {
            if self.userxattr && *id == OVERFLOW_ID {
                *id = 0;
            }
        }
        stat
    }

    /// Fills `to` with what `from` (the host's `path`) holds, entry by entry.
    fn rebuild(&mut self, path: &Path, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
        for entry in Dir::read_from(from).or_cannot("read", path.display())? {
            let entry = entry.or_cannot("read", path.display())?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let here = path.join(OsStr::from_bytes(name.to_bytes()));
            match self.entry(&here, from, name, to) {
                // What this user may not read on the host stays empty here: nothing is missing.
                Ok(()) | Err(Errno::EACCES) => (),
                Err(answer) => self.warnings.push(format!("{} is not in the container: {answer:?}", here.display())),
            }
        }
        Ok(())
    }

    fn entry(&mut self, here: &Path, from: BorrowedFd<'_>, name: &CStr, to: BorrowedFd<'_>) -> Result<(), Errno> {
        let stat = self.owned(statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(crate::path::errno)?);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => copy::link(from, name, to, &stat),
            FileType::Directory => {
                copy::directory(to, name, &stat)?;
                if OWN.iter().any(|own| here == Path::new(own)) {
                    return Ok(());
                }
                self.directory(here, copy::open_dir(from, name)?, copy::open_dir(to, name)?)
            }
            FileType::RegularFile if stat.st_size <= COPY_LIMIT => copy::file(from, name, to, &stat),
            FileType::RegularFile => {
                let tree = clone_tree(from, Path::new(OsStr::from_bytes(name.to_bytes())), false)?;
                read_only(tree.as_fd(), false)?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
                let target = openat(to, name, flags, Mode::from_raw_mode(0o644)).map_err(crate::path::errno)?;
                place(tree.as_fd(), target.as_fd())
            }
            _ => Ok(()),
        }
    }

    fn directory(&mut self, here: &Path, from: OwnedFd, to: OwnedFd) -> Result<(), Errno> {
        if self.has_mounts_below(here) {
            return self.rebuild(here, from.as_fd(), to.as_fd()).map_err(|error| error.errno().unwrap_or(Errno::EIO));
        }
        place(self.overlay(from.as_fd())?.as_fd(), to.as_fd())
    }

    /// A detached overlay over `lower`.
    fn overlay(&mut self, lower: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let upper = self.upper(lower)?;
        self.mounted(lower, upper.as_fd())
    }

    fn name(&self) -> CString {
        CString::new(self.count.to_string()).unwrap_or_default()
    }

    /// A new upper directory that has the lower's mode and owner: the merged root shows the upper's.
    fn upper(&mut self, lower: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        self.count += 1;
        let name = self.name();
        copy::directory(self.upper.as_fd(), &name, &self.owned(copy::stat_of(lower)?))?;
        copy::open_dir(self.upper.as_fd(), &name)
    }

    /// The overlay of `lower` and the upper directory that was made last.
    fn mounted(&self, lower: BorrowedFd<'_>, upper: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
        let name = self.name();
        mkdirat(&self.work, &name, Mode::from_raw_mode(0o755)).map_err(crate::path::errno)?;
        let work = copy::open_dir(self.work.as_fd(), &name)?;
        // By descriptor: the kernel takes at most 255 bytes for a value, and a colon in a path would end it.
        let value = |fd: BorrowedFd<'_>| Some(fd_path(fd).to_string_lossy().into_owned());
        let mut data = vec![
            ("lowerdir".to_owned(), value(lower)),
            ("upperdir".to_owned(), value(upper)),
            ("workdir".to_owned(), value(work.as_fd())),
        ];
        if self.userxattr {
            data.push(("userxattr".to_owned(), None));
        }
        new_filesystem("overlay", "ferry", &Options { data, ..Options::default() }).map_err(|refusal| refusal.answer)
    }
}

/// The mount points of this namespace.
fn mount_points() -> Result<BTreeSet<PathBuf>> {
    let rows = mountinfo::read().or_cannot("read", "/proc/self/mountinfo")?;
    Ok(rows.into_iter().map(|row| row.point).collect())
}
