//! Containers of one cgroup path, one after the other or one below the other: what one verb does to a container is done to no other.

use std::fs::{self, File};
use std::path::PathBuf;

use libtest_mimic::Failed;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use super::case::{Case, marked_processes};
use super::need::Need::{CgroupV2, Ferry, Root};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_stopped_container_is_deleted_from_under_another", &[Root, Ferry, CgroupV2(&[])], stopped),
    scenario("a_stopped_container_is_deleted_from_above_another", &[Root, Ferry, CgroupV2(&[])], above),
    scenario("a_create_that_was_cut_off_has_not_taken_it", &[Root, Ferry, CgroupV2(&[])], cut_off),
    scenario("what_outlived_its_first_process_is_still_ended", &[Root, CgroupV2(&[])], survivors),
    scenario("two_creates_at_once_do_not_share_it", &[Root, Ferry, CgroupV2(&[])], at_once),
];

/// A place that is named after the case, and so looked for among its leftovers.
fn place(case: &mut Case, below: &str) -> String {
    let place = format!("/{}-berth{below}", case.id);
    case.config["linux"]["cgroupsPath"] = place.as_str().into();
    place
}

fn directory(case: &Case, place: &str) -> Result<PathBuf, Failed> {
    Ok(case.stage.cgroup_v2.clone().ok_or("there is no v2 tree")?.join(&place[1..]))
}

/// The case's own container has ended, and nobody has deleted it.
fn end(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    case.kill_and_wait("KILL")
}

fn status(case: &mut Case, id: &str) -> Result<Value, Failed> {
    Ok(case.call(&["state", id])?.success()?.json()?["status"].clone())
}

fn delete(case: &mut Case, id: &str) -> Outcome {
    case.call(&["delete", "--force", id])?.success().map(drop)
}

/// The first verb about a container that has ended leaves `other` alone, and so do the others.
fn is_left_alone(case: &mut Case, other: &str) -> Outcome {
    let id = case.id.clone();
    case.call(&["kill", "--all", &id, "KILL"])?.success()?;
    assert_eq!(status(case, other)?, "running");
    let said = case.call(&["delete", &id])?.success()?.stderr;
    assert!(said.contains("-berth stays: processes run in it that are not container"), "{said}");
    assert_eq!(status(case, other)?, "running");
    delete(case, other)
}

fn stopped(case: &mut Case) -> Outcome {
    let place = place(case, "");
    end(case)?;
    let other = case.start_other()?;
    // Empty, and of the other one: as a service manager has them.
    let inner = directory(case, &place)?.join("inner");
    fs::create_dir(&inner)?;
    let id = case.id.clone();
    case.call(&["delete", &id])?.success()?;
    assert!(inner.exists());
    assert!(end(case).is_err(), "its cgroup is in use");
    assert_eq!(status(case, &other)?, "running");
    delete(case, &other)?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());

    end(case)?;
    let other = case.start_other()?;
    is_left_alone(case, &other)?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn above(case: &mut Case) -> Outcome {
    let above = place(case, "");
    end(case)?;
    place(case, "/inner");
    let other = case.start_other()?;
    is_left_alone(case, &other)?;
    fs::remove_dir(directory(case, &above)?)?;
    Ok(())
}

/// Its record names the cgroup that it was about to take.
fn cut_off(case: &mut Case) -> Outcome {
    place(case, "");
    case.start_waiting()?;
    let (id, other) = (case.id.clone(), case.other_id());
    let text = fs::read_to_string(case.state_root().join(&id).join("state.json"))?;
    let mut record: Value = serde_json::from_str(&text)?;
    record["id"] = other.as_str().into();
    record["init"] = Value::Null;
    fs::create_dir(case.state_root().join(&other))?;
    fs::write(case.state_root().join(&other).join("state.json"), record.to_string())?;
    delete(case, &other)?;
    assert!(!case.state_root().join(&other).exists());
    assert_eq!(status(case, &id)?, "running");
    Ok(())
}

/// They share the host's pid namespace: no kernel ends them with the first.
fn survivors(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "pid");
    case.args(&["/probe", "fork", "3"]).start()?.until("ready")?;
    let (pid, id) = (case.pid()?, case.id.clone());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into()?), nix::sys::signal::Signal::SIGKILL)?;
    case.wait_for(pid)?;
    assert_eq!(marked_processes(&case.directory).len(), 3);
    case.call(&["delete", &id])?.success()?;
    marked_processes(&case.directory).into_iter().try_for_each(|pid| case.wait_for(pid))?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// What two starts that look at the same moment go by.
fn at_once(case: &mut Case) -> Outcome {
    let place = place(case, "");
    let directory = directory(case, &place)?;
    fs::create_dir(&directory)?;
    let other = File::open(&directory)?;
    flock(&other, FlockOperation::NonBlockingLockExclusive)?;
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let id = case.id.clone();
    let said = case.call(&["create", "--bundle", &bundle, &id])?.failure()?.stderr;
    assert!(said.contains("another container is just being put there"), "{said}");
    assert!(directory.exists());
    flock(&other, FlockOperation::Unlock)?;
    case.create()?;
    flock(&other, FlockOperation::NonBlockingLockExclusive)?;
    delete(case, &id)
}
