//! Ends of processes and of the native shim itself, also of what has not begun yet, and what is written last.

use std::fs::{self, File};

use libtest_mimic::Failed;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use super::case::{Case, marked_processes};
use super::need::Need::{Ferry, Root};
use super::scenario::{Outcome, Scenario, scenario};
use super::shim::{Shim, all_of, exec, fifo};
use super::shim_client::{Answer, Message};

/// By root, as for the rest of the shim.
pub const SCENARIOS: &[Scenario] = &[
    scenario("a_terminals_last_words_outlive_its_deletion", &[Ferry, Root], last_words),
    scenario("a_containers_terminals_last_words_outlive_its_deletion", &[Ferry, Root], containers_last_words),
    scenario("what_an_exec_leaves_in_its_terminal_keeps_no_output_from_its_end", &[Ferry, Root], left_in_terminal),
    scenario("what_an_exec_leaves_keeps_no_output_from_its_end_once_it_is_deleted", &[Ferry, Root], left),
    scenario("the_rest_ends_with_the_first_process", &[Ferry, Root], shares_pids),
    scenario("an_exec_that_nobody_reads_is_killed_or_deleted_before_it_runs", &[Ferry, Root], unread_exec),
    scenario("an_exec_that_nobody_reads_does_not_outlive_its_container", &[Ferry, Root], unread_container),
    scenario("an_exec_without_its_input_is_killed_and_its_end_told", &[Ferry, Root], without_input),
    scenario("a_container_that_nobody_reads_is_deleted_before_it_is_there", &[Ferry, Root], unread_creation),
    scenario("a_shim_ends_after_the_call_that_it_was_busy_with", &[Ferry, Root], shuts_down_later),
];

/// A shim whose container runs until it is killed.
fn running(case: &mut Case) -> Result<Shim, Failed> {
    case.args(&["/probe", "sleep", "forever"]);
    let mut shim = Shim::start(case)?;
    shim.create(|request| request)?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    Ok(shim)
}

/// Kills the container, and takes down what is left.
fn over(mut shim: Shim, case: &Case) -> Outcome {
    let this = shim.this();
    shim.client.done("Kill", &this.clone().number(3, 9))?;
    assert_eq!(shim.client.done("Wait", &this)?.number(1), 137);
    shim.end(case)
}

/// A fifo that does not hold what is said into it.
fn narrow(case: &Case) -> Result<(String, File, String), Failed> {
    let (stdout, output) = fifo(case, "stdout")?;
    fcntl(&output, FcntlArg::F_SETPIPE_SZ(4096))?;
    Ok((stdout, output, "word ".repeat(1600)))
}

/// Starts what says the words, and reads them while it is deleted: by then the rest is in the shim and in the terminal.
fn read_late(
    shim: &mut Shim,
    case: &Case,
    process: &Message,
    (path, output, words): (String, File, String),
) -> Outcome {
    shim.client.done("Start", process)?;
    assert_eq!(shim.client.done("Wait", process)?.number(1), 0);
    let deletes = shim.client.begin("Delete", process)?;
    // Answered in turn: the shim has heard of the deletion, and has not begun with it.
    let (_, refusal) = shim.client.refused("Start", process)?;
    assert!(refusal.contains("was started before"), "{refusal}");
    assert_eq!(all_of(case, &path, output)?, format!("{words}\r\n"));
    assert_eq!(shim.client.answer()?.0, deletes);
    Ok(())
}

fn last_words(case: &mut Case) -> Outcome {
    let mut shim = running(case)?;
    let narrow = narrow(case)?;
    let more = |request: Message| request.number(3, 1).text(5, &narrow.0);
    let said = exec(&shim, "one", &["/probe", "say", &narrow.2], more);
    shim.client.done("Exec", &said)?;
    let one = shim.this().text(2, "one");
    read_late(&mut shim, case, &one, narrow)?;
    over(shim, case)
}

fn containers_last_words(case: &mut Case) -> Outcome {
    let narrow = narrow(case)?;
    case.config["process"]["terminal"] = true.into();
    case.args(&["/probe", "say", &narrow.2]);
    let mut shim = Shim::start(case)?;
    shim.create(|request| request.number(4, 1).text(6, &narrow.0))?;
    let this = shim.this();
    read_late(&mut shim, case, &this, narrow)?;
    shim.shut_down(case)
}

