//! Where a process begins: its working directory, and the program that is looked for from there.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::case::Case;
use super::need::Need::Root;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_missing_one_in_a_read_only_tmpfs_is_made", &[], missing_in_tmpfs),
    scenario("it_and_the_program_may_be_open_to_the_process_alone", &[Root], for_the_process_alone),
    scenario("a_program_that_nobody_can_execute_is_refused_at_once", &[], for_nobody),
];

fn missing_in_tmpfs(case: &mut Case) -> Outcome {
    config::add(&mut case.config, "/mounts", config::mount("tmpfs", "tmpfs", "/mnt", &["ro"]));
    case.config["process"]["cwd"] = "/mnt/a/b".into();
    assert_eq!(case.report()?["cwd"], "/mnt/a/b");
    assert_eq!(case.deed(&["write", "/mnt/a/b/new", "x"])?["error"], libc::EROFS);
    Ok(())
}

/// In a user namespace that does not map the owner of /home/w, whose group the process has and the container's root has not.
fn for_the_process_alone(case: &mut Case) -> Outcome {
    config::user_namespace(&mut case.config, (200_000, 200_000), 1000);
    case.bundle.give_to(200_000)?;
    case.bundle.directory("home/w")?;
    std::fs::hard_link(case.bundle.inside("probe"), case.bundle.inside("home/w/probe"))?;
    std::os::unix::fs::chown(case.bundle.inside("home/w"), Some(0), Some(200_005))?;
    std::fs::set_permissions(case.bundle.inside("home/w"), std::fs::Permissions::from_mode(0o770))?;
    case.config["process"]["env"] = json!(["PATH=/home/w"]);
    for (cwd, program) in [("/home/w", "/probe"), ("/", "/home/w/probe"), ("/home/w", "./probe"), ("/", "probe")] {
        case.config["process"]["cwd"] = cwd.into();
        case.config["process"]["user"] = json!({"uid": 1, "gid": 5});
        assert_eq!(case.args(&[program]).report()?["cwd"], cwd, "{program}");
        case.config["process"]["user"] = json!({"uid": 1, "gid": 6});
        let told = case.run()?.failure()?.stderr.to_lowercase();
        // Which of the two is said of a PATH that cannot be searched differs.
        let is_right = told.contains("permission denied") || program == "probe" && told.contains("not found");
        assert!(is_right, "{cwd} {program}: {told}");
    }
    case.config["process"]["cwd"] = "/".into();
    case.start_waiting()?;
    let report = case.exec(&["--cwd", "/home/w", "--user", "1:5"], &["/home/w/probe"])?.success()?.json()?;
    assert_eq!((&report["cwd"], &report["exe"]), (&json!("/home/w"), &json!("/home/w/probe")));
    case.exec(&["--cwd", "/home/w", "--user", "1:6"], &["/probe"])?.failure()?;
    Ok(())
}

fn for_nobody(case: &mut Case) -> Outcome {
    case.bundle.file("home/plain", "text")?;
    let (bundle, id) = (case.args(&["/home/plain"]).write_config()?, case.id.clone());
    let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.contains("permission denied"), "{}", end.stderr);
    Ok(())
}
