//! `ferry snapshot --memory`: a container goes on, and goes back to any moment with its files and everything it had in memory; what
//! snapshots share stays for as long as one of them needs it.

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, names_in};
use super::checkpoint::{CRIU, rounds};
use super::image::{clear, image, import};
use super::need::Need::{self, Ferry, OrdinaryUser, SoftDirty};
use super::output::{self, Lines, Output};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::Layer;

const TRACKED: &[Need] = &[CRIU[0], CRIU[1], CRIU[2], SoftDirty];

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_container_goes_back_with_its_memory", CRIU, back_with_memory),
    scenario("programs_come_back_to_a_root_that_was_changed", CRIU, changed_root),
    scenario("files_alone_are_taken_where_it_is_asked_for", CRIU, files_only),
    scenario("memory_that_snapshots_share_stays", TRACKED, shared),
    scenario("a_rollback_that_fails_loses_no_snapshot", CRIU, failing),
    scenario("a_rollback_looks_at_its_own_streams_first", CRIU, other_streams),
    scenario("memory_that_cannot_be_had_is_refused", &[Ferry, OrdinaryUser], rootless),
    scenario("a_clone_goes_its_own_way", CRIU, cloned),
    scenario("the_log_that_an_error_names_is_there", CRIU, logs),
    scenario("what_cannot_be_cloned_is_named", &[Ferry], not_cloned),
];

pub(super) fn snapshot(case: &mut Case, args: &[&str]) -> Result<Output, Failed> {
    case.call(&[&["snapshot"], args].concat())
}

/// A snapshot with memory; what it came to.
pub(super) fn taken(case: &mut Case, name: &str) -> Result<Value, Failed> {
    let id = case.id.clone();
    snapshot(case, &["create", "--memory", "--format", "json", &id, name])?.success()?.json()
}

/// A program in a container of an image, whose memory is checked by itself all the time.
pub(super) fn started(case: &mut Case, program: &[&str]) -> Result<Lines, Failed> {
    import(case, vec![Layer::new().file("kept", 0o644, b"kept")?.finish()?], &json!({}))?;
    let (id, store) = (case.id.clone(), case.path("store"));
    case.begin(&[&["--store", &store, "run", "-d", "--image", "test", &id, "--"], program].concat())
}

pub(super) fn write(case: &mut Case, path: &str, text: &str) -> Outcome {
    let answer = case.exec(&[], &["/probe", "write", path, text])?.success()?.json()?;
    assert!(answer["error"].is_null(), "{answer}");
    Ok(())
}

pub(super) fn read(case: &mut Case, path: &str) -> Result<Value, Failed> {
    Ok(case.exec(&[], &["/probe", "read", path])?.success()?.json()?["ok"].clone())
}

/// Goes back, and answers the first number that comes then, after which more come in a row. `row` gets them, and must stay: a
/// program whose output nobody reads ends.
pub(super) fn rolled_back(case: &mut Case, row: &mut Row, name: &str, flags: &[&str]) -> Result<u64, Failed> {
    let id = case.id.clone();
    let mut lines = case.begin(&[&["snapshot", "rollback"], flags, &[&id, name]].concat())?;
    let first = lines.until("")?.parse()?;
    *row = Row::of(lines);
    row.resume()?;
    row.go_on(10)?;
    Ok(first)
}

/// How the directories of memory are called that there are.
pub(super) fn memories(case: &Case) -> Result<Vec<String>, Failed> {
    let snapshots = PathBuf::from(case.path("store/snapshots"));
    let [container] = &names_in(&snapshots)[..] else { return Ok(Vec::new()) };
    let mut names = names_in(&snapshots.join(container).join(".memory"));
    names.sort();
    Ok(names)
}

pub(super) fn deleted(case: &mut Case) -> Outcome {
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(names_in(Path::new(&case.path("store/snapshots"))), Vec::<String>::new());
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    clear(case)
}

