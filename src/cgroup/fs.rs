//! Making a cgroup, and writing its limits.
//!
//! A container without limits whose cgroup's parent exists costs a mkdir and an open. Limits cost more: a controller must
//! be enabled in every directory above, from the root down, and is enabled only where it is not yet and only when a limit
//! needs it, because each enabled controller costs the whole subtree.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use rustix::fs::{Access, AtFlags, CWD, FlockOperation, Mode, accessat, flock, mkdirat, unlinkat};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

use super::file;
use super::location::Location;
use super::missing;
use super::resources::{Limits, MemoryCheck, Otherwise, Write};

/// A cgroup that exists, held by its directory.
#[derive(Debug)]
pub struct Cgroup {
    /// The directory, open for reading: what `CLONE_INTO_CGROUP` and bpf(2) take.
    pub dir: OwnedFd,
    /// Its absolute path, for messages and for the record.
    pub path: PathBuf,
    /// How many directories [`create`] made: the last so many names of `path`. 0 for one that was found.
    pub made: usize,
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Cgroup {
    /// Removes what [`create`] made, for a start that failed. A directory that has found another use in the meantime (a
    /// sibling's parent) stays.
    ///
    /// # Errors
    ///
    /// The kernel refuses for another reason than that.
    pub fn undo(self) -> Result<()> {
        remove_made(&self.path, self.made)
    }

    /// Lets other starts look at what [`create`] has locked: by now a process of this one is in it.
    ///
    /// # Errors
    ///
    /// None in practice; the kernel's answer is passed on.
    pub fn unlock(&self) -> Result<()> {
        flock(&self.dir, FlockOperation::Unlock).or_cannot("unlock the cgroup", self.path.display())
    }
}

fn remove_made(path: &Path, made: usize) -> Result<()> {
    for dir in path.ancestors().take(made) {
        match unlinkat(CWD, dir, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::BUSY | Errno::NOTEMPTY) => return Ok(()),
            Err(errno) => return Err(errno).or_cannot("remove the cgroup", dir.display()),
        }
    }
    Ok(())
}

/// Opens a cgroup that exists.
///
/// # Errors
///
/// `ENOENT`: there is none.
pub fn open(path: &Path) -> Result<Cgroup> {
    let dir = file::open_dir(CWD, path).or_cannot("open the cgroup", path.display())?;
    Ok(Cgroup { dir, path: path.into(), made: 0 })
}

/// Makes the cgroup of a new container and all directories above it, and enables the controllers that `limits` need in
/// each of them. Whatever was made is removed again on failure.
///
/// `None`: no cgroup can be had here (an ordinary user without a delegated one) and none is needed: there are no limits,
/// and the configuration did not name a place.
///
/// It is locked until [`Cgroup::unlock`], which is for when a process is in it: of two starts with one path, each would
/// otherwise find it empty.
///
/// # Errors
///
/// A controller is not to be had, with the reason; the cgroup exists and has processes in it or is frozen, or another start
/// is about to use it; or the kernel refuses.
pub fn create(location: &Location, limits: &Limits) -> Result<Option<Cgroup>> {
    let path = location.dir();
    let made = if limits.needs.is_empty() { make(&path) } else { make_below(location, limits) };
    let made = match made {
        Err(error) if may_do_without(location, limits) && is_denied(&error) => return Ok(None),
        made => made?,
    };
    let dir = match file::open_dir(CWD, &path).or_cannot("open the cgroup", path.display()) {
        Ok(dir) => dir,
        Err(error) => return Err(undone(&path, made, error)),
    };
    match lock(&dir) {
        Ok(()) => (),
        // Whoever has it is about to clone into it: it stays, also if it was made here.
        Err(Errno::WOULDBLOCK) => return refuse(&path, "another container is just being put there").map(|()| None),
        Err(answer) => {
            return Err(undone(
                &path,
                made,
                Error::kernel("lock the cgroup", path.display().to_string(), file::answer(answer)),
            ));
        }
    }
    // Also one that was made here: another start may have found it, and be done with the lock.
    let checked =
        check_empty(&dir, &path).and_then(|()| if made == 0 { check_takes_processes(&dir, &path) } else { Ok(()) });
    match checked {
        Ok(()) => Ok(Some(Cgroup { dir, path, made })),
        Err(error) => Err(undone(&path, made, error)),
    }
}

