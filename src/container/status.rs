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
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Serialize;

use super::record::Record;
use super::store::Entry;
use crate::cgroup;
use crate::error::Result;

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
///
/// # Errors
/// The kernel's answer, where it is none about the container: what cannot be found out is not guessed.
pub fn of(entry: &Entry, record: &Record) -> Result<Status> {
    let Some(init) = record.init else { return Ok(Status::Creating) };
    if !init.is_alive()? {
        return Ok(Status::Stopped);
    }
    // Also before it was started, as runc has it: it would not answer at its gate.
    let frozen = match &record.cgroup {
        Some(path) => is_frozen(path)?,
        None => false,
    };
    Ok(match frozen {
        true => Status::Paused,
        false if entry.has_gate()? => Status::Created,
        false => Status::Running,
    })
}

/// A cgroup that is gone, or that is not the caller's to look at, has nothing frozen in it.
fn is_frozen(path: &Path) -> Result<bool> {
    let frozen = cgroup::fs::open(path).and_then(|cgroup| cgroup::life::is_frozen(&cgroup));
    match frozen {
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::ENODEV | Errno::EACCES)) => Ok(false),
        frozen => frozen,
    }
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
