//! A container's life by its verbs: create, start, state, list, kill, delete, run, and what each refuses.

use std::fs;

use libtest_mimic::Failed;
use serde_json::Value;

use super::case::{Case, names_in};
use super::need::Need::Peer;
use super::output::{Lines, Output};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("create_start_state_kill_delete", &[], whole_life),
    scenario("state_has_what_the_specification_asks", &[], state_fields),
    scenario("created_container_does_not_run_its_program", &[], create_does_not_run),
    scenario("run_gives_the_exit_code", &[], run_exit_code),
    scenario("run_gives_128_and_the_signal", &[], run_exit_signal),
    scenario("run_leaves_nothing", &[], run_leaves_nothing),
    scenario("run_passes_standard_streams", &[], run_streams),
    scenario("run_detach_returns_and_leaves_it_running", &[], run_detach),
    scenario(
        "run_keep_leaves_a_stopped_container",
        &[Peer("runc", "1.1.5: an unknown state"), Peer("crun", "1.8.1: no such flag")],
        run_keep,
    ),
    scenario("pid_file_has_the_pid", &[], pid_file),
    scenario("pid_file_of_run", &[], run_pid_file),
    scenario("list_as_table", &[Peer("crun", "another table")], list_table),
    scenario("list_as_json", &[], list_json),
    scenario("list_quiet", &[], list_quiet),
    scenario("list_of_nothing", &[], list_empty),
    scenario(
        "kill_by_name_with_and_without_sig_and_by_number",
        &[Peer("crun", "1.8.1: no lower case")],
        kill_spellings,
    ),
    scenario("kill_without_a_signal_is_term", &[], kill_default),
    scenario(
        "kill_all_reaches_every_process",
        &[Peer("crun", "needs a cgroup for --all"), Peer("runc", "needs a cgroup")],
        kill_all,
    ),
    scenario("kill_of_an_unknown_signal_is_refused", &[Peer("crun", "1.8.1: succeeds")], kill_unknown),
    scenario("kill_of_a_stopped_container_is_refused", &[Peer("crun", "succeeds")], kill_stopped),
    scenario("a_created_container_can_be_killed_and_deleted", &[], kill_created),
    scenario("delete_of_a_running_container_is_refused", &[], delete_running),
    scenario("delete_force_ends_a_running_container", &[], delete_force),
    scenario("delete_force_of_a_missing_container_succeeds", &[], delete_force_missing),
    scenario("delete_of_a_missing_container_is_refused", &[], delete_missing),
    scenario("delete_of_a_created_container_is_refused", &[Peer("runc", "kills it")], delete_created),
    scenario("killing_the_first_process_ends_all_of_the_pid_namespace", &[], pid_namespace_ends),
    scenario("create_twice_is_refused", &[], create_twice),
    scenario("start_twice_is_refused", &[], start_twice),
    scenario("start_of_a_stopped_container_is_refused", &[], start_stopped),
    scenario("verbs_on_a_missing_container_are_refused", &[], missing_container),
    scenario("invalid_ids_are_refused", &[Peer("crun", "1.8.1 allows most")], invalid_ids),
    scenario("unusual_but_valid_ids", &[], valid_ids),
    scenario("the_same_id_can_be_used_again", &[], id_again),
    scenario("state_root_is_private", &[Peer("crun", "0755")], state_root_mode),
    scenario("ps_lists_the_processes", &[Peer("runc", "needs a cgroup"), Peer("crun", "needs a cgroup")], ps),
    scenario(
        "spec_writes_a_bundle_that_runs",
        &[Peer("crun", "asks for limits that only some hosts allow")],
        spec_runs,
    ),
    scenario("spec_does_not_overwrite", &[], spec_twice),
    scenario("features_are_json", &[Peer("crun", "1.8.1 has no features")], features),
    scenario("version_and_help", &[], version),
    scenario("an_unknown_verb_is_refused", &[], unknown_verb),
    scenario("logs_go_to_the_log_file_as_json", &[], log_json),
];

fn whole_life(case: &mut Case) -> Outcome {
    let id = case.id.clone();
    case.args(&["/probe", "sleep", "forever"]);
    let mut lines = case.create()?;
    assert_eq!(case.state()?["status"], "created");
    case.call(&["start", &id])?.success()?;
    lines.until("ready")?;
    assert_eq!(case.state()?["status"], "running");
    case.kill_and_wait("KILL")?;
    assert_eq!(case.state()?["status"], "stopped");
    case.call(&["delete", &id])?.success()?;
    case.call(&["state", &id])?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn state_fields(case: &mut Case) -> Outcome {
    case.config["annotations"] = serde_json::json!({"org.example.port": "Kiel"});
    case.start_waiting()?;
    let state = case.state()?;
    assert_eq!(state["id"], case.id.as_str());
    assert!(state["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")), "{state}");
    assert_eq!(state["bundle"], case.bundle.path().to_str().unwrap_or_default());
    assert_eq!(state["annotations"]["org.example.port"], "Kiel");
    let cmdline = fs::read_to_string(format!("/proc/{}/cmdline", case.pid()?))?;
    assert_eq!(cmdline, "/probe\0sleep\0forever\0");
    Ok(())
}

