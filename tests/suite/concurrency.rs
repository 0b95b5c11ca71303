//! Sixteen processes at a time that make, enter, look at and take away containers: each its own, of which every answer is known, and
//! all of them the same few, of which nobody knows what comes next. No verb hangs, fails for another's doings, or tells what is not so.

use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::Value;

use super::case::Case;
use super::dice::Dice;

use super::need::Need::Ferry;
use super::output::{self, Output};
use super::scenario::{Outcome, Scenario, scenario};
use super::stage::is_long;

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("each_its_own_containers", &[Ferry], each_its_own),
    scenario("all_of_them_the_same_containers", &[Ferry], all_the_same),
];

/// How many verbs run at a time.
const THREADS: usize = 16;

/// How long they do.
fn long_enough() -> Duration {
    Duration::from_secs(if is_long() { 600 } else { 3 })
}

/// Asks of the runtime, by as many threads as there may be: the case's own transcript is one thread's.
fn ask(case: &Case, args: &[&str]) -> Result<Output, Failed> {
    output::run(&mut case.command(args), case.patience())
}

/// Has each thread do a life, again and again until the time is over; how many there were.
fn crowd(case: &Case, life: impl Fn(&Case, usize, &mut Dice) -> Outcome + Sync) -> Result<usize, Failed> {
    let end = Instant::now() + long_enough();
    let live = |number: usize| {
        let mut dice = Dice::new(number as u64);
        let mut count = 0;
        while Instant::now() < end {
            life(case, number, &mut dice)?;
            count += 1;
        }
        Ok(count)
    };
    std::thread::scope(|scope| {
        let live = &live;
        let threads: Vec<_> = (0..THREADS).map(|number| scope.spawn(move || live(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread died".into()))).sum()
    })
}

/// The ids and states that `list` tells of.
fn listed(case: &Case) -> Result<Vec<(String, String)>, Failed> {
    let told = ask(case, &["list", "--format", "json"])?.success()?.json()?;
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    Ok(told.as_array().into_iter().flatten().map(|one| (text(one, "id"), text(one, "status"))).collect())
}

fn each_its_own(case: &mut Case) -> Outcome {
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let ids: Vec<String> = (0..THREADS).map(|_| case.other_id()).collect();
    let lives = crowd(case, |case, number, _| {
        let id = ids[number].as_str();
        let told = |wanted: &str| match ask(case, &["state", id])?.success()?.json()?["status"].as_str() {
            Some(status) if status == wanted => Ok(()),
            status => Err(Failed::from(format!("{id} is {status:?}, not {wanted}"))),
        };
        ask(case, &["create", "--bundle", &bundle, id])?.success()?;
        told("created")?;
        ask(case, &["start", id])?.success()?;
        told("running")?;
        let end = ask(case, &["exec", id, "/probe", "exit", "7"])?;
        assert_eq!(end.code, 7, "{id}: {}", end.stderr);
        let own: Vec<_> = listed(case)?.into_iter().filter(|(one, _)| one == id).collect();
        assert_eq!(own, [(id.to_owned(), "running".to_owned())]);
        ask(case, &["delete", "--force", id])?.success()?;
        let said = ask(case, &["state", id])?.failure()?.stderr;
        assert!(said.contains("does not exist"), "{id}: {said}");
        Ok(())
    })?;
    println!("each its own: {lives} lives");
    assert!(lives >= THREADS, "{lives}");
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// What may be said of a container that others change at the same time: by the verbs, each of these.
const ANSWERS: &[(&[&str], &str)] = &[
    (&["create", "run"], "container with given ID already exists"),
    (&["create", "run"], "its process ended before it was ready"),
    (&["start", "exec", "kill", "delete", "state"], "does not exist"),
    (&["start", "kill", "state"], "is not created yet"),
    (&["start"], "it has stopped"),
    (&["start"], "its process has ended"),
    (&["start"], "it is running, not created"),
    (&["exec"], "cannot exec in a stopped container"),
    (&["exec", "delete"], "it is being created"),
    (&["kill"], "container not running"),
    (&["delete"], "that is not stopped: "),
];

fn all_the_same(case: &mut Case) -> Outcome {
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let ids: Vec<String> = (0..4).map(|_| case.other_id()).collect();
    // Before there is any container, `list` of a named place that is not there is an error.
    std::fs::create_dir(case.state_root())?;
    let deeds = crowd(case, |case, _, dice| {
        let id = dice.pick(&ids).as_str();
        let args: &[&str] = match dice.roll(10) {
            0..=1 => &["create", "--bundle", &bundle, id],
            2 => &["run", "--detach", "--bundle", &bundle, id],
            3 => &["start", id],
            4..=5 => &["exec", id, "/probe", "exit", "0"],
            6 => &["kill", id, "KILL"],
            7 => &["delete", "--force", id],
            8 => &["delete", id],
            _ => &["state", id],
        };
        let end = ask(case, args)?;
        // One that was killed while it ran in a container says nothing.
        let killed = args[0] == "exec" && end.code == 137;
        let known = |(verbs, answer): &(&[&str], &str)| verbs.contains(&args[0]) && end.stderr.contains(answer);
        if end.code == 0 || killed || ANSWERS.iter().any(known) {
            return listed(case).map(drop);
        }
        Err(format!("{args:?}: {} {}", end.code, end.stderr).into())
    })?;
    println!("all of them the same: {deeds} verbs");
    for id in &ids {
        ask(case, &["delete", "--force", id])?.success()?;
    }
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}
