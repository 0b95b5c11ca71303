//! Snapshots, rollbacks and clones that are cut off: ferry or CRIU is killed in the middle. There is a container afterwards, with
//! all of its snapshots: it goes on, or can be rolled back again; and nothing of what was not finished stays.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::case::{Case, marked_processes, names_in};
use super::checkpoint::CRIU;
use super::checkpoint_cut_off::{kill_at, moments, runs};
use super::checkpoint_freezer::until_frozen;
use super::image::image;
use super::need::Need::{Ferry, Root};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use super::snapshot_memory::{deleted, memories, read, rolled_back, snapshot, started, taken, write};
use super::stage::is_long;

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("an_interrupted_snapshot_of_files_lets_the_container_go_on", &[Ferry, Root], interrupted_files),
    scenario("a_killed_snapshot_leaves_nothing", CRIU, killed_create),
    scenario("a_killed_rollback_loses_no_container", CRIU, killed_rollback),
    scenario("a_killed_clone_leaves_nothing", CRIU, killed_clone),
];

/// Starts a verb and kills it, or its CRIU, at the moment of this number of those that `whole`, all of its time, is divided into.
/// The lines are what its container prints.
fn cut_off(case: &mut Case, args: &[&str], whole: Duration, number: u32, whom: &str) -> Result<Lines, Failed> {
    let (lines, pipe) = Lines::pipe(case.patience())?;
    let mut command = case.command(&[&["snapshot"], args].concat());
    let mut child = command.stdout(pipe).stderr(Stdio::null()).spawn()?;
    drop(command);
    kill_at(case, &mut child, whole * number / moments(), whom)?;
    Ok(lines)
}

/// Every moment of ferry's, and then of CRIU's. One that is killed while a process runs its code takes that one along, at once or a
/// moment later: what is killed after it is CRIU again, of which the same is borne.
fn killed() -> impl Iterator<Item = (u32, &'static str)> {
    ["ferry", "criu"].into_iter().flat_map(|whom| (0..moments()).map(move |number| (number, whom)))
}

/// Whether it runs, and not only what it printed before is there to be read.
fn is_alive(case: &mut Case, row: &mut Row) -> Outcome {
    if runs(case)? { row.go_on(10) } else { Err("it has ended".into()) }
}

/// One that a killed CRIU took along has its snapshot to go back to.
fn goes_on(case: &mut Case, row: &mut Row, whom: &str, to: &str) -> Outcome {
    match is_alive(case, row) {
        Err(_) if whom == "criu" => rolled_back(case, row, to, &[]).map(drop),
        outcome => outcome,
    }
}

/// The upper layer has so many files that copying them takes longer than a signal is on its way.
fn interrupted_files(case: &mut Case) -> Outcome {
    let _lines = started(case, &["/probe", "sleep", "forever"])?;
    let (id, store) = (case.id.clone(), PathBuf::from(case.path("store")));
    let used = names_in(&store.join("containers")).pop().ok_or("nothing uses the image")?;
    let many = store.join("containers").join(used).join("upper/many");
    fs::create_dir(&many)?;
    (0..30_000).try_for_each(|number| fs::File::create(many.join(number.to_string())).map(drop))?;
    let cgroup = case.cgroups().into_iter().next().ok_or("it has no cgroup")?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGKILL] {
        let errors = case.path("errors");
        let mut command = case.command(&["snapshot", "create", &id]);
        let mut child = command.stdout(Stdio::null()).stderr(fs::File::create(&errors)?).spawn()?;
        until_frozen(case, &cgroup, "1")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        let ended = output::wait(&mut child, case.patience())?;
        assert!(!ended.success(), "{signal}");
        until_frozen(case, &cgroup, "0")?;
        assert_eq!(case.state()?["status"], "running", "{signal}");
        assert_eq!(snapshot(case, &["list", "--format", "json", &id])?.success()?.json()?, json!([]), "{signal}");
        if signal != Signal::SIGKILL {
            assert!(fs::read_to_string(&errors)?.contains("interrupted"), "{signal}");
            assert_eq!(names_in(&store.join("tmp")), Vec::<String>::new(), "{signal}");
        }
    }
    snapshot(case, &["create", &id])?.success()?;
    deleted(case)
}