fn back_with_memory(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "scribble", "4", "16"])?);
    row.go_on(5)?;
    write(case, "/file", "one")?;
    let pid = case.pid()?;
    let one = taken(case, "one")?;
    assert!(one["memory"]["bytes"].as_u64() > Some(4 << 20), "{one}");
    assert!(one["memory"]["frozenMilliseconds"].as_f64() > Some(0.0), "{one}");
    row.go_on(20)?;
    write(case, "/file", "two")?;
    let id = case.id.clone();
    let said = snapshot(case, &["create", "--memory", "--format", "text", &id, "two"])?.success()?.stdout;
    assert!(said.starts_with("name         two\n") && said.contains("\nstood still  "), "{said}");
    row.go_on(5)?;
    assert_eq!(case.pid()?, pid, "it goes on");
    write(case, "/file", "three")?;
    let first = rolled_back(case, &mut row, "one", &[])?;
    assert_eq!(read(case, "/file")?, "one");
    assert_ne!(case.pid()?, pid);
    let second = rolled_back(case, &mut row, "two", &[])?;
    assert_eq!(read(case, "/file")?, "two");
    assert!(second > first, "{first} and {second}");
    // What is kept upon a snapshot is gone back to as any other.
    write(case, "/other", "upon two")?;
    taken(case, "three")?;
    row.go_on(5)?;
    for _ in 0..rounds() {
        assert_eq!(rolled_back(case, &mut row, "one", &[])?, first, "every time from the same moment on");
        assert_eq!((read(case, "/file")?, read(case, "/other")?), (json!("one"), Value::Null));
    }
    let third = rolled_back(case, &mut row, "three", &[])?;
    assert!(third > second, "{second} and {third}");
    assert_eq!((read(case, "/file")?, read(case, "/other")?), (json!("two"), json!("upon two")));
    let table = snapshot(case, &["list", &id])?.success()?.stdout;
    assert!(table.lines().next().is_some_and(|line| line.contains("MEMORY")), "{table}");
    let shown = snapshot(case, &["show", &id, "three"])?.success()?.json()?;
    let images = shown["images"].as_str().ok_or("no images")?;
    assert!(names_in(Path::new(images)).contains(&"inventory.img".to_owned()), "{shown}");
    for name in ["one", "two", "three"] {
        assert!(case.state()?["status"] == "running", "before {name}");
    }
    snapshot(case, &["remove", &id, "one"])?.success()?;
    // Nothing of a container that is there is anybody's to remove.
    image(case, &["prune", "--all"])?.success()?;
    assert_eq!(rolled_back(case, &mut row, "three", &[])?, third);
    deleted(case)
}

/// CRIU opens what a program had open, its root among it, and compares modes.
fn changed_root(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "count", "1000000", "0"])?);
    row.go_on(5)?;
    let root = |case: &mut Case| -> Result<String, Failed> { Ok(format!("/proc/{}/root/.", case.pid()?)) };
    fs::set_permissions(root(case)?, Permissions::from_mode(0o701))?;
    taken(case, "one")?;
    rolled_back(case, &mut row, "one", &[])?;
    assert_eq!(fs::metadata(root(case)?)?.mode() & 0o7777, 0o701);
    deleted(case)
}

fn files_only(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "count", "1000000", "0"])?);
    row.go_on(5)?;
    let id = case.id.clone();
    write(case, "/file", "files")?;
    assert_eq!(snapshot(case, &["create", &id, "files"])?.success()?.stdout, "files\n");
    assert!(taken(case, "both")?["memory"].is_object());
    write(case, "/file", "later")?;
    row.go_on(5)?;
    assert_eq!(rolled_back(case, &mut row, "files", &[])?, 0, "without memory the program begins anew");
    assert!(rolled_back(case, &mut row, "both", &[])? >= 5);
    assert_eq!(rolled_back(case, &mut row, "both", &["--files-only"])?, 0);
    assert_eq!(read(case, "/file")?, "files");
    for flag in ["--ext-unix-sk", "--shell-job"] {
        let refused = snapshot(case, &["create", flag, &id])?.failure()?;
        assert!(refused.stderr.contains("are for snapshots with --memory"), "{}", refused.stderr);
    }
    snapshot(case, &["create", "--memory", "--ext-unix-sk", "--shell-job", &id, "flags"])?.success()?;
    let shown = snapshot(case, &["show", &id, "flags"])?.success()?.json()?;
    assert_eq!(shown["memory"]["flags"], json!(["ext-unix-sk", "shell-job"]));
    rolled_back(case, &mut row, "flags", &[])?;
    deleted(case)
}

