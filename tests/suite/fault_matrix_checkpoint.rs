//! Checkpoint, restore, archives and snapshots, with a fault at every system call that ferry makes: killed there, or answered with an
//! error. CRIU is none of it, and is traced by nobody.
//!
//! Each time the container goes on as it was, or is saved whole and comes back where it stopped; what comes back has the walls it had;
//! an error leaves nothing of a restore, and `delete --force` nothing at all. A few dozen places of each verb in the usual run, all of
//! them in a long one, which also tells the counts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, marked_processes, names_in, remove_tree};
use super::checkpoint_cut_off::thaws;
use super::checkpoint_root::image_counter;
use super::fault_counts::{Counts, count, is_the_languages, tell};
use super::fault_matrix::{before_main, each, furnish};
use super::fault_points::{Ended, Fault, Point, places, tracing};
use super::image::image;
use super::need::Need::{self, Criu, Ferry, Root, Tool};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

pub(super) const NEEDS: &[Need] = &[Ferry, Root, Tool("strace"), Criu];

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("checkpoint_with_a_fault", NEEDS, |case| matrix(case, &CHECKPOINT)),
    scenario("restore_with_a_fault", NEEDS, |case| matrix(case, &RESTORE)),
    scenario("export_with_a_fault", NEEDS, |case| matrix(case, &EXPORT)),
    scenario("import_with_a_fault", NEEDS, |case| matrix(case, &IMPORT)),
    scenario("snapshot_with_a_fault", NEEDS, |case| matrix(case, &SNAPSHOT)),
];

/// One verb.
struct Verb {
    name: &'static str,
    /// Its words; in capitals what is another in each case.
    words: &'static [&'static str],
    /// The program that does it: it executes nothing but CRIU.
    program: &'static str,
    /// Brings things to where the verb is called; answers the container that runs, if one does.
    before: fn(&mut Case) -> Result<Option<Row>, Failed>,
    /// The words that bring the container back once it is saved, where the verb does that.
    back: fn(&Case) -> Option<Vec<String>>,
}

const CHECKPOINT: Verb = Verb {
    name: "checkpoint",
    words: &["checkpoint", "--image-path", "IMAGES", "ID"],
    program: "ferry",
    before: running,
    back: |case| Some(restoring(case, &case.path("images"))),
};
const RESTORE: Verb = Verb {
    name: "restore",
    words: &["restore", "--detach", "--image-path", "IMAGES", "--bundle", "BUNDLE", "ID"],
    program: "ferry",
    before: saved,
    back: |_| None,
};
const EXPORT: Verb = Verb {
    name: "checkpoint --export",
    words: &["checkpoint", "--export", "ARCHIVE", "ID"],
    program: "ferry-image",
    before: running,
    back: from_archive,
};
const IMPORT: Verb = Verb {
    name: "restore --import",
    words: &["restore", "--detach", "--import", "ARCHIVE", "--bundle", "BUNDLE", "--name", "ID"],
    program: "ferry-image",
    before: exported,
    back: |_| None,
};
const SNAPSHOT: Verb = Verb {
    name: "snapshot create --memory",
    words: &["--store", "STORE", "snapshot", "create", "--memory", "ID", "one"],
    program: "ferry",
    before: of_image,
    back: |_| None,
};

fn words(case: &Case, words: &[&str]) -> Vec<String> {
    let place = |word: &&str| match *word {
        "IMAGES" => case.path("images"),
        "ARCHIVE" => case.path("archive"),
        "STORE" => case.path("store"),
        "BUNDLE" => case.bundle.path().display().to_string(),
        "ID" => case.id.clone(),
        word => word.to_owned(),
    };
    words.iter().map(place).collect()
}

fn restoring(case: &Case, images: &str) -> Vec<String> {
    let bundle = case.bundle.path().display().to_string();
    ["restore", "--detach", "--image-path", images, "--bundle", &bundle, &case.id].map(str::to_owned).to_vec()
}

