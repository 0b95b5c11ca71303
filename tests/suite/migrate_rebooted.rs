//! Migrations in which a machine goes down: every process of that end is killed at once, and what it keeps in memory is gone, which is
//! where containers are, while its store is as it was. Two virtual machines do the same with a machine in `tests/vm/migrate`.
//!
//! As long as the source has it, or the destination can make it again, one goes on. What ran on a machine that went down has
//! ended with it, and then nothing of it may run anywhere: to go on from before would be to go back in time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::case::{Case, find_named, mounts_below, remove_cgroup, remove_tree};
use super::checkpoint::CRIU;
use super::migrate::{counter, followed, words};
use super::migrate_cut_off::{MIGRATES, is_running, moments, nothing_is_kept, of_this};
use super::migrate_image::{elsewhere, there};
use super::output::{self, Lines};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("the_destination_goes_down_at_any_moment", CRIU, destination),
    scenario("the_source_goes_down_at_any_moment", CRIU, source),
];

/// The word by which the end is known that takes the container.
const RECEIVES: &str = " receive ";

/// Where a migration is when a machine goes down.
const STEPS: [&str; 4] = ["reserve", "stop-and-copy", "commit", "activate"];

/// A process and what comes from it, but for those of the other machine.
fn family(pid: i32, others: &[i32], found: &mut Vec<i32>) {
    if !others.contains(&pid) {
        found.push(pid);
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).for_each(|pid| family(pid, others, found));
    }
}

/// The cgroups of a container, parents first. The other end's id begins with its own, or its own with that.
fn cgroups(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    find_named(Path::new("/sys/fs/cgroup"), id, &mut found);
    found.retain(|path| path.components().any(|part| part.as_os_str() == id));
    found
}

