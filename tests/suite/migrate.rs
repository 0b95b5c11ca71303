//! Migration between two places on one machine: what goes on there, with nothing lost. See [`super::migrate_cut_off`] for what fails
//! on the way.
//!
//! Both ends keep containers in the same directory, under two ids: two containers of one id would have one cgroup. The program
//! inside prints a number after the other, so that what the two ends print makes one row without a gap.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::checkpoint::CRIU;
use super::migrate_cut_off::restoring;
use super::need::Need::{CriuTcp, Ferry, Root, Tool};
use super::output::{self, Lines, Output};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_counter_goes_there_and_back", CRIU, there_and_back),
    scenario("one_that_ends_at_once_is_not_given_back", CRIU, ends_at_once),
    scenario("a_read_only_root_goes_along", CRIU, read_only_root),
    scenario("processes_pipes_and_sockets_go_along", CRIU, ring),
    scenario("memory_goes_along_and_the_report_tells", CRIU, memory),
    scenario("a_dry_run_changes_nothing", CRIU, dry_run),
    scenario("what_is_in_the_way_is_named_first", CRIU, refused),
    scenario("only_a_running_container_can_be_migrated", &[Ferry, Root], not_running),
    scenario("a_connection_must_be_kept_or_closed", CRIU, connection),
    scenario("a_failure_costs_no_connection", &[Ferry, Root, Tool("criu"), CriuTcp], kept_connection),
    scenario("file_locks_go_along", CRIU, file_locks),
    scenario("sockets_that_lead_out_go_along", CRIU, sockets),
    scenario("ssh_is_told_what_to_call", CRIU, ssh),
    scenario("over_a_connection_on_this_machine", CRIU, listening),
    scenario("a_listener_keeps_nobody_who_has_ended", CRIU, ended_at_listener),
    scenario("a_listener_that_is_short_of_descriptors_goes_on", CRIU, short_listener),
    scenario("a_far_end_that_is_no_ferry_is_told", CRIU, no_ferry),
    scenario("an_end_at_work_is_borne_with", CRIU, at_work),
    scenario("a_restore_that_fails_leaves_it_here", CRIU, failing_restore),
    scenario("a_report_is_drawn", &[Ferry], plot),
];

/// The words for the other end, and where its streams lead.
pub(super) fn destination(case: &Case) -> String {
    format!("exec:exec {} {}", calling(case), ["receive", "--stdio", "--output", &case.path("output")].join(" "))
}

/// What calls ferry at the other end.
fn calling(case: &Case) -> String {
    calling_with(case, &case.path("store"))
}

/// The same, with a store of its own.
pub(super) fn calling_with(case: &Case, store: &str) -> String {
    format!("{} --root {} --store {store}", case.stage.runtime.path.display(), case.state_root().display())
}

/// A copy of the bundle, as a machine of its own would have it.
pub(super) fn copied_bundle(case: &mut Case, name: &str) -> Result<String, Failed> {
    let other = case.host_directory(name)?;
    let copied = std::process::Command::new("cp").arg("-a").arg(case.bundle.path()).arg(&other).status()?;
    assert!(copied.success());
    fs::copy(case.bundle.path().join("config.json"), other.join("bundle/config.json"))?;
    Ok(other.join("bundle").display().to_string())
}

/// `migrate` from the case's container to another id, not yet run.
pub(super) fn words<'a>(flags: &[&'a str], store: &'a str, ids: (&'a str, &'a str), to: &'a str) -> Vec<&'a str> {
    [&["--store", store, "migrate", "--as", ids.1], flags, &[ids.0, to]].concat()
}

fn migrate(case: &mut Case, flags: &[&str], there: &str) -> Result<Output, Failed> {
    let (store, id, to) = (case.path("store"), case.id.clone(), destination(case));
    case.call(&words(flags, &store, (&id, there), &to))
}

/// What a container prints at the other end, from its first line there.
pub(super) fn printed(case: &Case, id: &str) -> Result<Lines, Failed> {
    followed(case, &format!("output/{id}.stdout"))
}