/// An exec that has ended and left a process behind, and a reader of its output.
fn leaves(shim: &mut Shim, case: &Case, terminal: u64) -> Result<(Message, String, File), Failed> {
    let (stdout, output) = fifo(case, "stdout")?;
    let more = |request: Message| {
        request.number(3, terminal).text(5, &stdout).text(6, if terminal == 0 { &stdout } else { "" })
    };
    let request = exec(shim, "one", &["/probe", "leave", "first", "last"], more);
    shim.client.done("Exec", &request)?;
    let one = shim.this().text(2, "one");
    shim.client.done("Start", &one)?;
    assert_eq!(shim.client.done("Wait", &one)?.number(1), 0);
    Ok((one, stdout, output))
}

fn left_in_terminal(case: &mut Case) -> Outcome {
    let mut shim = running(case)?;
    let (one, stdout, output) = leaves(&mut shim, case, 1)?;
    let said = all_of(case, &stdout, output)?;
    assert!(said.starts_with("first\r\n"), "{said:?}");
    shim.client.done("Delete", &one)?;
    over(shim, case)
}

/// What is written soon after the end is still read: shells end before the last of a pipeline.
fn left(case: &mut Case) -> Outcome {
    let mut shim = running(case)?;
    let (one, stdout, output) = leaves(&mut shim, case, 0)?;
    let deletes = shim.client.begin("Delete", &one)?;
    assert_eq!(all_of(case, &stdout, output)?, "first\nlast\n");
    assert_eq!(shim.client.answer()?.0, deletes);
    over(shim, case)
}

fn shares_pids(case: &mut Case) -> Outcome {
    let kept = |namespace: &Value| namespace["type"] != "pid";
    let namespaces: Vec<_> =
        case.config["linux"]["namespaces"].as_array().into_iter().flatten().filter(|n| kept(n)).cloned().collect();
    case.config["linux"]["namespaces"] = namespaces.into();
    case.args(&["/probe", "sleep", "forever"]);
    let mut shim = Shim::start(case)?;
    shim.create(|request| request)?;
    let this = shim.this();
    shim.client.done("Start", &this)?;
    let request = exec(&shim, "other", &["/probe", "sleep", "forever"], |request| request);
    shim.client.done("Exec", &request)?;
    let other = this.clone().text(2, "other");
    shim.client.done("Start", &other)?;
    let (first, second) = (shim.client.begin("Wait", &this)?, shim.client.begin("Wait", &other)?);
    shim.client.begin("Kill", &this.clone().number(3, 15))?;
    // Whoever hears of the first process' end takes the container down, and is told of no other any more.
    let ends: Vec<_> = (0..3).map(|_| shim.client.answer()).collect::<Result<_, _>>()?;
    let told = |(call, answer): &(u32, Answer)| (*call, answer.as_ref().map_or(0, |exit| exit.number(1)));
    assert_eq!(ends[1..].iter().map(told).collect::<Vec<_>>(), [(second, 137), (first, 128 + 15)]);
    shim.end(case)
}

/// A fifo that nobody opens.
fn unread(case: &Case) -> Result<String, Failed> {
    let path = case.path("unread");
    mkfifo(path.as_str(), Mode::from_bits_truncate(0o700))?;
    Ok(path)
}

/// Adds an exec whose start waits for a reader, and begins that; the exec, and the number of the call.
fn starts(shim: &mut Shim, id: &str, stdout: &str) -> Result<(Message, u32), Failed> {
    let request = exec(shim, id, &["/probe", "say", "unread"], |request| request.text(5, stdout));
    shim.client.done("Exec", &request)?;
    let this = shim.this().text(2, id);
    let starts = shim.client.begin("Start", &this)?;
    Ok((this, starts))
}

/// The next two answers, in the order of their calls.
fn both(shim: &mut Shim) -> Result<[(u32, Answer); 2], Failed> {
    let mut answers = [shim.client.answer()?, shim.client.answer()?];
    answers.sort_by_key(|(call, _)| *call);
    Ok(answers)
}

