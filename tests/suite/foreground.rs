//! What `run` and `exec` do for a program they stay for: its orphans are reaped, its signals are as it expects them, and how it ends
//! is told whatever the caller ignores.

use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::Root;
use super::output;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("orphans_that_end_are_reaped", &[Root], orphans),
    scenario("the_exit_code_is_told_where_the_caller_ignores_all_signals", &[], exit_code),
    scenario("no_signal_is_ignored_in_the_container", &[], not_ignored),
    scenario("no_signal_is_ignored_by_what_is_executed_later", &[], not_ignored_by_exec),
];

/// SIGPIPE is ignored by the probe itself, as by every program of its language.
pub(super) fn as_expected() -> Value {
    json!({"blocked": "0000000000000000", "ignored": "0000000000001000"})
}

/// Without a pid namespace they are left to the runtime.
fn orphans(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "pid");
    let (bundle, id) = (case.args(&["/probe", "ended-orphans", "10"]).write_config()?, case.id.clone());
    let (mut child, mut lines) = case.spawn(&["run", "--bundle", &bundle, &id])?;
    let pids: Vec<String> = lines.until("ended")?.split_whitespace().skip(1).map(str::to_owned).collect();
    assert_eq!(pids.len(), 10);
    let end = Instant::now() + case.patience();
    while let Some(pid) = pids.iter().find(|pid| Path::new("/proc").join(pid).exists()) {
        assert!(Instant::now() < end, "nobody reaps {pid}");
        std::thread::yield_now();
    }
    case.kill_and_wait("KILL")?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 137);
    Ok(())
}

fn exit_code(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe", "exit", "3"]).write_config()?, case.id.clone());
    let mut command = case.ignoring(&case.command(&["run", "--bundle", &bundle, &id]));
    assert_eq!(case.finish(&mut command)?.code, 3);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn not_ignored(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe"]).write_config()?, case.id.clone());
    let mut command = case.ignoring(&case.command(&["run", "--bundle", &bundle, &id]));
    let report = case.finish(&mut command)?.success()?.json()?;
    assert_eq!(report["signals"], as_expected());
    Ok(())
}

fn not_ignored_by_exec(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let mut command = case.ignoring(&case.command(&["exec", &id, "/probe"]));
    let report = case.finish(&mut command)?.success()?.json()?;
    assert_eq!(report["signals"], as_expected());
    Ok(())
}