/// The lines of a file that somebody writes to, as they come.
pub(super) fn followed(case: &Case, file: &str) -> Result<Lines, Failed> {
    let (lines, pipe) = Lines::pipe(case.patience())?;
    let path = case.path(file);
    let mut tail = std::process::Command::new("tail");
    tail.args(["-n", "+1", "-f", &path]).env(super::case::MARK, &case.directory);
    tail.stdin(Stdio::null()).stdout(pipe).spawn()?;
    Ok(lines)
}

pub(super) fn counter(case: &mut Case) -> Result<Row, Failed> {
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    Ok(row)
}

/// Nothing of a migration is left: journals and images.
pub(super) fn settled(case: &Case) -> Outcome {
    let left: Vec<_> = fs::read_dir(case.path("store/migrations")).into_iter().flatten().flatten().collect();
    if left.is_empty() { Ok(()) } else { Err(format!("left: {left:?}").into()) }
}

pub(super) fn gone(case: &mut Case, id: &str) -> Outcome {
    let said = case.call(&["state", id])?.failure()?.stderr;
    assert!(said.contains("does not exist"), "{said}");
    Ok(())
}

fn there_and_back(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (here, there) = (case.id.clone(), case.other_id());
    let told = migrate(case, &[], &there)?.success()?.stdout;
    assert!(told.contains(&format!("{here} runs at ")) && told.contains("stood still"), "{told}");
    gone(case, &here)?;
    let lines = printed(case, &there)?;
    row.continued(lines)?;
    settled(case)?;
    case.id = there.clone();
    assert_eq!(case.state()?["status"], "running");
    // Its output is a file now, and so it is where it comes back.
    migrate(case, &[], &here)?.success()?;
    gone(case, &there)?;
    let whole = fs::metadata(case.path(&format!("output/{there}.stdout")))?.len();
    let mut back = BufReader::new(fs::File::open(case.path(&format!("output/{here}.stdout")))?);
    assert!(back.get_ref().metadata()?.len() >= whole, "it begins where the other ended");
    case.id = here;
    assert_eq!(case.state()?["status"], "running");
    std::io::copy(&mut std::io::Read::take(&mut back, whole), &mut std::io::sink())?;
    let last = fs::read_to_string(case.path(&format!("output/{there}.stdout")))?;
    let last: u64 = last.lines().last().unwrap_or_default().parse()?;
    let end = Instant::now() + case.patience();
    let mut line = String::new();
    while back.read_line(&mut line)? == 0 && Instant::now() < end {
        std::thread::yield_now();
    }
    assert_eq!(line.trim().parse::<u64>()?, last + 1);
    settled(case)
}

/// What it did there in its last moment is not done again here.
fn ends_at_once(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "end-elsewhere"]).start()?);
    row.go_on(3)?;
    let (here, there) = (case.id.clone(), case.other_id());
    migrate(case, &[], &there)?.success()?;
    gone(case, &here)?;
    printed(case, &there)?.until("elsewhere")?;
    case.id = there;
    if let pid @ 1.. = case.state()?["pid"].as_u64().unwrap_or(0) {
        case.wait_for(u32::try_from(pid)?)?;
    }
    assert_eq!(case.state()?["status"], "stopped");
    settled(case)
}

/// With nothing in it but what the configuration mounts: there is no `/tmp`.
fn read_only_root(case: &mut Case) -> Outcome {
    fs::remove_dir(case.bundle.rootfs().join("tmp"))?;
    case.config["root"]["readonly"] = json!(true);
    let mut row = counter(case)?;
    let there = case.other_id();
    migrate(case, &[], &there)?.success()?;
    let lines = printed(case, &there)?;
    row.continued(lines)
}

fn ring(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
    row.go_on(5)?;
    let there = case.other_id();
    migrate(case, &["--timeout", "120s"], &there)?.success()?;
    let lines = printed(case, &there)?;
    row.continued(lines)
}

