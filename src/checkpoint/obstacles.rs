//! What CRIU cannot dump, found before anything is stopped: by the descriptors that the container's processes hold, and by its
//! configuration.
//!
//! CRIU finds each of these too, but only once every process stands still, and tells them one at a time in a log. What it
//! leaves to ferry is told with the process, the object and the way out.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use nix::unistd::Pid;

use super::dump::Choice;
use super::shared;
use crate::error::{Error, Result};
use crate::namespaces::{self, Kind};
use crate::procfs;
use crate::spec::Config;
use crate::spec::seccomp::Seccomp;

/// One thing in the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Obstacle {
    pid: i32,
    object: String,
    way_out: &'static str,
}

/// Kinds of anonymous inodes, by what `/proc/PID/fd/N` links to. Those that CRIU dumps (eventfd, epoll, inotify, fanotify,
/// timerfd, signalfd, pidfd) are not here.
const KINDS: [(&str, &str); 8] = [
    ("anon_inode:[io_uring]", "have the program do its input and output without io_uring (many have a setting)"),
    ("anon_inode:[userfaultfd]", "end what handles page faults in the program, such as a live migration of its own"),
    ("anon_inode:[perf_event]", "end the profiling"),
    ("anon_inode:bpf-prog", "close BPF programs, or have something outside of the container hold them"),
    ("anon_inode:bpf_link", "close BPF links, or have something outside of the container hold them"),
    ("anon_inode:kvm-vm", "a virtual machine cannot be saved from outside: use its own way"),
    ("anon_inode:[fscontext]", "let the program finish its mounts"),
    ("anon_inode:seccomp notify", "end what supervises other processes by seccomp"),
];

/// Looks at the configuration, and at the descriptors of the processes.
///
/// # Errors
/// Everything that is in the way.
pub fn check(id: &str, config: &Config, pids: &[Pid], choice: &Choice) -> Result<()> {
    let refuse =
        |what: &str| Error::said("checkpoint container", format!("{id:?}"), format!("CRIU cannot save {what}"));
    if config.linux.seccomp.as_ref().is_some_and(Seccomp::notifies) {
        // The filter would come back without its listener, and each call that it asks about fail with ENOSYS.
        return Err(refuse("the listener of a filter with SCMP_ACT_NOTIFY")
            .hint("only a container whose linux.seccomp asks no agent can be saved"));
    }
    let joins_ipc = namespaces::plan::plan(config)?.join.iter().any(|join| join.kind == Kind::Ipc);
    if let (true, Some(pid)) = (joins_ipc, pids.first()) {
        let objects = shared::system_v(Path::new(&format!("/proc/{pid}/ns/{}", Kind::Ipc.row().file)))?;
        if !objects.is_empty() {
            let what = format!("System V {} of an IPC namespace that it has joined", objects.join(", "));
            return Err(
                refuse(&what).hint("remove them (ipcs and ipcrm, inside), or give it an IPC namespace of its own")
            );
        }
    }
    let mut found: BTreeSet<Obstacle> = BTreeSet::new();
    for pid in pids {
        let links = links(*pid);
        found.extend(links.iter().filter_map(|link| kind(pid.as_raw(), link)));
        if !choice.tcp_established && !choice.tcp_close {
            found.extend(connections(*pid, &links));
        }
    }
    let Some(first) = found.first() else { return Ok(()) };
    let mut what = String::new();
    for Obstacle { pid, object, .. } in &found {
        let comma = if what.is_empty() { "" } else { ", " };
        // Writing to a text does not fail.
        write!(what, "{comma}{object} of process {pid}").ok();
    }
    Err(refuse(&what).hint(first.way_out))
}

