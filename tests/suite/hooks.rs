//! Hooks: when each kind runs, where, what it is told, and what its failure does.

use std::fs;
use std::path::Path;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::foreground::as_expected;
use super::need::Need::{Peer, Root};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("all_six_kinds_run_in_order", &[Peer("runc", "1.1.5: poststart already at create")], order),
    scenario("each_is_given_the_state_on_standard_input", &[], state),
    scenario("namespaces_each_runs_in", &[Root], namespaces),
    scenario("several_of_one_kind_run_in_their_order", &[], several),
    scenario("arguments_and_environment", &[], arguments),
    scenario("environment_is_only_the_hooks_own", &[], environment),
    scenario("environment_is_the_runtimes_where_a_hook_names_none", &[], inherited_environment),
    scenario("no_signal_is_ignored_or_blocked", &[], signals),
    scenario("begin_in_the_bundle_on_the_host", &[Peer("runc", "1.1.5: poststop where delete is called")], begin),
    scenario("files_of_hooks_have_the_callers_umask", &[], umask),
    scenario("poststop_runs_at_delete", &[], poststop),
    scenario("poststop_runs_at_forced_delete", &[], poststop_forced),
    scenario("a_failing_prestart_hook_undoes_create", &[], failing_prestart),
    scenario("a_failing_create_runtime_hook_undoes_create", &[], failing_create_runtime),
    scenario("a_failing_create_container_hook_undoes_create", &[], failing_create_container),
    scenario("a_failing_start_container_hook_keeps_the_program_from_running", &[], failing_start_container),
    scenario("a_failing_poststop_hook_does_not_keep_the_container", &[], failing_poststop),
    scenario("a_missing_hook_undoes_create", &[], missing),
    scenario("a_hook_that_takes_too_long_is_ended", &[], timeout),
    scenario("a_hook_that_never_reads_the_state_is_ended_as_well", &[], timeout_unread),
    scenario("a_hook_has_no_descriptors_of_the_runtime", &[Peer("crun", "1.8.1 leaks some")], descriptors),
];

const KINDS: [&str; 6] = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that notes itself in `log`. `startContainer` runs inside, so its program and log are the container's.
pub(super) fn hook(case: &Case, kind: &str, name: &str) -> Value {
    if kind == "startContainer" {
        return json!({"path": "/probe", "args": ["probe", "hook", name, "/home/log"]});
    }
    json!({"path": case.stage.probe, "args": ["probe", "hook", name, log_path(case)]})
}

fn log_path(case: &Case) -> std::path::PathBuf {
    case.bundle.inside("home/log")
}

pub(super) fn set_all(case: &mut Case) {
    let table = KINDS.map(|kind| (kind.to_owned(), json!([hook(case, kind, kind)])));
    case.config["hooks"] = Value::Object(table.into_iter().collect());
}

pub(super) fn log(case: &Case) -> Result<Vec<Value>, Failed> {
    let text = match fs::read_to_string(log_path(case)) {
        Ok(text) => text,
        Err(_) => return Ok(Vec::new()),
    };
    text.lines().map(|line| serde_json::from_str(line).map_err(Failed::from)).collect()
}

pub(super) fn names(case: &Case) -> Result<Vec<String>, Failed> {
    Ok(log(case)?.iter().filter_map(|line| line["hook"].as_str().map(str::to_owned)).collect())
}

fn order(case: &mut Case) -> Outcome {
    set_all(case);
    let id = case.id.clone();
    case.args(&["/probe", "sleep", "forever"]);
    let mut lines = case.create()?;
    assert_eq!(names(case)?, KINDS[..3]);
    case.call(&["start", &id])?.success()?;
    lines.until("ready")?;
    assert_eq!(names(case)?, KINDS[..5]);
    case.kill_and_wait("KILL")?;
    case.call(&["delete", &id])?.success()?;
    assert_eq!(names(case)?, KINDS);
    Ok(())
}

fn state(case: &mut Case) -> Outcome {
    set_all(case);
    case.config["annotations"] = json!({"org.example.port": "Kiel"});
    case.args(&["/probe", "sleep", "forever"]);
    let mut lines = case.create()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    case.call(&["start", &id])?.success()?;
    lines.until("ready")?;
    case.kill_and_wait("KILL")?;
    case.call(&["delete", &id])?.success()?;
    let statuses = ["creating", "creating", "creating", "created", "running", "stopped"];
    for (line, status) in log(case)?.iter().zip(statuses) {
        let (kind, state) = (&line["hook"], &line["state"]);
        assert_eq!((&state["id"], &state["bundle"]), (&json!(id), &json!(case.bundle.path())), "{kind}");
        assert_eq!(state["annotations"]["org.example.port"], "Kiel", "{kind}");
        assert!(state["ociVersion"].is_string(), "{kind}");
        let told = state["status"].as_str().unwrap_or_default();
        // The specification says `creating` where peers say `created`, and the pid as the runtime sees it.
        assert!(told == status || case.stage.runtime.name != "ferry", "{kind}: {told}");
        if ["createContainer", "startContainer"].contains(&kind.as_str().unwrap_or_default()) {
            assert_eq!(state["pid"], 1, "{kind}: as the container counts");
        }
        if [0, 1, 4].contains(&KINDS.iter().position(|name| kind == name).unwrap_or(9)) {
            assert_eq!(state["pid"], pid, "{kind}");
        }
    }
    assert_eq!(log(case)?.len(), 6);
    Ok(())
}