fn unread_exec(case: &mut Case) -> Outcome {
    let mut shim = running(case)?;
    let stdout = unread(case)?;
    let (killed, start) = starts(&mut shim, "killed", &stdout)?;
    // What ends nothing does not end this.
    assert_eq!(shim.client.refused("Kill", &killed.clone().number(3, 28))?.0, 9);
    let kill = shim.client.begin("Kill", &killed.clone().number(3, 9))?;
    let [(first, started), (second, done)] = both(&mut shim)?;
    assert_eq!([first, second], [start, kill]);
    assert!(started.is_err_and(|(_, words)| words.contains("killed before it ran")) && done.is_ok());
    assert_eq!(shim.client.done("Wait", &killed)?.number(1), 255);
    shim.client.done("Delete", &killed)?;

    let (deleted, start) = starts(&mut shim, "deleted", &stdout)?;
    let delete = shim.client.begin("Delete", &deleted)?;
    let [(first, started), (second, done)] = both(&mut shim)?;
    assert_eq!([first, second], [start, delete]);
    assert!(started.is_err() && done.is_ok(), "{started:?} {done:?}");
    assert_eq!(shim.client.refused("State", &deleted)?.0, 5);
    over(shim, case)
}

/// The terminal's input is opened once the process is there.
fn without_input(case: &mut Case) -> Outcome {
    let mut shim = running(case)?;
    let more = |request: Message| request.number(3, 1).text(4, case.path("missing"));
    let request = exec(&shim, "one", &["/probe", "sleep", "forever"], more);
    shim.client.done("Exec", &request)?;
    let one = shim.this().text(2, "one");
    let (_, words) = shim.client.refused("Start", &one)?;
    assert!(words.contains("cannot open the stream"), "{words}");
    assert_eq!(shim.client.done("Wait", &one)?.number(1), 137);
    let pid = shim.client.done("Delete", &one)?.number(1);
    assert!(pid != 0 && !fs::exists(format!("/proc/{pid}"))?);
    over(shim, case)
}

fn unread_container(case: &mut Case) -> Outcome {
    let mut shim = running(case)?;
    let stdout = unread(case)?;
    let (_, start) = starts(&mut shim, "one", &stdout)?;
    let this = shim.this();
    shim.client.done("Kill", &this.clone().number(3, 9))?;
    let wait = shim.client.begin("Wait", &this)?;
    let [(first, started), (second, ended)] = both(&mut shim)?;
    assert_eq!([first, second], [start, wait]);
    assert!(started.is_err());
    assert_eq!(ended.map_err(|(_, words)| words)?.number(1), 137);
    shim.end(case)
}

fn unread_creation(case: &mut Case) -> Outcome {
    let mut shim = Shim::start(case)?;
    let (this, stdout) = (shim.this(), unread(case)?);
    let request = shim.creation().text(6, &stdout);
    let create = shim.client.begin("Create", &request)?;
    let delete = shim.client.begin("Delete", &this)?;
    let [(first, created), (second, deleted)] = both(&mut shim)?;
    assert_eq!([first, second], [create, delete]);
    assert!(created.is_err() && deleted.is_ok(), "{created:?} {deleted:?}");
    assert_eq!(shim.client.refused("State", &this)?.0, 5);
    shim.shut_down(case)
}

/// containerd asks once, and after a deletion that takes too long for it.
fn shuts_down_later(case: &mut Case) -> Outcome {
    let mut shim = Shim::start(case)?;
    shim.create(|request| request)?;
    let this = shim.this();
    let processes = marked_processes(&case.directory);
    let delete = shim.client.begin("Delete", &this)?;
    let shutdown = shim.client.begin("Shutdown", &this)?;
    let [(first, deleted), (second, _)] = both(&mut shim)?;
    assert_eq!([first, second], [delete, shutdown]);
    assert!(deleted.is_ok());
    processes.into_iter().try_for_each(|pid| case.wait_for(pid))?;
    assert_eq!(case.leftovers()?, [""; 0]);
    Ok(())
}
