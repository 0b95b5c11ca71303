//! `stats`, and what merging memory saves.

use std::time::Instant;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::limits::alone;
use super::need::Need::{CgroupV2, Delegated, Ferry, Ksm, KsmRuns, Root};
use super::output::{self, Lines};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("who_works_and_who_sleeps", &[Delegated(ALL), Ferry], rates),
    scenario("all_containers_or_the_named_ones", &[Root, CgroupV2(&[]), Ferry], which),
    scenario("what_is_not_counted_is_told", &[Root, CgroupV2(&[]), Ferry], not_counted),
    scenario("a_stream_ends_with_its_container", &[Root, CgroupV2(&[]), Ferry], end_of_container),
    scenario("a_stream_ends_with_its_reader", &[Root, CgroupV2(&[]), Ferry], end_of_reader),
    scenario("memory_is_merged_where_it_is_asked_for", &[Ksm, Ferry], merged),
    scenario("what_merging_saved_is_told", &[Ksm, KsmRuns, Root, CgroupV2(&["memory"]), Ferry], saved),
    scenario("a_wish_to_merge_that_is_neither_yes_nor_no", &[Ferry], nonsense),
];

const ALL: &[&str] = &["cpu", "memory", "pids"];
const WISH: &str = "dev.ferry.ksm";

/// The objects of `stats --no-stream`, in order.
fn stats(case: &mut Case, ids: &[&str]) -> Result<Vec<Value>, Failed> {
    let told = case.call(&[&["stats", "--no-stream", "--format", "json"], ids].concat())?.success()?;
    told.stdout.lines().map(|line| serde_json::from_str(line).map_err(Failed::from)).collect()
}

fn rates(case: &mut Case) -> Outcome {
    let _alone = alone();
    case.config["linux"]["resources"] =
        json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 9}, "cpu": {"shares": 9}});
    case.args(&["/probe", "burn"]).start()?.until("ready")?;
    case.args(&["/probe", "hold", "24"]);
    let (id, sleeper) = (case.id.clone(), case.start_other()?);
    let told = stats(case, &[])?;
    assert_eq!(told.iter().map(|one| one["id"].clone()).collect::<Vec<_>>(), [json!(id), json!(sleeper)]);
    let share = |one: &Value| one["cpuPercent"].as_f64().unwrap_or(-1.0);
    assert!(share(&told[0]) > 10.0 && share(&told[1]) < share(&told[0]) / 4.0 && share(&told[1]) >= 0.0, "{told:?}");
    assert!(told[1]["memory"].as_u64() > Some(24 << 20) && told[0]["memory"].as_u64() < Some(24 << 20), "{told:?}");
    for one in &told {
        assert_eq!((&one["memoryLimit"], &one["pids"], &one["pidsLimit"]), (&json!(64 << 20), &json!(1), &json!(9)));
    }
    Ok(())
}

