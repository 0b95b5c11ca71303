//! What flags do that no other noun is about. `tests/flags.tsv` names a test for every flag there is.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::cgroup::directory_of;
use super::need::Need::{CgroupV2, Ferry, Peer, Root, Tool};
use super::output;
use super::pseudo_terminal::{ConsoleSocket, Terminal};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

const OLD: &[super::need::Need] = &[Peer("runc", "1.1.5: no such flag"), Peer("crun", "1.8.1: no such flag")];

pub const SCENARIOS: &[Scenario] = &[
    scenario("config_is_taken_from_another_file", &[Peer("runc", "no such flag")], config_file),
    scenario("config_that_is_missing_is_named", &[Ferry], config_missing),
    scenario("delete_by_regular_expression", &[Peer("runc", "no such flag")], delete_regex),
    scenario("kill_by_regular_expression", &[Peer("runc", "no such flag")], kill_regex),
    scenario("a_regular_expression_that_is_none_is_refused", &[Ferry], bad_regex),
    scenario("pidfd_socket_of_create_run_and_exec", OLD, pidfd_socket),
    scenario("console_socket_of_run", &[], console_socket),
    scenario("no_new_keyring_leaves_the_callers", &[], no_new_keyring),
    scenario("no_pivot_of_create", &[Root], no_pivot),
    scenario("no_subreaper_of_run", &[Root, Peer("crun", "no such flag")], no_subreaper),
    scenario("no_new_privs_can_be_given_back", &[Peer("crun", "no such value")], no_new_privs),
    scenario("labels_of_exec_are_applied_or_refused", &[Ferry], labels),
    scenario("cgroup_of_exec", &[Root, CgroupV2(&[])], exec_cgroup),
    scenario("cgroup_of_exec_without_one_is_refused", &[Ferry], exec_no_cgroup),
    scenario("ignore_paused_of_exec", &[Root, CgroupV2(&[]), Peer("crun", "1.8.1: no such flag")], ignore_paused),
    scenario("additional_gids_of_exec", &[Root, Peer("crun", "1.8.1: no such flag")], additional_gids),
    scenario("tty_and_no_tty_of_run_rootfs", &[Ferry], no_tty),
    scenario("limits_of_run_rootfs", &[Root, CgroupV2(&["cpu", "memory", "pids"]), Ferry], rootfs_limits),
    scenario("limits_of_run_rootfs_that_cannot_be_are_refused", &[Ferry], rootfs_limits_refused),
    scenario("spec_for_an_ordinary_user", &[], spec_rootless),
    scenario("records_are_in_no_relative_place", &[Ferry, Root, Tool("setpriv")], relative_variables),
    scenario("explain_and_doctor_as_json", &[Ferry], formats),
    scenario("explain_of_another_configuration", &[Ferry], explain_config),
    scenario("debug_and_level_of_the_log", &[Ferry, Root, CgroupV2(&[])], log_level),
    scenario("a_log_that_is_a_fifo", &[Ferry], log_fifo),
    scenario("a_log_that_cannot_be_opened_is_named", &[], log_missing),
    scenario("no_cgroup_at_all", &[Peer("runc", "no such flag")], cgroup_manager),
    scenario("systemd_cgroup_is_asked_of_systemd", &[Ferry], systemd_cgroup),
    scenario("rootless_bears_with_a_refused_cgroup", &[Ferry], rootless),
];

/// The process that a pidfd is of.
pub fn pid_of(pidfd: &OwnedFd) -> Result<u32, Failed> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:")).ok_or("it is no pidfd")?;
    Ok(pid.trim().parse()?)
}

fn config_file(case: &mut Case) -> Outcome {
    let file = case.path("another.json");
    case.config["hostname"] = json!("sloop");
    fs::write(&file, case.config.to_string())?;
    case.config["hostname"] = json!("ship");
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let report = case.call(&["run", "--bundle", &bundle, "--config", &file, &id])?.success()?.json()?;
    assert_eq!(report["hostname"], "sloop");
    let mut lines = case.begin(&["create", "--config", &file, "--bundle", &bundle, &id])?;
    case.call(&["start", &id])?.success()?;
    lines.until("sloop")?;
    Ok(())
}

