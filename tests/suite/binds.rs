//! Bind mounts: whose attributes count, the source's or those that are asked for, and sources inside the container.

use std::fs;
use std::path::PathBuf;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::mounts::HostMount;
use super::need::Need::{Ferry, Root};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::{add, bind, user_namespace};

pub const SCENARIOS: &[Scenario] = &[
    scenario("options_replace_those_of_the_source", &[Root, Ferry], replaced),
    scenario("access_times_are_the_sources_unless_one_is_set", &[Root, Ferry], access_times),
    scenario("locked_attributes_stay_in_a_user_namespace", &[Root, Ferry], locked),
    scenario("a_locked_attribute_cannot_be_asked_away", &[Root, Ferry], asked_away),
    scenario("a_source_inside_is_as_earlier_mounts_left_it", &[Root, Ferry], inside),
    scenario("a_source_inside_in_a_user_namespace", &[Root, Ferry], inside_user_namespace),
    scenario("a_source_inside_is_id_mapped", &[Root, Ferry], inside_mapped),
    scenario("a_link_does_not_lead_a_source_inside_out", &[Root, Ferry], link_out),
    scenario("a_destination_in_the_hosts_words", &[Ferry], hosts_words),
    scenario("a_file_on_a_directory_is_told", &[], |case| misplaced(case, "source/letter", "/home")),
    scenario("an_option_that_no_bind_has_is_told", &[Ferry], without_effect),
    scenario("a_directory_on_a_file_is_told", &[], |case| misplaced(case, "source", "/etc/passwd")),
];