fn shared(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "scribble", "16", "1"])?);
    row.go_on(5)?;
    let bytes = |one: &Value, key: &str| one["memory"][key].as_u64().unwrap_or(u64::MAX);
    let whole = taken(case, "a")?;
    assert_eq!(bytes(&whole, "unchangedBytes"), 0, "{whole}");
    for name in ["b", "c"] {
        row.go_on(5)?;
        let next = taken(case, name)?;
        assert!(bytes(&next, "bytes") < bytes(&whole, "bytes") / 4, "{whole}, {next}");
        assert!(bytes(&next, "unchangedBytes") > 12 << 20, "{next}");
    }
    // Somebody else has the kernel begin anew: what was written to until then is not told any more.
    let (id, images) = (case.id.clone(), case.path("images"));
    row.go_on(5)?;
    case.call(&["checkpoint", "--pre-dump", "--image-path", &images, &id])?.success()?;
    let whole = taken(case, "d")?;
    assert_eq!(bytes(&whole, "unchangedBytes"), 0, "{whole}");
    row.go_on(5)?;
    assert!(bytes(&taken(case, "e")?, "unchangedBytes") > 12 << 20);
    assert_eq!(memories(case)?, ["1", "2", "3", "4", "5"]);
    snapshot(case, &["remove", &id, "a", "d"])?.success()?;
    assert_eq!(memories(case)?, ["1", "2", "3", "4", "5"], "c builds on b, which builds on a");
    for name in ["c", "e", "b"] {
        rolled_back(case, &mut row, name, &[])?;
    }
    snapshot(case, &["create", "--memory", &id, "f"])?.success()?;
    rolled_back(case, &mut row, "f", &[])?;
    snapshot(case, &["remove", &id, "c", "e"])?.success()?;
    assert_eq!(memories(case)?, ["1", "2", "6"]);
    rolled_back(case, &mut row, "b", &[])?;
    snapshot(case, &["remove", &id, "f"])?.success()?;
    assert_eq!(memories(case)?, ["1", "2"]);
    // What the kernel tracks since is gone, whatever gets its number.
    for name in ["removed", "g"] {
        let whole = taken(case, name)?;
        assert_eq!(bytes(&whole, "unchangedBytes"), 0, "{whole}");
        if name == "removed" {
            snapshot(case, &["remove", &id, name])?.success()?;
        }
    }
    rolled_back(case, &mut row, "g", &[])?;
    deleted(case)
}

fn failing(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "count", "1000000", "0"])?);
    row.go_on(5)?;
    for name in ["good", "bad"] {
        taken(case, name)?;
    }
    let id = case.id.clone();
    let shown = snapshot(case, &["show", &id, "bad"])?.success()?.json()?;
    let images = PathBuf::from(shown["images"].as_str().ok_or("no images")?);
    // Before anything is ended, it is looked for what it takes.
    fs::rename(images.join("inventory.img"), images.join("away"))?;
    let said = snapshot(case, &["rollback", &id, "bad"])?.failure()?.stderr;
    assert!(said.contains("inventory.img") && said.contains("ENOENT"), "{said}");
    row.go_on(5)?;
    fs::rename(images.join("away"), images.join("inventory.img"))?;
    fs::write(images.join("pstree.img"), "nothing of the kind")?;
    let said = case.begin(&["snapshot", "rollback", &id, "bad"]).err().ok_or("it was restored from nothing")?;
    let said = said.message().unwrap_or("").to_owned();
    assert!(said.contains("the container has ended, and its snapshots are there"), "{said}");
    assert_eq!(case.state()?["status"], "stopped");
    image(case, &["prune", "--all"])?.success()?;
    let listed = snapshot(case, &["list", "--format", "json", &id])?.success()?.json()?;
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
    let refused = snapshot(case, &["create", "--memory", &id])?.failure()?;
    assert!(refused.stderr.contains("it is stopped"), "{}", refused.stderr);
    rolled_back(case, &mut row, "good", &[])?;
    deleted(case)
}

/// Standard error was an empty file.
fn other_streams(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "count", "1000000", "0"])?);
    row.go_on(5)?;
    taken(case, "one")?;
    let id = case.id.clone();
    let ends = |case: &Case, errors: Stdio| -> Outcome {
        let mut child = case.command(&["snapshot", "rollback", &id, "one"]).stderr(errors).spawn()?;
        assert!(!output::wait(&mut child, case.patience())?.success());
        Ok(())
    };
    let (mut read, write) = std::io::pipe()?;
    ends(case, write.into())?;
    let mut said = String::new();
    read.read_to_string(&mut said)?;
    assert!(said.contains("standard error of the container was the file") && said.contains("own is no file"), "{said}");
    row.go_on(5)?;
    let grown = case.directory.join("grown");
    fs::write(&grown, "a line\n")?;
    ends(case, fs::File::options().append(true).open(&grown)?.into())?;
    let said = fs::read_to_string(&grown)?;
    assert!(said.contains("of 0 bytes and mode 644, and ferry's own has 7 and 644"), "{said}");
    row.go_on(5)?;
    rolled_back(case, &mut row, "one", &[])?;
    deleted(case)
}

