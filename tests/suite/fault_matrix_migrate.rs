//! Migration, with a fault at every system call that ferry makes at either end: killed there, or answered with an error. CRIU is none of
//! it, and neither is what leads to the other end.
//!
//! Each time one end has the container once both have been asked to settle it, where it goes on with nothing lost and the walls it had,
//! and never have two. A few places of each end in the usual run, all of them in a long one, which also tells the counts.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::case::{Case, marked_processes, names_in, remove_tree};
use super::fault_counts::{Counts, count, tell};
use super::fault_matrix::{before_main, each, furnish};
use super::fault_matrix_checkpoint::{NEEDS, outlive, walls};
use super::fault_points::{Ended, Point, places, tracing};
use super::migrate::{counter, destination};
use super::migrate_cut_off::{is_running, of_this, one_goes_on, settle};
use super::output;
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("migrate_with_a_fault", NEEDS, |case| matrix(case, End::Source)),
    scenario("receive_with_a_fault", NEEDS, |case| matrix(case, End::Destination)),
];

/// Where the fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// How long an end bears with silence.
const PATIENCE: &str = "5s";

/// A migration to another id, with strace's flags at one end.
fn migrated(case: &mut Case, end: End, flags: &[String], there: &str) -> Result<Ended, Failed> {
    let (program, store) = (case.stage.runtime.path.with_file_name("ferry-image"), case.path("store"));
    let strace = [&["strace", "-D", "-qq", "-b", "execve"].map(str::to_owned)[..], flags].concat();
    let receive = format!(
        "{} --root {} --store {store} receive --stdio --timeout {PATIENCE} --output {}",
        program.display(),
        case.state_root().display(),
        case.path("output")
    );
    let led = if end == End::Destination { strace.join(" ") } else { String::new() };
    let (to, here) = (format!("exec:exec {led} {receive}"), case.id.clone());
    let ferry = case.command(&["--store", &store, "migrate", "--timeout", PATIENCE, "--as", there, &here, &to]);
    let mut command = match end {
        End::Source => {
            let mut command = Command::new(&strace[0]);
            command.args(&strace[1..]).arg(&program).args(ferry.get_args());
            command.envs(ferry.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command
        }
        End::Destination => ferry,
    };
    let errors = case.directory.join("said");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors)?).spawn()?;
    let ended = output::wait(&mut child, case.patience()).map(output::code);
    for pid in of_this(case, " receive ") {
        case.wait_for(u32::try_from(pid)?)?;
    }
    outlive(case)?;
    let stderr = fs::read_to_string(&errors)?;
    match ended {
        Ok(code) => Ok(Ended { code, stderr }),
        Err(why) => Err(format!("{} {stderr}", why.message().unwrap_or_default()).into()),
    }
}

fn matrix(case: &mut Case, end: End) -> Outcome {
    furnish(case)?;
    let (traces, there) = (case.host_directory("traces")?, case.other_id());
    let row = counter(case)?;
    let ended = migrated(case, end, &tracing(&traces), &there)?;
    assert_eq!(ended.code, 0, "it fails by itself: {}", ended.stderr);
    let places = places(&traces)?;
    let clean = seen(case, &there)?;
    assert!(clean.is_object(), "it does not run");
    one_goes_on(case, row, &there, "without a fault")?;
    let early = before_main(&places);
    // No kernel forgets to wake a thread.
    let left_out = |point: &Point| point.call.0 == "futex" || early.contains(&(false, point.call.clone()));
    let counts = each(case, &places, 2, left_out, |case, point, counts| {
        let there = case.other_id();
        let row = counter(case)?;
        counts.injected += 1;
        let went_on = match migrated(case, end, &point.flags(), &there) {
            Ok(ended) => went_on(case, point, &ended, (row, &there, &clean), counts).map_err(|why| (why, false)),
            Err(why) => Err((why, true)),
        };
        if let Err((why, hangs)) = went_on {
            let found = if hangs { &mut counts.hangs } else { &mut counts.left };
            found.push(format!("{point}: {}", why.message().unwrap_or_default()));
            case.clear()?;
            remove_tree(Path::new(&case.path("store/migrations")))?;
        }
        clean_up(case, point, counts)
    })?;
    tell(case, if end == End::Source { "migrate" } else { "receive" }, &counts)
}

/// It goes on at one of them, with the walls it had.
fn went_on(
    case: &mut Case,
    point: &Point,
    ended: &Ended,
    (row, there, clean): (Row, &str, &Value),
    counts: &mut Counts,
) -> Outcome {
    count(point, ended, counts);
    let (store, to) = (case.path("store"), destination(case));
    // Before that a process may be there that CRIU has not finished, and ends with it.
    settle(case, (there, &store, &to))?;
    let seen = seen(case, there)?;
    if seen.is_object() && seen != *clean {
        counts.weaker.push(format!("{point}: {clean} became {seen}"));
    }
    one_goes_on(case, row, there, &format!("({})", ended.stderr.trim()))
}

/// The walls of what runs at the other end; null where nothing does.
fn seen(case: &mut Case, there: &str) -> Result<Value, Failed> {
    let here = std::mem::replace(&mut case.id, there.to_owned());
    let seen = if is_running(case, there)? { walls(case) } else { Ok(Value::Null) };
    // It may have been about to end.
    let seen = if seen.is_err() && !is_running(case, there)? { Ok(Value::Null) } else { seen };
    case.id = here;
    seen
}

/// Both have been deleted: what is left?
fn clean_up(case: &mut Case, point: &Point, counts: &mut Counts) -> Outcome {
    // Whoever followed its output, which is the test's own, and what has been killed and is about to end.
    for pid in marked_processes(&case.directory) {
        if fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().starts_with(b"tail\0") {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).ok();
        }
        if !output::wait_for_pid(pid, case.patience())? {
            break;
        }
    }
    let mut left = case.leftovers()?;
    left.extend(names_in(Path::new(&case.path("store/migrations"))));
    if !left.is_empty() {
        counts.left.push(format!("{point}: {left:?}"));
        case.clear()?;
    }
    for name in names_in(Path::new(&case.path("output"))) {
        fs::remove_file(case.directory.join("output").join(name))?;
    }
    Ok(())
}