/// The archive; or the images, where it could not be written.
fn from_archive(case: &Case) -> Option<Vec<String>> {
    if Path::new(&case.path("archive")).exists() {
        return Some(words(case, IMPORT.words));
    }
    let scratch = case.directory.join("scratch");
    let kept = names_in(&scratch).into_iter().find(|name| name.starts_with("ferry-saved-"))?;
    Some(restoring(case, &scratch.join(kept).display().to_string()))
}

fn running(case: &mut Case) -> Result<Option<Row>, Failed> {
    for name in ["images", "scratch"] {
        if case.directory.join(name).exists() {
            remove_tree(&case.directory.join(name))?;
        }
    }
    if case.directory.join("archive").exists() {
        fs::remove_file(case.directory.join("archive"))?;
    }
    case.host_directory("scratch")?;
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(3)?;
    Ok(Some(row))
}

fn saved(case: &mut Case) -> Result<Option<Row>, Failed> {
    once(case, "images", &CHECKPOINT)
}

fn exported(case: &mut Case) -> Result<Option<Row>, Failed> {
    once(case, "archive", &EXPORT)
}

/// Saved for all restores.
fn once(case: &mut Case, to: &str, verb: &Verb) -> Result<Option<Row>, Failed> {
    if !case.directory.join(to).exists() {
        let _row = running(case)?;
        case.call(&words(case, verb.words).iter().map(String::as_str).collect::<Vec<_>>())?.success()?;
    }
    Ok(None)
}

fn of_image(case: &mut Case) -> Result<Option<Row>, Failed> {
    case.host_directory("scratch")?;
    if case.directory.join("layout").exists() {
        let (store, id) = (case.path("store"), case.id.clone());
        let run = ["--store", &store, "run", "--detach", "--image", "test", "--name", &id];
        let mut row = Row::of(case.begin(&[&run[..], &["--", "/probe", "count", "1000000", "0"]].concat())?);
        row.go_on(3)?;
        return Ok(Some(row));
    }
    image_counter(case).map(Some)
}

/// A verb under strace, which has these flags and traces nothing that is executed; with the lines of what it leaves running.
fn traced(case: &Case, flags: &[String], program: &str, words: &[String]) -> Result<(Ended, Lines), Failed> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ferry = case.command(&words);
    let (errors, (lines, pipe)) = (case.directory.join("errors"), Lines::pipe(case.patience())?);
    // A file, as the container's own is: only such a one takes its place.
    fs::write(&errors, "")?;
    let errors_file = File::options().write(true).open(&errors)?;
    let mut strace = Command::new("strace");
    strace.args(["-D", "-qq", "-b", "execve"]).args(flags);
    strace.arg(case.stage.runtime.path.with_file_name(program)).args(ferry.get_args());
    strace.envs(ferry.get_envs().filter_map(|(name, value)| Some((name, value?))));
    strace.env("TMPDIR", case.directory.join("scratch")).stdin(Stdio::null()).stdout(pipe).stderr(errors_file);
    let mut child = strace.spawn()?;
    drop(strace);
    let code = output::wait(&mut child, case.patience()).map(output::code);
    let stderr = fs::read_to_string(&errors)?;
    match code {
        Ok(code) => Ok((Ended { code, stderr }, lines)),
        Err(why) => Err(format!("{} {stderr}", why.message().unwrap_or_default()).into()),
    }
}

