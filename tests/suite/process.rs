//! What a container's program is given: identity, capabilities, limits, scheduling, environment, descriptors.

use std::path::PathBuf;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Peer, Root, Tool};
use super::output;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::{self, CAPABILITIES_MASK};

pub const SCENARIOS: &[Scenario] = &[
    scenario("capabilities_of_root", &[], capabilities),
    scenario("capabilities_of_an_ordinary_user_are_none", &[Root], ordinary_capabilities),
    scenario("capabilities_in_all_five_sets", &[], ambient),
    scenario("ambient_capabilities_reach_an_ordinary_user", &[Root], ordinary_ambient),
    scenario("without_capabilities_there_are_none", &[], no_capabilities),
    scenario("unknown_capabilities_are_left_out_with_a_warning", &[Peer("crun", "an error")], unknown_capability),
    scenario("no_new_privileges", &[], no_new_privs),
    scenario("uid_gid_and_additional_gids", &[Root], ids),
    scenario("no_groups_of_the_host_remain", &[Root], groups),
    scenario("setgroups_is_denied_to_a_single_id_map", &[super::need::Need::OrdinaryUser], denied_setgroups),
    scenario("umask", &[], umask),
    scenario("umask_is_022_by_default", &[Peer("crun", "1.8.1 inherits it")], default_umask),
    scenario("rlimits_are_lowered", &[], rlimits),
    scenario("oom_score_adj_is_raised", &[], oom_score_adj),
    scenario("oom_score_adj_is_lowered_for_a_user_namespace", &[Root], oom_score_adj_lowered),
    scenario("oom_score_adj_is_otherwise_the_callers", &[], oom_score_adj_default),
    scenario("cwd", &[], cwd),
    scenario("a_missing_cwd_is_made", &[Root], missing_cwd),
    scenario("environment_is_only_what_is_configured", &[], environment),
    scenario("home_is_set_from_passwd", &[Peer("crun", "differs")], home),
    scenario("arguments", &[], arguments),
    scenario("program_is_found_by_path", &[], by_path),
    scenario("a_script_is_run_by_its_interpreter", &[], script),
    scenario("no_stray_descriptors", &[], descriptors),
    scenario("descriptors_of_the_caller_do_not_leak", &[], leaked_descriptors),
    scenario("preserve_fds_passes_exactly_that_many", &[], preserve_fds),
    scenario("preserve_fds_of_create", &[], create_preserve_fds),
    scenario("preserve_fds_leaves_out_what_is_not_open", &[Peer("runc", "fills the gap with its own")], preserve_gap),
    scenario("a_created_container_has_only_the_preserved_files", &[Root], create_preserve_gap),
    scenario("preserve_fds_that_are_not_open_is_refused", &[Peer("crun", "succeeds")], preserve_missing),
    scenario("it_leads_a_session_of_its_own", &[], session),
    scenario("it_is_pid_1_and_alone", &[], alone),
    scenario("parent_is_not_seen", &[], parent),
    scenario("no_signal_is_blocked", &[], signals),
    scenario("a_session_keyring_of_its_own", &[Peer("crun", "1.8.1 names it otherwise")], keyring),
    scenario("personality", &[Peer("runc", "1.1.5 has none")], personality),
    scenario("scheduler", &[Root, Peer("runc", "1.1.5 has none"), Peer("crun", "1.8.1 has none")], scheduler),
    scenario("nice_level", &[Peer("runc", "1.1.5 has none"), Peer("crun", "1.8.1 has none")], nice),
    scenario("io_priority", &[Peer("runc", "1.1.5 has none"), Peer("crun", "1.8.1 has none")], io_priority),
    scenario("cpu_affinity_of_exec", &[Peer("runc", "1.1.5 has none"), Peer("crun", "1.8.1 has none")], exec_affinity),
    scenario("capabilities_that_ferry_lacks_are_left_out_with_a_warning", &[Root, Ferry, Tool("setpriv")], withheld),
    scenario("sockets_of_a_service_manager", &[], socket_activation),
    scenario("sockets_that_are_not_there_are_not_announced", &[Ferry], socket_activation_of_none),
    scenario(
        "sockets_for_another_process_are_not_passed_on",
        &[Peer("crun", "asks only how many there are")],
        socket_activation_of_another,
    ),
    scenario("console_size_without_a_terminal_is_ignored", &[], console_size),
    scenario("an_rlimit_without_a_type_is_refused", &[], rlimit_type),
    scenario("every_rlimit_can_be_set_and_read", &[], every_rlimit),
    scenario("sysctl", &[], sysctl),
    scenario("sysctl_outside_the_containers_namespaces_is_refused", &[], host_sysctl),
];

