//! Checkpoint and restore: what goes on, where it stopped, with nothing lost; and a container that a checkpoint fails on is
//! as it was before.
//!
//! The programs inside are the probe's `living` ones, which print a number after the other, so that the lines before and
//! after a restore make one row without a gap.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use libtest_mimic::Failed;
use serde_json::json;

use super::case::Case;
use super::need::Need::{self, CgroupV2, Criu, CriuTcp, Ferry, Root, Tool};
use super::output::{self, Lines};
use super::pseudo_terminal::ConsoleSocket;
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub(super) const CRIU: &[Need] = &[Ferry, Root, Criu];

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_counter_goes_on", CRIU, counter),
    scenario("threads_go_on", CRIU, threads),
    scenario("processes_pipes_and_sockets_go_on", CRIU, ring),
    scenario("a_terminal_goes_on", CRIU, terminal),
    scenario("an_established_connection_goes_on", &[Ferry, Root, Criu, CriuTcp], connection),
    scenario("leave_running_leaves_it_running", CRIU, leave_running),
    scenario("pre_dumps_make_a_chain", CRIU, pre_dumps),
    scenario("a_restored_container_is_like_any_other", CRIU, like_any_other),
    scenario("a_restored_container_has_keys_of_its_own", CRIU, keys),
    scenario("a_restore_in_the_foreground_gives_the_exit_code", CRIU, foreground),
    scenario("mounts_and_masks_are_as_before", CRIU, mounts),
    scenario("a_joined_network_namespace_is_joined_again", CRIU, joined_network),
    scenario("a_user_namespace_is_as_before", CRIU, user_namespace),
    scenario("limits_are_those_of_the_bundle", &[Ferry, Root, Criu, CgroupV2(&["pids"])], limits),
    scenario("hooks_run_as_on_start", CRIU, hooks),
    scenario("a_paused_container_can_be_saved", CRIU, paused),
    scenario("runc_restores_what_was_saved", &[Ferry, Root, Criu, Tool("runc"), Tool("iptables-restore")], to_runc),
    scenario("what_runc_saved_is_restored", &[Ferry, Root, Criu, Tool("runc"), Tool("iptables-restore")], from_runc),
    scenario("what_cannot_be_saved_is_named_and_goes_on", CRIU, refused),
    scenario("what_exec_brought_is_named_as_lost", CRIU, of_exec),
    scenario("only_a_running_container_can_be_saved", &[Ferry, Root], not_running),
    scenario("a_restore_without_images_leaves_nothing", CRIU, without_images),
    scenario("broken_images_leave_nothing", CRIU, broken_images),
];

/// How often a container goes there and back.
pub(super) fn rounds() -> usize {
    if std::env::var_os("FERRY_LONG").is_some() { 20 } else { 2 }
}

/// Where a case's images are.
pub(super) fn images(case: &Case) -> String {
    case.path("images")
}

pub(super) fn checkpoint(case: &mut Case, flags: &[&str]) -> Outcome {
    let (images, id) = (images(case), case.id.clone());
    case.call(&[&["checkpoint", "--image-path", &images], flags, &[&id]].concat())?.success().map(drop)
}

pub(super) fn restore(case: &mut Case, flags: &[&str]) -> Result<Lines, Failed> {
    let (images, id, bundle) = (images(case), case.id.clone(), case.bundle.path().display().to_string());
    case.begin(&[&["restore", "--detach", "--image-path", &images, "--bundle", &bundle], flags, &[&id]].concat())
}

/// Starts a restore and does not wait. Standard error was a file, and so only a file can take its place.
pub(super) fn spawn_restore(case: &Case, args: &[&str]) -> Result<(Child, Lines), Failed> {
    let errors = fs::File::options().write(true).open(case.directory.join("errors"))?;
    let (lines, pipe) = Lines::pipe(case.patience())?;
    let child = case.command(&[&["restore"], args].concat()).stdout(pipe).stderr(errors).spawn()?;
    Ok((child, lines))
}

/// There and back again, some times.
fn goes_on(case: &mut Case, args: &[&str], rounds: usize) -> Result<Row, Failed> {
    let mut row = Row::of(case.args(args).start()?);
    row.go_on(10)?;
    for _ in 0..rounds {
        checkpoint(case, &[])?;
        assert_eq!(case.leftovers()?, Vec::<String>::new());
        let lines = restore(case, &[])?;
        row.continued(lines)?;
        assert_eq!(case.state()?["status"], "running");
    }
    // Held for as long as the container is to live: it would end for want of a reader.
    Ok(row)
}

