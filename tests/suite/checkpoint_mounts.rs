//! What CRIU does not know of mounts, and comes back all the same: id mappings, and links that are not followed.

use std::fs;
use std::os::unix::fs::{chown, symlink};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::checkpoint::{CRIU, checkpoint, images, restore};
use super::checkpoint_archive::{counter, exported, imported};
use super::mounts::HostMount;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("id_mappings_of_mounts_are_as_before", CRIU, mapped),
    scenario("id_mappings_by_a_user_namespace_are_as_before", CRIU, mapped_by_namespace),
    scenario("an_id_mapping_that_would_be_lost_is_named", CRIU, unmapped),
    scenario("links_that_are_not_followed_stay_so", CRIU, links),
];

fn look(case: &mut Case, deed: &[&str]) -> Result<Value, Failed> {
    case.exec(&[], &[&["/probe"], deed].concat())?.success()?.json()
}

fn owners(case: &mut Case, paths: &[&str]) -> Result<Vec<Value>, Failed> {
    paths.iter().map(|path| Ok(look(case, &["stat", path])?["ok"]["uid"].clone())).collect()
}

/// Once from images, and once from an archive, which is looked at.
fn there_and_back(case: &mut Case, seen: impl Fn(&mut Case) -> Outcome) -> Outcome {
    let mut row = counter(case)?;
    seen(case)?;
    checkpoint(case, &[])?;
    let lines = restore(case, &[])?;
    row.continued(lines)?;
    seen(case)?;
    let archive = exported(case, &[])?;
    let lines = imported(case, &archive, &[])?;
    row.continued(lines)?;
    seen(case)
}

fn mapped(case: &mut Case) -> Outcome {
    let (top, file) = (HostMount::tmpfs(case.directory.join("top"), "mode=755")?, case.directory.join("single"));
    let below = HostMount::tmpfs(top.0.join("below"), "mode=755")?;
    for path in [&top.0.join("file"), &below.0.join("file"), &file] {
        fs::write(path, "x")?;
        chown(path, Some(3), Some(3))?;
    }
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    for (source, place, options) in [
        (&top.0, "/mnt/one", ["rbind", "idmap"]),
        (&top.0, "/mnt/all", ["rbind", "ridmap"]),
        (&top.0, "/mnt/none", ["rbind", "nosuid"]),
        (&file, "/mnt/file", ["bind", "idmap"]),
    ] {
        let mut row = config::bind(source, place, &options);
        if place != "/mnt/none" {
            (row["uidMappings"], row["gidMappings"]) = (map.clone(), map.clone());
        }
        config::add(&mut case.config, "/mounts", row);
    }
    there_and_back(case, |case| {
        let paths = ["one/file", "one/below/file", "all/file", "all/below/file", "none/file", "file"];
        let found = owners(case, &paths.map(|path| format!("/mnt/{path}")).each_ref().map(String::as_str))?;
        assert_eq!(found, [5003, 3, 5003, 5003, 3, 5003], "{paths:?}");
        Ok(())
    })
}

fn mapped_by_namespace(case: &mut Case) -> Outcome {
    let source = case.host_directory("outside")?;
    fs::write(source.join("file"), "x")?;
    chown(source.join("file"), Some(3), Some(3))?;
    config::user_namespace(&mut case.config, (100_000, 100_000), 65_536);
    case.bundle.give_to(100_000)?;
    config::add(&mut case.config, "/mounts", config::bind(&source, "/mnt", &["bind", "idmap"]));
    there_and_back(case, |case| {
        assert_eq!(owners(case, &["/mnt/file"])?, [3]);
        Ok(())
    })
}

/// What is bound from inside is made by CRIU, from the container's own.
fn unmapped(case: &mut Case) -> Outcome {
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    let mut bind = config::bind(&case.bundle.rootfs().join("home"), "/mnt", &["bind", "idmap"]);
    (bind["uidMappings"], bind["gidMappings"]) = (map.clone(), map);
    config::add(&mut case.config, "/mounts", bind);
    let mut row = counter(case)?;
    let (images, id) = (images(case), case.id.clone());
    let said = case.call(&["checkpoint", "--image-path", &images, &id])?.failure()?.stderr;
    assert!(said.contains("cannot keep the id mapping of /mnt: CRIU cannot"), "{said}");
    row.go_on(5)
}

fn links(case: &mut Case) -> Outcome {
    let source = case.host_directory("outside")?;
    fs::write(source.join("file"), "x")?;
    symlink("file", source.join("link"))?;
    config::add(&mut case.config, "/mounts", config::bind(&source, "/mnt/bound", &["bind", "nosymfollow"]));
    config::add(&mut case.config, "/mounts", config::bind(&source, "/mnt/all", &["rbind", "rnosymfollow"]));
    config::add(&mut case.config, "/mounts", config::bind(&source, "/mnt/followed", &["bind", "nosuid"]));
    there_and_back(case, |case| {
        for path in ["/mnt/bound/link", "/mnt/all/link"] {
            assert_eq!(look(case, &["read", path])?["error"], libc::ELOOP, "{path}");
        }
        assert_eq!(look(case, &["read", "/mnt/followed/link"])?["ok"], "x");
        Ok(())
    })
}
