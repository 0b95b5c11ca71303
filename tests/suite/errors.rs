//! What somebody is told when things are wrong, and that nothing is left then.

use std::fs;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, NoController, Peer, Root};
use super::output::Output;
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("broken_json_names_the_line", &[Ferry], broken_json),
    scenario("a_wrong_type_names_the_field", &[Ferry], wrong_type),
    scenario("broken_json_is_refused", &[], broken_json_refused),
    scenario("an_empty_config_is_refused", &[], empty_config),
    scenario("a_huge_nested_config_is_refused", &[], nested_config),
    scenario("a_missing_bundle_is_named", &[], missing_bundle),
    scenario("a_bundle_without_config_is_named", &[], missing_config),
    scenario("a_missing_program_is_named", &[], missing_program),
    scenario("a_program_that_is_not_executable", &[], not_executable),
    scenario("a_program_that_is_a_directory", &[], directory),
    scenario("a_program_of_no_known_format", &[], no_format),
    scenario("a_cwd_that_is_a_file_is_refused", &[], cwd_file),
    scenario("a_cwd_that_is_relative_is_refused", &[Peer("crun", "1.8.1: no check")], cwd_relative),
    scenario("missing_args_are_refused", &[], no_args),
    scenario("a_missing_process_is_refused_or_waits", &[], no_process),
    scenario(
        "an_unsupported_version_is_refused",
        &[Peer("runc", "1.1.5: no check"), Peer("crun", "no check")],
        version,
    ),
    scenario("an_unknown_namespace_is_refused", &[], unknown_namespace),
    scenario("an_unknown_rlimit_is_refused", &[], unknown_rlimit),
    scenario(
        "an_rlimit_listed_twice_is_refused",
        &[Peer("runc", "1.1.5: no check"), Peer("crun", "no check")],
        rlimit_twice,
    ),
    scenario("a_soft_limit_over_the_hard_one_is_refused", &[], rlimit_order),
    scenario("an_unknown_seccomp_action_is_refused", &[], unknown_action),
    scenario("an_unknown_field_is_ignored", &[], unknown_field),
    scenario("a_failure_late_in_the_container_is_told", &[], late_failure),
    scenario("a_failure_leaves_the_pid_file_unwritten", &[], no_pid_file),
    scenario("a_link_beside_the_pid_file_is_not_written_through", &[Ferry], planted_link),
    scenario("a_limit_that_cannot_be_enforced_is_refused", &[Root, Ferry, NoController("rdma")], unenforceable),
    scenario("a_state_file_that_is_broken_does_not_stop_the_others", &[Ferry], broken_state),
    scenario("one_line_for_one_error", &[Ferry], one_line),
];

/// `create` with a config.json of that text: it fails and leaves nothing.
pub(super) fn refused_text(case: &mut Case, text: &str) -> Result<Output, Failed> {
    fs::write(case.bundle.path().join("config.json"), text)?;
    let (bundle, id) = (case.bundle.path().display().to_string(), case.id.clone());
    let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(end)
}

/// `create` with the configuration as edited: it fails and leaves nothing.
pub(super) fn refused(case: &mut Case) -> Result<Output, Failed> {
    let text = case.config.to_string();
    refused_text(case, &text)
}

fn broken_json(case: &mut Case) -> Outcome {
    let end = refused_text(case, "{\n  \"ociVersion\": \"1.0.2\",\n  \"process\": {,\n}")?;
    assert!(end.stderr.contains("config.json") && end.stderr.contains("line 3"), "{}", end.stderr);
    Ok(())
}

fn wrong_type(case: &mut Case) -> Outcome {
    case.config["process"]["user"]["uid"] = "root".into();
    let end = refused(case)?;
    assert!(end.stderr.contains("process.user.uid"), "{}", end.stderr);
    Ok(())
}

fn broken_json_refused(case: &mut Case) -> Outcome {
    refused_text(case, "{\"ociVersion\": ").map(drop)
}

fn empty_config(case: &mut Case) -> Outcome {
    refused_text(case, "")?;
    refused_text(case, "{}").map(drop)
}

fn nested_config(case: &mut Case) -> Outcome {
    refused_text(case, &"[".repeat(200_000)).map(drop)
}

