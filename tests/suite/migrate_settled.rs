//! Migrations that were cut off and are settled by `migrate --recover`: in whichever order the ends are asked, and however often, and
//! whatever happens to who asks, the container runs at one of them.

use std::process::{Command, Stdio};

use libtest_mimic::Failed;

use super::case::Case;
use super::checkpoint::Row;
use super::migrate::{counter, destination, words};
use super::migrate_cut_off::one_goes_on;
use super::need::Need::{self, CgroupV2, Criu, Ferry, Root, Tool};
use super::output;
use super::scenario::{Outcome, Scenario, scenario};

const NEEDS: &[Need] = &[Ferry, Root, Tool("strace"), Criu, CgroupV2(&[])];

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("killed_while_it_has_it_stand_still_it_goes_on", NEEDS, killed_while_it_looks),
    scenario("one_that_was_paused_since_stays_so", NEEDS, paused_since),
];

/// A migration whose destination ends as soon as the container runs there, with nobody told, as often as it is reached: it dies where it
/// first reads whether the container stands still. Answers that file.
fn unknown(case: &mut Case, there: &str) -> Result<(Row, String), Failed> {
    let row = counter(case)?;
    let (store, here) = (case.path("store"), case.id.clone());
    let files = case.cgroups().into_iter().map(|path| path.join("cgroup.freeze")).find(|path| path.exists());
    let file = files.ok_or("it has no freezer")?.display().to_string().replace(&here, there);
    let to = destination(case).replace("exec:exec ", &format!("exec:exec {} ", killed_at("pread64", 1, &file)));
    let said = case.call(&words(&["--timeout", "5s"], &store, (&here, there), &to))?.failure()?.stderr;
    assert!(said.contains("whether it runs there is not known"), "{said}");
    assert_eq!((status(case, &here)?, status(case, there)?), ("paused".into(), "running".into()));
    Ok((row, file))
}

/// Strace, which kills who makes this call on this file for the so many-th time.
fn killed_at(call: &str, number: u32, file: &str) -> String {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={number}"));
    format!("strace -D -qq -o /dev/null -P {file} -e {trace} -e {inject}")
}

fn status(case: &mut Case, id: &str) -> Result<String, Failed> {
    Ok(case.call(&["state", id])?.success()?.json()?["status"].as_str().unwrap_or_default().to_owned())
}

fn recover(case: &mut Case, id: &str) -> Outcome {
    let store = case.path("store");
    case.call(&["--store", &store, "migrate", "--recover", id])?.success().map(drop)
}

/// Freezing shows whether a container's processes are about to end; nobody but ferry knows that it was ferry who did it.
fn killed_while_it_looks(case: &mut Case) -> Outcome {
    for asked_first in [0, 2] {
        let there = case.other_id();
        let (row, file) = unknown(case, &there)?;
        // The first write freezes, and the second one thaws.
        let strace = killed_at("write", 2, &file);
        let mut strace = strace.split(' ');
        let ferry = case.command(&["--store", &case.path("store"), "migrate", "--recover", &there]);
        let mut command = Command::new(strace.next().unwrap_or_default());
        command.args(strace).arg(ferry.get_program()).args(ferry.get_args());
        command.envs(ferry.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        assert_eq!(output::code(output::wait(&mut child, case.patience())?), 137);
        assert_eq!(status(case, &there)?, "paused");
        for _ in 0..asked_first {
            recover(case, &there)?;
            assert_eq!(status(case, &there)?, "running");
        }
        one_goes_on(case, row, &there, &format!("there {asked_first} times first"))?;
    }
    Ok(())
}

/// Once it is known that it runs there, who pauses it there means it.
fn paused_since(case: &mut Case) -> Outcome {
    let (there, here) = (case.other_id(), case.id.clone());
    let (row, _) = unknown(case, &there)?;
    recover(case, &there)?;
    case.call(&["pause", &there])?.success()?;
    recover(case, &there)?;
    assert_eq!(status(case, &there)?, "paused");
    let (store, to) = (case.path("store"), destination(case));
    case.call(&["--store", &store, "migrate", "--recover", &here, &to])?.success()?;
    assert_eq!(status(case, &there)?, "paused");
    case.call(&["resume", &there])?.success()?;
    one_goes_on(case, row, &there, "resumed")
}
