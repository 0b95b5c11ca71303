//! What `run` and `exec` do for a program they stay for: its orphans are reaped, its signals are as it expects them, and how it ends
//! is told whatever the caller ignores.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Root};
use super::output::{self, Lines};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("orphans_that_end_are_reaped", &[Root], orphans),
    scenario("the_exit_code_is_told_where_the_caller_ignores_all_signals", &[], exit_code),
    scenario("no_signal_is_ignored_in_the_container", &[], not_ignored),
    scenario("no_signal_is_ignored_by_what_is_executed_later", &[], not_ignored_by_exec),
    scenario("a_service_may_speak_on_once_it_is_ready", &[Ferry], speaks_on),
    scenario("a_service_on_a_terminal_may_speak_on_once_it_is_ready", &[Ferry], speaks_on_a_terminal),
    scenario("a_wait_for_readiness_can_be_given_up", &[Ferry], given_up),
];

/// SIGPIPE is ignored by the probe itself, as by every program of its language.
pub(super) fn as_expected() -> Value {
    json!({"blocked": "0000000000000000", "ignored": "0000000000001000"})
}

/// Without a pid namespace they are left to the runtime.
fn orphans(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "pid");
    let (bundle, id) = (case.args(&["/probe", "ended-orphans", "10"]).write_config()?, case.id.clone());
    let (mut child, mut lines) = case.spawn(&["run", "--bundle", &bundle, &id])?;
    let pids: Vec<String> = lines.until("ended")?.split_whitespace().skip(1).map(str::to_owned).collect();
    assert_eq!(pids.len(), 10);
    let end = Instant::now() + case.patience();
    while let Some(pid) = pids.iter().find(|pid| Path::new("/proc").join(pid).exists()) {
        assert!(Instant::now() < end, "nobody reaps {pid}");
        std::thread::yield_now();
    }
    case.kill_and_wait("KILL")?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 137);
    Ok(())
}

fn exit_code(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe", "exit", "3"]).write_config()?, case.id.clone());
    let mut command = case.ignoring(&case.command(&["run", "--bundle", &bundle, &id]));
    assert_eq!(case.finish(&mut command)?.code, 3);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn not_ignored(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe"]).write_config()?, case.id.clone());
    let mut command = case.ignoring(&case.command(&["run", "--bundle", &bundle, &id]));
    let report = case.finish(&mut command)?.success()?.json()?;
    assert_eq!(report["signals"], as_expected());
    Ok(())
}

fn not_ignored_by_exec(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let mut command = case.ignoring(&case.command(&["exec", &id, "/probe"]));
    let report = case.finish(&mut command)?.success()?.json()?;
    assert_eq!(report["signals"], as_expected());
    Ok(())
}

/// More than a socket holds is said after the word that is passed on.
fn speaks_on(case: &mut Case) -> Outcome {
    let manager = UnixDatagram::bind(case.directory.join("manager"))?;
    manager.set_read_timeout(Some(case.patience()))?;
    let (bundle, id) = (case.args(&["/probe", "notify", "1000"]).write_config()?, case.id.clone());
    let mut command = case.command(&["run", "--bundle", &bundle, &id]);
    let end = case.finish(command.env("NOTIFY_SOCKET", case.path("manager")))?.success()?;
    assert_eq!(end.stdout.trim_end(), "told");
    let mut datagram = [0; 64];
    for wanted in ["READY=1", "MAINPID="] {
        let length = manager.recv(&mut datagram)?;
        let heard = String::from_utf8_lossy(&datagram[..length]);
        assert!(heard.starts_with(wanted), "{heard}, not {wanted}");
    }
    manager.set_nonblocking(true)?;
    assert!(manager.recv(&mut datagram).is_err(), "{}", String::from_utf8_lossy(&datagram));
    Ok(())
}

fn speaks_on_a_terminal(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    speaks_on(case)
}

/// The service runs on.
fn given_up(case: &mut Case) -> Outcome {
    let _manager = UnixDatagram::bind(case.directory.join("manager"))?;
    let (bundle, id) = (case.args(&["/probe", "sleep", "forever"]).write_config()?, case.id.clone());
    let (mut lines, pipe) = Lines::pipe(case.patience())?;
    let mut command = case.command(&["run", "--detach", "--bundle", &bundle, &id]);
    let mut child = command.env("NOTIFY_SOCKET", case.path("manager")).stdout(pipe).spawn()?;
    lines.until("ready")?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 128 + libc::SIGINT);
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}