fn which(case: &mut Case) -> Outcome {
    assert_eq!(stats(case, &[])?, Vec::<Value>::new());
    case.start_waiting()?;
    let (id, other) = (case.id.clone(), case.start_other()?);
    let ids = |told: Vec<Value>| told.into_iter().map(|one| one["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(stats(case, &[])?), [json!(id), json!(other)]);
    assert_eq!(ids(stats(case, &[&other])?), [json!(other)]);
    let table = case.call(&["stats", "--no-stream"])?.success()?.stdout;
    assert!(table.starts_with("ID") && table.lines().count() == 3, "{table}");
    case.kill_and_wait("KILL")?;
    let end = case.call(&["stats", "--no-stream", &id])?.failure()?;
    assert!(end.stderr.contains("not running"), "{}", end.stderr);
    // Among all it is no matter that one has stopped.
    assert_eq!(ids(stats(case, &[])?), [json!(other)]);
    Ok(())
}

/// Beside a container with a cgroup, one without.
fn not_counted(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (bundle, id, other) = (case.write_config()?, case.id.clone(), case.other_id());
    case.begin(&["--cgroup-manager", "disabled", "run", "--detach", "--bundle", &bundle, &other])?.until("ready")?;
    let told = stats(case, &[])?;
    assert_eq!(told.iter().map(|one| one["id"].clone()).collect::<Vec<_>>(), [json!(id), json!(other)]);
    let has_memory = case.cgroups().iter().any(|cgroup| cgroup.join("memory.current").exists());
    assert_eq!((told[0]["memory"].is_u64(), told[0]["cpuTime"].is_u64()), (has_memory, true), "{told:?}");
    for key in ["cpuPercent", "cpuTime", "memory", "swap", "pids", "ioRead", "ioWritten"] {
        assert_eq!(told[1].get(key), Some(&Value::Null), "{key} of {}", told[1]);
    }
    let table = case.call(&["stats", "--no-stream"])?.success()?.stdout;
    let row = table.lines().find(|line| line.starts_with(&other)).ok_or("no line of the other")?;
    assert_eq!(row.split_whitespace().skip(1).collect::<Vec<_>>(), ["-", "-", "-", "-", "-/-/-"]);
    Ok(())
}

fn stream(case: &mut Case) -> Result<(std::process::Child, Lines), Failed> {
    case.start_waiting()?;
    let id = case.id.clone();
    let (child, mut lines) = case.spawn(&["stats", "--interval", "50ms", &id])?;
    for _ in 0..3 {
        lines.until(&id)?;
    }
    Ok((child, lines))
}

fn end_of_container(case: &mut Case) -> Outcome {
    // The reader stays to the end.
    let (mut child, _lines) = stream(case)?;
    case.kill_and_wait("KILL")?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 0);
    Ok(())
}

fn end_of_reader(case: &mut Case) -> Outcome {
    let (mut child, lines) = stream(case)?;
    drop(lines);
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 0);
    Ok(())
}

/// What the process inside is told of itself.
const ASK: &[&str] = &["/probe", "syscall", "157", "68", "0", "0", "0", "0"];

fn merged(case: &mut Case) -> Outcome {
    assert_eq!(case.deed(&ASK[1..])?["ok"], 0);
    case.config["annotations"] = json!({WISH: "true"});
    assert_eq!(case.deed(&ASK[1..])?["ok"], 1);
    // By the flag, also for what joins later; and it is to be seen in the state.
    case.config["annotations"] = json!({});
    let (bundle, id) = (case.args(&["/probe", "sleep", "forever"]).write_config()?, case.id.clone());
    case.begin(&["run", "--ksm", "--detach", "--bundle", &bundle, &id])?.until("ready")?;
    assert_eq!(case.exec(&[], ASK)?.success()?.json()?["ok"], 1);
    assert_eq!(case.state()?["annotations"][WISH], "true");
    let other = case.other_id();
    let mut lines = case.begin(&["create", "--ksm", "--bundle", &bundle, &other])?;
    case.call(&["start", &other])?.success()?;
    lines.until("ready")?;
    assert_eq!(case.call(&[&["exec", &other], ASK].concat())?.success()?.json()?["ok"], 1);
    Ok(())
}

fn saved(case: &mut Case) -> Outcome {
    case.config["annotations"] = json!({WISH: "true"});
    case.args(&["/probe", "hold-same", "16"]).start()?.until("ready")?;
    let id = case.id.clone();
    let (mut events, mut lines) = case.spawn(&["events", "--interval", "300ms", &id])?;
    let until = Instant::now() + case.patience();
    loop {
        let told: Value = serde_json::from_str(&lines.until("stats")?)?;
        let ksm = &told["data"]["memory"]["ksm"];
        if ksm["merged"].as_u64() >= Some(12 << 20) && ksm["profit"].as_i64() > Some(8 << 20) {
            break;
        }
        assert!(until > Instant::now(), "merged so far: {ksm}");
    }
    events.kill()?;
    events.wait()?;
    assert!(stats(case, &[&id])?[0]["ksm"]["merged"].as_u64() >= Some(12 << 20));
    Ok(())
}

fn nonsense(case: &mut Case) -> Outcome {
    case.config["annotations"] = json!({WISH: "yes"});
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains(WISH) && end.stderr.contains("\"true\" or \"false\""), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}
