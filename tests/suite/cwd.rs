//! Where a process begins: its working directory, and the program that is looked for from there.

use super::case::Case;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[scenario("a_missing_one_in_a_read_only_tmpfs_is_made", &[], missing_in_tmpfs)];

fn missing_in_tmpfs(case: &mut Case) -> Outcome {
    config::add(&mut case.config, "/mounts", config::mount("tmpfs", "tmpfs", "/mnt", &["ro"]));
    case.config["process"]["cwd"] = "/mnt/a/b".into();
    assert_eq!(case.report()?["cwd"], "/mnt/a/b");
    assert_eq!(case.deed(&["write", "/mnt/a/b/new", "x"])?["error"], libc::EROFS);
    Ok(())
}
