//! What a caller sees who put ferry where runc was: `runc` is the name it is called by, and the words are those that such callers
//! match.

use std::os::unix::process::CommandExt;

use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Root};
use super::output::Output;
use super::scenario::{Outcome, Scenario, scenario};
use libtest_mimic::Failed;

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_ferry_called_runc_introduces_itself_so", &[Ferry], introduced),
    scenario("a_program_that_is_not_there_is_told_as_runc_does", &[Ferry], not_executed),
    scenario("a_mount_that_is_refused_is_told_as_runc_does", &[Ferry, Root], refused_mount),
    scenario("a_ferry_called_runc_deletes_created_containers", &[Ferry], deleted),
    scenario("the_milestones_of_a_process_are_in_the_debug_log", &[Ferry], milestones),
];

fn as_runc(case: &mut Case, args: &[&str]) -> Result<Output, Failed> {
    let mut command = case.command(args);
    command.arg0("/usr/sbin/runc");
    case.finish(&mut command)
}

fn introduced(case: &mut Case) -> Outcome {
    let version = as_runc(case, &["--version"])?.success()?.stdout;
    let lines: Vec<&str> = version.lines().collect();
    assert!(lines[0].starts_with("runc version 1.") && lines[1].starts_with("commit: "), "{version}");
    assert_eq!(lines[2], "spec: 1.3.0");
    let help = as_runc(case, &["--help"])?.success()?.stdout;
    assert!(help.starts_with("NAME:\n    runc - Open Container Initiative runtime"), "{help}");
    let help = as_runc(case, &["kill", "--help"])?.success()?.stdout;
    assert!(help.starts_with("NAME:\n    runc kill - ") && help.contains("\nUsage: runc kill "), "{help}");
    Ok(())
}

/// One line and no more: engines show it to their users as it is.
fn not_executed(case: &mut Case) -> Outcome {
    std::fs::write(case.bundle.rootfs().join("script"), "#!/nowhere at all\n")?;
    std::fs::set_permissions(case.bundle.rootfs().join("script"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let (bundle, id) = (case.args(&["/script"]).write_config()?, case.id.clone());
    let end = as_runc(case, &["run", "--bundle", &bundle, &id])?.failure()?;
    assert_eq!(end.stderr, "exec /script: no such file or directory\n");
    Ok(())
}

fn refused_mount(case: &mut Case) -> Outcome {
    case.config["mounts"] = json!([{"destination": "/x", "type": "nosuchfs", "source": "x"}]);
    let (bundle, id, log) = (case.write_config()?, case.id.clone(), case.path("log"));
    let begins = "runc run failed: unable to start container process: error during container init: error mounting";
    let end = as_runc(case, &["run", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.contains(&format!("level=error msg=\"{begins}")), "{}", end.stderr);
    assert!(end.stderr.contains("no such device"), "{}", end.stderr);
    let end = as_runc(case, &["--log", &log, "--log-format", "json", "run", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.starts_with(begins), "{}", end.stderr);
    let line: Value = serde_json::from_str(&std::fs::read_to_string(&log)?)?;
    assert!(line["msg"].as_str().is_some_and(|told| told.starts_with(begins)), "{line}");
    Ok(())
}

fn deleted(case: &mut Case) -> Outcome {
    case.create()?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    as_runc(case, &["delete", &id])?.success()?;
    case.wait_for(pid)
}

fn milestones(case: &mut Case) -> Outcome {
    let (bundle, id, log) = (case.args(&["/probe", "exit", "0"]).write_config()?, case.id.clone(), case.path("log"));
    case.call(&["--debug", "--log", &log, "run", "--bundle", &bundle, &id])?.success()?;
    let told = std::fs::read_to_string(&log)?;
    let places: Vec<Option<usize>> =
        ["nsexec container setup", "child process in init()", "init: closing the pipe to signal completion"]
            .map(|words| told.find(words))
            .to_vec();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{told}");

    case.config["process"]["execCPUAffinity"] = json!({"initial": "0"});
    case.start_waiting()?;
    let end = case.call(&["--debug", "exec", &id, "/probe", "exit", "0"])?.success()?;
    let places: Vec<Option<usize>> = ["affinity: 0x1", "nsexec container setup", "setns_init: about to exec"]
        .map(|words| end.stderr.find(words))
        .to_vec();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{}", end.stderr);
    Ok(())
}
