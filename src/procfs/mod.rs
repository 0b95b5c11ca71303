//! `/proc` of the host: who a process is, beyond its pid, and what descends from it.
//!
//! A pid alone is no identity: it is used again. With the time the process started (clock ticks since boot, field 22 of
//! its stat file) it is, for as long as the machine is up. proc(5)

pub mod mountinfo;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::Pid;

/// What tells a live process from another one that got its pid later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Clock ticks since boot at which it started.
    pub start_time: u64,
    /// Its state letter: `R`, `S`, `Z`, …
    pub state: u8,
    /// Whether it is on its way out, which takes until all others of its pid namespace are reaped if it is the first there.
    pub exits: bool,
}

/// A bit of a process' flags. include/linux/sched.h
const PF_EXITING: u32 = 4;

impl Stat {
    /// Whether the process has ended and is only waiting to be reaped.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// Reads `/proc/PID/stat`.
///
/// # Errors
/// ENOENT or ESRCH when there is no such process; EPROTO for a file that does not read as one.
pub fn stat(pid: Pid) -> Result<Stat, Errno> {
    // Longer than any line that the kernel writes there, so that one read is all.
    let mut text = [0; 1024];
    let failed = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    let length = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut text)).map_err(failed)?;
    parse(&text[..length]).ok_or(Errno::EPROTO)
}

/// The command name may hold anything, spaces and parentheses too: fields are counted from its last parenthesis.
fn parse(text: &[u8]) -> Option<Stat> {
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(text.get(end + 2..)?).ok()?;
    let state = *fields.as_bytes().first()?;
    let mut fields = fields.split(' ').skip(6);
    let flags: u32 = fields.next()?.parse().ok()?;
    let start_time = fields.nth(12)?.parse().ok()?;
    Some(Stat { start_time, state, exits: flags & PF_EXITING != 0 })
}

/// A file of `/proc`, which has no size to go by: `std::fs::read` asks for one, and then begins with reads of 32 bytes.
///
/// # Errors
/// What open(2) and read(2) answer.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    // The kernel gives no more than a page at a time.
    let mut bytes = Vec::with_capacity(4096);
    // Of a file itself the size would be asked here as well.
    File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// As [`read`]. Names of processes, files and mounts stand there as whoever gave them chose, and need not be text.
///
/// # Errors
/// What open(2) and read(2) answer.
pub fn text(path: impl AsRef<Path>) -> io::Result<String> {
    read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The entries of a directory that are numbers: of `/proc` the processes, of a process' `task` its threads.
///
/// # Errors
/// The directory cannot be read.
pub fn numbers(directory: impl AsRef<Path>) -> io::Result<Vec<i32>> {
    let number = |entry: io::Result<std::fs::DirEntry>| entry.map(|entry| entry.file_name().to_str()?.parse().ok());
    std::fs::read_dir(directory)?.filter_map(|entry| number(entry).transpose()).collect()
}

/// These processes and all that descend from them: whole where none of them comes or goes meanwhile. It needs a kernel with
/// CONFIG_PROC_CHILDREN, as every one has that knows checkpoints. proc_tid_children(5)
///
/// # Errors
/// One that has not ended cannot be looked at.
pub fn descendants(of: impl IntoIterator<Item = Pid>) -> io::Result<BTreeSet<Pid>> {
    let mut queue: Vec<Pid> = of.into_iter().collect();
    let mut found = BTreeSet::new();
    while let Some(pid) = queue.pop() {
        if found.insert(pid) {
            queue.extend(children(pid)?);
        }
    }
    Ok(found)
}

/// The children of every thread of a process; none of what has ended.
fn children(pid: Pid) -> io::Result<Vec<Pid>> {
    let tasks = format!("/proc/{pid}/task");
    let mut children = Vec::new();
    for thread in unless_ended(numbers(&tasks))?.unwrap_or_default() {
        let listed = unless_ended(text(format!("{tasks}/{thread}/children")))?.unwrap_or_default();
        children.extend(listed.split_whitespace().filter_map(|child| child.parse().ok().map(Pid::from_raw)));
    }
    Ok(children)
}

/// What was asked about a process; `None`: it has ended. Any other answer says nothing about that.
///
/// # Errors
/// The answer, if it is another.
pub fn unless_ended<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => Ok(None),
        answer => answer.map(Some),
    }
}

/// Who traces a process, if somebody does. proc_pid_status(5)
///
/// # Errors
/// It cannot be seen.
pub fn tracer(pid: Pid) -> io::Result<Option<Pid>> {
    let status = text(format!("/proc/{pid}/status"))?;
    let number = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    let number = number.and_then(|number| number.trim().parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok((number > 0).then(|| Pid::from_raw(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_command_name_changes_nothing() {
        let line = b"42 (a) R 1 (b) S 1 2 3 4 5 8 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(parse(line), Some(Stat { start_time: 777, state: b'S', exits: false }));
        let line = b"42 (a) R 1 (b) S 1 2 3 4 5 4194564 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(parse(line), Some(Stat { start_time: 777, state: b'S', exits: true }));
    }

    #[test]
    fn this_process_is_alive() {
        let own = stat(Pid::this()).unwrap();
        assert!(!own.is_dead() && !own.exits && own.start_time > 0);
    }

    #[test]
    fn what_is_no_text_is_read_all_the_same() {
        let path = std::env::temp_dir().join(format!("ferry-procfs-{}", std::process::id()));
        std::fs::write(&path, b"Name:\t\xff\nState:\tR").unwrap();
        let read = text(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), "Name:\t\u{fffd}\nState:\tR");
        assert!(unless_ended(text(&path)).unwrap().is_none(), "it is gone");
        assert!(unless_ended(text(path.with_file_name("."))).is_err(), "a directory is not");
    }

    #[test]
    fn what_is_longer_than_a_page_is_read_whole() {
        let path = std::env::temp_dir().join(format!("ferry-procfs-long-{}", std::process::id()));
        let written: Vec<u8> = (0..20_000_u32).map(|at| at as u8).collect();
        std::fs::write(&path, &written).unwrap();
        let found = read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found.unwrap(), written);
    }

    #[test]
    fn children_are_found_through_the_thread_that_started_them() {
        use std::process::{Command, Stdio};
        let cat = || Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut child = std::thread::spawn(cat).join().unwrap().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let own = descendants([Pid::this()]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own.contains(&pid) && own.contains(&Pid::this()), "{own:?}");
        assert!(!descendants([Pid::this()]).unwrap().contains(&pid));
        assert_eq!(descendants([Pid::from_raw(i32::MAX)]).unwrap().len(), 1, "one that is not there has none");
    }

    #[test]
    fn no_such_process() {
        assert_eq!(stat(Pid::from_raw(i32::MAX)).unwrap_err(), Errno::ENOENT);
    }
}
