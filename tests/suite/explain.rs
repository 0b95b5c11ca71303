//! `explain` and `doctor`: what would be done and what can be done, told without doing it.

use std::fs;

use serde_json::json;

use super::case::Case;
use super::need::Need::Ferry;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("explain_as_json", &[Ferry], explain_json),
    scenario("explain_in_words", &[Ferry], explain_words),
    scenario("explain_does_nothing", &[Ferry], explain_does_nothing),
    scenario("explain_of_a_faulty_config_names_the_fault", &[Ferry], explain_fault),
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