const SETS: [&str; 5] = ["effective", "permitted", "bounding", "inheritable", "ambient"];
const NONE: &str = "0000000000000000";

fn masks(report: &Value) -> [&str; 5] {
    SETS.map(|set| report["capabilities"][set].as_str().unwrap_or_default())
}

fn capabilities(case: &mut Case) -> Outcome {
    let report = case.report()?;
    assert_eq!(masks(&report), [CAPABILITIES_MASK, CAPABILITIES_MASK, CAPABILITIES_MASK, NONE, NONE]);
    Ok(())
}

/// CVE-2016-8867.
fn ordinary_capabilities(case: &mut Case) -> Outcome {
    case.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let report = case.report()?;
    assert_eq!(masks(&report), [NONE, NONE, CAPABILITIES_MASK, NONE, NONE]);
    Ok(())
}

fn ambient(case: &mut Case) -> Outcome {
    config::capabilities(&mut case.config, config::CAPABILITIES);
    assert_eq!(masks(&case.report()?), [CAPABILITIES_MASK; 5]);
    Ok(())
}

fn ordinary_ambient(case: &mut Case) -> Outcome {
    config::capabilities(&mut case.config, config::CAPABILITIES);
    case.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    assert_eq!(masks(&case.report()?), [CAPABILITIES_MASK; 5]);
    Ok(())
}

fn no_capabilities(case: &mut Case) -> Outcome {
    config::capabilities(&mut case.config, &[]);
    assert_eq!(masks(&case.report()?), [NONE; 5]);
    Ok(())
}

fn unknown_capability(case: &mut Case) -> Outcome {
    config::capabilities(&mut case.config, &["CAP_KILL", "CAP_SAIL"]);
    assert_eq!(masks(&case.report()?), ["0000000000000020"; 5]);
    Ok(())
}

fn no_new_privs(case: &mut Case) -> Outcome {
    for wanted in [true, false] {
        case.config["process"]["noNewPrivileges"] = wanted.into();
        assert_eq!(case.report()?["no_new_privs"], wanted);
    }
    Ok(())
}

fn ids(case: &mut Case) -> Outcome {
    case.config["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6, 1001]});
    let report = case.report()?;
    for which in ["real", "effective", "saved", "filesystem"] {
        assert_eq!((&report["uid"][which], &report["gid"][which]), (&json!(1000), &json!(1001)));
    }
    assert_eq!(report["groups"], json!([5, 6, 1001]));
    Ok(())
}

fn groups(case: &mut Case) -> Outcome {
    assert_eq!(case.report()?["groups"], json!([]));
    Ok(())
}

fn denied_setgroups(case: &mut Case) -> Outcome {
    assert_eq!(case.report()?["setgroups"], "deny");
    Ok(())
}

fn umask(case: &mut Case) -> Outcome {
    case.config["process"]["user"]["umask"] = 0o137.into();
    assert_eq!(case.report()?["umask"], "0137");
    Ok(())
}

fn default_umask(case: &mut Case) -> Outcome {
    assert_eq!(case.report()?["umask"], "0022");
    Ok(())
}

fn rlimits(case: &mut Case) -> Outcome {
    case.config["process"]["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 128},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 2_097_152},
    ]);
    let report = case.report()?;
    assert_eq!(report["rlimits"]["RLIMIT_NOFILE"], json!({"soft": 64, "hard": 128}));
    assert_eq!(report["rlimits"]["RLIMIT_CORE"], json!({"soft": 0, "hard": 0}));
    assert_eq!(report["rlimits"]["RLIMIT_STACK"], json!({"soft": 1_048_576, "hard": 2_097_152}));
    Ok(())
}

fn oom_score_adj(case: &mut Case) -> Outcome {
    case.config["process"]["oomScoreAdj"] = 321.into();
    assert_eq!(case.report()?["oom_score_adj"], 321);
    Ok(())
}

/// Under an engine's process whose own score was raised, with the right to lower it, as containerd's are: below that is the right of
/// the host's root alone, and not of that in a user namespace.
fn oom_score_adj_lowered(case: &mut Case) -> Outcome {
    super::namespaces::mapped(case, 100_000)?;
    case.config["process"]["oomScoreAdj"] = 5.into();
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let run = case.command(&["run", "--bundle", &bundle, &id]);
    let mut raised = std::process::Command::new("/bin/sh");
    raised.args(["-c", "echo 300 >/proc/self/oom_score_adj && exec \"$0\" \"$@\""]);
    raised.arg(run.get_program()).args(run.get_args()).stdin(std::process::Stdio::null());
    raised.env(super::case::MARK, &case.directory);
    assert_eq!(case.finish(&mut raised)?.success()?.json()?["oom_score_adj"], 5);
    Ok(())
}

