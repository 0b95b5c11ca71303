//! Checkpoints and restores that are cut off: ferry or CRIU is killed, or interrupted, or stands still. Whatever happens, the
//! container goes on or is saved whole, and nothing stays that `delete --force` does not remove.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::case::{Case, marked_processes};
use super::checkpoint::{CRIU, checkpoint, images, restore, spawn_restore};
use super::output;
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_killed_checkpoint_loses_no_container", CRIU, killed_checkpoint),
    scenario("a_killed_pre_dump_loses_no_container", CRIU, killed_pre_dump),
    scenario("a_killed_restore_is_cleaned_up_by_delete", CRIU, killed_restore),
    scenario("an_interrupted_checkpoint_leaves_the_container_running", CRIU, interrupted_checkpoint),
    scenario("an_interrupt_ends_a_silent_criu", CRIU, silent_criu),
    scenario("an_interrupted_restore_leaves_nothing", CRIU, interrupted_restore),
    scenario("delete_does_not_wait_for_a_silent_criu", CRIU, deleted),
];

/// At so many moments something is killed.
pub(super) fn moments() -> u32 {
    if std::env::var_os("FERRY_LONG").is_some() { 30 } else { 5 }
}

/// ferry's children but for the container's first process, which has a pid namespace to itself: CRIU, or nobody.
fn criu_of(ferry: u32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{ferry}/task/{ferry}/children")).unwrap_or_default();
    let outside = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("NSpid:").is_some_and(|pids| pids.split_whitespace().count() == 1))
    };
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(outside).collect()
}

/// Whether it is the process that lets the container go on in a killed ferry's place.
pub(super) fn thaws(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "ferry-thaws\n")
}