fn config_missing(case: &mut Case) -> Outcome {
    let (bundle, id, file) = (case.write_config()?, case.id.clone(), case.path("nothing.json"));
    let end = case.call(&["create", "--bundle", &bundle, "--config", &file, &id])?.failure()?;
    assert!(end.stderr.contains(&file) && end.stderr.contains("ENOENT"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// Two more containers that wait, with ids of the case's.
fn two_more(case: &mut Case) -> Result<[String; 2], Failed> {
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let ids = [case.other_id(), case.other_id()];
    for id in &ids {
        case.begin(&["run", "--detach", "--bundle", &bundle, id])?.until("ready")?;
    }
    Ok(ids)
}

fn delete_regex(case: &mut Case) -> Outcome {
    let [second, third] = two_more(case)?;
    case.start_waiting()?;
    let pattern = format!("^{}-[0-9]+$", case.id);
    case.call(&["delete", "--force", "--regex", &pattern])?.success()?;
    case.call(&["state", &second])?.failure()?;
    case.call(&["state", &third])?.failure()?;
    assert_eq!(case.state()?["status"], "running");
    case.call(&["delete", "--force", "--regex", "^nobody$"])?.success()?;
    // Each is tried, and each failure told.
    let [fourth, fifth] = two_more(case)?;
    let end = case.call(&["delete", "--regex", &pattern])?;
    if case.stage.runtime.name == "ferry" {
        let end = end.failure()?;
        assert!(end.stderr.contains(&fourth) && end.stderr.contains(&fifth), "{}", end.stderr);
    }
    Ok(())
}

fn kill_regex(case: &mut Case) -> Outcome {
    let ids = two_more(case)?;
    let pid = |case: &mut Case, id: &str| -> Result<u32, Failed> {
        let state = case.call(&["state", id])?.success()?.json()?;
        Ok(u32::try_from(state["pid"].as_u64().unwrap_or(0))?)
    };
    let pids = [pid(case, &ids[0])?, pid(case, &ids[1])?];
    let pattern = format!("{}-", case.id);
    case.call(&["kill", "--regex", &pattern, "KILL"])?.success()?;
    pids.into_iter().try_for_each(|pid| case.wait_for(pid))
}

fn bad_regex(case: &mut Case) -> Outcome {
    for verb in ["delete", "kill"] {
        let end = case.call(&[verb, "--regex", "("])?.failure()?;
        assert!(end.stderr.contains("invalid regular expression \"(\""), "{}", end.stderr);
    }
    Ok(())
}

fn pidfd_socket(case: &mut Case) -> Outcome {
    let path = case.directory.join("watch");
    let watch = ConsoleSocket::bind(&path)?;
    let name = path.display().to_string();
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let id = case.id.clone();
    // Held open: who writes to a pipe that nobody reads ends.
    let _first = case.begin(&["create", "--pidfd-socket", &name, "--bundle", &bundle, &id])?;
    assert_eq!(pid_of(&watch.receive(case.patience())?)?, case.pid()?);
    case.call(&["start", &id])?.success()?;
    let pid_file = case.path("pid");
    let args =
        ["exec", "--detach", "--pidfd-socket", &name, "--pid-file", &pid_file, &id, "/probe", "sleep", "forever"];
    let _second = case.begin(&args)?;
    assert_eq!(pid_of(&watch.receive(case.patience())?)?.to_string(), fs::read_to_string(&pid_file)?);
    let other = case.other_id();
    let _third = case.begin(&[
        "run",
        "--detach",
        "--pidfd-socket",
        &name,
        "--pid-file",
        &pid_file,
        "--bundle",
        &bundle,
        &other,
    ])?;
    assert_eq!(pid_of(&watch.receive(case.patience())?)?.to_string(), fs::read_to_string(&pid_file)?);
    Ok(())
}

fn console_socket(case: &mut Case) -> Outcome {
    let path = case.directory.join("console");
    let socket = ConsoleSocket::bind(&path)?;
    case.config["process"]["terminal"] = json!(true);
    let bundle = case.args(&["/probe", "say", "aboard"]).write_config()?;
    let (id, name) = (case.id.clone(), path.display().to_string());
    case.call(&["run", "--detach", "--console-socket", &name, "--bundle", &bundle, &id])?.success()?;
    let master = socket.receive(case.patience())?;
    output::Lines::new(master, case.patience()).until("aboard").map(drop)
}

fn no_new_keyring(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let named =
        |report: &Value| report["session_keyring"].as_str().is_some_and(|name| name.ends_with(&format!("_ses.{id}")));
    let report = case.call(&["run", "--no-new-keyring", "--bundle", &bundle, &id])?.success()?.json()?;
    assert!(!named(&report), "{report}");
    let mut lines = case.begin(&["create", "--no-new-keyring", "--bundle", &bundle, &id])?;
    case.call(&["start", &id])?.success()?;
    let report: Value = serde_json::from_str(&lines.until("session_keyring")?)?;
    assert!(!named(&report), "{report}");
    Ok(())
}

fn no_pivot(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let mut lines = case.begin(&["create", "--no-pivot", "--bundle", &bundle, &id])?;
    case.call(&["start", &id])?.success()?;
    let report: Value = serde_json::from_str(&lines.until("hostname")?)?;
    assert_eq!((&report["exe"], &report["pid"]), (&json!("/probe"), &json!(1)));
    Ok(())
}

/// In the host's pid namespace nobody ends with the first process: what it leaves behind becomes the child of whoever is its
/// reaper.
fn no_subreaper(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "pid");
    let (bundle, id) = (case.args(&["/probe", "orphan"]).write_config()?, case.id.clone());
    for (flags, reaped) in [(&["--no-subreaper"][..], false), (&["-no-subreaper=false"], true)] {
        let (mut child, mut lines) = case.spawn(&[&["run"], flags, &["--bundle", &bundle, &id]].concat())?;
        let told: Value = serde_json::from_str(&lines.until("orphan")?)?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", told["orphan"]))?;
        let parent: u32 =
            stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)).unwrap_or_default().parse()?;
        let orphan = i32::try_from(told["orphan"].as_u64().unwrap_or_default())?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(orphan), nix::sys::signal::Signal::SIGKILL)?;
        case.call(&["kill", &id, "KILL"])?.success()?;
        output::wait(&mut child, case.patience())?;
        assert_eq!(parent == child.id(), reaped, "{flags:?}: {stat}");
    }
    Ok(())
}

