//! `resume`: the processes of a paused container go on.

use super::pause::PATIENCE;
use super::{Setting, live};
use crate::cgroup::life;
use crate::container::Status;
use crate::error::{Error, Result};

/// Thaws a paused container.
///
/// # Errors
/// It is not paused, or a cgroup above its own is frozen; a migration has given it up.
pub fn resume(setting: &Setting, id: &str) -> Result<()> {
    let container = live::open_locked(setting, id)?;
    let not_paused = || Error::plain(format!("container not paused: {id:?} is {}", container.status));
    // A container without a cgroup is told so, and not that it is not paused.
    match container.status {
        Status::Creating | Status::Stopped => return Err(not_paused()),
        Status::Created | Status::Running | Status::Paused => (),
    }
    container.record.is_here()?;
    let cgroup = container.cgroup("resume")?;
    if !life::is_frozen(&cgroup)? {
        return Err(not_paused());
    }
    life::thaw(&cgroup, PATIENCE)
}
