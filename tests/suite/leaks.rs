//! Containers that come and go, one after the other: however many there were, nothing of them is left, on the host or in the kernel.

use std::fs;
use std::time::Instant;

use libtest_mimic::Failed;

use super::case::Case;
use super::limits::alone;
use super::need::Need::Ferry;
use super::output;
use super::scenario::{Outcome, Scenario, scenario};
use super::stage::is_long;

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[scenario("containers_that_come_and_go_leave_nothing", &[Ferry], come_and_go)];

fn come_and_go(case: &mut Case) -> Outcome {
    let _alone = alone();
    let bundle = case.args(&["/probe", "exit", "0"]).write_config()?;
    let id = case.id.clone();
    let (lives, before) = (if is_long() { 10_000 } else { 50 }, dying(case)?);
    for life in 0..lives {
        let call =
            |args: &[&str]| output::run(&mut case.command(args), case.patience()).and_then(output::Output::success);
        if life % 2 == 0 {
            call(&["create", "--bundle", &bundle, &id])?;
            call(&["delete", "--force", &id])?;
        } else {
            call(&["run", "--bundle", &bundle, &id])?;
        }
    }
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    settles(case, before, lives / 10)
}

/// Cgroups that were removed and that the kernel has not let go of, on the machine; none where it does not say.
fn dying(case: &Case) -> Result<Option<usize>, Failed> {
    let Some(tree) = &case.stage.cgroup_v2 else { return Ok(None) };
    let told = fs::read_to_string(tree.join("cgroup.stat"))?;
    Ok(told.lines().find_map(|line| line.strip_prefix("nr_dying_descendants ")?.parse().ok()))
}

/// Waits until there are only so many more of them than before: others of the machine's go too.
#[allow(clippy::disallowed_methods, reason = "the kernel does not tell when it lets go of what was removed")]
fn settles(case: &Case, before: Option<usize>, most: usize) -> Outcome {
    let end = Instant::now() + case.patience();
    loop {
        match (before, dying(case)?) {
            (Some(before), Some(now)) if now > before + most => {
                if Instant::now() > end {
                    return Err(format!("{now} cgroups are dying, {before} were before").into());
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            _ => return Ok(()),
        }
    }
}