fn oom_score_adj_default(case: &mut Case) -> Outcome {
    let own: i64 = std::fs::read_to_string("/proc/self/oom_score_adj")?.trim().parse()?;
    assert_eq!(case.report()?["oom_score_adj"], own);
    Ok(())
}

fn cwd(case: &mut Case) -> Outcome {
    case.config["process"]["cwd"] = "/home".into();
    assert_eq!(case.report()?["cwd"], "/home");
    Ok(())
}

fn missing_cwd(case: &mut Case) -> Outcome {
    case.config["process"]["cwd"] = "/home/a/b".into();
    assert_eq!(case.report()?["cwd"], "/home/a/b");
    Ok(())
}

fn environment(case: &mut Case) -> Outcome {
    case.config["process"]["env"] = json!(["PORT=Kiel", "HOME=/home", "EQUALS=a=b", "EMPTY="]);
    let expected = json!({"PORT": "Kiel", "HOME": "/home", "EQUALS": "a=b", "EMPTY": ""});
    assert_eq!(case.report()?["env"], expected);
    Ok(())
}

fn home(case: &mut Case) -> Outcome {
    assert_eq!(case.report()?["env"]["HOME"], "/root");
    Ok(())
}

fn arguments(case: &mut Case) -> Outcome {
    let args = ["/probe", "report", "", "a b", "--", "-x", "ä\n"];
    assert_eq!(case.args(&args).report()?["args"], json!(args));
    Ok(())
}

fn by_path(case: &mut Case) -> Outcome {
    case.bundle.directory("home/bin")?;
    std::fs::hard_link(case.bundle.inside("probe"), case.bundle.inside("home/bin/found-by-path"))?;
    case.config["process"]["env"] = json!(["PATH=/nowhere:/home/bin"]);
    let report = case.args(&["found-by-path"]).report()?;
    assert_eq!((&report["args"], &report["exe"]), (&json!(["found-by-path"]), &json!("/home/bin/found-by-path")));
    Ok(())
}

fn script(case: &mut Case) -> Outcome {
    case.bundle.program("home/script", "#!/probe report\n")?;
    let report = case.args(&["/home/script", "x"]).report()?;
    assert_eq!(report["args"], json!(["/probe", "report", "/home/script", "x"]));
    Ok(())
}

fn numbers(report: &Value) -> Vec<String> {
    report["descriptors"].as_object().into_iter().flat_map(|table| table.keys().cloned()).collect()
}

fn descriptors(case: &mut Case) -> Outcome {
    assert_eq!(numbers(&case.report()?), ["0", "1", "2"]);
    let mut lines = case.args(&["/probe"]).start()?;
    let report: Value = serde_json::from_str(&lines.until("descriptors")?)?;
    assert_eq!(numbers(&report), ["0", "1", "2"]);
    Ok(())
}

fn run_inheriting(case: &mut Case, flags: &[&str]) -> Result<output::Output, libtest_mimic::Failed> {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let command = case.command(&[&["run", "--bundle", &bundle], flags, &[&id]].concat());
    let mut command = output::inheriting(&command, &case.directory, 3..7)?;
    case.finish(&mut command)
}

fn leaked_descriptors(case: &mut Case) -> Outcome {
    assert_eq!(numbers(&run_inheriting(case, &[])?.success()?.json()?), ["0", "1", "2"]);
    Ok(())
}

fn preserve_fds(case: &mut Case) -> Outcome {
    for count in 0..4 {
        let report = run_inheriting(case, &["--preserve-fds", &count.to_string()])?.success()?.json()?;
        let expected: Vec<String> = (3..3 + count).map(|number: i32| number.to_string()).collect();
        assert_eq!(output::inherited(&report), expected);
    }
    Ok(())
}

fn create_preserve_fds(case: &mut Case) -> Outcome {
    let (bundle, id, out) = (case.write_config()?, case.id.clone(), case.directory.join("out"));
    let command = case.command(&["create", "--preserve-fds", "2", "--bundle", &bundle, &id]);
    let mut command = output::inheriting(&command, &case.directory, 3..6)?;
    let status = command.stdout(std::fs::File::create(&out)?).status()?;
    assert!(status.success(), "{status}");
    let pid = case.pid()?;
    case.call(&["start", &id])?.success()?;
    case.wait_for(pid)?;
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&out)?)?;
    assert_eq!(output::inherited(&report), ["3", "4"]);
    Ok(())
}

