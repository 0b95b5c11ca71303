//! Namespaces: which are made, which are joined, and what stands in them.
//!
//! One table names the eight kinds; the plan, `features`, `explain` and errors derive from it. namespaces(7)

pub mod id_map;
pub mod inside;
pub mod mapped;
pub mod plan;

use nix::sched::CloneFlags;

pub use plan::{Join, Namespaces, User};

/// `CLONE_NEWTIME`: linux/sched.h. It shares its bit with the signal mask of clone(2), so nix leaves it out.
pub const CLONE_NEWTIME: i32 = 0x80;

/// One kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Users and groups.
    User,
    /// Process ids.
    Pid,
    /// Mounts.
    Mount,
    /// Network.
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// The root of the cgroup tree.
    Cgroup,
    /// Monotonic and boot-time clocks.
    Time,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Which.
    pub kind: Kind,
    /// Its name in config.json. config-linux.md#namespaces
    pub name: &'static str,
    /// Its `CLONE_NEW*` bit.
    pub flag: i32,
    /// Its file in `/proc/PID/ns`.
    pub file: &'static str,
}

/// Every kind that exists. The order is the one in which a process joins them: the user namespace first, since the right
/// to enter the others comes with it; mount last, since paths change their meaning with it.
pub const TABLE: [Row; 8] = [
    Row { kind: Kind::User, name: "user", flag: CloneFlags::CLONE_NEWUSER.bits(), file: "user" },
    Row { kind: Kind::Pid, name: "pid", flag: CloneFlags::CLONE_NEWPID.bits(), file: "pid" },
    Row { kind: Kind::Network, name: "network", flag: CloneFlags::CLONE_NEWNET.bits(), file: "net" },
    Row { kind: Kind::Ipc, name: "ipc", flag: CloneFlags::CLONE_NEWIPC.bits(), file: "ipc" },
    Row { kind: Kind::Uts, name: "uts", flag: CloneFlags::CLONE_NEWUTS.bits(), file: "uts" },
    Row { kind: Kind::Cgroup, name: "cgroup", flag: CloneFlags::CLONE_NEWCGROUP.bits(), file: "cgroup" },
    Row { kind: Kind::Time, name: "time", flag: CLONE_NEWTIME, file: "time" },
    Row { kind: Kind::Mount, name: "mount", flag: CloneFlags::CLONE_NEWNS.bits(), file: "mnt" },
];

impl Kind {
    /// Its row.
    pub fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.kind == self).unwrap_or(&TABLE[0])
    }
}