fn namespaces(case: &mut Case) -> Outcome {
    set_all(case);
    case.run()?.success()?;
    let host = |name: &str| fs::read_link(Path::new("/proc/self/ns").join(name)).map(|link| json!(link));
    for line in log(case)? {
        let kind = line["hook"].as_str().unwrap_or_default().to_owned();
        // createContainer runs before pivot_root, in the container's namespaces and on the host's files.
        let inside = ["createContainer", "startContainer"].contains(&kind.as_str());
        assert_eq!(line["seen"]["namespaces"]["mnt"] != host("mnt")?, inside, "{kind}");
        assert_eq!(line["seen"]["namespaces"]["uts"] != host("uts")?, inside, "{kind}");
    }
    assert_eq!(names(case)?.len(), 6);
    Ok(())
}

fn several(case: &mut Case) -> Outcome {
    let rows = ["first", "second", "third"].map(|name| hook(case, "createRuntime", name));
    case.config["hooks"] = json!({"createRuntime": rows});
    case.run()?.success()?;
    assert_eq!(names(case)?, ["first", "second", "third"]);
    Ok(())
}

fn arguments(case: &mut Case) -> Outcome {
    let mut row = hook(case, "createRuntime", "with environment");
    row["env"] = json!(["PORT=Kiel"]);
    case.config["hooks"] = json!({"createRuntime": [row]});
    case.run()?.success()?;
    let seen = log(case)?[0]["seen"].clone();
    assert_eq!(seen["args"][0], "probe");
    assert_eq!(seen["env"]["PORT"], "Kiel");
    Ok(())
}

fn environment(case: &mut Case) -> Outcome {
    let mut row = hook(case, "createRuntime", "x");
    row["env"] = json!(["PORT=Kiel"]);
    case.config["hooks"] = json!({"createRuntime": [row]});
    case.run()?.success()?;
    assert_eq!(log(case)?[0]["seen"]["env"], json!({"PORT": "Kiel"}));
    Ok(())
}

/// Wherever the verbs are called.
fn begin(case: &mut Case) -> Outcome {
    set_all(case);
    let id = case.id.clone();
    let mut lines = case.args(&["/probe", "sleep", "forever"]).create()?;
    let elsewhere = |case: &mut Case, verb| {
        let mut command = case.command(&[verb, &id]);
        case.finish(command.current_dir("/usr"))?.success()
    };
    elsewhere(case, "start")?;
    lines.until("ready")?;
    case.kill_and_wait("KILL")?;
    elsewhere(case, "delete")?;
    let bundle = case.bundle.path().display().to_string();
    let places: Vec<Value> = log(case)?.into_iter().map(|line| json!([line["hook"], line["seen"]["cwd"]])).collect();
    assert_eq!(
        places,
        KINDS.map(|kind| match kind {
            "createContainer" => json!([kind, format!("{bundle}/rootfs")]),
            "startContainer" => json!([kind, "/"]),
            kind => json!([kind, bundle]),
        })
    );
    Ok(())
}

fn inherited_environment(case: &mut Case) -> Outcome {
    set_all(case);
    case.config["process"]["env"] = json!(["PORT=Kiel"]);
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let mut command = case.command(&["run", "--bundle", &bundle, &id]);
    case.finish(command.env("ENGINE", "x"))?.success()?;
    for line in log(case)? {
        let (kind, env) = (line["hook"].as_str().unwrap_or_default(), &line["seen"]["env"]);
        match kind {
            // The caller's is not for programs of the image.
            "startContainer" => assert_eq!((&env["PORT"], &env["ENGINE"]), (&json!("Kiel"), &Value::Null)),
            // In its namespaces, and of the host: peers differ.
            "createContainer" => (),
            _ => assert_eq!((&env["PORT"], &env["ENGINE"]), (&Value::Null, &json!("x")), "{kind}"),
        }
    }
    assert_eq!(names(case)?.len(), 6);
    Ok(())
}

