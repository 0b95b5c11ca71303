//! The processes that CRIU holds by ptrace, as `/proc/PID/status` shows them. proc_pid_status(5)

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::error::{Context, Result};
use crate::namespaces::{Kind, Namespaces};
use crate::procfs;

/// A process, or one of its threads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Its state letter.
    pub state: u8,
    /// Who holds it.
    pub tracer: i32,
    /// A bit for each blocked signal.
    pub blocked: u64,
    /// Its user ids, all four.
    pub uids: Vec<u32>,
    /// Its group ids, all four.
    pub gids: Vec<u32>,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
    /// Its five capability sets, together.
    pub capabilities: u64,
    /// Whether no exec may gain privileges.
    pub no_new_privileges: bool,
    /// Whether it has system call filters.
    pub filtered: bool,
}

/// Whom to look through for those that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// Every process of the machine.
    All,
    /// Those that descend from this one: fewer, where all that are held stand still until each has been looked at.
    Descendants,
}

impl Among {
    /// Whom a restore may have made. Nobody leaves a pid namespace for another parent, and its first process is this one's child.
    pub fn restored(namespaces: &Namespaces) -> Self {
        if namespaces.makes(Kind::Pid) { Self::Descendants } else { Self::All }
    }
}

/// Every process that `tracer` holds: its directory in `/proc`. One that cannot be looked at is an error and not left out,
/// since it may be the one that matters.
pub fn processes(tracer: Pid, among: Among) -> impl Iterator<Item = Result<PathBuf>> {
    let held = move |path: PathBuf| {
        let status = status(&path)?;
        Ok(status.filter(|status| status.tracer == tracer.as_raw()).map(|_| path))
    };
    let found = match among {
        Among::All => procfs::numbers("/proc"),
        Among::Descendants => {
            procfs::descendants([Pid::this()]).map(|pids| pids.into_iter().map(Pid::as_raw).collect())
        }
    };
    directories(found, Path::new("/proc")).filter_map(move |path| path.and_then(held).transpose())
}

/// The threads of a process, the first one among them. Errors are as with processes.
pub fn threads(process: &Path) -> impl Iterator<Item = Result<Status>> + use<> {
    let directory = process.join("task");
    directories(procfs::numbers(&directory), &directory)
        .filter_map(|thread| thread.and_then(|thread| status(&thread)).transpose())
}

/// The directories of the processes or threads that were found in one: none, once whatever it is of has ended.
fn directories(found: io::Result<Vec<i32>>, within: &Path) -> impl Iterator<Item = Result<PathBuf>> + use<> {
    let (numbers, failed) = match procfs::unless_ended(found).or_cannot("read", within.display()) {
        Ok(numbers) => (numbers.unwrap_or_default(), None),
        Err(error) => (Vec::new(), Some(Err(error))),
    };
    let within = within.to_owned();
    numbers.into_iter().map(move |number| Ok(within.join(number.to_string()))).chain(failed)
}

/// `None`: it has ended.
fn status(directory: &Path) -> Result<Option<Status>> {
    let path = directory.join("status");
    let text = procfs::unless_ended(procfs::text(&path)).or_cannot("read", path.display())?;
    Ok(text.map(|text| parse(&text)))
}

fn parse(text: &str) -> Status {
    let mut status = Status::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        let mask = || u64::from_str_radix(value, 16).unwrap_or(u64::MAX);
        let ids = || value.split_whitespace().map(|id| id.parse().unwrap_or(u32::MAX)).collect();
        match key {
            "State" => status.state = value.bytes().next().unwrap_or_default(),
            "TracerPid" => status.tracer = value.parse().unwrap_or_default(),
            "SigBlk" => status.blocked = mask(),
            "Uid" => status.uids = ids(),
            "Gid" => status.gids = ids(),
            "Groups" => status.groups = ids(),
            "CapInh" | "CapPrm" | "CapEff" | "CapBnd" | "CapAmb" => status.capabilities |= mask(),
            "NoNewPrivs" => status.no_new_privileges = value == "1",
            "Seccomp" => status.filtered = value == "2",
            _ => (),
        }
    }
    status
}

impl Status {
    /// CRIU blocks every signal in a thread before it has it run code. One that sleeps then waits for CRIU's word.
    pub fn is_in_foreign_code(&self) -> bool {
        // Those that cannot be blocked, and the breakpoint's, which unblocks itself.
        const NEVER: [Signal; 3] = [Signal::SIGKILL, Signal::SIGSTOP, Signal::SIGTRAP];
        const CLASSIC: u64 = (1 << 31) - 1;
        let never = NEVER.iter().fold(0, |bits, signal| bits | 1 << (*signal as i32 - 1));
        matches!(self.state, b't' | b'R') && (self.blocked | never) & CLASSIC == CLASSIC
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_in_foreign_code_is_told_by_what_it_blocks() {
        let of = |state: &str, blocked: &str| {
            parse(&format!("Name:\tx\nState:\t{state}\nTracerPid:\t42\nSigBlk:\t{blocked}\n"))
        };
        assert_eq!(of("t (tracing stop)", "0").tracer, 42);
        assert!(of("t (tracing stop)", "fffffffe7ffbfeff").is_in_foreign_code());
        assert!(of("R (running)", "fffffffe7ffbfeef").is_in_foreign_code());
        assert!(!of("S (sleeping)", "fffffffe7ffbfeff").is_in_foreign_code(), "it waits");
        assert!(!of("t (tracing stop)", "0000000000010000").is_in_foreign_code(), "it is only stopped");
        assert!(!parse("nonsense").is_in_foreign_code());
    }

    #[test]
    fn what_a_thread_may_do() {
        let text = "Uid:\t1\t2\t3\t4\nGroups:\t5 6 \nCapInh:\t0000000000000001\nCapAmb:\t0000000000000100\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        let status = parse(text);
        assert_eq!((status.uids.as_slice(), status.capabilities), (&[1, 2, 3, 4][..], 0x101));
        assert_eq!(status.groups, [5, 6]);
        assert!(status.no_new_privileges && status.filtered);
        assert_eq!(parse("CapBnd:\tgarbage\n").capabilities, u64::MAX, "what cannot be read is feared");
    }
}