/// Kills ferry, or CRIU below it, at a moment, and waits until both are gone.
#[allow(clippy::disallowed_methods, reason = "the moment is what the test is about")]
pub(super) fn kill_at(case: &Case, child: &mut Child, moment: Duration, whom: &str) -> Outcome {
    std::thread::sleep(moment);
    let ferry = Pid::from_raw(i32::try_from(child.id())?);
    // It stands still while one looks whom there is. It may have ended by itself, as may they.
    kill(ferry, Signal::SIGSTOP).ok();
    waitid(Id::Pid(ferry), WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    let criu = criu_of(child.id());
    if whom == "ferry" {
        kill(ferry, Signal::SIGKILL).ok();
    } else {
        for pid in criu.iter().filter(|pid| !thaws(**pid)) {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
    }
    kill(ferry, Signal::SIGCONT).ok();
    output::wait(child, case.patience())?;
    criu.into_iter().try_for_each(|pid| case.wait_for(u32::try_from(pid)?))
}

/// Starts a checkpoint and does not wait; what it says goes to a file.
fn spawn_checkpoint(case: &mut Case, images: &str) -> Result<Child, Failed> {
    spawn_checkpoint_with(case, images, &[])
}

/// The same with flags.
fn spawn_checkpoint_with(case: &mut Case, images: &str, flags: &[&str]) -> Result<Child, Failed> {
    let errors = fs::File::create(case.directory.join("errors"))?;
    let id = case.id.clone();
    let mut command = case.command(&[&["checkpoint", "--image-path", images], flags, &[&id]].concat());
    Ok(command.stdout(Stdio::null()).stderr(errors).spawn()?)
}

fn said(case: &Case) -> Result<String, Failed> {
    Ok(fs::read_to_string(case.directory.join("errors"))?)
}

fn killed_checkpoint(case: &mut Case) -> Outcome {
    for whom in ["ferry", "criu"] {
        for number in 0..moments() {
            let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
            row.go_on(3)?;
            let processes = marked_processes(&case.directory).len();
            let images = case.path(&format!("{whom}-{number}"));
            let mut child = spawn_checkpoint(case, &images)?;
            kill_at(case, &mut child, Duration::from_millis(u64::from(number) * 40), whom)?;
            let said = said(case)?;
            // A CRIU that was killed by others while a process ran its code takes that one along, at once or a moment later:
            // ferry says so, or can only say that CRIU is gone.
            let taken_along = said.contains("have ended meanwhile");
            let cut_off = taken_along || said.contains("ended without an answer");
            let outcome =
                if taken_along { Err(said.clone().into()) } else { goes_on_or_is_saved(case, &mut row, &images) };
            match outcome {
                Err(_) if whom == "criu" && cut_off && marked_processes(&case.directory).len() < processes => (),
                outcome => outcome.map_err(|why| format!("{whom} at {number}: {why:?}, {said}"))?,
            }
            leaves_nothing(case)?;
        }
    }
    Ok(())
}

pub(super) fn runs(case: &mut Case) -> Result<bool, Failed> {
    let id = case.id.clone();
    let answer = case.call(&["state", &id])?;
    Ok(answer.code == 0 && answer.json()?["status"] == "running")
}

/// Either it is as before, or it was saved before the end came.
fn goes_on_or_is_saved(case: &mut Case, row: &mut Row, images: &str) -> Outcome {
    let id = case.id.clone();
    if runs(case)? {
        row.go_on(5).map_err(|why| format!("{why:?} of {}", case.processes()))?;
    } else {
        let bundle = case.bundle.path().display().to_string();
        case.call(&["delete", "--force", &id])?.success()?;
        let lines = case.begin(&["restore", "--detach", "--image-path", images, "--bundle", &bundle, &id])?;
        row.continued(lines)?;
    }
    Ok(())
}

/// Once it is deleted.
fn leaves_nothing(case: &mut Case) -> Outcome {
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    // What CRIU was running at that moment ends by itself.
    marked_processes(&case.directory).into_iter().try_for_each(|pid| case.wait_for(pid))?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn killed_restore(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
    row.go_on(3)?;
    checkpoint(case, &[])?;
    let (images, id, bundle) = (images(case), case.id.clone(), case.bundle.path().display().to_string());
    for whom in ["ferry", "criu"] {
        for number in 0..moments() {
            let (mut child, _lines) =
                spawn_restore(case, &["--detach", "--image-path", &images, "--bundle", &bundle, &id])?;
            kill_at(case, &mut child, Duration::from_millis(u64::from(number) * 40), whom)?;
            case.call(&["delete", "--force", &id])?.success()?;
            assert_eq!(case.leftovers()?, Vec::<String>::new(), "{whom} at {number}");
        }
    }
    let lines = restore(case, &[])?;
    row.continued(lines)
}

/// What a pre-dump is killed in goes on, and can be saved.
fn killed_pre_dump(case: &mut Case) -> Outcome {
    for whom in ["ferry", "criu"] {
        for number in 0..moments() {
            let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
            row.go_on(3)?;
            let images = case.path(&format!("{whom}-{number}"));
            let mut child = spawn_checkpoint_with(case, &images, &["--pre-dump"])?;
            kill_at(case, &mut child, Duration::from_millis(u64::from(number) * 20), whom)?;
            let said = said(case)?;
            // As in a checkpoint: a CRIU that is killed may take a process along that runs its code.
            let taken_along = whom == "criu" && said.contains("ended");
            match row.go_on(5).and_then(|()| checkpoint(case, &["--leave-running"])).and_then(|()| row.go_on(3)) {
                Err(_) if taken_along => (),
                outcome => outcome.map_err(|why| format!("{whom} at {number}: {why:?}, {said}"))?,
            }
            leaves_nothing(case)?;
        }
    }
    Ok(())
}

/// At moments all over a dump: none may harm the container.
fn interrupted_checkpoint(case: &mut Case) -> Outcome {
    for number in 0..moments() {
        let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
        row.go_on(3)?;
        let images = case.path(&number.to_string());
        let mut child = spawn_checkpoint(case, &images)?;
        pause(Duration::from_millis(u64::from(number) * 40));
        kill(pid_of(&child)?, Signal::SIGINT).ok();
        output::wait(&mut child, case.patience())?;
        let said = said(case)?;
        goes_on_or_is_saved(case, &mut row, &images).map_err(|why| format!("at {number}: {why:?}, {said}"))?;
        leaves_nothing(case)?;
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "the moment is what the test is about")]
fn pause(moment: Duration) {
    std::thread::sleep(moment);
}

fn pid_of(child: &Child) -> Result<Pid, Failed> {
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// Makes CRIU stand still as soon as it holds the processes of the container, or is at work on others. `None`: it was over before.
fn stop_criu(case: &Case, ferry: &mut Child, log: &str) -> Result<Option<Pid>, Failed> {
    let until = Instant::now() + case.patience();
    while Instant::now() < until {
        if ferry.try_wait()?.is_some() {
            return Ok(None);
        }
        let begun = fs::metadata(log).is_ok_and(|log| log.len() > 0);
        if let (true, Some(criu)) = (begun, criu_of(ferry.id()).first()) {
            kill(Pid::from_raw(*criu), Signal::SIGSTOP)?;
            return Ok(Some(Pid::from_raw(*criu)));
        }
        std::thread::yield_now();
    }
    Err("CRIU did not begin".into())
}

/// A container, and a checkpoint of it whose CRIU stands still in the middle.
fn stopped_checkpoint(case: &mut Case, name: &str) -> Result<(Row, Child, Pid), Failed> {
    for number in 0..20 {
        let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
        row.go_on(3)?;
        let (images, id) = (case.path(&format!("images-{name}-{number}")), case.id.clone());
        let mut child = spawn_checkpoint(case, &images)?;
        if let Some(criu) = stop_criu(case, &mut child, &format!("{images}/dump.log"))? {
            return Ok((row, child, criu));
        }
        case.call(&["delete", "--force", &id])?.success()?;
    }
    Err("each was over before it could be stopped".into())
}

fn silent_criu(case: &mut Case) -> Outcome {
    let (mut row, mut child, criu) = stopped_checkpoint(case, "silent")?;
    kill(pid_of(&child)?, Signal::SIGTERM)?;
    assert!(!output::wait(&mut child, case.patience())?.success());
    let said = said(case)?;
    assert!(said.contains("interrupted by SIGTERM"), "{said}");
    case.wait_for(u32::try_from(criu.as_raw())?)?;
    assert_eq!(case.state()?["status"], "running");
    row.go_on(5)
}

fn interrupted_restore(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
    row.go_on(3)?;
    checkpoint(case, &[])?;
    let (images, id, bundle) = (images(case), case.id.clone(), case.bundle.path().display().to_string());
    fs::write(case.directory.join("errors"), "")?;
    let (mut child, _lines) = spawn_restore(case, &["--detach", "--image-path", &images, "--bundle", &bundle, &id])?;
    let criu = stop_criu(case, &mut child, &format!("{images}/restore.log"))?.ok_or("it was over before")?;
    kill(pid_of(&child)?, Signal::SIGINT)?;
    assert!(!output::wait(&mut child, case.patience())?.success());
    case.wait_for(u32::try_from(criu.as_raw())?)?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    let lines = restore(case, &[])?;
    row.continued(lines)
}

/// Neither for one whose ferry waits with it, nor for one that is alone.
fn deleted(case: &mut Case) -> Outcome {
    for alone in [false, true] {
        let (_row, mut child, criu) = stopped_checkpoint(case, &alone.to_string())?;
        let id = case.id.clone();
        if alone {
            kill(pid_of(&child)?, Signal::SIGKILL)?;
        }
        case.call(&["delete", "--force", &id])?.success()?;
        output::wait(&mut child, case.patience())?;
        case.wait_for(u32::try_from(criu.as_raw())?)?;
        // What CRIU had started ends a moment after it.
        marked_processes(&case.directory).into_iter().try_for_each(|pid| case.wait_for(pid))?;
        assert_eq!(case.leftovers()?, Vec::<String>::new(), "alone: {alone}");
    }
    Ok(())
}