fn missing_bundle(case: &mut Case) -> Outcome {
    let id = case.id.clone();
    let end = case.call(&["create", "--bundle", "/no/such/bundle", &id])?.failure()?;
    assert!(end.stderr.contains("/no/such/bundle"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn missing_config(case: &mut Case) -> Outcome {
    let (bundle, id) = (case.bundle.path().display().to_string(), case.id.clone());
    let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.contains("config.json"), "{}", end.stderr);
    Ok(())
}

fn missing_program(case: &mut Case) -> Outcome {
    case.args(&["/no/such/program"]);
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("/no/such/program"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn not_executable(case: &mut Case) -> Outcome {
    case.bundle.file("home/plain", "text")?;
    case.args(&["/home/plain"]);
    case.run()?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn directory(case: &mut Case) -> Outcome {
    case.args(&["/home"]).run()?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn no_format(case: &mut Case) -> Outcome {
    case.bundle.program("home/garbage", "\u{1}\u{2}\u{3}")?;
    case.args(&["/home/garbage"]).run()?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn cwd_file(case: &mut Case) -> Outcome {
    case.config["process"]["cwd"] = "/probe".into();
    let end = refused(case)?;
    assert!(
        end.stderr.contains("cwd") || end.stderr.contains("/probe") || end.stderr.contains("chdir"),
        "{}",
        end.stderr
    );
    Ok(())
}

fn cwd_relative(case: &mut Case) -> Outcome {
    case.config["process"]["cwd"] = "home".into();
    refused(case).map(drop)
}

fn no_args(case: &mut Case) -> Outcome {
    case.config["process"]["args"] = json!([]);
    case.run()?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn no_process(case: &mut Case) -> Outcome {
    case.config["process"] = Value::Null;
    case.run()?.failure().map(drop)
}

fn version(case: &mut Case) -> Outcome {
    case.config["ociVersion"] = "7.0.0".into();
    let end = refused(case)?;
    assert!(end.stderr.contains("7.0.0"), "{}", end.stderr);
    Ok(())
}

fn unknown_namespace(case: &mut Case) -> Outcome {
    case.config["linux"]["namespaces"][0]["type"] = "harbour".into();
    let end = refused(case)?;
    assert!(end.stderr.contains("harbour"), "{}", end.stderr);
    Ok(())
}

fn unknown_rlimit(case: &mut Case) -> Outcome {
    case.config["process"]["rlimits"] = json!([{"type": "RLIMIT_KNOTS", "soft": 1, "hard": 1}]);
    let end = refused(case)?;
    assert!(end.stderr.contains("RLIMIT_KNOTS"), "{}", end.stderr);
    Ok(())
}

fn rlimit_twice(case: &mut Case) -> Outcome {
    let row = json!({"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20});
    case.config["process"]["rlimits"] = json!([row, row]);
    refused(case).map(drop)
}

fn rlimit_order(case: &mut Case) -> Outcome {
    case.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 200, "hard": 100}]);
    refused(case).map(drop)
}

fn unknown_action(case: &mut Case) -> Outcome {
    case.config["linux"]["seccomp"] = super::security::filter("getpgid", "SCMP_ACT_KEELHAUL", Value::Null);
    let end = refused(case)?;
    assert!(end.stderr.contains("SCMP_ACT_KEELHAUL"), "{}", end.stderr);
    Ok(())
}

fn unknown_field(case: &mut Case) -> Outcome {
    case.config["x-harbour"] = json!({"pilot": true});
    case.config["linux"]["x-tide"] = json!(4);
    case.report().map(drop)
}

/// The working directory is looked for by the container's own user, after all else.
fn late_failure(case: &mut Case) -> Outcome {
    case.config["linux"]["sysctl"] = json!({"net.no.such.knob": "1"});
    let end = refused(case)?;
    assert!(end.stderr.contains("net") && end.stderr.contains("knob"), "{}", end.stderr);
    Ok(())
}

fn no_pid_file(case: &mut Case) -> Outcome {
    case.config["process"]["cwd"] = "/probe".into();
    let (bundle, id, file) = (case.write_config()?, case.id.clone(), case.path("pid"));
    case.call(&["create", "--pid-file", &file, "--bundle", &bundle, &id])?.failure()?;
    assert!(!std::path::Path::new(&file).exists());
    Ok(())
}

fn planted_link(case: &mut Case) -> Outcome {
    let (bundle, id, file, victim) = (case.write_config()?, case.id.clone(), case.path("pid"), case.path("victim"));
    fs::write(&victim, "untouched")?;
    std::os::unix::fs::symlink(&victim, case.path(".pid.new"))?;
    case.call(&["run", "--pid-file", &file, "--bundle", &bundle, &id])?.success()?;
    assert_eq!(fs::read_to_string(victim)?, "untouched");
    assert!(fs::symlink_metadata(&file)?.is_file());
    fs::read_to_string(file)?.parse::<u32>()?;
    Ok(())
}

fn unenforceable(case: &mut Case) -> Outcome {
    case.config["linux"]["resources"] = json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}});
    let end = refused(case)?;
    assert!(end.stderr.contains("rdma"), "{}", end.stderr);
    Ok(())
}

fn broken_state(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let directory = case.state_root().join("wreck");
    fs::create_dir(&directory)?;
    fs::write(directory.join("state.json"), "{\"half\": ")?;
    let end = case.call(&["list", "-q"])?;
    assert!(end.stdout.lines().any(|line| line == case.id), "{} {}", end.stdout, end.stderr);
    case.call(&["state", "wreck"])?.failure()?;
    case.call(&["delete", "--force", "wreck"])?.success()?;
    assert!(!directory.exists());
    Ok(())
}

fn one_line(case: &mut Case) -> Outcome {
    let end = case.call(&["state", "nobody"])?.failure()?;
    assert_eq!(end.stderr.lines().count(), 1, "{}", end.stderr);
    assert!(end.stderr.starts_with("ferry: ") && end.stderr.contains("nobody"), "{}", end.stderr);
    Ok(())
}
