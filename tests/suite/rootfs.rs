//! `run --rootfs`: a command in a directory tree, without a bundle.

use std::fs;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Root};
use super::output::{self, Output};
use super::pseudo_terminal::Terminal;
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_command_runs_in_the_tree", &[Ferry], command),
    scenario("it_gives_the_exit_code_and_leaves_nothing", &[Ferry], exit_code),
    scenario("writes_vanish", &[Ferry], writes_vanish),
    scenario("only_the_container_is_seen", &[Ferry], isolated),
    scenario("hostname_env_and_cwd", &[Ferry], flags),
    scenario("env_without_a_value_is_the_callers", &[Ferry], env_passed),
    scenario("user", &[Ferry, Root], user),
    scenario("mount", &[Ferry], mount),
    scenario("volume", &[Ferry], volume),
    scenario("a_mistyped_option_is_refused", &[Ferry], mistyped),
    scenario("the_pid_of_a_detached_one_is_written", &[Ferry], pid_file),
    scenario("read_only", &[Ferry], read_only),
    scenario("tty", &[Ferry], tty),
    scenario("the_hosts_own_root", &[Ferry], host_root),
    scenario("standard_input_reaches_it", &[Ferry], input),
    scenario("flags_after_the_command_are_the_commands", &[Ferry], command_flags),
    scenario("a_missing_tree_is_refused", &[Ferry], missing),
    scenario("a_missing_command_is_named", &[Ferry], missing_command),
    scenario("name_is_its_id", &[Ferry], name),
];

/// `run --rootfs TREE FLAGS -- COMMAND` on the case's tree.
fn run(case: &mut Case, flags: &[&str], command: &[&str]) -> Result<Output, Failed> {
    let tree = case.bundle.rootfs().display().to_string();
    case.call(&[&["run", "--rootfs", &tree], flags, &["--"], command].concat())
}

fn report(case: &mut Case, flags: &[&str]) -> Result<Value, Failed> {
    run(case, flags, &["/probe"])?.success()?.json()
}

fn command(case: &mut Case) -> Outcome {
    let report = report(case, &[])?;
    assert_eq!(
        (&report["exe"], &report["cwd"], &report["uid"]["effective"]),
        (&json!("/probe"), &json!("/"), &json!(0))
    );
    assert_eq!(report["no_new_privs"], true);
    Ok(())
}

fn exit_code(case: &mut Case) -> Outcome {
    assert_eq!(run(case, &[], &["/probe", "exit", "6"])?.code, 6);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn writes_vanish(case: &mut Case) -> Outcome {
    let answer = run(case, &[], &["/probe", "write", "/home/new", "x"])?.success()?.json()?;
    assert!(answer["error"].is_null(), "{answer}");
    let answer = run(case, &[], &["/probe", "write", "/etc/passwd", "x"])?.success()?.json()?;
    assert!(answer["error"].is_null(), "{answer}");
    assert!(!case.bundle.inside("home/new").exists());
    assert!(fs::read_to_string(case.bundle.inside("etc/passwd"))?.starts_with("root:"));
    Ok(())
}

fn isolated(case: &mut Case) -> Outcome {
    let report = report(case, &[])?;
    assert_eq!((&report["pid"], &report["processes"]), (&json!(1), &json!([1])));
    for name in ["mnt", "pid", "ipc", "uts", "cgroup"] {
        assert_ne!(report["namespaces"][name], json!(fs::read_link(format!("/proc/self/ns/{name}"))?), "{name}");
    }
    assert_eq!(report["descriptors"].as_object().map(serde_json::Map::len), Some(3), "{}", report["descriptors"]);
    Ok(())
}

fn flags(case: &mut Case) -> Outcome {
    let report = report(case, &["--hostname", "sloop", "--env", "PORT=Kiel", "--cwd", "/home"])?;
    assert_eq!(
        (&report["hostname"], &report["env"]["PORT"], &report["cwd"]),
        (&json!("sloop"), &json!("Kiel"), &json!("/home"))
    );
    Ok(())
}

fn env_passed(case: &mut Case) -> Outcome {
    let tree = case.bundle.rootfs().display().to_string();
    let mut command = case.command(&["run", "--rootfs", &tree, "--env", "HARBOUR", "--", "/probe"]);
    let report = case.finish(command.env("HARBOUR", "Bremen").env("SECRET", "x"))?.success()?.json()?;
    assert_eq!((&report["env"]["HARBOUR"], &report["env"]["SECRET"]), (&json!("Bremen"), &Value::Null));
    Ok(())
}

fn user(case: &mut Case) -> Outcome {
    let report = report(case, &["--user", "1000:1001"])?;
    assert_eq!((&report["uid"]["effective"], &report["gid"]["effective"]), (&json!(1000), &json!(1001)));
    assert_eq!(report["capabilities"]["effective"], "0000000000000000");
    Ok(())
}

fn mount(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    fs::write(source.join("cargo"), "tea")?;
    let spec = format!("type=bind,src={},dst=/mnt,ro", source.display());
    assert_eq!(run(case, &["--mount", &spec], &["/probe", "read", "/mnt/cargo"])?.success()?.json()?["ok"], "tea");
    let answer = run(case, &["--mount", &spec], &["/probe", "write", "/mnt/new", "x"])?.success()?.json()?;
    assert_eq!(answer["error"], libc::EROFS);
    Ok(())
}

fn volume(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    let spec = format!("{}:/mnt", source.display());
    let answer = run(case, &["--volume", &spec], &["/probe", "write", "/mnt/new", "rum"])?.success()?.json()?;
    assert!(answer["error"].is_null(), "{answer}");
    assert_eq!(fs::read_to_string(source.join("new"))?, "rum");
    Ok(())
}

/// A directory of the host that was to be read-only would be written.
fn mistyped(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?.display().to_string();
    for (flag, value) in [
        ("--volume", format!("{source}:/mnt:RO")),
        ("--volume", format!("{source}:/mnt:readonly")),
        ("--mount", format!("src={source},dst=/mnt,RO")),
        ("--volume", format!("{source}:/mnt:idmap")),
    ] {
        let end = run(case, &[flag, &value], &["/probe", "exit", "0"])?.failure()?;
        let told = end.stderr.contains(&format!("for {flag}: ")) && !end.stderr.contains("config.json:");
        assert!(told, "{value}: {}", end.stderr);
    }
    Ok(())
}

fn pid_file(case: &mut Case) -> Outcome {
    let (tree, file, id) = (case.bundle.rootfs().display().to_string(), case.path("pid"), case.id.clone());
    let words =
        ["run", "--rootfs", &tree, "--name", &id, "--detach", "--pid-file", &file, "--", "/probe", "sleep", "forever"];
    case.begin(&words)?.until("ready")?;
    assert_eq!(fs::read_to_string(&file)?, case.state()?["pid"].to_string());
    Ok(())
}

fn read_only(case: &mut Case) -> Outcome {
    let answer = run(case, &["--read-only"], &["/probe", "write", "/home/new", "x"])?.success()?.json()?;
    assert_eq!(answer["error"], libc::EROFS);
    Ok(())
}

fn tty(case: &mut Case) -> Outcome {
    let tree = case.bundle.rootfs().display().to_string();
    let terminal = Terminal::open(&case.stage.probe, 30, 90)?;
    let command = case.command(&["run", "--rootfs", &tree, "--tty", "--", "/probe", "interrupt-wait"]);
    let mut child = terminal.spawn(&command)?;
    let mut lines = terminal.lines(case.patience())?;
    lines.until("ready")?;
    terminal.type_in("\x03")?;
    lines.until("interrupted")?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 42);
    Ok(())
}

