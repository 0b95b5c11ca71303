//! What is kept of a container between one ferry process and the next: a small JSON file, replaced by rename.
//!
//! The file is not synced to disk: it describes a process, and no process outlives the machine going down. After a crash
//! of the host a record that is torn or stale means the same, that the container is gone, and `delete --force` removes it.
//! Another version of the format, or a file that is no record, is refused: it could be anything.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::Driver;
use crate::cgroup::location::Unit;
use crate::cgroup::resctrl::Groups;
use crate::error::{Error, Result};
use crate::namespaces::Kind;

/// The version of the format.
pub const FORMAT: u32 = 1;

/// A container's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// The container's id.
    pub id: String,
    /// `ociVersion` of its configuration.
    pub oci_version: String,
    /// Absolute.
    pub bundle: PathBuf,
    /// Absolute.
    pub rootfs: PathBuf,
    /// RFC 3339, UTC.
    pub created: String,
    /// The user that created it.
    pub owner: u32,
    /// Its first process; absent until there is one.
    pub init: Option<Init>,
    /// Its cgroup, under the mount of the cgroup tree, where it has one.
    pub cgroup: Option<PathBuf>,
    /// systemd's scope, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Unit>,
    /// Its groups in the resctrl filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resctrl: Option<Groups>,
    /// The image store in which it has its upper layer, where its root is an image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
    /// Who made the cgroup.
    pub cgroup_driver: Driver,
    /// The namespaces it does not share with the host: what `exec` joins.
    pub namespaces: Vec<Kind>,
    /// Of one that has its root mounted in the host's mount namespace: the ids of what was mounted there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounted_over: Option<Vec<u64>>,
    /// Whether the caller's session keyring is used as it is.
    pub no_new_keyring: bool,
    /// Whether `start` and `delete` have something to read in the configuration: hooks, or a seccomp agent. Most
    /// containers have neither.
    pub reads_config: bool,
    /// The migration that brought it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brought_by: Option<String>,
    /// The machine that a migration has given it up to, as that was named: it goes on there, or here once that has given it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_to: Option<String>,
}

impl Record {
    /// Whether it may be made to do anything here.
    ///
    /// # Errors
    /// It was given up to another machine: it may run there.
    pub fn is_here(&self) -> Result<()> {
        let Some(peer) = &self.given_to else { return Ok(()) };
        let id = &self.id;
        Err(Error::plain(format!("container {id:?} is not this machine's: a migration has given it up to {peer}"))
            .hint(format!("`ferry migrate --recover {id}` settles it")))
    }
}

/// A process that cannot be mistaken for another one that got its pid later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Init {
    /// As the host counts.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
}

impl Init {
    /// The pid.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.pid)
    }

    /// Whether it has ended, or is about to and can be joined no more.
    ///
    /// # Errors
    /// As [`Init::is_alive`].
    pub fn is_ending(&self) -> Result<bool> {
        self.look(|stat| stat.exits).map(|alive| alive.unwrap_or(true))
    }

    /// Whether it still runs (or is stopped or frozen): the same process, and no zombie.
    ///
    /// # Errors
    /// What the kernel answers, where that is not that there is no such process: one that cannot be looked at just now is
    /// not one that has ended, and what it holds must not be given up.
    pub fn is_alive(&self) -> Result<bool> {
        self.look(|_| true).map(|alive| alive.is_some())
    }

    /// What `at` sees of it; none: it has ended.
    fn look<T>(&self, at: impl FnOnce(&crate::procfs::Stat) -> T) -> Result<Option<T>> {
        match crate::procfs::stat(self.pid()) {
            Ok(stat) if stat.start_time != self.start_time || stat.is_dead() => Ok(None),
            Ok(stat) => Ok(Some(at(&stat))),
            Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
            Err(answer) => Err(Error::kernel("look at process", self.pid.to_string(), answer)),
        }
    }
}