fn rootless(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "count", "1000000", "0"])?);
    row.go_on(3)?;
    let id = case.id.clone();
    let refused = snapshot(case, &["create", "--memory", &id])?.failure()?;
    assert!(refused.stderr.contains("in a user namespace"), "{}", refused.stderr);
    row.go_on(3)?;
    snapshot(case, &["create", &id, "files"])?.success()?;
    deleted(case)
}

/// What a container says of itself, from within.
fn inside(case: &mut Case, id: &str) -> Result<Value, Failed> {
    case.call(&["exec", id, "/probe"])?.success()?.json()
}

fn cloned(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "scribble", "4", "16"])?);
    row.go_on(5)?;
    let (id, new, third) = (case.id.clone(), case.other_id(), case.other_id());
    write(case, "/file", "before")?;
    let store = case.path("store");
    let clone = ["--store", &store, "snapshot", "clone"];
    let mut copy = Row::of(case.begin(&[&clone[..], &[&id, &new]].concat())?);
    copy.resume()?;
    copy.go_on(10)?;
    row.go_on(10)?;
    write(case, "/file", "after")?;
    let read = |case: &mut Case, id: &str| -> Result<Value, Failed> {
        Ok(case.call(&["exec", id, "/probe", "read", "/file"])?.success()?.json()?["ok"].clone())
    };
    assert_eq!((read(case, &id)?, read(case, &new)?), (json!("after"), json!("before")));
    let (one, other) = (inside(case, &id)?, inside(case, &new)?);
    assert_eq!((&one["hostname"], &other["hostname"]), (&json!(id), &json!(new)));
    for kind in ["net", "uts", "pid", "mnt"] {
        let of = |pid: u64| fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        let pid = |case: &mut Case, id: &str| -> Result<u64, Failed> {
            case.call(&["state", id])?.success()?.json()?["pid"].as_u64().ok_or_else(|| "no pid".into())
        };
        assert_ne!(of(pid(case, &id)?)?, of(pid(case, &new)?)?, "{kind}");
    }
    let refused = case.call(&[&clone[..], &[&id, &new]].concat())?.failure()?;
    assert!(refused.stderr.contains("exists already"), "{}", refused.stderr);
    // A clone of the clone; and each goes on without the others.
    let flags = ["--hostname", "third", "--ext-unix-sk", "--shell-job"];
    let mut last = Row::of(case.begin(&[&clone[..], &flags, &[&new, &third]].concat())?);
    last.resume()?;
    assert_eq!(inside(case, &third)?["hostname"], "third");
    case.call(&["delete", "--force", &id])?.success()?;
    copy.go_on(10)?;
    case.call(&["delete", "--force", &new])?.success()?;
    last.go_on(10)?;
    assert_eq!(read(case, &third)?, "before");
    case.call(&["delete", "--force", &third])?.success()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    clear(case)
}

/// Alone: what was in memory is not left behind.
fn logs(case: &mut Case) -> Outcome {
    let mut row = Row::of(started(case, &["/probe", "renamed", "/name"])?);
    row.go_on(5)?;
    let (id, new, archive) = (case.id.clone(), case.other_id(), case.path("archive"));
    let (store, scratch) = (case.path("store"), case.host_directory("scratch")?);
    for args in [
        &["snapshot", "create", "--memory", &id, "one"][..],
        &["--store", &store, "snapshot", "clone", &id, &new],
        &["checkpoint", "--export", &archive, &id],
    ] {
        let mut command = case.command(args);
        let said = case.finish(command.env("TMPDIR", &scratch))?.failure()?.stderr;
        let log = said.split("its log is ").nth(1).and_then(|rest| rest.split(',').next()).ok_or(said.clone())?;
        assert!(fs::read_to_string(log)?.contains("Error ("), "{said}");
        let [kept] = &names_in(&scratch)[..] else { return Err(format!("{said}: {:?}", names_in(&scratch)).into()) };
        assert_eq!(names_in(&scratch.join(kept)), ["dump.log"]);
        row.go_on(3)?;
    }
    assert_eq!(memories(case)?, Vec::<String>::new());
    deleted(case)
}

fn not_cloned(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (id, new) = (case.id.clone(), case.other_id());
    let refused = snapshot(case, &["clone", &id, &new])?.failure()?;
    assert!(refused.stderr.contains("its root is a directory, which both would write to"), "{}", refused.stderr);
    let refused = snapshot(case, &["clone", "nowhere", &new])?.failure()?;
    assert!(refused.stderr.contains("\"nowhere\""), "{}", refused.stderr);
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}