fn counter(case: &mut Case) -> Outcome {
    goes_on(case, &["/probe", "count", "1000000", "0"], rounds()).map(drop)
}

fn threads(case: &mut Case) -> Outcome {
    goes_on(case, &["/probe", "threads", "20"], rounds()).map(drop)
}

fn ring(case: &mut Case) -> Outcome {
    goes_on(case, &["/probe", "ring"], rounds()).map(drop)
}

fn terminal(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "dialogue"]).write_config()?, case.id.clone());
    let path = case.path("console");
    let socket = ConsoleSocket::bind(path.as_ref())?;
    case.call(&["run", "--detach", "--console-socket", &path, "--bundle", &bundle, &id])?.success()?;
    let mut master = socket.receive(case.patience())?;
    Lines::new(master.try_clone()?, case.patience()).until("ready")?;
    for round in 1..=rounds() {
        let mut keyboard = fs::File::from(master.try_clone()?);
        keyboard.write_all(b"ahoy\n")?;
        Lines::new(master.try_clone()?, case.patience()).until(&format!("{}: ahoy", 2 * round - 1))?;
        checkpoint(case, &[])?;
        restore(case, &["--console-socket", &path])?;
        master = socket.receive(case.patience())?;
        fs::File::from(master.try_clone()?).write_all(b"hoy\n")?;
        Lines::new(master.try_clone()?, case.patience()).until(&format!("{}: hoy", 2 * round))?;
    }
    Ok(())
}

/// In the host's own network, where the client is.
fn connection(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "network");
    let mut lines = case.args(&["/probe", "serve"]).start()?;
    let port = lines.until("port")?.trim_start_matches("port ").parse::<u16>()?;
    let mut client = TcpStream::connect(("127.0.0.1", port))?;
    client.set_read_timeout(Some(case.patience()))?;
    let mut answers = BufReader::new(client.try_clone()?);
    let mut answer = |number: usize| -> Outcome {
        let mut line = String::new();
        answers.read_line(&mut line)?;
        if line == format!("{number}: ahoy\n") {
            Ok(())
        } else {
            Err(format!("{number} was answered by {line:?}").into())
        }
    };
    for round in 0..rounds() {
        client.write_all(b"ahoy\n")?;
        answer(3 * round + 1)?;
        checkpoint(case, &["--tcp-established"])?;
        // Sent to nobody, and to be had by who comes back.
        client.write_all(b"ahoy\n")?;
        restore(case, &["--tcp-established"])?;
        answer(3 * round + 2)?;
        client.write_all(b"ahoy\n")?;
        answer(3 * round + 3)?;
    }
    Ok(())
}

fn leave_running(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(10)?;
    let pid = case.pid()?;
    let (directory, id) = (images(case), case.id.clone());
    let args = ["checkpoint", "--leave-running", "--format", "json", "--image-path", &directory, &id];
    let saved = case.call(&args)?.success()?.json()?;
    assert!(saved["bytes"].as_u64() > Some(0) && saved["frozenMilliseconds"].as_f64() > Some(0.0), "{saved}");
    row.go_on(10)?;
    assert_eq!((&case.state()?["status"], case.pid()?), (&json!("running"), pid));
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    while row.read().is_ok() {}
    let mut again = restore(case, &[])?;
    // From when the images were made, and not from when the container ended.
    let number: u64 = again.until("")?.parse()?;
    assert!((1..row.next).contains(&number), "{number} of {}", row.next);
    Ok(())
}

/// Whether this kernel tracks memory; without it, the words that say so are all there is to see.
pub(super) fn pre_dump(case: &mut Case, images: &str, parent: &[&str]) -> Result<bool, Failed> {
    let id = case.id.clone();
    let answer = case.call(&[&["checkpoint", "--pre-dump", "--image-path", images], parent, &[&id]].concat())?;
    if answer.stderr.contains("does not tell which pages") {
        return Ok(false);
    }
    answer.success().map(|_| true)
}

