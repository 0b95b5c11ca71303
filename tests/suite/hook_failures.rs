//! What becomes of a container whose hook fails: by the kind of the hook, and of the hooks that come after it.

use serde_json::{Value, json};

use super::case::Case;
use super::hooks::{hook, log, names, set_all};
use super::need::Need::{CgroupV2, Ferry, Peer, Root};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("before_start_the_poststop_hooks_run", &[Peer("crun", "none run")], before_start),
    scenario("start_container_takes_the_container_down", &[Ferry], start_container),
    scenario("poststart_takes_the_container_down", &[Ferry], poststart),
    scenario("poststart_of_run_takes_the_container_down", &[Peer("crun", "goes on")], poststart_of_run),
    scenario("poststart_takes_cgroups_of_the_container_down", &[Ferry, Root, CgroupV2(&[])], cgroups_below),
    scenario("poststop_is_a_warning_and_the_others_run", &[Ferry], poststop),
    scenario("the_first_failure_keeps_later_hooks_of_its_kind_from_running", &[], later_ones),
    scenario("poststart_runs_once_the_program_has_begun", &[Peer("runc", "1.1.5: already at create")], after_program),
    scenario("a_hook_in_a_relative_place_is_refused", &[Peer("crun", "no check")], relative_path),
];

fn failing(case: &Case, kind: &str) -> Value {
    let program = if kind == "startContainer" { "/probe".into() } else { case.stage.probe.clone() };
    json!({"path": program, "args": ["probe", "exit", "3"]})
}

fn before_start(case: &mut Case) -> Outcome {
    let id = case.id.clone();
    for (index, kind) in ["prestart", "createRuntime", "createContainer"].iter().enumerate() {
        case.config["hooks"] = json!({*kind: [failing(case, kind)], "poststop": [hook(case, "poststop", kind)]});
        let bundle = case.write_config()?;
        let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
        assert!(end.stderr.contains(kind) || case.stage.runtime.name != "ferry", "{kind}: {}", end.stderr);
        assert_eq!(names(case)?.get(index).map(String::as_str), Some(*kind), "{kind}: poststop did not run");
        assert_eq!(log(case)?[index]["state"]["status"], "stopped", "{kind}");
        assert_eq!(case.leftovers()?, Vec::<String>::new(), "{kind}");
    }
    Ok(())
}

/// `start` fails, the program has not run or does so no more, poststop has, and nothing is left.
fn taken_down_by_start(case: &mut Case, kind: &str) -> Outcome {
    set_all(case);
    case.config["hooks"][kind] = json!([failing(case, kind)]);
    case.args(&["/probe", "sleep", "forever"]).create()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    let end = case.call(&["start", &id])?.failure()?;
    assert!(end.stderr.contains(kind) && end.stderr.contains("exit status 3"), "{}", end.stderr);
    case.wait_for(pid)?;
    assert_eq!(names(case)?.last().map(String::as_str), Some("poststop"));
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    case.call(&["state", &id])?.failure().map(drop)
}

fn start_container(case: &mut Case) -> Outcome {
    taken_down_by_start(case, "startContainer")?;
    assert!(!names(case)?.contains(&"poststart".to_owned()), "the program was never there");
    Ok(())
}

fn poststart(case: &mut Case) -> Outcome {
    taken_down_by_start(case, "poststart")
}

fn poststart_of_run(case: &mut Case) -> Outcome {
    case.config["hooks"] =
        json!({"poststart": [failing(case, "poststart")], "poststop": [hook(case, "poststop", "poststop")]});
    case.args(&["/probe", "sleep", "forever"]).run()?.failure()?;
    assert_eq!(names(case)?, ["poststop"]);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// The hook makes one below the container's, as a program in a cgroup namespace may.
fn cgroups_below(case: &mut Case) -> Outcome {
    let script = "own=$(find /sys/fs/cgroup -type d -name \"$0\"); mkdir -p $own/sub/deep && echo made >$1; exit 3";
    let made = case.path("made");
    case.config["hooks"] = json!({"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", script, case.id, made]}]});
    for _ in 0..2 {
        let end = case.args(&["/probe", "sleep", "forever"]).run()?.failure()?;
        assert!(end.stderr.contains("poststart"), "{}", end.stderr);
        std::fs::remove_file(&made)?;
        assert_eq!(case.leftovers()?, Vec::<String>::new());
    }
    Ok(())
}

fn poststop(case: &mut Case) -> Outcome {
    let failing = failing(case, "poststop");
    case.config["hooks"] = json!({"poststop": [failing, hook(case, "poststop", "second"), failing]});
    case.start_waiting()?;
    case.kill_and_wait("KILL")?;
    let id = case.id.clone();
    let end = case.call(&["--log-format", "json", "delete", &id])?.success()?;
    let warnings: Vec<Value> = end.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(warnings.len(), 2, "{}", end.stderr);
    for (warning, index) in warnings.iter().zip(["poststop[0]", "poststop[2]"]) {
        assert_eq!(warning["level"], "warning");
        assert!(warning["msg"].as_str().is_some_and(|words| words.contains(index)), "{warning}");
    }
    assert_eq!(names(case)?, ["second"]);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn later_ones(case: &mut Case) -> Outcome {
    let rows = json!([
        hook(case, "createRuntime", "first"),
        failing(case, "createRuntime"),
        hook(case, "createRuntime", "third")
    ]);
    case.config["hooks"] = json!({"createRuntime": rows});
    case.run()?.failure()?;
    assert_eq!(names(case)?, ["first"]);
    Ok(())
}

fn after_program(case: &mut Case) -> Outcome {
    set_all(case);
    case.start_waiting()?;
    for line in log(case)? {
        let program = line["program"].as_str().unwrap_or_default();
        match line["hook"].as_str().unwrap_or_default() {
            "prestart" | "createRuntime" => assert!(!program.ends_with("/probe"), "{line}"),
            "poststart" => assert!(program.ends_with("/probe"), "{}", line["program"]),
            _ => (),
        }
    }
    assert_eq!(names(case)?.last().map(String::as_str), Some("poststart"));
    Ok(())
}

fn relative_path(case: &mut Case) -> Outcome {
    for path in [json!("bin/hook"), json!(""), Value::Null] {
        for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
            let row = if path.is_null() { json!({"args": ["x"]}) } else { json!({"path": path}) };
            case.config["hooks"] = json!({kind: [row]});
            let end = case.run()?.failure()?;
            let named = end.stderr.contains(&format!("hooks.{kind}[0].path"));
            assert!(named || case.stage.runtime.name != "ferry", "{kind}: {}", end.stderr);
        }
    }
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}
