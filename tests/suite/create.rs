//! `create` and `start` apart: what is in force before the program is there, and what comes too late.

use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Peer, Root};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::{self, add, mount};

pub const SCENARIOS: &[Scenario] = &[
    scenario("verbs_without_an_id_are_refused", &[], without_id),
    scenario(
        "everything_but_the_program_is_there_after_create",
        &[Root, Peer("runc", "1.1.5: no domain name")],
        applied,
    ),
    scenario("a_config_that_is_changed_later_changes_nothing", &[], changed_config),
    scenario("without_a_process_start_is_refused_and_the_container_stays", &[Ferry], no_process),
    scenario("what_keeps_the_stub_from_waiting_does_not_keep_the_program_from_its_start", &[], waits),
    scenario("what_the_process_cannot_become_is_told_by_create", &[Ferry], told_early),
    scenario("an_old_and_a_later_minor_version_are_taken", &[], versions),
    scenario("what_is_no_version_is_refused", &[Peer("runc", "no check"), Peer("crun", "no check")], no_version),
    scenario("the_same_cgroups_path_is_the_same_place", &[Root, Ferry], cgroups_path),
];

fn without_id(case: &mut Case) -> Outcome {
    let bundle = case.write_config()?;
    for verb in ["state", "create", "start", "kill", "delete"] {
        let flags: &[&str] = if verb == "create" { &["--bundle", &bundle] } else { &[] };
        let end = case.call(&[&[verb], flags].concat())?.failure()?;
        assert!(!end.stderr.contains("panicked"), "{verb}: {}", end.stderr);
        let end = case.call(&[&[verb], flags, &[""]].concat())?;
        assert_ne!(end.code, 0, "{verb} with an empty id");
    }
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn applied(case: &mut Case) -> Outcome {
    case.bundle.file("home/secret", "treasure")?;
    case.bundle.directory("home/hold")?;
    case.config["root"]["readonly"] = true.into();
    case.config["hostname"] = "frigate".into();
    case.config["domainname"] = "fleet.example".into();
    add(&mut case.config, "/mounts", mount("tmpfs", "hold", "/home/hold", &["nosuid"]));
    add(&mut case.config, "/linux/maskedPaths", json!("/home/secret"));
    add(&mut case.config, "/linux/readonlyPaths", json!("/dev/shm"));
    case.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    case.config["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    case.args(&["/probe", "write", "/dev/ran", "x"]).create()?;

    let seen = case.exec(&[], &["/probe"])?.success()?.json()?;
    assert_eq!((&seen["hostname"], &seen["domainname"]), (&json!("frigate"), &json!("fleet.example")));
    let places: Vec<&str> =
        seen["mounts"].as_array().into_iter().flatten().filter_map(|row| row["point"].as_str()).collect();
    assert!(places.contains(&"/home/hold") && places.contains(&"/dev/pts"), "{places:?}");
    let deed = |case: &mut Case, words: &[&str]| case.exec(&[], &[&["/probe"], words].concat())?.success()?.json();
    assert_eq!(deed(case, &["read", "/home/secret"])?["ok"], "");
    assert_eq!(deed(case, &["write", "/dev/shm/x", "x"])?["error"], libc::EROFS);
    assert_eq!(deed(case, &["write", "/x", "x"])?["error"], libc::EROFS);
    assert_eq!(deed(case, &["read", "/proc/sys/net/ipv4/ip_forward"])?["ok"], "1\n");
    assert_eq!(deed(case, &["stat", "/dev/fuse"])?["ok"]["minor"], 229);
    // The program itself is not there yet.
    assert_eq!(deed(case, &["stat", "/dev/ran"])?["error"], libc::ENOENT);
    Ok(())
}

fn changed_config(case: &mut Case) -> Outcome {
    let hook = |name: &str| json!([{"path": case.stage.probe, "args": ["probe", "write", case.path(name), "x"]}]);
    let (before, after) = (hook("before"), hook("after"));
    case.config["hooks"] = json!({"poststop": before});
    case.config["annotations"] = json!({"org.example.port": "Kiel"});
    case.config["process"]["env"] = json!(["SHIP=old"]);
    let mut lines = case.create()?;
    case.config["hooks"] = json!({"poststop": after, "poststart": after});
    case.config["annotations"] = json!({"org.example.port": "Malmo"});
    case.config["process"]["env"] = json!(["SHIP=new"]);
    case.args(&["/probe", "exit", "9"]).write_config()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    case.call(&["start", &id])?.success()?;
    let report: Value = serde_json::from_str(&lines.until("SHIP")?)?;
    assert_eq!(report["env"]["SHIP"], "old");
    case.wait_for(pid)?;
    assert_eq!(case.state()?["annotations"]["org.example.port"], "Kiel");
    case.call(&["delete", &id])?.success()?;
    assert!(case.directory.join("before").exists() && !case.directory.join("after").exists());
    Ok(())
}

fn no_process(case: &mut Case) -> Outcome {
    case.config["process"] = Value::Null;
    case.create()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    let end = case.call(&["start", &id])?.failure()?;
    assert!(end.stderr.contains("process"), "{}", end.stderr);
    let state = case.state()?;
    assert_eq!((&state["status"], &state["pid"]), (&json!("created"), &json!(pid)));
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// A filter, a limit or a hook that a process could not wait under, each with rights of ferry's left to take away.
fn waits(case: &mut Case) -> Outcome {
    let refused = |name: &str, privileged: bool| {
        let rule = json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 95});
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
        json!({"linux": {"seccomp": profile}, "process": {"noNewPrivileges": !privileged}})
    };
    let hook = json!([{"path": "/probe", "args": ["probe", "exit", "0"]}]);
    let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 4, "hard": 4}]);
    let changes = [
        refused("accept4", true),
        refused("accept4", false),
        refused("ppoll", true),
        refused("read", false),
        json!({"process": {"rlimits": limit}}),
        json!({"hooks": {"startContainer": hook}}),
        json!({}),
    ];
    let plain = case.config.clone();
    for change in changes {
        case.config = plain.clone();
        merge(&mut case.config, &change);
        case.args(&["/probe", "exit", "7"]).create()?;
        let (id, pid) = (case.id.clone(), case.pid()?);
        case.call(&["start", &id])?.success().map_err(|why| format!("{change}: {why:?}"))?;
        case.wait_for(pid)?;
        case.call(&["delete", &id])?.success()?;
        // And it ends by a signal while it waits.
        case.create()?;
        let pid = case.pid()?;
        case.call(&["kill", &id])?.success()?;
        case.wait_for(pid)?;
        assert_eq!(case.state()?["status"], "stopped", "{change}");
        case.call(&["delete", &id])?.success()?;
    }
    Ok(())
}

