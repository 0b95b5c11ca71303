//! The runtime is killed in the middle of its work, at any system call; what it leaves, `delete --force` removes.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::json;

use super::case::{Case, marked_processes, names_in};
use super::need::Need::{Peer, Root, Tool};
use super::output::{self, Output};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("create_killed_at_any_system_call", &[Root, Tool("strace"), GO, CRUN], create),
    scenario("delete_killed_at_any_system_call", &[Root, Tool("strace"), GO, CRUN], delete),
    scenario("the_caller_of_create_may_go_away", &[], caller_gone),
    scenario("a_killed_foreground_run_can_be_cleaned_up", &[], run_killed),
    scenario(
        "two_creates_of_one_id_at_once_give_one_container",
        &[Peer("runc", "1.1.5: the loser removes the winner")],
        two_at_once,
    ),
    scenario("deletes_at_once", &[], deletes_at_once),
];

const GO: super::need::Need = Peer("runc", "leaves traces");
const CRUN: super::need::Need = Peer("crun", "leaves traces");

/// How many places of a verb's trace are tried.
const PLACES: usize = 50;

/// A system call of a trace: its name, and which of the calls of that name it is, from 1.
type Place = (String, usize);

/// Runs a verb under strace, with `flags`; its children are not traced.
fn strace(case: &Case, flags: &[&str], verb: &[&str]) -> Result<(), Failed> {
    let command = case.command(verb);
    let mut strace = Command::new("strace");
    strace.args(flags).args(["-o", &case.path("trace")]).arg(command.get_program()).args(command.get_args());
    strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    output::wait(&mut child, case.patience()).map(drop)
}

/// The places of a whole trace, in order.
fn places(case: &Case) -> Result<Vec<Place>, Failed> {
    let mut seen = BTreeMap::<String, usize>::new();
    let mut places = Vec::new();
    for line in fs::read_to_string(case.path("trace"))?.lines() {
        let Some((name, _)) = line.split_once('(') else { continue };
        if name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_') {
            let count = seen.entry(name.to_owned()).or_default();
            *count += 1;
            places.push((name.to_owned(), *count));
        }
    }
    if places.len() < 20 { Err("the trace is too short to be one".into()) } else { Ok(places) }
}

/// `PLACES` of them, spread evenly, the last included. The first is the execve that strace itself makes.
fn spread(places: &[Place]) -> Vec<Place> {
    let last = places.len() - 1;
    let count = PLACES.min(last);
    (1..=count).map(|number| places[number * last / count].clone()).collect()
}

fn kill_at(case: &Case, (name, count): &Place, verb: &[&str]) -> Outcome {
    strace(case, &["-e", &format!("inject={name}:signal=KILL:when={count}")], verb)
}

/// What is left once `delete --force` has been, in words; processes are given the time to die.
fn left_after_delete(case: &mut Case) -> Result<Vec<String>, Failed> {
    let id = case.id.clone();
    let mut left = match case.call(&["delete", "--force", &id]).and_then(Output::success) {
        Ok(_) => Vec::new(),
        Err(why) => vec![format!("delete --force: {}", why.message().unwrap_or_default())],
    };
    for pid in marked_processes(&case.directory) {
        if !output::wait_for_pid(pid, Duration::from_secs(2))? {
            break;
        }
    }
    left.extend(case.leftovers()?);
    let known = ["bundle", "state", "trace", "errors"];
    left.extend(names_in(&case.directory).into_iter().filter(|name| !known.contains(&name.as_str())));
    Ok(left)
}

fn verdict(faults: &[String]) -> Outcome {
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

fn create(case: &mut Case) -> Outcome {
    case.args(&["/probe", "sleep", "forever"]);
    case.config["linux"]["seccomp"] = super::security::filter("getpgid", "SCMP_ACT_ERRNO", json!(1));
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let verb = ["create", "--bundle", &bundle, &id];
    strace(case, &[], &verb)?;
    assert_eq!(case.state()?["status"], "created");
    let places = places(case)?;
    assert_eq!(left_after_delete(case)?, Vec::<String>::new());
    let mut faults = Vec::new();
    for place in spread(&places) {
        kill_at(case, &place, &verb)?;
        let left = left_after_delete(case)?;
        if !left.is_empty() {
            faults.push(format!("killed at {} number {}: {left:?}", place.0, place.1));
            // So that it is not found again at every later place.
            case.clear()?;
        }
    }
    verdict(&faults)
}

fn delete(case: &mut Case) -> Outcome {
    case.args(&["/probe", "sleep", "forever"]);
    let id = case.id.clone();
    case.create()?;
    let verb = ["delete", "--force", &id];
    strace(case, &[], &verb)?;
    let places = places(case)?;
    let mut faults = Vec::new();
    for place in spread(&places).into_iter().step_by(2) {
        case.create()?;
        kill_at(case, &place, &verb)?;
        let left = left_after_delete(case)?;
        if !left.is_empty() {
            faults.push(format!("killed at {} number {}: {left:?}", place.0, place.1));
            // So that it is not found again at every later place.
            case.clear()?;
        }
    }
    verdict(&faults)
}

/// The created container waits in a process that is nobody's child any more.
fn caller_gone(case: &mut Case) -> Outcome {
    let mut lines = case.args(&["/probe", "exit", "0"]).create()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    case.call(&["start", &id])?.success()?;
    case.wait_for(pid)?;
    assert!(lines.until("anything").is_err());
    assert_eq!(case.state()?["status"], "stopped");
    Ok(())
}

fn run_killed(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe", "sleep", "forever"]).write_config()?, case.id.clone());
    let (mut child, mut lines) = case.spawn(&["run", "--bundle", &bundle, &id])?;
    lines.until("ready")?;
    child.kill()?;
    child.wait()?;
    assert_eq!(left_after_delete(case)?, Vec::<String>::new());
    Ok(())
}

fn two_at_once(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe", "sleep", "forever"]).write_config()?, case.id.clone());
    for _ in 0..5 {
        let args = ["create", "--bundle", &bundle, &id];
        let quiet = |mut command: Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut children = [quiet(case.command(&args))?, quiet(case.command(&args))?, quiet(case.command(&args))?];
        let mut made = 0;
        for child in &mut children {
            made += u32::from(output::wait(child, case.patience())?.success());
        }
        assert_eq!(made, 1);
        assert_eq!(case.state()?["status"], "created");
        assert_eq!(left_after_delete(case)?, Vec::<String>::new());
    }
    Ok(())
}

fn deletes_at_once(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let quiet = |mut command: Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let args = ["delete", "--force", &id];
    let mut children = [quiet(case.command(&args))?, quiet(case.command(&args))?, quiet(case.command(&args))?];
    for child in &mut children {
        output::wait(child, case.patience())?;
    }
    assert_eq!(left_after_delete(case)?, Vec::<String>::new());
    Ok(())
}
