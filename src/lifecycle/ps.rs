//! `ps`: the processes of a container, as the host counts them.
//!
//! The cgroup knows them all. Without one they are the first process, those that share its pid namespace (`exec` puts
//! some there that are no children of it), and the descendants of all these. proc_pid_task(5)

use std::fs;
use std::io;
use std::path::PathBuf;

use nix::unistd::Pid;

use super::{Setting, live};
use crate::cgroup::life;
use crate::container::Record;
use crate::error::{Context, Error, Result};
use crate::namespaces::Kind;
use crate::procfs;

/// Host ids of the container's processes, in ascending order; none for one that has stopped.
///
/// # Errors
/// There is no such container; its cgroup or `/proc` cannot be read.
pub fn pids(setting: &Setting, id: &str) -> Result<Vec<i32>> {
    let container = live::open(setting, id)?;
    let Some(init) = container.init() else { return Ok(Vec::new()) };
    let mut pids: Vec<i32> = match &container.record.cgroup {
        Some(_) => life::procs(&container.cgroup("list the processes of")?)?.into_iter().map(Pid::as_raw).collect(),
        None => related(&container.record, init.pid)?,
    };
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

/// The processes of a container without a cgroup.
pub(super) fn related(record: &Record, init: i32) -> Result<Vec<i32>> {
    if !PathBuf::from("/proc/thread-self/children").exists() {
        return Err(Error::said("list the processes of", format!("container {:?}", record.id), "it has no cgroup")
            .hint("and this kernel was built without CONFIG_PROC_CHILDREN, which would tell them too"));
    }
    let mut known = vec![init];
    if record.namespaces.contains(&Kind::Pid) {
        known.extend(namespace_members(init).or_cannot("read", "/proc")?);
    }
    let found = procfs::descendants(known.into_iter().map(Pid::from_raw));
    let found = found.or_cannot("list the processes of", format!("container {:?}", record.id))?;
    Ok(found.into_iter().map(Pid::as_raw).collect())
}

/// Processes in the pid namespace of `init`. Those that may not be looked at are another user's.
fn namespace_members(init: i32) -> io::Result<Vec<i32>> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(own) = namespace(init) else { return Ok(Vec::new()) };
    let is_member = |pid: &i32| namespace(*pid).as_ref() == Some(&own);
    Ok(procfs::numbers("/proc")?.into_iter().filter(is_member).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_its_own_namespace() {
        let own = std::process::id() as i32;
        assert!(namespace_members(own).unwrap().contains(&own));
        assert!(namespace_members(i32::MAX).unwrap().is_empty());
    }
}