fn matrix(case: &mut Case, verb: &Verb) -> Outcome {
    furnish(case)?;
    let row = (verb.before)(case)?;
    let (traces, called) = (case.host_directory("traces")?, words(case, verb.words));
    let (ended, lines) = traced(case, &tracing(&traces), verb.program, &called)?;
    if ended.code != 0 {
        return Err(format!("it fails by itself: {}", ended.stderr).into());
    }
    let places = places(&traces)?;
    fs::remove_dir(&traces)?;
    let early = before_main(&places);
    let mut counts = Counts::default();
    let clean = outcome(case, verb, None, &ended, (row, lines), &mut counts)?;
    clean_up(case, None, "", &mut counts)?;
    assert!(counts.left.is_empty() && clean.is_object(), "without a fault: {counts:?}");
    // No kernel forgets to wake a thread.
    let left_out = |point: &Point| point.call.0 == "futex" || early.contains(&(false, point.call.clone()));
    let counts = each(case, &places, 2, left_out, |case, point, counts| {
        let row = (verb.before)(case)?;
        counts.injected += 1;
        let (ended, lines) = match traced(case, &point.flags(), verb.program, &called) {
            Ok(ended) => ended,
            Err(why) => {
                counts.hangs.push(format!("{point}: {}", why.message().unwrap_or_default()));
                return case.clear();
            }
        };
        count(point, &ended, counts);
        outlive(case)?;
        let seen = outcome(case, verb, Some(point), &ended, (row, lines), counts)?;
        if seen.is_object() && seen != clean {
            counts.weaker.push(format!("{point}: {clean} became {seen}"));
        }
        clean_up(case, Some(point), ended.stderr.trim(), counts)
    })?;
    tell(case, verb.name, &counts)
}

/// Waits until nobody is at work any more: a CRIU whose ferry was killed, who lets the container go on in its place, and who traces.
pub(super) fn outlive(case: &Case) -> Outcome {
    for pid in marked_processes(&case.directory) {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_at_work = line.split(|byte| *byte == 0).any(|word| word == b"swrk" || word == b"strace");
        if is_at_work || thaws(i32::try_from(pid)?) {
            case.wait_for(pid)?;
        }
    }
    Ok(())
}

/// What has become of the container: it goes on, or comes back; answers its walls where it runs.
fn outcome(
    case: &mut Case,
    verb: &Verb,
    point: Option<&Point>,
    ended: &Ended,
    (row, lines): (Option<Row>, Lines),
    counts: &mut Counts,
) -> Result<Value, Failed> {
    let said =
        |why: String| format!("{}: {why} ({})", point.map_or_else(String::new, Point::to_string), ended.stderr.trim());
    let (id, failed) = (case.id.clone(), ended.code != 0 && point.is_some_and(|point| point.fault != Fault::Kill));
    let killed = point.is_some_and(|point| point.fault == Fault::Kill);
    if killed && status(case)? == "paused" {
        // Killed while it had the container stand still: that stays so until somebody says otherwise.
        case.call(&["resume", &id])?.success()?;
    }
    let mut runs = status(case)? == "running";
    let mut went_on = Ok(());
    let mut row = row;
    if let (Some(row), true) = (&mut row, runs) {
        went_on = row.go_on(5);
        // A CRIU that has outlived its ferry ends what it has saved, as it was told to.
        runs = went_on.is_ok() || !killed || !ends(case)?;
    }
    let went_on = match (row, runs) {
        (Some(row), true) => went_on.map(|()| row),
        (Some(mut row), false) => {
            let Some(words) = (verb.back)(case) else {
                counts.left.push(said("it is lost".to_owned()));
                return Ok(Value::Null);
            };
            case.call(&["delete", "--force", &id])?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            case.begin(&words).and_then(|lines| row.continued(lines)).map(|()| row)
        }
        (None, true) => {
            let mut row = Row::of(lines);
            match row.resume().and_then(|()| row.go_on(5)) {
                // Those that a killed ferry did not let go on end a moment after it.
                Err(_) if killed && ends(case)? => {
                    return Ok(Value::Null);
                }
                ran => ran.map(|()| row),
            }
        }
        (None, false) => {
            let is_told = ended.stderr.contains("and then: cannot remove");
            if failed && !is_told && !names_in(&case.state_root()).is_empty() {
                counts.left_by_errors.push(said("its record is there".to_owned()));
            } else if point.is_none() || (ended.code == 0 && !failed) {
                counts.left.push(said("it does not run".to_owned()));
            }
            return Ok(Value::Null);
        }
    };
    match went_on {
        Ok(_row) => walls(case),
        Err(why) => {
            counts.left.push(said(why.message().unwrap_or_default().to_owned()));
            Ok(Value::Null)
        }
    }
}

