//! Who takes a stranger's bytes apart has given up before whatever that takes no part of: layers, archives of checkpoints, and what a
//! migration sends. What each thread does is traced.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::json;

use super::case::{Case, names_in};
use super::checkpoint_archive::{counter, exported};
use super::checkpoint_root::{change, image_counter, is_changed};
use super::migrate::followed;
use super::need::Need::{self, Criu, Ferry, Root, Tool};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

const STRACE: &[Need] = &[Ferry, Root, Tool("strace")];
const CRIU: &[Need] = &[Ferry, Root, Tool("strace"), Criu];

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("layers_are_taken_apart_in_a_jail", STRACE, layers),
    scenario("archives_of_checkpoints_are_taken_apart_in_a_jail", CRIU, archives),
    scenario("what_a_container_changed_is_unpacked_in_a_jail", CRIU, changes),
    scenario("migrations_are_received_in_a_jail", CRIU, migrations),
];

/// Words that have every thread of `ferry-image` traced, each to a file of its own. What it executes is not: nobody else may trace
/// what CRIU restores.
fn strace_of(case: &Case, traces: &Path) -> [String; 8] {
    let calls = "trace=openat,openat2,read,write,prctl,seccomp,/^landlock";
    let (out, program) = (traces.join("of"), case.stage.runtime.path.with_file_name("ferry-image"));
    let [out, program] = [out, program].map(|path| path.display().to_string());
    ["-ff".into(), "-qq".into(), "-b".into(), "execve".into(), "-e".into(), calls.into(), format!("-o{out}"), program]
}

/// A command of ferry's, traced.
fn traced(case: &Case, traces: &Path, words: &[&str]) -> Command {
    let ferry = case.command(words);
    let mut strace = Command::new("strace");
    strace.args(strace_of(case, traces)).args(ferry.get_args()).stdin(Stdio::null());
    strace.envs(ferry.get_envs().filter_map(|(name, value)| Some((name, value?))));
    strace
}

/// Whoever did the deed, as strace writes it, had a filter by then, and rules for the file system where there are any.
fn gave_up(traces: &Path, deed: &str) -> Outcome {
    let threads: Vec<String> =
        names_in(traces).iter().map(|name| fs::read_to_string(traces.join(name))).collect::<Result<_, _>>()?;
    let is_known = |call: &str| call.starts_with("landlock_create_ruleset(NULL") && !call.contains(" = -1");
    let has_landlock = threads.iter().flat_map(|calls| calls.lines()).any(is_known);
    let done = threads.iter().find_map(|calls| Some((calls, calls.lines().position(|call| call.contains(deed))?)));
    let (calls, done) = done.ok_or_else(|| format!("nobody does {deed}: {threads:?}"))?;
    let said = |what: &str| calls.lines().take(done).any(|call| call.contains(what) && call.ends_with(" = 0"));
    assert!(said("SECCOMP"), "who does {deed} has no filter: {calls}");
    assert_eq!(said("landlock_restrict_self"), has_landlock, "who does {deed}: {calls}");
    Ok(())
}

fn layers(case: &mut Case) -> Outcome {
    let layer = Layer::new().file("of-the-layer", 0o644, b"content")?.finish()?;
    fixtures::layout(case.path("jail").as_ref(), "jail:1", &[layer], &json!({"Cmd": ["/probe"]}))?;
    let (store, source, traces) = (case.path("store"), case.path("jail"), case.host_directory("traces")?);
    let mut command = traced(case, &traces, &["--store", &store, "image", "import", &source]);
    case.finish(&mut command)?.success()?;
    // The blob is packed: only who unpacks knows the name, and only who reads writes the blob.
    gave_up(&traces, "\"of-the-layer\"")?;
    gave_up(&traces, "\"\\37\\213")
}

/// A restore of an archive under a name of its own, traced.
fn imported(case: &mut Case, traces: &Path, archive: &str, flags: &[&str], name: &str) -> Result<Lines, Failed> {
    let (store, errors) = (case.path("store"), fs::File::options().write(true).open(case.directory.join("errors"))?);
    let words = [&["--store", &store, "restore", "--detach", "--import", archive, "--name", name], flags].concat();
    let (lines, pipe) = Lines::pipe(case.patience())?;
    let mut restore = traced(case, traces, &words).stdout(pipe).stderr(errors).spawn()?;
    let said = || fs::read_to_string(case.directory.join("errors"));
    assert!(output::wait(&mut restore, case.patience())?.success(), "{}", said()?);
    Ok(lines)
}

fn archives(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (archive, bundle) = (exported(case, &["--leave-running"])?, case.bundle.path().display().to_string());
    let (traces, other) = (case.host_directory("traces")?, case.other_id());
    let lines = imported(case, &traces, &archive, &["--bundle", &bundle], &other)?;
    let mut copy = Row::of(lines);
    copy.resume()?;
    copy.go_on(5)?;
    row.go_on(5)?;
    gave_up(&traces, "\"checkpoint/pstree.img\", O_WRONLY|O_CREAT|O_EXCL")?;
    let traces = case.host_directory("looks")?;
    let mut command = traced(case, &traces, &["checkpoint", "inspect", &archive]);
    assert!(case.finish(&mut command)?.success()?.stdout.contains("probe"));
    // How what zstd packed begins. RFC 8878, 3.1.1
    gave_up(&traces, "\"(\\265/\\375")
}

fn changes(case: &mut Case) -> Outcome {
    let _row = image_counter(case)?;
    change(case)?;
    let (archive, store, id) = (case.path("archive"), case.path("store"), case.id.clone());
    case.call(&["--store", &store, "checkpoint", "--export", &archive, &id])?.success()?;
    let (traces, other) = (case.host_directory("traces")?, case.other_id());
    let _lines = imported(case, &traces, &archive, &[], &other)?;
    gave_up(&traces, "\"moved\", O_WRONLY|O_CREAT|O_EXCL")?;
    case.id = other;
    is_changed(case)
}

fn migrations(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (here, there, store) = (case.id.clone(), case.other_id(), case.path("store"));
    let (traces, output) = (case.host_directory("traces")?, case.path("output"));
    let strace = strace_of(case, &traces).join(" ");
    let root = case.state_root().display().to_string();
    let to = format!("exec:exec strace {strace} --root {root} --store {store} receive --stdio --output {output}");
    case.call(&["--store", &store, "migrate", "--as", &there, &here, &to])?.success()?;
    let lines = followed(case, &format!("output/{there}.stdout"))?;
    row.continued(lines)?;
    gave_up(&traces, "\"pstree.img\", O_RDWR|O_CREAT|O_EXCL")
}
