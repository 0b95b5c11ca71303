//! `ps`: the processes of a container, as the host counts them.
//!
//! The cgroup knows them all. Without one they are the first process, those that share its pid namespace (`exec` puts
//! some there that are no children of it), and the descendants of all these. proc_pid_task(5)

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use nix::unistd::Pid;

use super::{Setting, live};
use crate::cgroup::life;
use crate::container::Record;
use crate::error::{Error, Result};
use crate::namespaces::Kind;

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
    let mut queue = vec![init];
    if record.namespaces.contains(&Kind::Pid) {
        queue.extend(namespace_members(init));
    }
    let mut found = BTreeSet::new();
    while let Some(pid) = queue.pop() {
        if found.insert(pid) {
            queue.extend(children(pid));
        }
    }
    Ok(found.into_iter().collect())
}

/// Processes in the pid namespace of `init`. Those that may not be looked at are another user's.
fn namespace_members(init: i32) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(own) = namespace(init) else { return Vec::new() };
    numbers("/proc").into_iter().filter(|pid| namespace(*pid).as_ref() == Some(&own)).collect()
}

/// The children of every thread of a process. One that has ended meanwhile has none.
fn children(pid: i32) -> Vec<i32> {
    let tasks = format!("/proc/{pid}/task");
    let of = |task: i32| fs::read_to_string(format!("{tasks}/{task}/children")).unwrap_or_default();
    let lists: Vec<String> = numbers(&tasks).into_iter().map(of).collect();
    lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
}

/// The entries of a directory of procfs that are numbers.
fn numbers(dir: &str) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn children_are_found_through_the_thread_that_started_them() {
        let child = std::thread::spawn(|| Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn());
        let mut child = child.join().unwrap().unwrap();
        let pid = child.id() as i32;
        let own = children(std::process::id() as i32);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(own.contains(&pid), "{own:?}");
        assert!(!children(std::process::id() as i32).contains(&pid));
    }

    #[test]
    fn this_process_is_in_its_own_namespace() {
        let own = std::process::id() as i32;
        assert!(namespace_members(own).contains(&own));
        assert!(namespace_members(i32::MAX).is_empty());
    }
}