fn pre_dumps(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(10)?;
    let (first, second, last) = (case.path("1"), case.path("2"), images(case));
    if !pre_dump(case, &first, &[])? {
        return row.go_on(10);
    }
    row.go_on(10)?;
    let id = case.id.clone();
    let args = ["checkpoint", "--pre-dump", "--format", "json", "--image-path", &second, "--parent-path", "../1", &id];
    let saved = case.call(&args)?.success()?.json()?;
    assert!(saved["dirtyRate"].as_f64() > Some(0.0) && saved["unchangedBytes"].as_u64() > Some(0), "{saved}");
    assert!(saved["estimatedMilliseconds"].as_f64() >= saved["frozenMilliseconds"].as_f64(), "{saved}");
    row.go_on(10)?;
    assert_eq!(case.state()?["status"], "running");
    checkpoint(case, &["--parent-path", "../2"])?;
    let pages = |directory: &str| -> Result<u64, Failed> {
        let mut total = 0;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("pages-") {
                total += entry.metadata()?.len();
            }
        }
        Ok(total)
    };
    assert!(pages(&last)? < pages(&first)?, "the last dump has no less than the first");
    let lines = restore(case, &[])?;
    row.continued(lines)
}

fn like_any_other(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    checkpoint(case, &[])?;
    let pid_file = case.path("pid");
    let lines = restore(case, &["--pid-file", &pid_file])?;
    row.continued(lines)?;
    assert_eq!(fs::read_to_string(&pid_file)?, case.pid()?.to_string());
    let inside = case.exec(&[], &["/probe"])?.success()?.json()?;
    assert_eq!(inside["hostname"], "ship");
    let id = case.id.clone();
    case.call(&["pause", &id])?.success()?;
    assert_eq!(case.state()?["status"], "paused");
    case.call(&["resume", &id])?.success()?;
    row.go_on(5)?;
    case.kill_and_wait("KILL")?;
    assert_eq!(case.state()?["status"], "stopped");
    case.call(&["delete", &id])?.success()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// The host shows a session keyring of this name for as long as somebody has it, and nobody ever had one of the new name.
fn keys(case: &mut Case) -> Outcome {
    let (mut row, other) = (Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?), case.other_id());
    row.go_on(5)?;
    checkpoint(case, &[])?;
    case.id = other;
    let lines = restore(case, &[])?;
    row.continued(lines)?;
    let (keys, name) = (fs::read_to_string("/proc/keys")?, format!(" _ses.{}: ", case.id));
    assert!(keys.contains(&name), "{name}: {keys}");
    Ok(())
}

fn foreground(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "count", "400", "7"]).start()?);
    row.go_on(5)?;
    checkpoint(case, &[])?;
    let (images, id, bundle) = (images(case), case.id.clone(), case.bundle.path().display().to_string());
    let (mut child, lines) = spawn_restore(case, &["--image-path", &images, "--bundle", &bundle, &id])?;
    row.continued(lines)?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 7);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn mounts(case: &mut Case) -> Outcome {
    let outside = case.host_directory("outside")?;
    fs::write(outside.join("file"), "from outside")?;
    case.bundle.link("through", "mnt")?;
    config::add(&mut case.config, "/mounts", config::bind(&outside, "/through/deep", &["rbind", "ro"]));
    config::add(&mut case.config, "/mounts", config::bind(&outside.join("file"), "/etc/bound", &["bind"]));
    config::add(&mut case.config, "/mounts", config::bind(&outside, "/dev/outside", &["bind"]));
    config::add(&mut case.config, "/linux/maskedPaths", json!("/etc/group"));
    case.config["root"]["readonly"] = json!(true);
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    checkpoint(case, &[])?;
    let lines = restore(case, &[])?;
    row.continued(lines)?;
    let mut look = |deed: &[&str]| case.exec(&[], &[&["/probe"], deed].concat())?.success()?.json();
    for path in ["/mnt/deep/file", "/etc/bound", "/dev/outside/file"] {
        assert_eq!(look(&["read", path])?["ok"], "from outside", "{path}");
    }
    assert_eq!(look(&["read", "/etc/group"])?["ok"], "");
    assert!(look(&["write", "/mnt/deep/new", "x"])?["error"].is_number());
    assert!(look(&["write", "/home/new", "x"])?["error"].is_number());
    assert!(look(&["write", "/proc/sys/kernel/hostname", "x"])?["error"].is_number());
    Ok(())
}

