//! `explain` and `doctor`: what would be done and what can be done, told without doing it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, OrdinaryUser};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("explain_as_json", &[Ferry], explain_json),
    scenario("explain_in_words", &[Ferry], explain_words),
    scenario("explain_does_nothing", &[Ferry], explain_does_nothing),
    scenario("explain_of_a_faulty_config_names_the_fault", &[Ferry], explain_fault),
    scenario("explain_fails_as_run_would", &[Ferry], explain_fails),
    scenario("explain_as_the_user_who_runs", &[OrdinaryUser, Ferry], explain_as_user),
    scenario("explain_tells_a_filesystem_that_may_be_missing", &[Ferry], explain_filesystem),
    scenario("doctor_as_json", &[Ferry], doctor_json),
    scenario("doctor_in_words", &[Ferry], doctor_words),
];

fn explain_json(case: &mut Case) -> Outcome {
    let bundle = case.write_config()?;
    let plan = case.call(&["explain", "--bundle", &bundle, "--format", "json"])?.success()?.json()?;
    let text = plan.to_string();
    assert!(plan.is_object(), "{text}");
    for word in ["/dev/pts", "mqueue", "/probe", "/proc/kcore", "network"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    Ok(())
}

fn explain_words(case: &mut Case) -> Outcome {
    let bundle = case.write_config()?;
    let text = case.call(&["explain", "-b", &bundle])?.success()?.stdout;
    assert!(text.lines().count() > 10, "{text}");
    for word in ["/dev/pts", "/probe", "network"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    Ok(())
}

/// Neither a directory for a missing mount point nor a hook nor a state directory comes to be.
fn explain_does_nothing(case: &mut Case) -> Outcome {
    let hook = json!({"path": case.stage.probe, "args": ["probe", "write", case.path("hook-ran"), "x"]});
    case.config["hooks"] = json!({"prestart": [hook], "createRuntime": [hook]});
    config::add(&mut case.config, "/mounts", config::mount("tmpfs", "tmpfs", "/home/made", &[]));
    let bundle = case.write_config()?;
    case.call(&["explain", "--bundle", &bundle])?.success()?;
    assert!(!case.bundle.inside("home/made").exists());
    assert!(!fs::exists(case.path("hook-ran"))?);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn explain_fault(case: &mut Case) -> Outcome {
    case.config["linux"]["namespaces"][0]["type"] = "harbour".into();
    let bundle = case.write_config()?;
    let end = case.call(&["explain", "--bundle", &bundle])?.failure()?;
    assert!(end.stderr.contains("harbour"), "{}", end.stderr);
    Ok(())
}

/// Each is a pointer into config.json and what is put there; run fails after explain in the same words.
fn explain_fails(case: &mut Case) -> Outcome {
    let no_namespace = std::env::current_exe()?.display().to_string();
    let probe = case.stage.probe.clone();
    let add =
        |list: &Value, entry: Value| Value::from_iter(list.as_array().into_iter().flatten().cloned().chain([entry]));
    let good = case.config.clone();
    let mounts = |entry| add(&good["mounts"], entry);
    let namespace = |path: &str| {
        let others = good["linux"]["namespaces"].as_array().into_iter().flatten().filter(|row| row["type"] != "ipc");
        Value::from_iter(others.cloned().chain([json!({"type": "ipc", "path": path})]))
    };
    for (pointer, value, said) in [
        ("/linux/resources", json!({"unified": {"nosuch.max": "1"}}), "no nosuch controller"),
        ("/root/path", json!("nowhere"), "open root filesystem"),
        ("/mounts", mounts(config::bind(Path::new("/nowhere"), "/mnt", &["bind"])), "the source does not exist"),
        ("/linux/namespaces", namespace("/nowhere"), "open namespace"),
        ("/linux/namespaces", namespace("/proc/self/ns/uts"), "it must be a ipc namespace"),
        ("/linux/namespaces", namespace(&no_namespace), "it must be a ipc namespace"),
        (
            "/hooks",
            json!({"createRuntime": [{"path": probe, "args": ["probe", "exit", "0"]}, {"path": "/nowhere"}]}),
            "createRuntime hook #1",
        ),
        ("/hooks", json!({"poststart": [{"path": "/etc/passwd"}]}), "poststart hook #0"),
        ("/linux/netDevices", json!({"nowhere0": {}}), "linux.netDevices"),
    ] {
        case.config = good.clone();
        let at = pointer.rsplit_once('/').map_or(("", ""), |parts| parts);
        case.config.pointer_mut(at.0).ok_or("no such place")?[at.1] = value;
        let (bundle, id) = (case.write_config()?, case.id.clone());
        let explained = case.call(&["explain", "--bundle", &bundle])?.failure()?;
        assert!(explained.stderr.contains(said), "{pointer}: {}", explained.stderr);
        let run = case.call(&["run", "--bundle", &bundle, &id])?.failure()?;
        assert_eq!(explained.stderr, run.stderr, "{pointer}");
        assert_eq!(case.leftovers()?, Vec::<String>::new(), "{pointer}");
    }
    Ok(())
}

/// Whether this user gets a cgroup, has to do without one or fails for want of it.
fn explain_as_user(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.write_config()?, case.id.clone());
    for rootless in ["true", "false", "auto"] {
        let explained = case.call(&["--rootless", rootless, "explain", "--bundle", &bundle])?;
        let run = case.call(&["--rootless", rootless, "run", "--bundle", &bundle, &id])?;
        assert_eq!(explained.code, run.code, "{rootless}: {} {}", explained.stderr, run.stderr);
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let stays = run.stdout.contains(own.lines().next_back().unwrap_or_default());
        assert_eq!(explained.stdout.contains("none: the container stays"), stays, "{rootless}");
    }
    Ok(())
}

fn explain_filesystem(case: &mut Case) -> Outcome {
    let last = case.config["mounts"].as_array().map_or(0, Vec::len);
    config::add(&mut case.config, "/mounts", config::mount("nosuchfs", "none", "/mnt", &[]));
    let bundle = case.write_config()?;
    let text = case.call(&["explain", "--bundle", &bundle])?.success()?.stdout;
    assert!(
        text.contains(&format!("warning: mounts[{last}].type: the kernel has no filesystem \"nosuchfs\"")),
        "{text}"
    );
    assert_eq!(text.matches("warning: mounts").count(), 1, "{text}");
    Ok(())
}

fn doctor_json(case: &mut Case) -> Outcome {
    let told = case.call(&["doctor", "--format", "json"])?.success()?.json()?;
    let text = told.to_string();
    for word in ["cgroup", "user", "seccomp"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn doctor_words(case: &mut Case) -> Outcome {
    let text = case.call(&["doctor"])?.success()?.stdout;
    assert!(text.lines().count() > 5 && text.contains("cgroup"), "{text}");
    Ok(())
}