/// Whether the container comes to its end.
fn ends(case: &mut Case) -> Result<bool, Failed> {
    if status(case)? != "running" {
        return Ok(true);
    }
    output::wait_for_pid(case.pid()?, case.patience())
}

/// What `state` says; nothing where there is no such container.
fn status(case: &mut Case) -> Result<String, Failed> {
    let id = case.id.clone();
    let state = case.call(&["state", &id])?;
    if state.code != 0 {
        Ok(String::new())
    } else {
        Ok(state.json()?["status"].as_str().unwrap_or_default().to_owned())
    }
}

/// What the kernel shows of the container's walls.
pub(super) fn walls(case: &mut Case) -> Result<Value, Failed> {
    let (pid, id) = (case.pid()?, case.id.clone());
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let kinds = ["Cap", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups"];
    let status: Vec<String> = read("status")?
        .lines()
        .filter(|line| kinds.iter().any(|kind| line.starts_with(kind)))
        .map(str::to_owned)
        .collect();
    let mut namespaces = Vec::new();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let link = |who: &str| fs::read_link(format!("/proc/{who}/ns/{kind}"));
        namespaces.push(json!([kind, link(&pid.to_string())? == link("self")?]));
    }
    // Where, how, and of what kind.
    let mut mounts: Vec<String> = read("mountinfo")?
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let kind = fields.iter().position(|field| *field == "-").and_then(|at| fields.get(at + 1))?;
            Some(format!("{} {} {kind}", fields.get(4)?, fields.get(5)?))
        })
        .collect();
    mounts.sort();
    Ok(json!({
        "status": status, "namespaces": namespaces, "mounts": mounts, "limits": read("limits")?,
        "oom_score_adj": read("oom_score_adj")?, "cgroup": read("cgroup")?.replace(&id, "ID"),
    }))
}

/// Deletes the container, and looks what is left.
fn clean_up(case: &mut Case, point: Option<&Point>, told: &str, counts: &mut Counts) -> Outcome {
    let id = case.id.clone();
    let end = case.call(&["delete", "--force", &id])?;
    let mut left = Vec::new();
    if end.code != 0 {
        left.push(format!("delete --force: {}", end.stderr));
    }
    for pid in marked_processes(&case.directory) {
        if !output::wait_for_pid(pid, case.patience())? {
            break;
        }
    }
    left.extend(case.leftovers()?);
    if case.directory.join("layout").exists() {
        image(case, &["prune"])?.success()?;
        for directory in ["containers", "snapshots", "tmp"] {
            let names = names_in(&PathBuf::from(case.path("store")).join(directory));
            left.extend(names.into_iter().map(|name| format!("{directory} of the store: {name}")));
        }
        let checked = image(case, &["check"])?;
        if checked.code != 0 {
            left.push(checked.stdout);
        }
    }
    // What a ferry leaves that is killed, the next one collects; what all there is of a container was in has been used above.
    let killed = point.is_some_and(|point| point.fault == Fault::Kill || is_the_languages(&point.call.0));
    let scratch = case.directory.join("scratch");
    for name in names_in(&scratch) {
        // What CRIU says of a restore that failed is to be read.
        let mut files = names_in(&scratch.join(&name)).into_iter();
        let is_log = files.all(|file| ["restore.log", "stats-restore"].contains(&file.as_str()));
        // What cannot be removed is said to be there.
        if !killed && !is_log && !told.contains(&name) && !name.starts_with("ferry-saved-") {
            left.push(format!("in the scratch directory: {name} with {:?}", names_in(&scratch.join(&name))));
        }
        remove_tree(&scratch.join(name))?;
    }
    let known = ["bundle", "state", "errors", "source", "store", "layout", "images", "archive", "scratch"];
    for name in names_in(&case.directory) {
        if !known.contains(&name.as_str()) {
            if !killed {
                left.push(name.clone());
            }
            fs::remove_file(case.directory.join(name))?;
        }
    }
    if !left.is_empty() {
        let point = point.map_or_else(String::new, Point::to_string);
        counts.left.push(format!("{point}: {left:?} ({told})"));
        case.clear()?;
    }
    Ok(())
}