/// Never waits: anybody who may open a cgroup can have it locked. Who starts a container there is done in a moment, so that it is asked
/// for twice.
fn lock(dir: &OwnedFd) -> Result<(), Errno> {
    let ask = || loop {
        match flock(dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::INTR) => (),
            answer => return answer,
        }
    };
    ask().or_else(|answer| if answer == Errno::WOULDBLOCK { ask() } else { Err(answer) })
}

fn may_do_without(location: &Location, limits: &Limits) -> bool {
    !location.explicit && limits.writes.is_empty()
}

/// What [`create`] would answer, as far as that can be told without making or enabling anything.
///
/// # Errors
///
/// As [`create`].
pub fn foresee(location: &Location, limits: &Limits) -> Result<Option<()>> {
    match foreseen(location, limits) {
        Err(error) if may_do_without(location, limits) && is_denied(&error) => Ok(None),
        answer => answer.map(Some),
    }
}

/// As far down as there are directories: those below them would get what the last one has to give.
fn foreseen(location: &Location, limits: &Limits) -> Result<()> {
    let mut path = location.mount.clone();
    let mut dir = file::open_dir(CWD, &path).or_cannot("open the cgroup", path.display())?;
    let writable = |dir: &OwnedFd, name: &str| accessat(dir, name, Access::WRITE_OK, AtFlags::EACCESS);
    for name in &location.path {
        if to_enable(&dir, &path, limits)?.is_some() {
            let offered = file::read(dir.as_fd(), "cgroup.controllers").unwrap_or_default();
            let answer = match limits.needs.iter().all(|needed| has_word(&offered, needed)) {
                true => writable(&dir, "cgroup.subtree_control"),
                false => Err(Errno::NOENT),
            };
            answer.map_err(|errno| not_enabled(&dir, &path, limits, errno).unwrap_or_else(|| making(errno, &path)))?;
        }
        path.push(name);
        dir = match file::open_dir(&dir, name) {
            Ok(below) => below,
            Err(Errno::NOENT) => return writable(&dir, ".").map_err(|errno| making(errno, &path)),
            Err(errno) => return Err(errno).or_cannot("open the cgroup", path.display()),
        };
    }
    check_empty(&dir, &path).and_then(|()| check_takes_processes(&dir, &path))
}

/// Whether an error says that this user may not.
pub fn is_denied(error: &Error) -> bool {
    use nix::errno::Errno;
    matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM | Errno::EROFS))
}

/// `error`, after what was made is gone. If that fails too, the first failure is the one to tell.
fn undone(path: &Path, made: usize, error: Error) -> Error {
    match remove_made(path, made) {
        Ok(()) => error,
        Err(leftover) => error.hint(format!("and {leftover}")),
    }
}

/// A cgroup that exists already must be empty and thawed: else this container would share another's fate (runtime-spec,
/// config-linux.md#control-groups).
fn check_empty(dir: &OwnedFd, path: &Path) -> Result<()> {
    let events = file::read(dir.as_fd(), "cgroup.events").or_cannot("read the state of", path.display())?;
    match (file::value_of(&events, "populated"), file::value_of(&events, "frozen")) {
        (Some("1"), _) => {
            refuse(path, "the container's cgroup is not empty: another container, or other processes, run in it")
        }
        (_, Some("1")) => refuse(path, "the container's cgroup unexpectedly frozen: somebody froze it before"),
        _ => Ok(()),
    }
}

/// What is empty may still be an inner node, or part of a threaded tree, which take no process.
fn check_takes_processes(dir: &OwnedFd, path: &Path) -> Result<()> {
    let given =
        file::read(dir.as_fd(), "cgroup.subtree_control").or_cannot("read the controllers of", path.display())?;
    if !given.trim().is_empty() {
        let why = format!("it gives controllers to those below it ({}), and so takes no process", given.trim());
        return refuse(path, &why).map_err(|error: Error| error.hint("give a linux.cgroupsPath below it"));
    }
    match file::read(dir.as_fd(), "cgroup.type").as_deref().map(str::trim_end) {
        Ok("domain" | "domain threaded") | Err(_) => Ok(()),
        Ok(kind) => refuse(path, &format!("its type is {kind:?}, which takes threads only")),
    }
}