fn signals(case: &mut Case) -> Outcome {
    set_all(case);
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let mut command = case.ignoring(&case.command(&["run", "--bundle", &bundle, &id]));
    case.finish(&mut command)?.success()?;
    for line in log(case)? {
        let seen = &line["seen"]["signals"];
        assert_eq!(*seen, as_expected(), "{}", line["hook"]);
    }
    assert_eq!(names(case)?.len(), 6);
    Ok(())
}

fn with_poststop(case: &mut Case) -> Outcome {
    case.config["hooks"] = json!({"poststop": [hook(case, "poststop", "poststop")]});
    case.start_waiting()
}

/// Those of the host's side make files on the host, or in the container's root.
fn umask(case: &mut Case) -> Outcome {
    let table = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"].map(|kind| {
        let script = format!("umask > {}", case.path(&format!("umask.{kind}")));
        (kind.to_owned(), json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]))
    });
    let kinds = table.clone().map(|(kind, _)| kind);
    case.config["hooks"] = Value::Object(table.into_iter().collect());
    let (bundle, id) = (case.args(&["/probe", "exit", "0"]).write_config()?, case.id.clone());
    let runtime = case.command(&["run", "--bundle", &bundle, &id]);
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "umask 027; exec \"$@\"", "sh"]).arg(runtime.get_program()).args(runtime.get_args());
    case.finish(command.stdin(std::process::Stdio::null()))?.success()?;
    for kind in kinds {
        assert_eq!(fs::read_to_string(case.path(&format!("umask.{kind}")))?, "0027\n", "{kind}");
    }
    Ok(())
}

fn poststop(case: &mut Case) -> Outcome {
    with_poststop(case)?;
    case.kill_and_wait("KILL")?;
    assert_eq!(names(case)?, Vec::<String>::new());
    let id = case.id.clone();
    case.call(&["delete", &id])?.success()?;
    assert_eq!(names(case)?, ["poststop"]);
    Ok(())
}

fn poststop_forced(case: &mut Case) -> Outcome {
    with_poststop(case)?;
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(names(case)?, ["poststop"]);
    Ok(())
}

/// A hook of that kind that ends with 3: the verb fails, the hook is named, and nothing is left.
fn undone(case: &mut Case, kind: &str) -> Outcome {
    case.config["hooks"] = json!({kind: [{"path": case.stage.probe, "args": ["probe", "exit", "3"]}]});
    let (bundle, id) = (case.args(&["/probe", "write", "/home/ran", "x"]).write_config()?, case.id.clone());
    let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.contains("hook") || case.stage.runtime.name == "crun", "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    assert!(!case.bundle.inside("home/ran").exists());
    Ok(())
}

fn failing_prestart(case: &mut Case) -> Outcome {
    undone(case, "prestart")
}

fn failing_create_runtime(case: &mut Case) -> Outcome {
    undone(case, "createRuntime")
}

fn failing_create_container(case: &mut Case) -> Outcome {
    undone(case, "createContainer")
}

fn failing_start_container(case: &mut Case) -> Outcome {
    case.config["hooks"] = json!({"startContainer": [{"path": "/probe", "args": ["probe", "exit", "3"]}]});
    let end = case.args(&["/probe", "write", "/home/ran", "x"]).run()?;
    assert_ne!(end.code, 0);
    assert!(!case.bundle.inside("home/ran").exists());
    Ok(())
}

fn failing_poststop(case: &mut Case) -> Outcome {
    let failing = json!({"path": case.stage.probe, "args": ["probe", "exit", "3"]});
    case.config["hooks"] = json!({"poststop": [failing, hook(case, "poststop", "second")]});
    case.run()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn missing(case: &mut Case) -> Outcome {
    case.config["hooks"] = json!({"createRuntime": [{"path": "/no/such/hook"}]});
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("/no/such/hook") || case.stage.runtime.name == "crun", "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn timeout(case: &mut Case) -> Outcome {
    let slow = json!({"path": case.stage.probe, "args": ["probe", "sleep", "forever"], "timeout": 1});
    case.config["hooks"] = json!({"createRuntime": [slow]});
    case.run()?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// More than a pipe holds.
fn timeout_unread(case: &mut Case) -> Outcome {
    case.config["annotations"] = json!({"org.example.cargo": "x".repeat(200_000)});
    timeout(case)
}

fn descriptors(case: &mut Case) -> Outcome {
    set_all(case);
    case.run()?.success()?;
    for line in log(case)? {
        let numbers = line["seen"]["descriptors"].as_object().cloned().unwrap_or_default();
        let extra: Vec<_> = numbers.iter().filter(|(number, _)| !["0", "1", "2"].contains(&number.as_str())).collect();
        assert!(extra.is_empty(), "{}: {extra:?}", line["hook"]);
    }
    Ok(())
}