fn create_does_not_run(case: &mut Case) -> Outcome {
    case.args(&["/probe", "write", "/home/ran", "x"]);
    let mut lines = case.create()?;
    let pid = case.pid()?;
    assert!(!case.bundle.inside("home/ran").exists());
    let id = case.id.clone();
    case.call(&["start", &id])?.success()?;
    lines.until("ok")?;
    case.wait_for(pid)?;
    assert!(case.bundle.inside("home/ran").exists());
    Ok(())
}

fn run_exit_code(case: &mut Case) -> Outcome {
    for code in [0, 1, 7, 127, 255] {
        let end = case.args(&["/probe", "exit", &code.to_string()]).run()?;
        assert_eq!(end.code, code);
    }
    Ok(())
}

fn run_exit_signal(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe", "sleep", "forever"]).write_config()?, case.id.clone());
    let (mut child, mut lines) = case.spawn(&["run", "--bundle", &bundle, &id])?;
    lines.until("ready")?;
    case.call(&["kill", &id, "KILL"])?.success()?;
    let status = super::output::wait(&mut child, case.patience())?;
    assert_eq!(super::output::code(status), 137);
    Ok(())
}

fn run_leaves_nothing(case: &mut Case) -> Outcome {
    case.run()?.success()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn run_streams(case: &mut Case) -> Outcome {
    let end = case.args(&["/probe", "complain", "it", "leaks"]).run()?.success()?;
    assert_eq!((end.stdout.as_str(), end.stderr.as_str()), ("", "it leaks\n"));
    let bundle = case.args(&["/probe", "echo"]).write_config()?;
    let input = case.directory.join("input");
    fs::write(&input, "a line\nand another")?;
    let id = case.id.clone();
    let mut command = case.command(&["run", "--bundle", &bundle, &id]);
    let end = case.finish(command.stdin(fs::File::open(&input)?))?.success()?;
    assert_eq!(end.stdout, "a line\nand another");
    Ok(())
}

fn run_detach(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe", "sleep", "forever"]).write_config()?, case.id.clone());
    case.begin(&["run", "--detach", "--bundle", &bundle, &id])?.until("ready")?;
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn run_keep(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.args(&["/probe", "exit", "3"]).write_config()?, case.id.clone());
    assert_eq!(case.call(&["run", "--keep", "--bundle", &bundle, &id])?.code, 3);
    assert_eq!(case.state()?["status"], "stopped");
    case.call(&["delete", &id])?.success().map(drop)
}

fn pid_file(case: &mut Case) -> Outcome {
    let (bundle, id, file) = (case.write_config()?, case.id.clone(), case.path("pid"));
    case.begin(&["create", "--bundle", &bundle, "--pid-file", &file, &id])?;
    assert_eq!(fs::read_to_string(&file)?, case.pid()?.to_string());
    Ok(())
}

fn run_pid_file(case: &mut Case) -> Outcome {
    let (bundle, id, file) =
        (case.args(&["/probe", "sleep", "forever"]).write_config()?, case.id.clone(), case.path("pid"));
    case.begin(&["run", "-d", "-b", &bundle, "--pid-file", &file, &id])?.until("ready")?;
    assert_eq!(fs::read_to_string(&file)?, case.pid()?.to_string());
    Ok(())
}

fn list_table(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let pid = case.pid()?.to_string();
    let table = case.call(&["list"])?.success()?.stdout;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows[0][0], rows[0][1]), ("ID", "PID"));
    assert_eq!(rows.len(), 2, "{table}");
    assert_eq!(rows[1][..3], [case.id.as_str(), &pid, "running"]);
    Ok(())
}

fn list_json(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let list = case.call(&["list", "--format", "json"])?.success()?.json()?;
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!((&list[0]["id"], &list[0]["status"]), (&Value::from(case.id.as_str()), &Value::from("running")));
    assert_eq!(list[0]["pid"], case.pid()?);
    assert_eq!(list[0]["bundle"], case.bundle.path().to_str().unwrap_or_default());
    assert!(list[0]["created"].as_str().is_some_and(|time| time.len() >= 20 && time.contains('T')), "{list}");
    Ok(())
}

fn list_quiet(case: &mut Case) -> Outcome {
    case.create()?;
    assert_eq!(case.call(&["list", "-q"])?.success()?.stdout, format!("{}\n", case.id));
    Ok(())
}