fn memory(case: &mut Case) -> Outcome {
    let mut lines = case.args(&["/probe", "hold", "64"]).start()?;
    lines.until("")?;
    let (there, report) = (case.other_id(), case.path("report.json"));
    let flags = ["--report", &report, "--progress", "json", "--compress-level", "3", "--max-downtime", "10s"];
    let said = migrate(case, &flags, &there)?.success()?.stdout;
    let told: Vec<Value> = said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let steps: Vec<&str> = told.iter().filter_map(|event| event["step"].as_str()).collect();
    let without: Vec<&&str> = steps.iter().filter(|step| **step != "pre-copy").collect();
    assert_eq!(without, [&"reserve", &"stop-and-copy", &"commit", &"activate", &"release"]);
    let report: Value = serde_json::from_str(&fs::read_to_string(&report)?)?;
    assert_eq!(told.last(), Some(&report));
    assert_eq!((&report["migrated"], &report["pid"]), (&json!(true), &json!(pid_of(case, &there)?)));
    let number = |path: &str| report.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    assert!(number("/bytes/pages") > 60 << 20, "{report}");
    assert!(number("/bytes/sent") < number("/bytes/pages"), "{report}");
    assert!(number("/downtime") > 0 && number("/downtime") <= number("/total"), "{report}");
    assert_eq!(report["rounds"].as_array().map_or(0, Vec::len) > 1, steps.contains(&"pre-copy"), "{report}");
    Ok(())
}

fn pid_of(case: &mut Case, id: &str) -> Result<u32, Failed> {
    let own = std::mem::replace(&mut case.id, id.to_owned());
    let pid = case.pid();
    case.id = own;
    pid
}

fn dry_run(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (there, pid) = (case.other_id(), case.pid()?);
    let said = migrate(case, &["--dry-run"], &there)?.success()?.stdout;
    assert!(said.contains("could take") && said.contains("nothing was sent"), "{said}");
    gone(case, &there)?;
    assert_eq!(case.pid()?, pid);
    row.go_on(5)?;
    settled(case)
}

fn refused(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (there, here) = (case.other_id(), case.id.clone());
    let said = migrate(case, &["--bundle", "/none/such"], &there)?.failure()?.stderr;
    assert!(said.contains("its bundle is not here") && said.contains("nothing was sent"), "{said}");
    let said = migrate(case, &[], &here)?.failure()?.stderr;
    assert!(said.contains(&format!("there is a container of the id {here} already")), "{said}");
    // Another configuration is another container's.
    case.config["hostname"] = "other".into();
    case.write_config()?;
    let said = migrate(case, &[], &there)?.failure()?.stderr;
    assert!(said.contains("is not what the container has: hostname is another"), "{said}");
    fs::rename(case.bundle.rootfs(), case.path("elsewhere"))?;
    let said = migrate(case, &[], &there)?.failure()?.stderr;
    assert!(said.contains("hostname is another; its root filesystem"), "every reason at once: {said}");
    fs::rename(case.path("elsewhere"), case.bundle.rootfs())?;
    row.go_on(5)?;
    settled(case)
}

fn not_running(case: &mut Case) -> Outcome {
    let there = case.other_id();
    let said = migrate(case, &[], &there)?.failure()?.stderr;
    assert!(said.contains("does not exist"), "{said}");
    drop(case.args(&["/probe", "sleep", "forever"]).create()?);
    let said = migrate(case, &[], &there)?.failure()?.stderr;
    assert!(said.contains("cannot be migrated: it is created"), "{said}");
    let id = case.id.clone();
    let said = case.call(&["migrate", &id])?.failure()?.stderr;
    assert!(said.contains("the destination is missing"), "{said}");
    let said = case.call(&["migrate", &id, "elsewhere"])?.failure()?.stderr;
    assert!(said.contains("none of ssh://"), "{said}");
    let (store, id) = (case.path("store"), case.id.clone());
    let said = case.call(&["--store", &store, "migrate", "--recover", &id])?.success()?.stdout;
    assert_eq!(said.trim(), format!("{id} is here, and no migration of it was cut off"));
    case.call(&["delete", "--force", &id])?.success()?;
    config::without_namespace(&mut case.config, "mount");
    case.start_waiting()?;
    let said = migrate(case, &["--dry-run"], &there)?.failure()?.stderr;
    assert!(said.contains("cannot be migrated: its mounts are the host's"), "{said}");
    Ok(())
}