/// The attributes of `/mnt`, which is a bind with `options` of a tmpfs mounted with `of_source`.
fn attributes(case: &mut Case, of_source: &str, options: &[&str]) -> Result<Vec<Value>, Failed> {
    let source = HostMount::tmpfs(case.directory.join("source"), of_source)?;
    add(&mut case.config, "/mounts", bind(&source.0, "/mnt", options));
    let report = case.report();
    if let Some(mounts) = case.config["mounts"].as_array_mut() {
        mounts.pop();
    }
    let report = report?;
    let rows = report["mounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = rows.iter().rfind(|row| row["point"] == "/mnt").ok_or("nothing is mounted at /mnt")?;
    Ok(row["options"].as_array().cloned().unwrap_or_default())
}

fn expect(found: &[Value], there: &[&str], not_there: &[&str]) {
    for option in there {
        assert!(found.contains(&json!(option)), "{option} is not in {found:?}");
    }
    for option in not_there {
        assert!(!found.contains(&json!(option)), "{option} is in {found:?}");
    }
}

fn replaced(case: &mut Case) -> Outcome {
    let found = attributes(case, "nosuid,nodev,noexec", &["bind", "ro"])?;
    expect(&found, &["ro"], &["nosuid", "nodev", "noexec"]);
    let found = attributes(case, "ro,nosuid", &["bind", "nodev"])?;
    expect(&found, &["rw", "nodev"], &["nosuid"]);
    // The word for what is so anyway counts as well.
    expect(&attributes(case, "ro,nosuid", &["bind", "exec"])?, &["rw"], &["nosuid"]);
    expect(&attributes(case, "ro,nosuid", &["bind", "rprivate"])?, &["ro", "nosuid"], &[]);
    Ok(())
}

fn access_times(case: &mut Case) -> Outcome {
    expect(&attributes(case, "noatime", &["bind", "ro"])?, &["noatime", "ro"], &[]);
    expect(&attributes(case, "noatime", &["bind", "atime"])?, &["noatime"], &[]);
    expect(&attributes(case, "noatime", &["bind", "relatime"])?, &["relatime"], &["noatime"]);
    expect(&attributes(case, "noatime", &["bind", "nodiratime"])?, &["relatime", "nodiratime"], &["noatime"]);
    expect(&attributes(case, "nodiratime", &["bind", "strictatime"])?, &[], &["relatime", "nodiratime"]);
    Ok(())
}

fn in_user_namespace(case: &mut Case) -> Outcome {
    user_namespace(&mut case.config, (100_000, 100_000), 65536);
    case.bundle.give_to(100_000)?;
    Ok(())
}

fn locked(case: &mut Case) -> Outcome {
    in_user_namespace(case)?;
    let found = attributes(case, "nosuid,nodev,noexec,noatime", &["bind", "ro"])?;
    expect(&found, &["ro", "nosuid", "nodev", "noexec", "noatime"], &[]);
    // What cannot be locked is taken away all the same.
    expect(&attributes(case, "nodev,nosymfollow", &["bind", "ro"])?, &["ro", "nodev"], &["nosymfollow"]);
    Ok(())
}

fn asked_away(case: &mut Case) -> Outcome {
    in_user_namespace(case)?;
    for (of_source, option) in [("ro", "rw"), ("nodev", "dev"), ("noexec", "exec"), ("noatime", "relatime")] {
        let source = HostMount::tmpfs(case.directory.join("source"), of_source)?;
        add(&mut case.config, "/mounts", bind(&source.0, "/mnt", &["bind", option]));
        let end = case.run()?.failure()?;
        assert!(end.stderr.contains("EPERM") && end.stderr.contains("locked"), "{option}: {}", end.stderr);
        if let Some(mounts) = case.config["mounts"].as_array_mut() {
            mounts.pop();
        }
    }
    Ok(())
}

/// A directory of the host on `/a`, and `/a` on `/b`, the source written as the host's path to it.
fn twice(case: &mut Case) -> Result<PathBuf, Failed> {
    let source = case.host_directory("source")?;
    fs::write(source.join("cargo"), "tea")?;
    add(&mut case.config, "/mounts", bind(&source, "/a", &["bind"]));
    add(&mut case.config, "/mounts", bind(&case.bundle.rootfs().join("a"), "/b", &["rbind"]));
    Ok(source)
}

fn inside(case: &mut Case) -> Outcome {
    twice(case)?;
    assert_eq!(case.deed(&["read", "/b/cargo"])?["ok"], "tea");
    Ok(())
}

fn inside_user_namespace(case: &mut Case) -> Outcome {
    in_user_namespace(case)?;
    inside(case)
}

fn inside_mapped(case: &mut Case) -> Outcome {
    in_user_namespace(case)?;
    twice(case)?;
    let map = json!([{"containerID": 0, "hostID": 100_007, "size": 1}]);
    if let Some(row) = case.config["mounts"].as_array_mut().and_then(|mounts| mounts.last_mut()) {
        (row["uidMappings"], row["gidMappings"]) = (map.clone(), map);
    }
    let seen = case.deed(&["stat", "/b/cargo"])?["ok"].clone();
    assert_eq!((&seen["uid"], &seen["gid"]), (&json!(7), &json!(7)));
    Ok(())
}

fn link_out(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    std::os::unix::fs::symlink(&source, case.bundle.rootfs().join("out"))?;
    add(&mut case.config, "/mounts", bind(&case.bundle.rootfs().join("out"), "/mnt", &["bind"]));
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("ENOENT") && end.stderr.contains("/out"), "{}", end.stderr);
    Ok(())
}

fn hosts_words(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    fs::write(source.join("cargo"), "tea")?;
    let destination = case.bundle.rootfs().join("mnt").display().to_string();
    add(&mut case.config, "/mounts", bind(&source, &destination, &["bind"]));
    assert_eq!(case.deed(&["read", "/mnt/cargo"])?["ok"], "tea");
    Ok(())
}

/// Engines send such, and a mistyped `ro` is one: what is mounted can be written.
fn without_effect(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    let mounts = case.config["mounts"].as_array().map_or(0, Vec::len);
    add(&mut case.config, "/mounts", bind(&source, "/mnt", &["bind", "RO", "size=5", "nosuid"]));
    let end = case.run()?.success()?;
    for word in ["\"RO\"", "\"size=5\""] {
        let told = format!("mounts[{mounts}].options: {word} is no option of a bind mount");
        // The log quotes what it says.
        assert!(end.stderr.replace('\\', "").contains(&told), "{told}: {}", end.stderr);
    }
    assert!(!end.stderr.contains("nosuid"), "{}", end.stderr);
    Ok(())
}

/// What engines look for in what a runtime says.
fn misplaced(case: &mut Case, source: &str, place: &str) -> Outcome {
    fs::write(case.host_directory("source")?.join("letter"), "dear")?;
    add(&mut case.config, "/mounts", bind(&case.directory.join(source), place, &["rbind"]));
    let end = case.run()?.failure()?;
    assert!(end.stderr.to_lowercase().contains("not a directory") && end.stderr.contains(place), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}