fn refuse(path: &Path, why: &str) -> Result<()> {
    Err(Error::said("put the container into the cgroup", path.display().to_string(), why))
}

/// Makes `path` and answers how many directories that took. Most often it is one, and one call.
fn make(path: &Path) -> Result<usize> {
    match mkdirat(CWD, path, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(1),
        Err(Errno::EXIST) => Ok(0),
        Err(Errno::NOENT) => {
            let Some(parent) = path.parent() else { return Err(making(Errno::NOENT, path)) };
            let above = make(parent)?;
            match make_one(CWD.as_fd(), path.as_os_str(), path) {
                Ok(new) => Ok(tail(above, new)),
                Err(error) => Err(undone(parent, above, error)),
            }
        }
        Err(errno) => Err(making(errno, path)),
    }
}

/// Makes one directory; false if it is there already: two containers may share all but the last.
fn make_one(dir: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<bool> {
    match mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(making(errno, path)),
    }
}

/// How many directories at the path's end are ours to remove again. One that another start made meanwhile ends the
/// count: it is not ours, and what is above it is no longer only ours.
fn tail(made: usize, new: bool) -> usize {
    if new { made + 1 } else { 0 }
}

fn making(errno: Errno, path: &Path) -> Error {
    let error = Error::kernel("make the cgroup", path.display().to_string(), file::answer(errno));
    match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            error.hint("have a cgroup delegated to this user (systemd-run --user --scope -p Delegate=yes …)")
        }
        Errno::AGAIN => error.hint("cgroup.max.depth or cgroup.max.descendants of a cgroup above is reached"),
        _ => error,
    }
}

/// Makes the cgroup from the root down, enabling the controllers needed on the way.
fn make_below(location: &Location, limits: &Limits) -> Result<usize> {
    let mut made = 0;
    let mut path = location.mount.clone();
    for name in &location.path {
        let step = file::open_dir(CWD, &path).or_cannot("open the cgroup", path.display()).and_then(|dir| {
            enable(&dir, &path, limits)?;
            make_one(dir.as_fd(), name, &path.join(name))
        });
        match step {
            Ok(new) => made = tail(made, new),
            Err(error) => return Err(undone(&path, made, error)),
        }
        path.push(name);
    }
    Ok(made)
}

/// What is needed and not yet enabled for the children of `dir`, as one command, and the first limit that needs it.
fn to_enable<'a>(dir: &OwnedFd, path: &Path, limits: &'a Limits) -> Result<Option<(String, &'a Write)>> {
    let enabled =
        file::read(dir.as_fd(), "cgroup.subtree_control").or_cannot("read the controllers of", path.display())?;
    let is_missing = |write: &&Write| !write.controller.is_empty() && !has_word(&enabled, &write.controller);
    let Some(first) = limits.writes.iter().find(is_missing) else { return Ok(None) };
    let missing = limits.needs.iter().filter(|needed| !has_word(&enabled, needed));
    let command = missing.map(|controller| format!("+{controller}")).collect::<Vec<_>>().join(" ");
    if holds_processes(dir.as_fd()) {
        return Err(crowded(path, first));
    }
    Ok(Some((command, first)))
}

/// Enables it: in one write, so that it is all or nothing.
fn enable(dir: &OwnedFd, path: &Path, limits: &Limits) -> Result<()> {
    let Some((command, first)) = to_enable(dir, path, limits)? else { return Ok(()) };
    match file::write(dir.as_fd(), "cgroup.subtree_control", &command) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(crowded(path, first)),
        Err(errno) => Err(not_enabled(dir, path, limits, errno).unwrap_or_else(|| making(errno, path))),
    }
}

/// Whether processes run in that very cgroup. The root's own do not count; it alone has no type.
///
/// The kernel itself refuses controllers of memory and I/O for the children of such a cgroup, but not those of CPU and
/// tasks: it would turn the cgroup into the root of a threaded one, and the child into one that takes no process.
pub(super) fn holds_processes(dir: BorrowedFd<'_>) -> bool {
    let read = |name| file::read(dir, name);
    read("cgroup.type").is_ok() && read("cgroup.procs").is_ok_and(|procs| !procs.is_empty())
}