fn killed_create(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "scribble", "8", "16"])?);
    row.go_on(5)?;
    let id = case.id.clone();
    let begun = Instant::now();
    taken(case, "first")?;
    let whole = begun.elapsed();
    // What CRIUs leave behind that others kill is a matter of the long run: a process that one of them has harmed lives on for a while.
    for (number, whom) in killed().filter(|(_, whom)| *whom == "ferry" || is_long()) {
        cut_off(case, &["create", "--memory", &id, "cut"], whole, number, whom)?;
        // It may have been done already.
        let listed = snapshot(case, &["list", "--format", "json", &id])?.success()?.json()?;
        if listed.as_array().is_some_and(|all| all.len() > 1) {
            snapshot(case, &["remove", &id, "cut"])?.success()?;
        }
        goes_on(case, &mut row, whom, "first").map_err(|why| format!("{whom} at {number}: {why:?}"))?;
    }
    // What was kept before the kills is there, and what is now; nothing else is.
    taken(case, "whole")?;
    rolled_back(case, &mut row, "first", &[])?;
    rolled_back(case, &mut row, "whole", &[])?;
    assert!(memories(case)?.len() <= 2, "{:?}", memories(case)?);
    deleted(case)
}

fn killed_rollback(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "scribble", "4", "16"])?);
    row.go_on(5)?;
    let id = case.id.clone();
    write(case, "/file", "one")?;
    taken(case, "one")?;
    write(case, "/file", "two")?;
    taken(case, "two")?;
    let begun = Instant::now();
    let first = rolled_back(case, &mut row, "one", &[])?;
    let whole = begun.elapsed();
    for (flags, whom, from) in
        [(&[][..], "ferry", first), (&[][..], "criu", first), (&["--files-only"][..], "ferry", 0)]
    {
        for number in 0..moments() {
            let at = |why: Failed| Failed::from(format!("{whom} at {number} {flags:?}: {why:?}"));
            cut_off(case, &[&["rollback"], flags, &[&id, "one"]].concat(), whole, number, whom)?;
            let state = case.state().map_err(at)?;
            assert!(state["status"] == "running" || state["status"] == "stopped", "{whom} at {number}: {state}");
            image(case, &["prune", "--all"])?.success()?;
            let listed = snapshot(case, &["list", "--format", "json", &id])?.success()?.json()?;
            assert_eq!(listed.as_array().map(Vec::len), Some(2), "{whom} at {number}: {listed}");
            assert_eq!(rolled_back(case, &mut row, "one", flags).map_err(at)?, from, "{whom} at {number}");
            assert_eq!(read(case, "/file")?, json!("one"));
            write(case, "/file", "upon one")?;
        }
    }
    // In the middle of it, it can be deleted as any other.
    cut_off(case, &["rollback", &id, "two"], whole, moments() / 2, "ferry")?;
    deleted(case)
}

/// A container in place of one that has ended: one that was rolled back cannot be cloned.
fn another(case: &mut Case) -> Result<Row, Failed> {
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    let mut row = Row::of(started(case, &["/probe", "scribble", "4", "16"])?);
    row.go_on(5).map(|()| row)
}

fn killed_clone(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "scribble", "4", "16"])?);
    row.go_on(5)?;
    let (id, new) = (case.id.clone(), case.other_id());
    let store = case.path("store");
    let begun = Instant::now();
    let mut copy = Row::of(case.begin(&["--store", &store, "snapshot", "clone", &id, &new])?);
    let whole = begun.elapsed();
    copy.resume()?;
    case.call(&["delete", "--force", &new])?.success()?;
    for (number, whom) in killed() {
        cut_off(case, &["clone", &id, &new], whole, number, whom)?;
        case.call(&["delete", "--force", &new])?.success()?;
        match is_alive(case, &mut row) {
            // Taken along.
            Err(_) if whom == "criu" => row = another(case)?,
            outcome => outcome.map_err(|why| format!("{whom} at {number}: {why:?}"))?,
        }
        // What CRIU was running at that moment ends by itself.
        let own = case.pid()?;
        let others = marked_processes(&case.directory).into_iter().filter(|pid| *pid != own);
        others.into_iter().try_for_each(|pid| case.wait_for(pid))?;
    }
    if is_alive(case, &mut row).is_err() {
        another(case)?;
    }
    copy = Row::of(case.begin(&["--store", &store, "snapshot", "clone", &id, &new])?);
    copy.resume()?;
    copy.go_on(10)?;
    case.call(&["delete", "--force", &new])?.success()?;
    deleted(case)
}