/// Another container's, which stays.
fn joined_network(case: &mut Case) -> Outcome {
    let (holder, first) = (case.other_id(), case.id.clone());
    case.id = holder.clone();
    case.start_waiting()?;
    let pid = case.pid()?;
    case.id = first;
    let network = format!("/proc/{pid}/ns/net");
    config::without_namespace(&mut case.config, "network");
    config::add(&mut case.config, "/linux/namespaces", json!({"type": "network", "path": network}));
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    checkpoint(case, &[])?;
    let lines = restore(case, &[])?;
    row.continued(lines)?;
    let own = format!("/proc/{}/ns/net", case.pid()?);
    assert_eq!(fs::read_link(own)?, fs::read_link(network)?);
    Ok(())
}

fn user_namespace(case: &mut Case) -> Outcome {
    config::user_namespace(&mut case.config, (100_000, 100_000), 65_536);
    case.bundle.give_to(100_000)?;
    let _row = goes_on(case, &["/probe", "count", "1000000", "0"], 1)?;
    let pid = case.pid()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/uid_map"))?;
    assert_eq!(maps.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    Ok(())
}

fn limits(case: &mut Case) -> Outcome {
    case.config["linux"]["resources"] = json!({"pids": {"limit": 50}});
    let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
    row.go_on(5)?;
    checkpoint(case, &[])?;
    case.config["linux"]["resources"] = json!({"pids": {"limit": 40}});
    case.write_config()?;
    let lines = restore(case, &[])?;
    row.continued(lines)?;
    let [cgroup] = &case.cgroups()[..] else { return Err("it should have one cgroup".into()) };
    assert_eq!(fs::read_to_string(cgroup.join("pids.max"))?.trim(), "40");
    let inside = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    assert_eq!(inside.lines().count(), 3, "{inside}");
    Ok(())
}

fn hooks(case: &mut Case) -> Outcome {
    let told = case.path("told");
    let hook = |name: &str| {
        let script = format!("cat >/dev/null; echo {name} >>{told}");
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    case.config["hooks"] = json!({
        "createRuntime": hook("createRuntime"), "poststart": hook("poststart"), "poststop": hook("poststop"),
    });
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    checkpoint(case, &[])?;
    assert_eq!(fs::read_to_string(&told)?, "createRuntime\npoststart\npoststop\n");
    let lines = restore(case, &[])?;
    row.continued(lines)?;
    assert_eq!(fs::read_to_string(&told)?, "createRuntime\npoststart\npoststop\ncreateRuntime\npoststart\n");
    Ok(())
}

fn paused(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    let id = case.id.clone();
    case.call(&["pause", &id])?.success()?;
    checkpoint(case, &["--leave-running"])?;
    assert_eq!(case.state()?["status"], "paused");
    case.call(&["resume", &id])?.success()?;
    row.go_on(5)
}

/// The command line of runc, with the same state directory below its own name.
pub(super) fn runc(case: &mut Case, args: &[&str]) -> Result<Lines, Failed> {
    let (read, write) = std::io::pipe()?;
    let mut lines = Lines::new(read.into(), case.patience());
    let root = case.path("runc");
    let mut command = std::process::Command::new("runc");
    command.args(["--root", &root]).args(args).env(super::case::MARK, &case.directory);
    let mut child = command.stdin(Stdio::null()).stdout(write.try_clone()?).stderr(write).spawn()?;
    drop(command);
    let status = output::wait(&mut child, case.patience())?;
    if status.success() {
        return Ok(lines);
    }
    Err(format!("runc {}: {status}, {}", args.join(" "), lines.rest()?).into())
}

/// With a pipe as its standard input: runc knows no other streams from outside.
fn to_runc(case: &mut Case) -> Outcome {
    let (id, bundle) = (case.id.clone(), case.args(&["/probe", "count", "1000000", "0"]).write_config()?);
    let (read, write) = std::io::pipe()?;
    let lines = Lines::new(read.into(), case.patience());
    let mut command = case.command(&["run", "--detach", "--bundle", &bundle, &id]);
    let mut child = command.stdin(Stdio::piped()).stdout(write.try_clone()?).stderr(write).spawn()?;
    drop(command);
    assert!(output::wait(&mut child, case.patience())?.success());
    let mut row = Row::of(lines);
    row.go_on(5)?;
    checkpoint(case, &[])?;
    let (images, id, bundle) = (images(case), case.id.clone(), case.bundle.path().display().to_string());
    let lines = runc(case, &["restore", "--detach", "--image-path", &images, "--bundle", &bundle, &id])?;
    let continued = row.continued(lines);
    runc(case, &["delete", "--force", &id])?;
    continued
}

fn from_runc(case: &mut Case) -> Outcome {
    let (id, bundle) = (case.id.clone(), case.args(&["/probe", "count", "1000000", "0"]).write_config()?);
    let mut row = Row::of(runc(case, &["run", "--detach", "--bundle", &bundle, &id])?);
    row.go_on(5)?;
    let images = images(case);
    runc(case, &["checkpoint", "--image-path", &images, &id])?;
    let lines = restore(case, &[])?;
    row.continued(lines)
}

/// A connection that nobody allowed to be kept.
fn refused(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "network");
    let mut lines = case.args(&["/probe", "serve"]).start()?;
    let port = lines.until("port")?.trim_start_matches("port ").parse::<u16>()?;
    let mut client = TcpStream::connect(("127.0.0.1", port))?;
    client.set_read_timeout(Some(case.patience()))?;
    let mut answers = BufReader::new(client.try_clone()?);
    let mut ask = || -> Result<String, Failed> {
        client.write_all(b"ahoy\n")?;
        let mut line = String::new();
        answers.read_line(&mut line)?;
        Ok(line)
    };
    assert_eq!(ask()?, "1: ahoy\n");
    let (images, id) = (images(case), case.id.clone());
    let said = case.call(&["checkpoint", "--image-path", &images, &id])?.failure()?.stderr;
    assert!(said.contains("--tcp-established"), "{said}");
    assert_eq!(case.state()?["status"], "running");
    assert_eq!(ask()?, "2: ahoy\n");
    Ok(())
}

/// And the children of the program are not.
fn of_exec(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
    row.go_on(5)?;
    let (id, images, pid_file) = (case.id.clone(), images(case), case.path("pid"));
    let exec = ["exec", "--detach", "--pid-file", &pid_file, &id, "/probe", "sleep", "forever"];
    let mut brought = case.begin(&exec)?;
    brought.until("ready")?;
    let pid = fs::read_to_string(&pid_file)?;
    let all = ["checkpoint", "--image-path", &images, &id];
    let said = case.call(&[&all[..1], &["--leave-running"], &all[1..]].concat())?.success()?.stderr;
    assert!(!said.contains("exec"), "{said}");
    let said = case.call(&all)?.success()?.stderr;
    assert!(said.contains(&format!("below it: {pid} of `exec` will be lost")), "{said}");
    let lines = restore(case, &[])?;
    row.continued(lines)
}

fn not_running(case: &mut Case) -> Outcome {
    let (images, id) = (images(case), case.id.clone());
    drop(case.args(&["/probe", "sleep", "forever"]).create()?);
    let said = case.call(&["checkpoint", "--image-path", &images, &id])?.failure()?.stderr;
    assert!(said.contains("cannot be checkpointed: it is created"), "{said}");
    case.kill_and_wait("KILL")?;
    let said = case.call(&["checkpoint", "--image-path", &images, &id])?.failure()?.stderr;
    assert!(said.contains("cannot be checkpointed: it is stopped"), "{said}");
    assert!(!fs::exists(&images)?);
    Ok(())
}

fn without_images(case: &mut Case) -> Outcome {
    let (bundle, id, images) = (case.write_config()?, case.id.clone(), case.path("none"));
    let said = case.call(&["restore", "--image-path", &images, "--bundle", &bundle, &id])?.failure()?.stderr;
    assert!(said.contains("cannot open directory") && said.contains("ENOENT"), "{said}");
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// Cut off, one at a time: whatever CRIU makes of it, nothing stays.
fn broken_images(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    checkpoint(case, &[])?;
    let (images, id, bundle) = (images(case), case.id.clone(), case.bundle.path().display().to_string());
    for name in ["inventory.img", "pstree.img", "core-1.img", "mm-1.img", "files.img", "descriptors.json"] {
        let path = std::path::Path::new(&images).join(name);
        let whole = fs::read(&path)?;
        fs::write(&path, &whole[..whole.len() / 2])?;
        let said = case.call(&["restore", "--detach", "--image-path", &images, "--bundle", &bundle, &id])?.failure()?;
        assert!(said.stderr.starts_with("ferry: cannot"), "{name}: {}", said.stderr);
        assert_eq!(case.leftovers()?, Vec::<String>::new(), "{name}");
        fs::write(&path, whole)?;
    }
    let lines = restore(case, &[])?;
    row.continued(lines)
}