fn crowded(path: &Path, write: &Write) -> Error {
    let object = format!("{} for linux.resources.{} in {}", write.controller, write.field, path.display());
    Error::said("enable", object, "processes run in that very cgroup, which cannot then have controllers")
        .hint("give a linux.cgroupsPath below a cgroup without processes of its own")
}

/// Names the controller that was not to be had: the first that is not offered, else the first that was asked for.
fn not_enabled(dir: &OwnedFd, path: &Path, limits: &Limits, errno: Errno) -> Option<Error> {
    let offered = file::read(dir.as_fd(), "cgroup.controllers").unwrap_or_default();
    let with_controller = || limits.writes.iter().filter(|write| !write.controller.is_empty());
    let write = with_controller().find(|write| !has_word(&offered, &write.controller)).or(with_controller().next())?;
    if errno == Errno::OPNOTSUPP {
        let object = format!("{} for linux.resources.{} in {}", write.controller, write.field, path.display());
        return Some(Error::said(
            "enable",
            object,
            "that cgroup is threaded, and the controller governs whole processes",
        ));
    }
    Some(missing::explain(dir.as_fd(), path, write))
}

pub(super) fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|name| name == word)
}

/// Makes a cgroup that exists ready for limits it did not have: enables the controllers they need in every directory
/// above it, and sees that every file is there before the first is written.
///
/// # Errors
///
/// A controller or a file is not to be had, with the reason.
pub fn make_ready(cgroup: &Cgroup, location: &Location, limits: &Limits) -> Result<()> {
    let mut path = location.mount.clone();
    for name in &location.path {
        let dir = file::open_dir(CWD, &path).or_cannot("open the cgroup", path.display())?;
        enable(&dir, &path, limits)?;
        path.push(name);
    }
    for write in &limits.writes {
        let is_there = |name: &str| accessat(cgroup, name, Access::EXISTS, AtFlags::empty()).is_ok();
        let replaced = match &write.otherwise {
            Otherwise::Skip => controller_is_there(cgroup, &write.controller).is_ok(),
            Otherwise::Instead(name, _) => is_there(name),
            Otherwise::Refuse | Otherwise::Again => false,
        };
        if !is_there(&write.file) && !replaced {
            return Err(not_written(cgroup, write, Errno::NOENT));
        }
    }
    Ok(())
}

/// Writes the limits, in their order.
///
/// # Errors
///
/// A file does not exist, with the reason why its controller is not there; the kernel refuses a value; or usage is above
/// a limit that `memory.checkBeforeUpdate` guards.
pub fn apply(cgroup: &Cgroup, limits: &Limits) -> Result<()> {
    if let Some(check) = limits.memory_check {
        check_memory(cgroup, check)?;
    }
    let mut again = Vec::new();
    for write in &limits.writes {
        match (write_file(cgroup, write), &write.otherwise) {
            (Err(Errno::INVAL), Otherwise::Again) => again.push(write),
            (answer, _) => answer.map_err(|errno| not_written(cgroup, write, errno))?,
        }
    }
    for write in again {
        write_file(cgroup, write).map_err(|errno| not_written(cgroup, write, errno))?;
    }
    limits.writes.iter().filter(|write| write.file == PARTITION).try_for_each(|write| check_partition(cgroup, write))
}

const PARTITION: &str = "cpuset.cpus.partition";

/// The kernel takes any partition that is asked for, and says only in the file what became of it: `isolated invalid (why)`.
fn check_partition(cgroup: &Cgroup, write: &Write) -> Result<()> {
    let object = || format!("linux.resources.{} to {:?}", write.field, write.value);
    let state = file::read(cgroup.as_fd(), PARTITION).or_cannot("read back", object())?;
    match state.trim_end().split_once(" invalid") {
        None => Ok(()),
        Some((_, why)) => {
            let why = why.trim().trim_start_matches('(').trim_end_matches(')');
            let why = if why.is_empty() { "the kernel calls the partition invalid" } else { why };
            Err(Error::said("set", object(), why.to_owned()).hint(
                "its CPUs must be nobody else's, not all there are, and the cgroup above must be a partition or the root",
            ))
        }
    }
}

