//! `pause`: every process of a container stands still, through the freezer of its cgroup.

use std::time::Duration;

use super::{Setting, live};
use crate::cgroup::life;
use crate::container::Status;
use crate::error::{Error, Result};

/// How long processes may take to stop, or to go on.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Freezes a container that runs, or that waits to be started.
///
/// # Errors
/// It does not run, is paused already or has no cgroup; a process does not stop, and then none is left frozen.
pub fn pause(setting: &Setting, id: &str) -> Result<()> {
    let container = live::open_locked(setting, id)?;
    match container.status {
        Status::Running | Status::Created => life::freeze(&container.cgroup("pause")?, PATIENCE),
        other => Err(Error::plain(format!("container not running: {id:?} is {other}"))),
    }
}