/// In the host's own network, where the client is.
struct Client(TcpStream);

impl Client {
    fn of(case: &mut Case) -> Result<Self, Failed> {
        config::without_namespace(&mut case.config, "network");
        let mut lines = case.args(&["/probe", "serve"]).start()?;
        let port = lines.until("port")?.trim_start_matches("port ").parse::<u16>()?;
        let client = TcpStream::connect(("127.0.0.1", port))?;
        client.set_read_timeout(Some(case.patience()))?;
        Ok(Self(client))
    }

    /// The server counts what it answers.
    fn ask(&mut self, number: u32) -> Outcome {
        self.0.write_all(b"ahoy\n")?;
        let mut line = String::new();
        BufReader::new(&self.0).read_line(&mut line)?;
        assert_eq!(line, format!("{number}: ahoy\n"));
        Ok(())
    }
}

fn connection(case: &mut Case) -> Outcome {
    let mut client = Client::of(case)?;
    client.ask(1)?;
    let there = case.other_id();
    let said = migrate(case, &["--mode", "stop-and-copy"], &there)?.failure()?.stderr;
    assert!(said.contains("an established TCP connection") && said.contains("--tcp-established"), "{said}");
    client.ask(2)
}

/// The address is taken, by the container itself: it cannot be restored beside it.
fn kept_connection(case: &mut Case) -> Outcome {
    let mut client = Client::of(case)?;
    let there = case.other_id();
    for (number, flag) in (1..).zip(["--tcp-established", "--tcp-close"]) {
        client.ask(2 * number - 1)?;
        let said = migrate(case, &[flag], &there)?.failure()?.stderr;
        assert!(said.contains("the destination: cannot restore container"), "{said}");
        gone(case, &there)?;
        assert_eq!(case.state()?["status"], "running");
        client.ask(2 * number)?;
    }
    settled(case)
}

fn file_locks(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "lock", "/home/lock"]).start()?);
    row.go_on(5)?;
    let (bundle, there) = (copied_bundle(case, "other")?, case.other_id());
    let said = migrate(case, &["--bundle", &bundle], &there)?.failure()?.stderr;
    assert!(said.contains("--file-locks"), "{said}");
    row.go_on(5)?;
    migrate(case, &["--bundle", &bundle, "--file-locks"], &there)?.success()?;
    let lines = printed(case, &there)?;
    row.continued(lines)?;
    case.id = there;
    assert_eq!(case.exec(&[], &["/probe", "try-lock", "/home/lock"])?.success()?.json()?["ok"], false);
    Ok(())
}

fn sockets(case: &mut Case) -> Outcome {
    let outside = case.host_directory("outside")?;
    let socket = UnixDatagram::bind(outside.join("socket"))?;
    // What nobody takes from there would hold the sender up.
    std::thread::spawn(move || while socket.recv(&mut [0; 32]).is_ok() {});
    let inside = outside.display().to_string();
    config::add(&mut case.config, "/mounts", config::bind(&outside, &inside, &["bind"]));
    config::without_namespace(&mut case.config, "network");
    let mut row = Row::of(case.args(&["/probe", "send", &format!("{inside}/socket")]).start()?);
    row.go_on(5)?;
    let there = case.other_id();
    migrate(case, &["--ext-unix-sk"], &there)?.success()?;
    let lines = printed(case, &there)?;
    row.continued(lines)
}

/// A program in ssh's place, which does at once what ssh would have done there.
fn ssh(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (there, directory, said) = (case.other_id(), case.host_directory("programs")?, case.path("said"));
    let script = format!("#!/bin/sh\necho \"$@\" >{said}\nwhile [ \"$1\" != -- ]; do shift; done\nexec sh -c \"$3\"\n");
    fs::write(directory.join("ssh"), script)?;
    fs::set_permissions(directory.join("ssh"), fs::Permissions::from_mode(0o755))?;
    let (remote, store, id) = (calling(case), case.path("store"), case.id.clone());
    let words = words(&["--remote", &remote], &store, (&id, &there), "ssh://captain@b.example:2222");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(directory).chain(std::env::split_paths(&path)))?;
    let mut command = case.command(&words);
    command.env("PATH", path);
    case.finish(&mut command)?.success()?;
    let said = fs::read_to_string(said)?;
    assert_eq!(said.trim(), format!("-T -p 2222 -- captain@b.example {remote} receive --stdio"));
    let lines = followed(case, &format!("store/output/{there}.stdout"))?;
    row.continued(lines)
}