fn write_file(cgroup: &Cgroup, write: &Write) -> Result<(), Errno> {
    match (file::write(cgroup.as_fd(), &write.file, &write.value), &write.otherwise) {
        (Err(Errno::NOENT), Otherwise::Skip) => controller_is_there(cgroup, &write.controller),
        (Err(Errno::NOENT), Otherwise::Instead(name, value)) => file::write(cgroup.as_fd(), name, value),
        (answer, _) => answer,
    }
}

/// A file may be missing for want of a kernel's feature, which is no matter, or of the whole controller, which is.
fn controller_is_there(cgroup: &Cgroup, controller: &str) -> Result<(), Errno> {
    let controllers = file::read(cgroup.as_fd(), "cgroup.controllers")?;
    if has_word(&controllers, controller) { Ok(()) } else { Err(Errno::NOENT) }
}

fn not_written(cgroup: &Cgroup, write: &Write, errno: Errno) -> Error {
    let parent = cgroup.path.parent().unwrap_or(&cgroup.path);
    if errno == Errno::NOENT
        && !write.controller.is_empty()
        && let Ok(above) = file::open_dir(CWD, parent)
    {
        return missing::explain(above.as_fd(), parent, write);
    }
    let object =
        format!("linux.resources.{}: {:?} to {}/{}", write.field, write.value, cgroup.path.display(), write.file);
    let error = Error::kernel("write", object, file::answer(errno));
    match (errno, &*write.file) {
        (Errno::BUSY, "memory.max") => error.hint("the container uses more than that, and none of it can be reclaimed"),
        (Errno::NODEV, "io.max" | "io.weight" | "io.bfq.weight") => {
            error.hint("there is no block device of that number")
        }
        (Errno::INVAL, "cpu.weight") => {
            error.hint("a cgroup with cpu.idle 1 takes no weight: set cpu.idle to 0 as well")
        }
        _ => error,
    }
}

/// Refuses limits at or below the present usage. Best effort, as in the specification: usage that cannot be read (a new
/// cgroup, a controller that the next write will find missing) refuses nothing.
///
/// # Errors
///
/// The limit, and how much is in use.
pub fn check_memory(cgroup: &Cgroup, check: MemoryCheck) -> Result<()> {
    let read = |name: &str| file::read(cgroup.as_fd(), name).unwrap_or_default().trim().parse::<u64>().ok();
    let Some(memory) = read("memory.current") else { return Ok(()) };
    // Memory and swap share the second limit, and a host without swap has no file for it.
    let both = memory.saturating_add(read("memory.swap.current").unwrap_or(0));
    let limits = [
        ("memory.swap", "memory+swap limit", check.with_swap, both),
        ("memory.limit", "memory limit", check.limit, memory),
    ];
    for (field, name, limit, usage) in limits {
        if let Some(limit) = limit.filter(|limit| *limit <= usage) {
            let object = format!("linux.resources.{field} to {limit}");
            return Err(Error::said("set", object, format!("rejecting {name}: the container uses {usage} bytes"))
                .hint("leave out memory.checkBeforeUpdate to have the kernel reclaim and kill instead"));
        }
    }
    Ok(())
}

/// Moves a process into the cgroup, where `CLONE_INTO_CGROUP` (Linux 5.7) was not to be had, and for `exec`.
///
/// # Errors
///
/// The kernel refuses: `EBUSY` if the cgroup gives controllers to children, `ESRCH` if the process is gone.
pub fn attach(cgroup: &Cgroup, pid: Pid) -> Result<()> {
    let Err(errno) = file::write(cgroup.as_fd(), "cgroup.procs", &pid.to_string()) else { return Ok(()) };
    let object = format!("process {pid} into the cgroup {}", cgroup.path.display());
    let error = Error::kernel("move", object, file::answer(errno));
    Err(match errno {
        Errno::BUSY => error.hint("it gives controllers to its children, so it cannot hold processes itself"),
        Errno::OPNOTSUPP => error.hint("it, or one above it, is threaded: only threads can enter"),
        Errno::ACCESS | Errno::PERM => error.hint("both cgroups and their common ancestor must be writable"),
        _ => error,
    })
}

#[cfg(test)]
#[path = "fs_tests.rs"]
mod tests;