fn merge(into: &mut Value, change: &Value) {
    match change.as_object() {
        Some(fields) => fields.iter().for_each(|(key, value)| merge(&mut into[key], value)),
        None => *into = change.clone(),
    }
}

/// Nobody who starts a container looks for what is wrong with its configuration.
fn told_early(case: &mut Case) -> Outcome {
    case.config["process"]["user"] = json!({"uid": 4294967295_u32, "gid": 0});
    let bundle = case.write_config()?;
    let id = case.id.clone();
    let pid_file = case.path("pid");
    let end = case.call(&["create", "--bundle", &bundle, "--pid-file", &pid_file, &id])?.failure()?;
    assert!(!std::path::Path::new(&pid_file).exists());
    assert!(end.stderr.contains("4294967295"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn versions(case: &mut Case) -> Outcome {
    for version in ["1.0.0", "1.0.2", "1.0.2-dev", "1.1.0+build.5", "1.3.0", "1.99.0"] {
        case.config["ociVersion"] = version.into();
        let end = case.args(&["/probe", "exit", "5"]).run()?;
        assert_eq!(end.code, 5, "{version}: {}", end.stderr);
    }
    Ok(())
}

fn no_version(case: &mut Case) -> Outcome {
    for version in
        [Value::Null, json!(""), json!("1"), json!("1.0"), json!("1.0.x"), json!("one"), json!("0.9.0"), json!("2.0.0")]
    {
        case.config["ociVersion"] = version.clone();
        let end = case.run()?.failure()?;
        assert!(end.stderr.contains("ociVersion"), "{version}: {}", end.stderr);
    }
    if let Some(config) = case.config.as_object_mut() {
        config.remove("ociVersion");
    }
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("ociVersion"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn cgroups_path(case: &mut Case) -> Outcome {
    let path = format!("/{}/below", case.id);
    case.config["linux"]["cgroupsPath"] = path.clone().into();
    config::without_namespace(&mut case.config, "cgroup");
    let mut seen = Vec::new();
    for _ in 0..2 {
        let report = case.report()?;
        let lines = report["cgroup"].as_array().cloned().unwrap_or_default();
        assert!(lines.iter().any(|line| line.as_str().is_some_and(|line| line.ends_with(&path))), "{lines:?}");
        seen.push(lines);
    }
    assert_eq!(seen[0], seen[1]);
    Ok(())
}