fn no_new_privs(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for (flags, expected) in [
        (&[][..], true),
        (&["--no-new-privs=false"], false),
        (&["--no-new-privs"], true),
        (&["-no-new-privs=true"], true),
    ] {
        assert_eq!(case.exec(flags, &["/probe"])?.success()?.json()?["no_new_privs"], expected, "{flags:?}");
    }
    Ok(())
}

/// A label that cannot be given is an error: the command would run without.
fn labels(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let end = case.exec(&["--process-label", "no_such_u:no_such_r:no_such_t:s0"], &["/probe"])?.failure()?;
    assert_eq!(end.code, 255);
    let end = case.exec(&["--apparmor", "no-such-profile"], &["/probe"])?.failure()?;
    assert_eq!(end.code, 255);
    case.exec(&["--apparmor", "unconfined"], &["/probe"])?.success()?;
    Ok(())
}

fn exec_cgroup(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "cgroup");
    case.start_waiting()?;
    let id = case.id.clone();
    let place = directory_of(case, &id)?;
    fs::create_dir(place.join("below"))?;
    let own = |case: &mut Case, flags: &[&str]| -> Result<String, Failed> {
        let answer = case.exec(flags, &["/probe", "read", "/proc/self/cgroup"])?.success()?.json()?;
        Ok(answer["ok"].as_str().unwrap_or_default().trim().to_owned())
    };
    let whole = own(case, &[])?;
    assert_eq!(own(case, &["--cgroup", "/"])?, whole);
    assert_eq!(own(case, &["--cgroup", "below"])?, format!("{whole}/below"));
    assert_eq!(own(case, &["--cgroup=/below/"])?, format!("{whole}/below"));
    let end = case.exec(&["--cgroup", "nothing"], &["/probe"])?.failure()?;
    assert_eq!(end.code, 255);
    // However it is written, it leads nowhere else.
    let end = case.exec(&["--cgroup", "../../.."], &["/probe", "read", "/proc/self/cgroup"])?;
    if end.code == 0 {
        assert_eq!(end.json()?["ok"].as_str().unwrap_or_default().trim(), whole);
    }
    Ok(())
}

