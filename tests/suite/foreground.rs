//! What `run` does for a program it stays for: its orphans are reaped.

use std::path::Path;
use std::time::Instant;

use super::case::Case;
use super::need::Need::Root;
use super::output;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[scenario("orphans_that_end_are_reaped", &[Root], orphans)];

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
