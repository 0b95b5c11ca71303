//! Exports and imports that are cut off: ferry or CRIU is killed in the middle. The container goes on, or there is all of it in one
//! place; what was there only meanwhile is collected by the next one; and no archive that is not whole has its name.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;

use super::case::{Case, marked_processes, names_in};
use super::checkpoint::CRIU;
use super::checkpoint_archive::{counter, exported, imported, scratch};
use super::checkpoint_cut_off::{kill_at, moments, runs};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_killed_export_loses_no_container", CRIU, killed_export),
    scenario("what_a_killed_import_leaves_is_collected", CRIU, killed_import),
];

/// A verb with an archive that is killed at a moment, or its CRIU; what it has said.
fn cut_off(case: &mut Case, args: &[&str], scratch: &str, moment: Duration, whom: &str) -> Result<String, Failed> {
    let (_lines, pipe) = Lines::pipe(case.patience())?;
    let errors = case.directory.join("said");
    let mut command = case.command(args);
    let mut child = command.env("TMPDIR", scratch).stdout(pipe).stderr(fs::File::create(&errors)?).spawn()?;
    drop(command);
    kill_at(case, &mut child, moment, whom)?;
    Ok(fs::read_to_string(&errors)?)
}

/// `delete --force` of what is there, and a look at what is left.
fn swept(case: &mut Case, scratch: &str) -> Result<Vec<String>, Failed> {
    let id = case.id.clone();
    let mut command = case.command(&["delete", "--force", &id]);
    case.finish(command.env("TMPDIR", scratch))?.success()?;
    // A CRIU that lost its ferry ends by itself.
    marked_processes(&case.directory).into_iter().try_for_each(|pid| case.wait_for(pid))?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(names_in(Path::new(scratch)))
}

/// It goes on; or it is in a directory that says so, or in an archive that is whole.
fn is_somewhere(case: &mut Case, row: &mut Row, scratch: &str, archive: &str, before: &[String]) -> Outcome {
    // It may be about to end when it is looked at.
    if runs(case)? && row.go_on(3).is_ok() {
        return Ok(());
    }
    if names_in(Path::new(scratch)).iter().any(|name| name.starts_with("ferry-saved-") && !before.contains(name)) {
        return Ok(());
    }
    case.call(&["checkpoint", "inspect", archive])?.success().map(drop)
}

fn killed_export(case: &mut Case) -> Outcome {
    let (scratch, archive) = (scratch(case)?, case.path("archive"));
    let mut saved = Vec::new();
    let first = counter(case)?;
    let begun = Instant::now();
    exported(case, &[])?;
    let whole = begun.elapsed();
    drop(first);
    for (number, whom) in (0..moments().max(8)).flat_map(|number| [(number, "ferry"), (number, "criu")]) {
        fs::remove_file(&archive)?;
        let mut row = counter(case)?;
        let id = case.id.clone();
        let moment = whole * number / moments().max(8);
        let said = cut_off(case, &["checkpoint", "--export", &archive, &id], &scratch, moment, whom)?;
        match is_somewhere(case, &mut row, &scratch, &archive, &saved) {
            // One that runs CRIU's code is taken along.
            Err(_) if whom == "criu" && said.contains("ended") => (),
            outcome => outcome.map_err(|why| format!("{whom} at {number}: {why:?}, {said}"))?,
        }
        let known: Vec<String> = swept(case, &scratch)?.into_iter().filter(|name| !saved.contains(name)).collect();
        row = counter(case)?;
        let mut command = case.command(&["checkpoint", "--leave-running", "--export", &archive, &id]);
        case.finish(command.env("TMPDIR", &scratch))?.success()?;
        let left = names_in(Path::new(&scratch));
        let strays: Vec<&String> = left.iter().filter(|name| !name.starts_with("ferry-saved-")).collect();
        assert!(strays.is_empty(), "{whom} at {number}: {strays:?}, after delete {known:?}");
        saved = left;
        let beside = names_in(&case.directory);
        assert_eq!(beside.iter().filter(|name| name.contains("archive")).count(), 1, "{beside:?}");
        row.go_on(3)?;
        case.call(&["delete", "--force", &id])?.success()?;
    }
    // What was saved is a whole container.
    for name in saved {
        let (images, bundle, id) =
            (format!("{scratch}/{name}"), case.bundle.path().display().to_string(), case.id.clone());
        let lines = case.begin(&["restore", "--detach", "--image-path", &images, "--bundle", &bundle, &id])?;
        let mut row = Row::of(lines);
        row.resume()?;
        row.go_on(3)?;
        case.call(&["delete", "--force", &id])?.success()?;
    }
    Ok(())
}

fn killed_import(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (archive, scratch) = (exported(case, &[])?, scratch(case)?);
    let bundle = case.write_config()?;
    let begun = Instant::now();
    let lines = imported(case, &archive, &[])?;
    let whole = begun.elapsed();
    row.continued(lines)?;
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    for (number, whom) in (0..moments().max(8)).flat_map(|number| [(number, "ferry"), (number, "criu")]) {
        let moment = whole * number / moments().max(8);
        cut_off(case, &["restore", "--detach", "--import", &archive, "--bundle", &bundle], &scratch, moment, whom)?;
        swept(case, &scratch)?;
    }
    let (lines, pipe) = Lines::pipe(case.patience())?;
    // As the container's own stream was: an import that failed before it was killed has said so there.
    let errors = fs::File::create(case.directory.join("errors"))?;
    let mut command = case.command(&["restore", "--detach", "--import", &archive, "--bundle", &bundle]);
    let mut child = command.env("TMPDIR", &scratch).stdout(pipe).stderr(errors).spawn()?;
    drop(command);
    let status = output::wait(&mut child, case.patience())?;
    assert!(status.success(), "{}", fs::read_to_string(case.directory.join("errors"))?);
    let mut row = Row::of(lines);
    row.resume()?;
    row.go_on(10)?;
    assert_eq!(names_in(Path::new(&scratch)), Vec::<String>::new());
    Ok(())
}