fn exec_no_cgroup(case: &mut Case) -> Outcome {
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let id = case.id.clone();
    case.begin(&["--cgroup-manager", "disabled", "run", "--detach", "--bundle", &bundle, &id])?.until("ready")?;
    let end = case.exec(&["--cgroup", "below"], &["/probe"])?.failure()?;
    assert!(end.stderr.contains("the container has no cgroup of its own"), "{}", end.stderr);
    case.exec(&[], &["/probe"])?.success().map(drop)
}

fn ignore_paused(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    case.call(&["pause", &id])?.success()?;
    let (mut child, mut lines) = case.spawn(&["exec", "--ignore-paused", &id, "/probe", "say", "awake"])?;
    case.call(&["resume", &id])?.success()?;
    lines.until("awake")?;
    assert!(output::wait(&mut child, case.patience())?.success());
    Ok(())
}

fn additional_gids(case: &mut Case) -> Outcome {
    case.config["process"]["user"]["additionalGids"] = json!([5]);
    case.start_waiting()?;
    let report = case.exec(&["--additional-gids", "10", "-g", "20"], &["/probe"])?.success()?.json()?;
    assert_eq!(report["groups"], json!([5, 10, 20]));
    case.exec(&["--additional-gids", "-1"], &["/probe"])?.failure().map(drop)
}

/// On a terminal the command has one, unless it is told not to.
fn no_tty(case: &mut Case) -> Outcome {
    let tree = case.bundle.rootfs().display().to_string();
    for (flags, expected) in [(&[][..], true), (&["--no-tty"], false), (&["--tty=false"], false)] {
        let terminal = Terminal::open(&case.stage.probe, 30, 90)?;
        let args = [&["run", "--rootfs", &tree], flags, &["--", "/probe", "read", "/proc/self/mountinfo"]].concat();
        let mut child = terminal.spawn(&case.command(&args))?;
        let line = terminal.lines(case.patience())?.until("ok")?;
        assert!(output::wait(&mut child, case.patience())?.success());
        assert_eq!(line.contains(" /dev/console "), expected, "{flags:?}: {line}");
    }
    let end = case.call(&["run", "--rootfs", &tree, "--tty", "--no-tty", "/probe"])?.failure()?;
    assert!(end.stderr.contains("--tty and --no-tty contradict each other"), "{}", end.stderr);
    Ok(())
}

fn rootfs_limits(case: &mut Case) -> Outcome {
    let (tree, id) = (case.bundle.rootfs().display().to_string(), case.id.clone());
    let flags = ["--name", &id, "--memory", "64m", "--cpus", "0.5", "--pids-limit", "20"];
    let (mut child, mut lines) =
        case.spawn(&[&["run", "--rootfs", &tree], &flags[..], &["--", "/probe", "sleep", "forever"]].concat())?;
    lines.until("ready")?;
    let place = directory_of(case, &id)?;
    let read = |file: &str| fs::read_to_string(place.join(file)).map(|text| text.trim().to_owned());
    assert_eq!(
        (read("memory.max")?, read("cpu.max")?, read("pids.max")?),
        ("67108864".into(), "50000 100000".into(), "20".into())
    );
    case.call(&["kill", &id, "KILL"])?.success()?;
    output::wait(&mut child, case.patience()).map(drop)
}