/// Every process of a machine: see [`goes_down`].
fn processes(case: &Case, word: &str, id: &str) -> Vec<i32> {
    let mut found = Vec::new();
    // The far end is called by the near one.
    let others = if word == MIGRATES { of_this(case, RECEIVES) } else { Vec::new() };
    of_this(case, word).into_iter().for_each(|pid| family(pid, &others, &mut found));
    for cgroup in cgroups(id) {
        let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        found.extend(procs.lines().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn send(signal: Signal, pids: &[i32]) {
    for pid in pids {
        // It may have ended since.
        kill(Pid::from_raw(*pid), signal).ok();
    }
}

/// A machine goes down: the one whose ferry is called by `word`, which has the container `id` and keeps it in `root`.
fn goes_down(case: &Case, word: &str, id: &str, root: &Path) -> Outcome {
    // First all of them stop, so that none comes of one that is not found.
    let end = Instant::now() + case.patience();
    let mut found = processes(case, word, id);
    loop {
        send(Signal::SIGSTOP, &found);
        let now = processes(case, word, id);
        if now == found {
            break;
        }
        found = now;
    }
    while !found.is_empty() {
        if Instant::now() > end {
            return Err(format!("{found:?} do not go down").into());
        }
        // The youngest first: what is being restored would go on once CRIU, which has it in its hands, is gone.
        found.reverse();
        send(Signal::SIGKILL, &found);
        found = processes(case, word, id);
    }
    if word == MIGRATES {
        // Stopped while it was not yet known to be the other machine's.
        send(Signal::SIGCONT, &of_this(case, RECEIVES));
    }
    let cgroups = cgroups(id);
    cgroups.iter().rev().try_for_each(|path| remove_cgroup(path, case.patience()))?;
    for point in mounts_below(root)? {
        nix::mount::umount2(point.as_str(), nix::mount::MntFlags::MNT_DETACH)?;
    }
    match remove_tree(&root.join(id)) {
        Err(_) if !root.join(id).exists() => Ok(()),
        removed => removed,
    }
}

/// Begins a migration, and answers at a moment of it.
#[allow(clippy::disallowed_methods, reason = "the moment is what the test is about")]
fn until(case: &mut Case, ids: (&str, &str), (step, number): (&str, u32)) -> Result<Child, Failed> {
    let (store, to) = (case.path("store"), elsewhere(case));
    let words = words(&["--timeout", "10s", "--progress", "json"], &store, ids, &to);
    let (child, mut told): (Child, Lines) = case.spawn(&words)?;
    told.until(step)?;
    std::thread::sleep(Duration::from_millis(u64::from(number) * if moments() > 3 { 7 } else { 30 }));
    Ok(child)
}

fn is_running_there(case: &mut Case, id: &str) -> Result<bool, Failed> {
    let answer = there(case, &["state", id])?;
    Ok(answer.code == 0 && answer.json()?["status"] == "running")
}

/// The destination goes down, and comes up again.
fn destination(case: &mut Case) -> Outcome {
    let (mut stayed, mut taken, mut ended) = (0, 0, 0);
    for moment in STEPS.iter().flat_map(|step| (0..moments()).map(move |number| (*step, number))) {
        let (here, other) = (case.id.clone(), case.other_id());
        let mut row = counter(case)?;
        let mut child = until(case, (&here, &other), moment)?;
        let root = PathBuf::from(case.path("there"));
        goes_down(case, RECEIVES, &other, &root)?;
        output::wait(&mut child, case.patience())?;
        let (store, to) = (case.path("store"), elsewhere(case));
        let said = case.call(&["--store", &store, "migrate", "--recover", &here, &to])?.success()?.stdout;
        let said_there = there(case, &["migrate", "--recover", &other])?.success()?.stdout;
        let what = format!("{moment:?}: {said}{said_there}");
        let output = format!("output/{other}.stdout");
        let (is_here, is_there) = (is_running(case, &here)?, is_running_there(case, &other)?);
        match (is_here, is_there) {
            (true, false) => {
                row.go_on(5).map_err(|why| format!("{what}: {why:?}"))?;
                assert_eq!(fs::metadata(case.path(&output)).map_or(0, |file| file.len()), 0, "{what}: two ran");
                stayed += 1;
            }
            (false, true) => {
                let lines = followed(case, &output)?;
                row.continued(lines).map_err(|why| format!("{what}: {why:?}"))?;
                taken += 1;
            }
            (false, false) => {
                // The source has heard that it runs there; how far it came is another matter.
                assert!(said.contains("has ended since") || said.contains("no migration of it was cut off"), "{what}");
                if fs::metadata(case.path(&output)).is_ok_and(|file| file.len() > 0) {
                    let lines = followed(case, &output)?;
                    row.continued_for(lines, 1).map_err(|why| format!("{what}: {why:?}"))?;
                }
                ended += 1;
            }
            (true, true) => return Err(format!("{what}: two run").into()),
        }
        nothing_is_kept([&store, &case.path("store-there")], !is_here, &what)?;
        case.call(&["delete", "--force", &here])?.success()?;
        there(case, &["delete", "--force", &other])?.success()?;
    }
    println!("{stayed} stayed, {taken} went, {ended} had gone and ended with the machine");
    assert!(stayed > 0 && taken + ended > 0, "no moment before the commit, or none after it");
    Ok(())
}

/// The source goes down, and comes up again. What ran there is gone, unless the destination has it.
fn source(case: &mut Case) -> Outcome {
    let (mut ended, mut taken) = (0, 0);
    for moment in STEPS.iter().flat_map(|step| (0..moments()).map(move |number| (*step, number))) {
        let (here, other) = (case.id.clone(), case.other_id());
        let mut row = counter(case)?;
        let mut child = until(case, (&here, &other), moment)?;
        let root = case.state_root();
        goes_down(case, MIGRATES, &here, &root)?;
        output::wait(&mut child, case.patience())?;
        for pid in of_this(case, RECEIVES) {
            case.wait_for(u32::try_from(pid)?)?;
        }
        let (store, to) = (case.path("store"), elsewhere(case));
        let said = case.call(&["--store", &store, "migrate", "--recover", &here, &to])?.success()?.stdout;
        let said_there = there(case, &["migrate", "--recover", &other])?.success()?.stdout;
        let what = format!("{moment:?}: {said}{said_there}");
        assert!(!is_running(case, &here)?, "{what}: it runs on a machine that went down");
        let output = format!("output/{other}.stdout");
        let is_there = is_running_there(case, &other)?;
        match is_there {
            true => {
                let lines = followed(case, &output)?;
                row.continued(lines).map_err(|why| format!("{what}: {why:?}"))?;
                taken += 1;
            }
            false => {
                assert_eq!(
                    fs::metadata(case.path(&output)).map_or(0, |file| file.len()),
                    0,
                    "{what}: it had run there"
                );
                ended += 1;
            }
        }
        nothing_is_kept([&store, &case.path("store-there")], is_there, &what)?;
        there(case, &["delete", "--force", &other])?.success()?;
    }
    println!("{ended} ended with the machine, {taken} went");
    assert!(taken > 0, "no moment after the commit");
    Ok(())
}
