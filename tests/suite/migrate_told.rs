//! What a migration says where nobody takes it: the container runs at one end all the same, and the exit status tells at which.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use super::case::Case;
use super::checkpoint::CRIU;
use super::migrate::{counter, destination, gone, printed, settled, words};
use super::output;
use super::scenario::{Outcome, Scenario, scenario};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_report_that_cannot_be_written_is_known_first", CRIU, no_place),
    scenario("a_report_is_left_as_it_was_where_there_is_none", CRIU, no_report),
    scenario("what_nobody_hears_is_done", CRIU, unheard),
];

fn no_place(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (store, here, there, to) = (case.path("store"), case.id.clone(), case.other_id(), destination(case));
    let said = case.call(&words(&["--report", "/none/such.json"], &store, (&here, &there), &to))?.failure()?.stderr;
    assert!(said.contains("cannot write /none/such.json: ENOENT"), "{said}");
    gone(case, &there)?;
    row.go_on(5)?;
    settled(case)
}

fn no_report(case: &mut Case) -> Outcome {
    let _row = counter(case)?;
    let (store, here, there, to) = (case.path("store"), case.id.clone(), case.other_id(), destination(case));
    let (new, old) = (case.path("new.json"), case.path("old.json"));
    fs::write(&old, "an earlier one, which is longer than any other is".repeat(100))?;
    for report in [&new, &old] {
        case.call(&words(&["--report", report], &store, (&here, &here), &to))?.failure()?;
    }
    assert!(!fs::exists(&new)? && fs::read_to_string(&old)?.starts_with("an earlier one"));
    case.call(&words(&["--report", &old], &store, (&here, &there), &to))?.success()?;
    let report: Value = serde_json::from_str(&fs::read_to_string(&old)?)?;
    assert_eq!(report["migrated"], true);
    Ok(())
}

/// Standard output is full, or so is what the report goes to.
fn unheard(case: &mut Case) -> Outcome {
    for flags in [&["--progress", "json"][..], &["--progress", "none"], &["--report", "/dev/full"]] {
        let mut row = counter(case)?;
        let (store, here, there, to) = (case.path("store"), case.id.clone(), case.other_id(), destination(case));
        let errors = case.path("errors");
        let mut command = case.command(&words(flags, &store, (&here, &there), &to));
        let (full, said) = (fs::File::options().write(true).open("/dev/full")?, case.path("said"));
        let is_full = !flags.contains(&"--report");
        command.stdout(if is_full { Stdio::from(full) } else { fs::File::create(&said)?.into() });
        let mut child = command.stderr(fs::File::create(&errors)?).spawn()?;
        let code = output::code(output::wait(&mut child, case.patience())?);
        let errors = fs::read_to_string(errors)?;
        assert!(
            code == 0 && errors.contains("level=warning") && errors.contains("ENOSPC"),
            "{flags:?}: {code}, {errors}"
        );
        assert!(is_full || fs::read_to_string(&said)?.contains("stood still"), "{flags:?}");
        gone(case, &here)?;
        let lines = printed(case, &there)?;
        row.continued(lines)?;
        settled(case)?;
        case.call(&["delete", "--force", &there])?.success()?;
    }
    // What only asks has nothing to say but that.
    let _row = counter(case)?;
    let (store, here, there, to) = (case.path("store"), case.id.clone(), case.other_id(), destination(case));
    let mut command = case.command(&words(&["--dry-run"], &store, (&here, &there), &to));
    let mut child = command.stdout(fs::File::options().write(true).open("/dev/full")?).spawn()?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 1);
    Ok(())
}
