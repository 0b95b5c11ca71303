//! Freezing, killing and removing real cgroups with real processes.

use super::*;
use crate::cgroup::fs;
use crate::cgroup::trial::{PATIENCE, Trial};

const SIGKILL: Option<i32> = Some(9);

#[test]
fn freezes_and_thaws() {
    let Some(mut trial) = Trial::new("freeze") else { return };
    let cgroup = trial.create("box");
    trial.start(&cgroup);
    freeze(&cgroup, PATIENCE).unwrap();
    assert!(is_frozen(&cgroup).unwrap());
    let events = file::read(cgroup.as_fd(), "cgroup.events").unwrap();
    assert_eq!(file::value_of(&events, "frozen"), Some("1"));
    thaw(&cgroup, PATIENCE).unwrap();
    assert!(!is_frozen(&cgroup).unwrap());
}

#[test]
fn a_cgroup_below_a_frozen_one_does_not_thaw() {
    let Some(mut trial) = Trial::new("thaw") else { return };
    let (above, below) = (trial.create("above"), trial.create("above/below"));
    trial.start(&below);
    freeze(&above, PATIENCE).unwrap();
    let error = thaw(&below, Duration::from_millis(20)).unwrap_err().to_string();
    assert!(error.contains("a cgroup above it is frozen"), "{error}");
    thaw(&above, PATIENCE).unwrap();
}

#[test]
fn kills_all_below_even_frozen_and_removes() {
    let Some(mut trial) = Trial::new("kill") else { return };
    let (cgroup, below) = (trial.create("box"), trial.create("box/a/b"));
    let mut pids = vec![trial.start(&cgroup), trial.start(&below)];
    let mut listed = procs(&cgroup).unwrap();
    pids.sort();
    listed.sort();
    assert_eq!(listed, pids);
    freeze(&cgroup, PATIENCE).unwrap();
    kill(&cgroup).unwrap();
    assert!(wait_empty(&cgroup, PATIENCE).unwrap());
    assert_eq!(trial.signals(), [SIGKILL, SIGKILL]);
    remove(&cgroup, PATIENCE).unwrap();
    assert!(!cgroup.path.exists());
    // Gone is empty, killed and removed.
    kill(&cgroup).unwrap();
    remove(&cgroup, PATIENCE).unwrap();
    assert!(wait_empty(&cgroup, PATIENCE).unwrap() && procs(&cgroup).unwrap().is_empty());
}

#[test]
fn kills_one_by_one_on_old_kernels_and_leaves_nothing_frozen() {
    let Some(mut trial) = Trial::new("kill-old") else { return };
    let (cgroup, below) = (trial.create("box"), trial.create("box/below"));
    trial.start(&cgroup);
    trial.start(&below);
    kill_one_by_one(&cgroup).unwrap();
    assert_eq!(trial.signals(), [SIGKILL, SIGKILL]);
    assert!(!is_frozen(&cgroup).unwrap());
}

#[test]
fn kills_in_rounds_without_any_freezer() {
    let Some(mut trial) = Trial::new("kill-oldest") else { return };
    let cgroup = trial.create("box");
    trial.start(&cgroup);
    kill_rounds(&cgroup).unwrap();
    assert_eq!(trial.signals(), [SIGKILL]);
}

#[test]
fn a_busy_cgroup_is_reported_with_its_processes() {
    let Some(mut trial) = Trial::new("busy") else { return };
    let cgroup = trial.create("box");
    let pid = trial.start(&cgroup);
    assert!(!wait_empty(&cgroup, Duration::ZERO).unwrap());
    let error = remove(&cgroup, Duration::from_millis(10)).unwrap_err().to_string();
    assert!(error.contains(&format!("processes run in it: {pid}")), "{error}");
    assert!(cgroup.path.exists());
}

#[test]
fn removal_waits_for_processes_that_are_about_to_end() {
    let Some(mut trial) = Trial::new("late") else { return };
    let cgroup = trial.create("box");
    trial.start(&cgroup);
    kill(&cgroup).unwrap();
    remove(&cgroup, PATIENCE).unwrap();
    assert!(fs::open(&cgroup.path).is_err());
}
