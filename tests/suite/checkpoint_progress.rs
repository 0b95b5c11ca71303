//! What checkpoints and restores tell while they work: a program reads events, a person a line, and nobody else anything.

use std::process::Stdio;

use serde_json::Value;

use super::case::Case;
use super::checkpoint::{CRIU, checkpoint, images, restore};
use super::checkpoint_archive::counter;
use super::need::Need::Ferry;
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_program_reads_events", CRIU, events),
    scenario("a_person_reads_a_line", CRIU, line),
    scenario("nobody_else_reads_anything", CRIU, nothing),
    scenario("another_way_to_show_progress_is_refused", &[Ferry], refused),
];

fn parsed(told: &str) -> Vec<Value> {
    told.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| line.into())).collect()
}

/// Their names in a row; bytes only where they are of the step before them, and never fewer than before.
fn names(events: &[Value]) -> Vec<String> {
    let (mut names, mut done) = (Vec::new(), 0);
    for event in events {
        match (event["event"].as_str(), event["step"].as_str()) {
            (Some("step"), Some(step)) => {
                names.push(step.to_owned());
                done = 0;
            }
            (Some("bytes"), Some(step)) => {
                assert_eq!(names.last().map(String::as_str), Some(step), "{events:?}");
                assert!(event["done"].as_u64() >= Some(done), "{events:?}");
                done = event["done"].as_u64().unwrap_or(u64::MAX);
                assert!(event["total"].as_u64().is_none_or(|total| done <= total), "{event}");
                assert!(event["rate"].is_u64(), "{event}");
            }
            _ => names.push(event["event"].as_str().map_or_else(|| event.to_string(), str::to_owned)),
        }
    }
    names
}

/// The last that was told of a step.
fn last<'a>(events: &'a [Value], step: &str) -> &'a Value {
    let of = |event: &&Value| event["event"] == "bytes" && event["step"] == step;
    events.iter().rev().find(of).unwrap_or(&Value::Null)
}

fn events(case: &mut Case) -> Outcome {
    // A file that is its standard error would have to be as long as it was, and is written to here.
    let bundle = case.args(&["/probe", "count", "1000000", "0"]).write_config()?;
    let (lines, pipe) = Lines::pipe(case.patience())?;
    let id = case.id.clone();
    let mut command = case.command(&["run", "--detach", "--bundle", &bundle, &id]);
    let mut child = command.stdout(pipe).stderr(Stdio::null()).spawn()?;
    drop(command);
    assert!(output::wait(&mut child, case.patience())?.success());
    let mut row = Row::of(lines);
    row.go_on(10)?;
    let (images, archive) = (images(case), case.path("archive"));
    let words = ["checkpoint", "--leave-running", "--progress", "json"];
    let told = parsed(&case.call(&[&words[..], &["--image-path", &images, &id]].concat())?.success()?.stderr);
    assert_eq!(names(&told), ["freeze", "dump", "saved", "done"], "{told:?}");
    row.go_on(5)?;
    let told = parsed(&case.call(&["checkpoint", "--progress", "json", "--export", &archive, &id])?.success()?.stderr);
    assert_eq!(names(&told), ["freeze", "dump", "saved", "digest", "pack", "done"], "{told:?}");
    for step in ["digest", "pack"] {
        let all = last(&told, step);
        assert!(all["files"].as_u64() > Some(5) && all["done"].as_u64() > Some(10_000), "{all}");
    }
    // What is told of the way back ends before the container has the streams.
    let (lines, pipe) = Lines::pipe(case.patience())?;
    let errors = case.directory.join("told");
    let words = ["restore", "--detach", "--progress", "json", "--import", &archive, "--bundle", &bundle];
    let mut child = case.command(&words).stdout(pipe).stderr(std::fs::File::create(&errors)?).spawn()?;
    let status = output::wait(&mut child, case.patience())?;
    let told = parsed(&std::fs::read_to_string(&errors)?);
    assert!(status.success(), "{told:?}");
    assert_eq!(names(&told), ["unpack", "restore", "resume"], "{told:?}");
    let all = last(&told, "unpack");
    assert_eq!(all["done"], all["total"], "the archive is read once: {all}");
    assert_eq!(all["total"].as_u64(), Some(std::fs::metadata(&archive)?.len()), "{all}");
    row.continued(lines)
}

fn line(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let terminal = nix::pty::openpty(None, None)?;
    let (id, archive) = (case.id.clone(), case.path("archive"));
    let mut command = case.command(&["checkpoint", "--leave-running", "--export", &archive, &id]);
    let mut child = command.stdout(Stdio::null()).stderr(terminal.slave).spawn()?;
    drop(command);
    // A line of the screen is written over and has no end, so that all of it is one.
    let mut screen = Vec::new();
    let mut master = std::fs::File::from(terminal.master);
    let mut bytes = [0; 4096];
    // EIO: the other end is closed.
    while let Ok(count) = std::io::Read::read(&mut master, &mut bytes) {
        screen.extend_from_slice(&bytes[..count]);
        if count == 0 {
            break;
        }
    }
    assert!(output::wait(&mut child, case.patience())?.success());
    let screen = String::from_utf8_lossy(&screen).into_owned();
    for words in ["\r\u{1b}[Kfrozen for 0.0 s, 0B saved", "\r\u{1b}[Kdigest: 0B of ", "\r\u{1b}[Kpack: 0B of "] {
        assert!(screen.contains(words), "{words:?} in {screen:?}");
    }
    assert!(screen.ends_with("\r\u{1b}[K"), "the line goes at the end: {screen:?}");
    row.go_on(5)
}

fn nothing(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (id, images) = (case.id.clone(), images(case));
    for flags in [&[][..], &["--progress", "none"]] {
        let words = [&["checkpoint", "--leave-running", "--image-path", &images], flags, &[&id]].concat();
        assert_eq!(case.call(&words)?.success()?.stderr, "");
    }
    checkpoint(case, &[])?;
    let lines = restore(case, &["--progress", "auto"])?;
    assert_eq!(std::fs::read_to_string(case.directory.join("errors"))?, "");
    row.continued(lines)
}

fn refused(case: &mut Case) -> Outcome {
    for verb in ["checkpoint", "restore"] {
        let said = case.call(&[verb, "--progress", "loud", "nobody"])?.failure()?.stderr;
        assert!(said.contains("\"loud\" for --progress: it is one of auto, json, none"), "{said}");
    }
    Ok(())
}