/// The host's own root file system, of which nothing is changed. The probe is on it.
fn host_root(case: &mut Case) -> Outcome {
    let (probe, new) = (case.stage.probe.display().to_string(), case.path("new"));
    let report = case.call(&["run", "--rootfs", "/", "--", &probe])?.success()?.json()?;
    assert_eq!((&report["exe"], &report["processes"]), (&json!(probe), &json!([1])));
    case.call(&["run", "--rootfs", "/", "--", &probe, "write", &new, "x"])?;
    assert!(!std::path::Path::new(&new).exists());
    // The host's root has no id in an ordinary user's namespace; what it owns at the top is the container's root's there.
    let etc = format!("/etc/{}", case.id);
    let written = case.call(&["run", "--rootfs", "/", "--", &probe, "write", &etc, "x"])?.success()?.json()?;
    assert!(written["error"].is_null(), "{written}");
    assert!(!std::path::Path::new(&etc).exists());
    Ok(())
}

fn input(case: &mut Case) -> Outcome {
    let (tree, text) = (case.bundle.rootfs().display().to_string(), case.directory.join("input"));
    fs::write(&text, "a line")?;
    let mut command = case.command(&["run", "--rootfs", &tree, "--", "/probe", "echo"]);
    assert_eq!(case.finish(command.stdin(fs::File::open(&text)?))?.success()?.stdout, "a line");
    Ok(())
}

fn command_flags(case: &mut Case) -> Outcome {
    let tree = case.bundle.rootfs().display().to_string();
    let report = case.call(&["run", "--rootfs", &tree, "/probe", "report", "--tty", "-x"])?.success()?.json()?;
    assert_eq!(report["args"], json!(["/probe", "report", "--tty", "-x"]));
    Ok(())
}

fn missing(case: &mut Case) -> Outcome {
    let end = case.call(&["run", "--rootfs", "/no/such/tree", "--", "/probe"])?.failure()?;
    assert!(end.stderr.contains("/no/such/tree"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn missing_command(case: &mut Case) -> Outcome {
    let end = run(case, &[], &["/no/such/program"])?.failure()?;
    assert!(end.stderr.contains("/no/such/program"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn name(case: &mut Case) -> Outcome {
    let (tree, id) = (case.bundle.rootfs().display().to_string(), case.id.clone());
    let (mut child, mut lines) =
        case.spawn(&["run", "--rootfs", &tree, "--name", &id, "--", "/probe", "sleep", "forever"])?;
    lines.until("ready")?;
    assert_eq!(case.state()?["status"], "running");
    case.call(&["kill", &id, "KILL"])?.success()?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 137);
    Ok(())
}