fn list_empty(case: &mut Case) -> Outcome {
    // A --root that was named and is not there is a mistake; one that has held a container is there.
    case.args(&["/probe", "exit", "0"]).run()?.success()?;
    assert_eq!(case.call(&["list", "-q"])?.success()?.stdout, "");
    Ok(())
}

/// A container whose program tells the one signal it is sent.
fn signal_waiter(case: &mut Case) -> Result<Lines, Failed> {
    let mut lines = case.args(&["/probe", "signal-wait"]).start()?;
    lines.until("ready")?;
    Ok(lines)
}

fn kill_spellings(case: &mut Case) -> Outcome {
    for (signal, number) in [("SIGUSR1", 10), ("HUP", 1), ("15", 15), ("usr2", 12), ("RTMIN+3", 37)] {
        if signal == "RTMIN+3" && case.stage.runtime.name != "ferry" {
            continue;
        }
        let mut lines = signal_waiter(case)?;
        let (pid, id) = (case.pid()?, case.id.clone());
        case.call(&["kill", &id, signal])?.success()?;
        assert_eq!(lines.until("signal")?, format!("{{\"signal\":{number}}}"));
        case.wait_for(pid)?;
        case.call(&["delete", &id])?.success()?;
    }
    Ok(())
}

fn kill_default(case: &mut Case) -> Outcome {
    let mut lines = signal_waiter(case)?;
    let id = case.id.clone();
    case.call(&["kill", &id])?.success()?;
    assert_eq!(lines.until("signal")?, "{\"signal\":15}");
    Ok(())
}

/// The first process and those it forked.
fn kill_all(case: &mut Case) -> Outcome {
    case.args(&["/probe", "fork", "3"]).start()?.until("ready")?;
    let id = case.id.clone();
    let pid = case.pid()?;
    case.call(&["kill", "--all", &id, "KILL"])?.success()?;
    case.wait_for(pid)?;
    assert_eq!(super::case::marked_processes(&case.directory), Vec::<u32>::new());
    Ok(())
}