fn rootfs_limits_refused(case: &mut Case) -> Outcome {
    let tree = case.bundle.rootfs().display().to_string();
    for (flag, value, said) in [
        ("--memory", "much", "invalid value \"much\" for --memory"),
        ("--cpus", "0", "invalid value \"0\" for --cpus"),
        ("--pids-limit", "few", "invalid value \"few\" for --pids-limit"),
    ] {
        let end = case.call(&["run", "--rootfs", &tree, flag, value, "--", "/probe"])?.failure()?;
        assert!(end.stderr.contains(said), "{}", end.stderr);
    }
    Ok(())
}

fn spec_rootless(case: &mut Case) -> Outcome {
    let bundle = case.bundle.path().display().to_string();
    case.call(&["spec", "--rootless", "--bundle", &bundle])?.success()?;
    let config: Value = serde_json::from_str(&fs::read_to_string(case.bundle.path().join("config.json"))?)?;
    let uid = nix::unistd::geteuid().as_raw();
    assert_eq!(config["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": uid, "size": 1}]));
    let kinds = config["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
    assert!(kinds.contains(&json!({"type": "user"})) && !kinds.contains(&json!({"type": "network"})), "{kinds:?}");
    Ok(())
}

fn formats(case: &mut Case) -> Outcome {
    let bundle = case.write_config()?;
    let plan = case.call(&["explain", "--format", "json", "--bundle", &bundle])?.success()?.json()?;
    assert!(plan.is_object());
    assert!(case.call(&["explain", "--format=text", "--bundle", &bundle])?.success()?.json().is_err());
    let found = case.call(&["doctor", "--format", "json"])?;
    assert!(found.json()?.is_object() || found.json()?.is_array());
    for verb in ["doctor", "explain", "list"] {
        let end = case.call(&[verb, "--format", "xml"])?.failure()?;
        assert!(end.stderr.contains("invalid format \"xml\": it is one of "), "{}", end.stderr);
    }
    Ok(())
}

fn explain_config(case: &mut Case) -> Outcome {
    let (bundle, file) = (case.write_config()?, case.path("another.json"));
    case.config["hostname"] = json!("sloop");
    fs::write(&file, case.config.to_string())?;
    let plan = case.call(&["explain", "--bundle", &bundle, "--config", &file])?.success()?;
    assert!(plan.stdout.contains("sloop"), "{}", plan.stdout);
    Ok(())
}

/// ferry's debug line is about device rules, which need a cgroup.
fn log_level(case: &mut Case) -> Outcome {
    let (log, id) = (case.path("log"), case.id.clone());
    let deny = json!({"allow": false, "access": "rwm"});
    case.config["linux"]["resources"] = json!({"devices": [deny]});
    case.config["annotations"] = json!({"run.oci.handler": "krun"});
    let bundle = case.write_config()?;
    for (flags, levels) in [
        (&["--debug"][..], &["warning", "debug"][..]),
        (&["--log-level", "debug"], &["warning", "debug"]),
        (&["--log-level=warning"], &["warning"]),
        (&["--log-level", "error"], &[]),
    ] {
        fs::write(&log, "")?;
        let args = [&["--log", &log, "--log-format", "json"], flags, &["run", "--bundle", &bundle, &id]].concat();
        case.call(&args)?.success()?;
        let text = fs::read_to_string(&log)?;
        let lines = text.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
        // How much there is to say at debug level is no promise.
        let mut told: Vec<&str> = lines.iter().filter_map(|line| line["level"].as_str()).collect();
        told.dedup();
        assert_eq!(told, levels, "{flags:?}: {text}");
    }
    Ok(())
}

/// Somebody who reads gets the lines; nobody who reads is told, and not waited for.
fn log_fifo(case: &mut Case) -> Outcome {
    let path = case.directory.join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU)?;
    let log = path.display().to_string();
    let end = case.call(&["--log", &log, "start", "nobody"])?.failure()?;
    assert!(end.stderr.contains("cannot open the log") && end.stderr.contains("nobody has it open"), "{}", end.stderr);
    // Opened for both, so that this does not wait for a writer.
    let reader = fs::OpenOptions::new().read(true).write(true).open(&path)?;
    case.call(&["--log", &log, "--log-format", "json", "start", "nobody"])?.failure()?;
    let line = output::Lines::new(reader.into(), case.patience()).until("msg")?;
    let line: Value = serde_json::from_str(&line)?;
    assert_eq!(
        line.as_object().map(|fields| fields.keys().cloned().collect()),
        Some(vec!["level".to_owned(), "msg".into(), "time".into()])
    );
    let time = line["time"].as_str().unwrap_or_default();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00Z", "RFC 3339");
    Ok(())
}