fn listening(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (there, store, output) = (case.other_id(), case.path("store"), case.path("output"));
    let address = ["receive", "--listen", "127.0.0.1:0"];
    let words = [&["--store", &store], &address[..], &["--once", "--output", &output, "--timeout", "60s"]].concat();
    let (mut receiver, mut told) = case.spawn(&words)?;
    let address = told.until("listening at")?.trim_start_matches("listening at ").to_owned();
    let id = case.id.clone();
    let to = format!("tcp://{address}");
    let flags = ["--bandwidth", "500M", "--max-rounds", "2", "--on-no-convergence", "stop"];
    case.call(&self::words(&flags, &store, (&id, &there), &to))?.success()?;
    told.until(&format!("{there} runs here"))?;
    assert_eq!(output::code(output::wait(&mut receiver, case.patience())?), 0);
    let lines = printed(case, &there)?;
    row.continued(lines)?;
    settled(case)?;
    let said = case.call(&["receive", "--listen", "0.0.0.0:0", "--once"])?.failure()?.stderr;
    assert!(said.contains("not of this machine"), "{said}");
    Ok(())
}

/// What has come is not the listener's to wait for.
fn ended_at_listener(case: &mut Case) -> Outcome {
    let _row = counter(case)?;
    let (here, there) = (case.id.clone(), case.other_id());
    let (store, output) = (case.path("store"), case.path("output"));
    let words = ["--store", &store, "receive", "--listen", "127.0.0.1:0", "--output", &output];
    let (mut receiver, mut told) = case.spawn(&words)?;
    let to = format!("tcp://{}", told.until("listening at")?.trim_start_matches("listening at "));
    case.call(&self::words(&[], &store, (&here, &there), &to))?.success()?;
    told.until(&format!("{there} runs here"))?;
    case.id = there;
    let first = u32::try_from(case.state()?["pid"].as_u64().unwrap_or(0))?;
    case.call(&["kill", &case.id.clone(), "KILL"])?.success()?;
    case.wait_for(first)?;
    let children = format!("/proc/{0}/task/{0}/children", receiver.id());
    let end = Instant::now() + case.patience();
    while !fs::read_to_string(&children)?.is_empty() {
        assert!(Instant::now() < end, "{}", fs::read_to_string(&children)?);
        std::thread::yield_now();
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&receiver), rustix::process::Signal::TERM)?;
    output::wait(&mut receiver, case.patience())?;
    settled(case)
}

/// Who comes while it has no descriptor left is told of, and the next one is served.
fn short_listener(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (there, store, output) = (case.other_id(), case.path("store"), case.path("output"));
    let (log, words) =
        (case.path("log"), ["--store", &store, "receive", "--listen", "127.0.0.1:0", "--output", &output]);
    let (mut receiver, mut told) = case.spawn(&[&["--log", &log], &words[..]].concat())?;
    let address = told.until("listening at")?.trim_start_matches("listening at ").to_owned();
    let pid = rustix::process::Pid::from_child(&receiver);
    let limit = |current| {
        let limit = rustix::process::Rlimit { current: Some(current), maximum: Some(256) };
        rustix::process::prlimit(Some(pid), rustix::process::Resource::Nofile, limit)
    };
    limit(3)?;
    drop(TcpStream::connect(&address)?);
    let end = Instant::now() + case.patience();
    while !fs::read_to_string(&log).is_ok_and(|log| log.contains("cannot accept a connection")) {
        let ended = receiver.try_wait()?;
        assert!(ended.is_none() && Instant::now() < end, "{ended:?}");
        std::thread::yield_now();
    }
    limit(256)?;
    let (id, to) = (case.id.clone(), format!("tcp://{address}"));
    case.call(&self::words(&["--max-rounds", "2"], &store, (&id, &there), &to))?.success()?;
    told.until(&format!("{there} runs here"))?;
    let lines = printed(case, &there)?;
    row.continued(lines)?;
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    output::wait(&mut receiver, case.patience())?;
    settled(case)
}

