//! What state a container is in: asked of the kernel each time, never remembered.
//!
//! ```text
//! creating -> created -> running <-> paused
//!                 \          \        /
//!                  +-----> stopped <-+
//! ```
//! runtime.md#state

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::record::Record;
use super::store::Entry;
use crate::cgroup;

/// The status of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It has no process yet.
    Creating,
    /// Its process waits to be started.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its process has ended.
    Stopped,
}

/// As the specification writes it.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What `state` and `list` show, and hooks read on their standard input. runtime.md#state
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// As the host counts; 0 when there is none.
    pub pid: i32,
    /// The status.
    pub status: Status,
    /// Absolute.
    pub bundle: PathBuf,
    /// Absolute.
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// The configuration's annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The name of the user that created it.
    pub owner: String,
}

/// The status of the container that `record` is of.
pub fn of(entry: &Entry, record: &Record) -> Status {
    let Some(init) = record.init else { return Status::Creating };
    if !init.is_alive() {
        return Status::Stopped;
    }
    if entry.has_gate() {
        return Status::Created;
    }
    let frozen = record.cgroup.as_ref().and_then(|path| cgroup::fs::open(path).ok()).is_some_and(|cgroup| {
        // A cgroup that is gone has nothing frozen in it.
        cgroup::life::is_frozen(&cgroup).unwrap_or(false)
    });
    if frozen { Status::Paused } else { Status::Running }
}

impl State {
    /// The state of a container.
    pub fn new(record: &Record, status: Status, annotations: BTreeMap<String, String>, owner: String) -> Self {
        let pid = match (status, record.init) {
            (Status::Stopped | Status::Creating, _) | (_, None) => 0,
            (_, Some(init)) => init.pid,
        };
        Self {
            oci_version: record.oci_version.clone(),
            id: record.id.clone(),
            pid,
            status,
            bundle: record.bundle.clone(),
            rootfs: record.rootfs.clone(),
            created: record.created.clone(),
            annotations,
            owner,
        }
    }
}