fn log_missing(case: &mut Case) -> Outcome {
    let end = case.call(&["--log", "/no/such/log", "list"])?.failure()?;
    assert!(end.stderr.contains("/no/such/log"), "{}", end.stderr);
    Ok(())
}

fn cgroup_manager(case: &mut Case) -> Outcome {
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let id = case.id.clone();
    case.begin(&["--cgroup-manager=disabled", "run", "--detach", "--bundle", &bundle, &id])?.until("ready")?;
    assert_eq!(case.cgroups(), Vec::<std::path::PathBuf>::new());
    let end = case.call(&["--cgroup-manager", "podman", "list"])?.failure()?;
    assert!(end.stderr.contains("podman"), "{}", end.stderr);
    Ok(())
}

fn systemd_cgroup(case: &mut Case) -> Outcome {
    case.config["linux"]["cgroupsPath"] = json!(format!(":ferry:{}", case.id));
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let id = case.id.clone();
    let args = ["--systemd-cgroup", "run", "--detach", "--bundle", &bundle, &id];
    if Path::new("/run/systemd/system").exists() && nix::unistd::geteuid().is_root() {
        case.begin(&args)?.until("ready")?;
        let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", case.pid()?))?;
        assert!(cgroup.contains(&format!("ferry-{id}.scope")), "{cgroup}");
        return Ok(());
    }
    match case.begin(&args) {
        // Not the failed call, in which that is a flag's name.
        Err(_) => {
            let said = fs::read_to_string(case.directory.join("errors"))?;
            assert!(said.contains("bus") || said.contains("systemd"), "{said}");
        }
        // An ordinary user's own systemd.
        Ok(mut lines) => drop(lines.until("ready")?),
    }
    Ok(())
}

/// Whether a cgroup is refused is the host's affair; what is said to it is not.
fn rootless(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    case.call(&["--rootless", "auto", "run", "--bundle", &bundle, &id])?.success()?;
    case.call(&["--rootless=true", "run", "--bundle", &bundle, &id])?.success()?;
    let end = case.call(&["--rootless", "false", "run", "--bundle", &bundle, &id])?;
    assert!(end.code == 0 || end.stderr.contains("leave out --rootless false"), "{}", end.stderr);
    let end = case.call(&["--rootless", "perhaps", "list"])?.failure()?;
    assert!(end.stderr.contains("invalid rootless \"perhaps\": it is one of true, false, auto"), "{}", end.stderr);
    Ok(())
}

/// As an ordinary user, for whom they say where records are. basedir-spec
fn relative_variables(case: &mut Case) -> Outcome {
    let ferry = case.stage.runtime.path.clone();
    for (runtime, temporary, expected) in [
        ("/var/tmp", "/var", "/var/tmp/ferry"),
        ("run", "/var/tmp", "/var/tmp/ferry-4242"),
        ("", "tmp", "/tmp/ferry-4242"),
        ("./run", "", "/tmp/ferry-4242"),
    ] {
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid=4242", "--regid=4242", "--clear-groups"])
            .arg(&ferry)
            .args(["doctor", "--format", "json"]);
        command.env("XDG_RUNTIME_DIR", runtime).env("TMPDIR", temporary).current_dir("/");
        let told = case.finish(command.stdin(std::process::Stdio::null()))?.json()?;
        let findings = told["findings"].as_array().cloned().unwrap_or_default();
        let records = findings.iter().find(|finding| finding["subject"] == "records").ok_or("no word of records")?;
        assert_eq!(records["found"], expected, "{runtime:?} {temporary:?}");
    }
    Ok(())
}