/// Which of the processes are no descendants of the first: `exec` brings such ones. They are in nobody's way, but CRIU saves what
/// is below the first alone.
pub fn not_below(first: Pid, pids: &[Pid]) -> Vec<Pid> {
    // One that has ended meanwhile is nobody's child.
    let parent = |pid: &Pid| {
        let status = procfs::text(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        parent.filter(|parent| *parent > 0).map(Pid::from_raw)
    };
    let is_below = |pid: &&Pid| std::iter::successors(Some(**pid), parent).any(|above| above == first);
    let lives = |pid: &&Pid| procfs::stat(**pid).is_ok_and(|stat| !stat.is_dead());
    pids.iter().filter(|pid| !is_below(pid)).filter(lives).copied().collect()
}

/// What each descriptor leads to. One that is closed meanwhile, or belongs to a process that ends, is not in the way.
fn links(pid: Pid) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).collect()
}

fn kind(pid: i32, link: &str) -> Option<Obstacle> {
    let (kind, way_out) = KINDS.iter().find(|(kind, _)| link == *kind)?;
    let object = kind.trim_start_matches("anon_inode:").trim_matches(['[', ']']).to_owned();
    Some(Obstacle { pid, object, way_out })
}

/// Established connections among a process' sockets.
fn connections(pid: Pid, links: &[String]) -> Vec<Obstacle> {
    let sockets: BTreeSet<&str> =
        links.iter().filter_map(|link| link.strip_prefix("socket:[")?.strip_suffix(']')).collect();
    if sockets.is_empty() {
        return Vec::new();
    }
    let tables = ["tcp", "tcp6"].map(|name| procfs::text(format!("/proc/{pid}/net/{name}")).unwrap_or_default());
    let rows = tables.iter().flat_map(|table| table.lines());
    rows.filter_map(|row| established(row).filter(|(inode, _)| sockets.contains(inode)))
        .map(|(_, port)| Obstacle {
            pid: pid.as_raw(),
            object: format!("an established TCP connection on port {port}"),
            way_out: "--tcp-established keeps connections, at both ends of the way; --tcp-close closes them",
        })
        .collect()
}

/// The inode and local port of a row that is in the state ESTABLISHED. proc_pid_net(5)
fn established(row: &str) -> Option<(&str, u16)> {
    let fields: Vec<&str> = row.split_whitespace().collect();
    let (_, port) = fields.get(1)?.split_once(':')?;
    (*fields.get(3)? == "01").then_some(())?;
    Some((fields.get(9)?, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_criu_cannot_save() {
        assert_eq!(kind(7, "anon_inode:[io_uring]").unwrap().object, "io_uring");
        assert_eq!(kind(7, "anon_inode:[eventpoll]"), None);
        assert_eq!(kind(7, "/tmp/anon_inode:[io_uring]"), None);
    }

    #[test]
    fn who_is_below_whom() {
        let (own, parent) = (nix::unistd::getpid(), nix::unistd::getppid());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pids = [own, parent, Pid::from_raw(child.id().cast_signed())];
        assert_eq!(not_below(own, &pids), [parent]);
        assert_eq!(not_below(pids[2], &pids), [own, parent]);
        child.kill().and_then(|()| child.wait()).unwrap();
        assert_eq!(not_below(own, &pids), [parent], "one that has ended is not lost");
    }

    #[test]
    fn established_rows() {
        let row = "   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4711 1";
        assert_eq!(established(row), Some(("4711", 8080)));
        assert_eq!(established(&row.replace(" 01 0", " 0A 0")), None);
        assert_eq!(established("  sl  local_address rem_address   st tx_queue"), None);
        assert_eq!(established(""), None);
    }

    #[test]
    fn connections_of_a_process() {
        let own = nix::unistd::getpid();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let found = connections(own, &links(own));
        let wanted = format!("an established TCP connection on port {}", client.local_addr().unwrap().port());
        assert!(found.iter().any(|obstacle| obstacle.object == wanted && obstacle.pid == own.as_raw()), "{found:?}");
        let listening = format!("port {}", listener.local_addr().unwrap().port());
        assert_eq!(
            found.iter().filter(|obstacle| obstacle.object.ends_with(&listening)).count(),
            0,
            "not accepted yet"
        );
    }
}