/// As podman calls for `--preserve-fd 3,6`.
fn preserve_gap(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let command = case.command(&["run", "--preserve-fds", "4", "--bundle", &bundle, &id]);
    let mut command = output::inheriting(&command, &case.directory, [3, 6])?;
    assert_eq!(output::inherited(&case.finish(&mut command)?.success()?.json()?), ["3", "6"]);
    Ok(())
}

/// While it waits for its start, no file of the host's that the runtime had open is where the gap is.
fn create_preserve_gap(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let command = case.command(&["create", "--preserve-fds", "6", "--bundle", &bundle, &id]);
    let mut command = output::inheriting(&command, &case.directory, [3, 8])?;
    assert!(command.stdout(std::process::Stdio::null()).status()?.success());
    let pid = case.pid()?;
    let open = (3..9).filter_map(|number| Some((number, std::fs::read_link(format!("/proc/{pid}/fd/{number}")).ok()?)));
    let files: Vec<(u32, PathBuf)> = open.filter(|(_, target)| target.is_absolute()).collect();
    let passed = |number: u32| (number, case.directory.join(format!("inherited-{number}")));
    assert_eq!(files, [passed(3), passed(8)]);
    Ok(())
}

fn preserve_missing(case: &mut Case) -> Outcome {
    run_inheriting(case, &["--preserve-fds", "40"])?.failure().map(drop)
}

fn session(case: &mut Case) -> Outcome {
    let report = case.report()?;
    assert_eq!((&report["sid"], &report["pgid"]), (&json!(1), &json!(1)));
    Ok(())
}

fn alone(case: &mut Case) -> Outcome {
    let report = case.report()?;
    assert_eq!((&report["pid"], &report["processes"]), (&json!(1), &json!([1])));
    Ok(())
}

fn parent(case: &mut Case) -> Outcome {
    assert_eq!(case.report()?["ppid"], 0);
    Ok(())
}

fn signals(case: &mut Case) -> Outcome {
    // What is ignored cannot be told: Rust programs ignore SIGPIPE by themselves.
    assert_eq!(case.report()?["signals"]["blocked"], NONE);
    Ok(())
}

fn keyring(case: &mut Case) -> Outcome {
    let name = format!("_ses.{}", case.id);
    let keyring = case.report()?["session_keyring"].clone();
    assert!(keyring.as_str().is_some_and(|text| text.ends_with(&name)), "{keyring}");
    Ok(())
}

fn personality(case: &mut Case) -> Outcome {
    case.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    assert_eq!(case.report()?["personality"], 8);
    Ok(())
}

fn scheduler(case: &mut Case) -> Outcome {
    case.config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 3});
    let report = case.report()?;
    assert_eq!((&report["scheduler"], &report["nice"]), (&json!(libc::SCHED_BATCH), &json!(3)));
    Ok(())
}

fn nice(case: &mut Case) -> Outcome {
    case.config["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": 5});
    assert_eq!(case.report()?["nice"], 5);
    Ok(())
}

fn io_priority(case: &mut Case) -> Outcome {
    case.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    assert_eq!(case.report()?["io_priority"], (2 << 13) | 6);
    Ok(())
}

fn exec_affinity(case: &mut Case) -> Outcome {
    case.config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    case.start_waiting()?;
    assert_eq!(case.exec(&[], &["/probe"])?.success()?.json()?["cpus"], "0");
    Ok(())
}

fn sysctl(case: &mut Case) -> Outcome {
    case.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"});
    assert_eq!(case.deed(&["read", "/proc/sys/net/ipv4/ip_forward"])?["ok"], "1\n");
    assert_eq!(case.deed(&["read", "/proc/sys/kernel/shm_rmid_forced"])?["ok"], "1\n");
    Ok(())
}

fn host_sysctl(case: &mut Case) -> Outcome {
    let before = std::fs::read_to_string("/proc/sys/vm/swappiness")?;
    case.config["linux"]["sysctl"] = json!({"vm.swappiness": "3"});
    case.run()?.failure()?;
    assert_eq!(std::fs::read_to_string("/proc/sys/vm/swappiness")?, before);
    Ok(())
}