fn kill_unknown(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    case.call(&["kill", &id, "SIGPIRATE"])?.failure()?;
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn kill_stopped(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    case.kill_and_wait("KILL")?;
    let id = case.id.clone();
    case.call(&["kill", &id, "TERM"])?.failure().map(drop)
}

fn kill_created(case: &mut Case) -> Outcome {
    case.create()?;
    case.kill_and_wait("KILL")?;
    assert_eq!(case.state()?["status"], "stopped");
    let id = case.id.clone();
    case.call(&["delete", &id])?.success().map(drop)
}

fn delete_running(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    case.call(&["delete", &id])?.failure()?;
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn delete_force(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    case.call(&["delete", "--force", &id])?.success()?;
    case.wait_for(pid)?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn delete_force_missing(case: &mut Case) -> Outcome {
    case.call(&["delete", "--force", "nobody"])?.success().map(drop)
}

fn delete_missing(case: &mut Case) -> Outcome {
    case.call(&["delete", "nobody"])?.failure().map(drop)
}

fn delete_created(case: &mut Case) -> Outcome {
    case.create()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    case.call(&["delete", &id])?.failure()?;
    assert_eq!(case.state()?["status"], "created");
    case.call(&["delete", "--force", &id])?.success()?;
    case.wait_for(pid)
}

fn pid_namespace_ends(case: &mut Case) -> Outcome {
    case.args(&["/probe", "fork", "3"]).start()?.until("ready")?;
    let before = super::case::marked_processes(&case.directory).len();
    assert_eq!(before, 4);
    case.kill_and_wait("KILL")?;
    assert_eq!(super::case::marked_processes(&case.directory), Vec::<u32>::new());
    Ok(())
}

fn create_twice(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (bundle, id, pid) = (case.write_config()?, case.id.clone(), case.pid()?);
    let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.contains("exist"), "{}", end.stderr);
    assert_eq!((&case.state()?["status"], case.pid()?), (&Value::from("running"), pid));
    Ok(())
}

fn start_twice(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    case.call(&["start", &id])?.failure()?;
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn start_stopped(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    case.kill_and_wait("KILL")?;
    let id = case.id.clone();
    case.call(&["start", &id])?.failure().map(drop)
}

fn missing_container(case: &mut Case) -> Outcome {
    for args in [
        vec!["state", "nobody"],
        vec!["start", "nobody"],
        vec!["kill", "nobody", "TERM"],
        vec!["exec", "nobody", "/probe"],
    ] {
        let end = case.call(&args)?.failure()?;
        assert!(end.stderr.contains("exist") || case.stage.runtime.name == "crun", "{args:?}: {}", end.stderr);
    }
    Ok(())
}

fn refused_id(case: &mut Case, id: &str) -> Result<Output, Failed> {
    let bundle = case.write_config()?;
    case.call(&["create", "--bundle", &bundle, id])?.failure()
}

fn invalid_ids(case: &mut Case) -> Outcome {
    for id in ["", ".", "..", "a/b", "../a", "a b", "a\nb", "ä", "a*"] {
        refused_id(case, id)?;
    }
    assert_eq!(names_in(&case.state_root()), Vec::<String>::new());
    assert!(!case.directory.join("a").exists());
    Ok(())
}

fn valid_ids(case: &mut Case) -> Outcome {
    let bundle = case.args(&["/probe", "exit", "5"]).write_config()?;
    let own = std::process::id();
    for id in ["_", "A.b", "a+b", "a-b_c"].map(|id| format!("{id}{own}")) {
        assert_eq!(case.call(&["run", "--bundle", &bundle, &id])?.code, 5);
    }
    Ok(())
}

fn id_again(case: &mut Case) -> Outcome {
    for code in [1, 2] {
        assert_eq!(case.args(&["/probe", "exit", &code.to_string()]).run()?.code, code);
    }
    Ok(())
}

/// Others may not list what is there, nor read a record; passing through is no harm.
fn state_root_mode(case: &mut Case) -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    case.create()?;
    let own = case.state_root().join(&case.id);
    for path in [case.state_root(), own.clone()] {
        let mode = fs::metadata(&path)?.permissions().mode();
        assert_eq!(mode & 0o066, 0, "{}: {mode:o}", path.display());
    }
    for name in names_in(&own) {
        let data = fs::symlink_metadata(own.join(&name))?;
        assert!(!data.is_file() || data.permissions().mode() & 0o077 == 0, "{name}: {:o}", data.permissions().mode());
    }
    Ok(())
}

fn ps(case: &mut Case) -> Outcome {
    case.args(&["/probe", "fork", "2"]).start()?.until("ready")?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    let pids = case.call(&["ps", "--format", "json", &id])?.success()?.json()?;
    assert_eq!(pids.as_array().map(Vec::len), Some(3), "{pids}");
    assert!(pids.as_array().is_some_and(|pids| pids.contains(&pid.into())), "{pids}");
    let table = case.call(&["ps", &id])?.success()?.stdout;
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.lines().next().is_some_and(|head| head.contains("PID")), "{table}");
    Ok(())
}

fn spec_runs(case: &mut Case) -> Outcome {
    let bundle = case.bundle.path().display().to_string();
    let rootless = if nix::unistd::geteuid().is_root() { &[][..] } else { &["--rootless"][..] };
    case.call(&[&["spec", "--bundle", &bundle], rootless].concat())?.success()?;
    let text = fs::read_to_string(case.bundle.path().join("config.json"))?;
    case.config = serde_json::from_str(&text)?;
    case.config["process"]["terminal"] = false.into();
    assert_eq!(case.config["process"]["args"], serde_json::json!(["sh"]));
    assert_eq!(case.deed(&["say", "[1]"])?[0], 1);
    Ok(())
}

fn spec_twice(case: &mut Case) -> Outcome {
    let bundle = case.write_config()?;
    let before = fs::read(case.bundle.path().join("config.json"))?;
    case.call(&["spec", "--bundle", &bundle])?.failure()?;
    assert_eq!(fs::read(case.bundle.path().join("config.json"))?, before);
    Ok(())
}

fn features(case: &mut Case) -> Outcome {
    let features = case.call(&["features"])?.success()?.json()?;
    assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string(), "{features}");
    let namespaces = features["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
    assert!(["mount", "user", "pid"].iter().all(|name| namespaces.contains(&(*name).into())), "{features}");
    let options = features["mountOptions"].as_array().cloned().unwrap_or_default();
    assert!(["ro", "rbind", "nosuid"].iter().all(|name| options.contains(&(*name).into())), "{features}");
    Ok(())
}

fn version(case: &mut Case) -> Outcome {
    let version = case.call(&["--version"])?.success()?.stdout;
    assert!(version.starts_with(&format!("{} version ", case.stage.runtime.name)), "{version}");
    assert!(version.contains("\nspec: 1."), "{version}");
    let help = case.call(&["--help"])?.success()?.stdout;
    assert!(["create", "start", "kill", "delete"].iter().all(|verb| help.contains(verb)), "{help}");
    Ok(())
}

fn unknown_verb(case: &mut Case) -> Outcome {
    case.call(&["embark"])?.failure().map(drop)
}

fn log_json(case: &mut Case) -> Outcome {
    let log = case.path("log");
    case.call(&["--log", &log, "--log-format", "json", "start", "nobody"])?.failure()?;
    let text = fs::read_to_string(&log)?;
    let line: Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().is_some_and(|words| words.contains("exist") || words.contains("nobody")), "{line}");
    assert!(line["time"].is_string(), "{line}");
    Ok(())
}