fn no_ferry(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let id = case.id.clone();
    for (to, said) in [
        ("exec:echo Welcome to the far end", "its first words are \"Welcome to t\""),
        ("exec:exit 3", "the connection is cut"),
        ("exec:sleep 60", "silent for 0.2 s"),
        ("exec:head -c 20 /dev/zero", "does not speak ferry's protocol"),
    ] {
        let answer = case.call(&["migrate", "--timeout", "200ms", &id, to])?.failure()?;
        assert!(answer.stderr.contains(said), "{to}: {}", answer.stderr);
    }
    row.go_on(5)
}

/// The CRIU that restores takes longer than anybody may be silent.
#[allow(clippy::disallowed_methods, reason = "the time that passes is what the test is about")]
fn at_work(case: &mut Case) -> Outcome {
    use nix::sys::signal::{Signal, kill};
    let mut row = counter(case)?;
    let (store, here, there, to) = (case.path("store"), case.id.clone(), case.other_id(), destination(case));
    let flags = ["--timeout", "5s", "--mode", "stop-and-copy", "--progress", "json"];
    let (mut child, mut told) = case.spawn(&words(&flags, &store, (&here, &there), &to))?;
    // Until then there is a CRIU at the far end that is only looked at.
    told.until("stop-and-copy")?;
    let end = Instant::now() + case.patience();
    let criu = loop {
        match restoring(case).first() {
            Some(pid) => break nix::unistd::Pid::from_raw(*pid),
            None => assert!(Instant::now() < end && child.try_wait()?.is_none(), "it was restored unseen"),
        }
    };
    kill(criu, Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_secs(7));
    assert!(child.try_wait()?.is_none(), "it waits for a CRIU that stands still");
    kill(criu, Signal::SIGCONT)?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 0);
    let lines = printed(case, &there)?;
    row.continued(lines)?;
    settled(case)
}

/// Its root filesystem has another program.
fn failing_restore(case: &mut Case) -> Outcome {
    let mut row = counter(case)?;
    let (there, bundle) = (case.other_id(), copied_bundle(case, "other")?);
    fs::write(std::path::Path::new(&bundle).join("rootfs/probe"), "another program")?;
    let said = migrate(case, &["--bundle", &bundle], &there)?.failure()?.stderr;
    assert!(said.contains("the destination: cannot restore container"), "{said}");
    gone(case, &there)?;
    assert_eq!(case.state()?["status"], "running");
    row.go_on(10)?;
    settled(case)
}

fn plot(case: &mut Case) -> Outcome {
    let (report, picture) = (case.path("report.json"), case.path("picture.svg"));
    let rounds = json!([{"pages": 9_000_000, "sent": 500_000, "dump": 1_000_000, "send": 5_000_000}]);
    let empty = json!({"pages": 0, "zero": 0, "same": 0, "compressedAway": 0});
    let bytes = json!({"pages": 9, "images": 1, "sent": 1, "savedZero": 0, "savedSame": 0, "savedCompression": 0});
    let text = json!({
        "format": 1, "id": "web", "destination": "ssh://b", "host": "b", "mode": "pre-copy", "migrated": true, "pid": 7,
        "steps": [], "rounds": rounds, "total": 9_000_000, "downtime": 4_000_000, "estimate": null, "pages": empty,
        "bytes": bytes, "notes": [],
    });
    fs::write(&report, text.to_string())?;
    case.call(&["migrate", "plot", &report, "--output", &picture])?.success()?;
    let drawn = fs::read_to_string(&picture)?;
    assert!(drawn.starts_with("<svg") && drawn.contains("web to b") && drawn.contains("6 ms"), "{drawn}");
    let said = case.call(&["migrate", "plot", &picture])?.failure()?.stderr;
    assert!(said.contains("cannot use report"), "{said}");
    Ok(())
}