/// The runtime itself has no CAP_SYS_TIME, and so cannot give it, in none of the sets.
fn withheld(case: &mut Case) -> Outcome {
    config::capabilities(&mut case.config, &["CAP_KILL", "CAP_SYS_TIME"]);
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let inner = case.command(&["--log-format", "json", "run", "--bundle", &bundle, &id]);
    let mut command = std::process::Command::new("setpriv");
    command.args(["--bounding-set=-sys_time", "--inh-caps=-all"]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(std::process::Stdio::null());
    let end = case.finish(&mut command)?.success()?;
    let report = end.json()?;
    assert_eq!(report["capabilities"]["permitted"], "0000000000000020");
    let warned = |line: &&str| line.contains("\"warning\"") && line.contains("CAP_SYS_TIME");
    assert_eq!(end.stderr.lines().filter(warned).count(), 1, "{}", end.stderr);
    assert!(!end.stderr.contains("CAP_KILL"), "{}", end.stderr);
    Ok(())
}

/// As systemd passes them: descriptors from 3 on, and in the environment their number and whom they are for. sd_listen_fds(3)
fn socket_activation(case: &mut Case) -> Outcome {
    let report = activated(case, "LISTEN_FDS=2 LISTEN_PID=$$")?;
    assert_eq!(output::inherited(&report), ["3", "4"]);
    assert_eq!((&report["env"]["LISTEN_FDS"], &report["env"]["LISTEN_PID"]), (&json!("2"), &json!("1")));
    assert_eq!(report["pid"], 1);
    let without = case.report()?;
    assert!(without["env"]["LISTEN_FDS"].is_null() && output::inherited(&without).is_empty());
    Ok(())
}

fn socket_activation_of_another(case: &mut Case) -> Outcome {
    for environment in
        ["LISTEN_FDS=2", "LISTEN_FDS=2 LISTEN_PID=", "LISTEN_FDS=2 LISTEN_PID=1", "LISTEN_FDS=2 LISTEN_PID=$PPID"]
    {
        let report = activated(case, environment)?;
        assert_eq!(output::inherited(&report), [""; 0], "{environment}");
        assert!(report["env"]["LISTEN_FDS"].is_null(), "{environment}: {}", report["env"]);
        assert!(report["env"]["LISTEN_PID"].is_null(), "{environment}: {}", report["env"]);
    }
    Ok(())
}

fn socket_activation_of_none(case: &mut Case) -> Outcome {
    // What follows the last that is there is not announced.
    let report = activated(case, "LISTEN_FDS=4000000000 LISTEN_PID=$$")?;
    assert_eq!(
        (output::inherited(&report), &report["env"]["LISTEN_FDS"]),
        (vec!["3".into(), "4".into(), "5".into()], &json!("3"))
    );
    Ok(())
}

/// What a container reports whose runtime is given descriptors 3 to 5 and an environment, in the shell's words: `$$` is the runtime.
fn activated(case: &mut Case, environment: &str) -> Result<Value, Failed> {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let runtime = case.command(&["run", "--bundle", &bundle, &id]);
    let mut shell = std::process::Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("export {environment}; exec \"$0\" \"$@\""))
        .arg(runtime.get_program())
        .args(runtime.get_args());
    shell.envs(runtime.get_envs().filter_map(|(name, value)| Some((name, value?))));
    case.finish(&mut output::inheriting(&shell, &case.directory, 3..6)?)?.success()?.json()
}

fn console_size(case: &mut Case) -> Outcome {
    case.config["process"]["consoleSize"] = json!({"height": 7, "width": 9});
    let report = case.report()?;
    assert_eq!(report["terminal"]["is_terminal"], json!([false, false, false]));
    Ok(())
}

fn rlimit_type(case: &mut Case) -> Outcome {
    case.config["process"]["rlimits"] = json!([{"soft": 1, "hard": 1}]);
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("process.rlimits[0].type") || case.stage.runtime.name != "ferry", "{}", end.stderr);
    Ok(())
}

/// Each is lowered from where it is, which no user needs a right for.
fn every_rlimit(case: &mut Case) -> Outcome {
    let before = case.report()?["rlimits"].clone();
    let lower = |limit: &Value| limit["hard"].as_u64().unwrap_or_default().min(1 << 40).saturating_sub(1);
    let rows: Vec<Value> = before
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, limit)| json!({"type": name, "soft": lower(limit), "hard": lower(limit)}))
        .collect();
    assert_eq!(rows.len(), 16);
    case.config["process"]["rlimits"] = json!(rows);
    let after = case.report()?["rlimits"].clone();
    for row in rows {
        let name = row["type"].as_str().unwrap_or_default();
        assert_eq!((&after[name]["soft"], &after[name]["hard"]), (&row["soft"], &row["hard"]), "{name}");
    }
    Ok(())
}
