//! Every mount option of the specification by what it does, seen from inside: a table a family, so that a failure names the
//! option.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::mounts::{HostMount, has, row};
use super::need::Need::{Ferry, Peer, Root};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::{add, bind, mount, user_namespace, without_mount};

pub const SCENARIOS: &[Scenario] = &[
    scenario("of_a_new_filesystem", &[Ferry], new_filesystem),
    scenario("of_the_superblock", &[Peer("runc", "no lazytime"), Peer("crun", "no nolazytime")], superblock),
    scenario("that_change_nothing_are_no_business_of_the_filesystem", &[Ferry], nothing),
    scenario("of_a_bind_take_back_the_sources", &[Root, Ferry], take_back),
    scenario("recursive_ones_reach_what_is_below", &[Root, Ferry], recursive),
    scenario("nodev_and_nosymfollow_are_obeyed", &[Root, Ferry], obeyed),
    scenario("propagation_of_one_mount_and_of_all_below", &[Root, Ferry], propagation),
    scenario("a_slave_sees_what_the_host_mounts_and_a_private_mount_does_not", &[Root], events),
    scenario("remount_changes_what_is_there", &[Ferry], remount),
    scenario("remount_of_what_is_not_mounted_is_refused", &[Ferry], remount_nothing),
    scenario("idmap_and_ridmap_by_the_user_namespace", &[Root, Ferry], idmap_of_container),
    scenario("idmap_and_ridmap_by_the_mounts_own_mappings", &[Root, Ferry], idmap_own),
    scenario("as_long_as_many_directories_are", &[Root], long),
    scenario("copy_symlink_makes_the_link", &[Peer("runc", "1.1.5 has none")], copy_symlink),
    scenario("copy_symlink_over_something_else_is_refused", &[Peer("runc", "1.1.5 has none")], copy_symlink_over),
];

/// Options, what the mount shows then, and what it does not.
type Row = (&'static [&'static str], &'static [&'static str], &'static [&'static str]);

fn check(report: &Value, point: &str, (options, shown, hidden): Row) -> Outcome {
    let seen = &row(report, point)?["options"];
    for option in shown {
        assert!(has(report, point, option)?, "{options:?} at {point}: no {option} in {seen}");
    }
    for option in hidden {
        assert!(!has(report, point, option)?, "{options:?} at {point}: {option} in {seen}");
    }
    Ok(())
}

fn new_filesystem(case: &mut Case) -> Outcome {
    const ROWS: &[Row] = &[
        (&["noatime", "atime"], &["relatime"], &["noatime"]),
        (&["nodev", "dev"], &[], &["nodev"]),
        (&["dev", "nodev"], &["nodev"], &[]),
        (&["nodiratime", "diratime"], &[], &["nodiratime"]),
        (&["nodiratime"], &["nodiratime"], &[]),
        (&["noexec", "exec"], &[], &["noexec"]),
        (&["exec", "noexec"], &["noexec"], &[]),
        (&["noatime"], &["noatime"], &["relatime"]),
        (&["strictatime", "norelatime"], &[], &["relatime", "noatime"]),
        (&["strictatime", "nostrictatime"], &["relatime"], &["noatime"]),
        (&["nosuid", "suid"], &[], &["nosuid"]),
        (&["suid", "nosuid"], &["nosuid"], &[]),
        (&["nosymfollow"], &["nosymfollow"], &[]),
        (&["nosymfollow", "symfollow"], &[], &["nosymfollow"]),
        (&["noatime", "relatime"], &["relatime"], &["noatime"]),
        (&["ro"], &["ro"], &["rw"]),
        (&["ro", "rw"], &["rw"], &["ro"]),
        (&["strictatime"], &[], &["relatime", "noatime"]),
        (&["defaults"], &["rw", "relatime"], &["nosuid", "nodev", "noexec", "ro", "noatime"]),
    ];
    let place = |index: usize| format!("/home/{index}");
    for (index, (options, ..)) in ROWS.iter().enumerate() {
        add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", &place(index), options));
    }
    let report = case.report()?;
    ROWS.iter().enumerate().try_for_each(|(index, found)| check(&report, &place(index), *found))
}

/// What the superblock shows with the first of two options, and no more with the second after it.
fn superblock(case: &mut Case) -> Outcome {
    for (option, opposite) in [("sync", "async"), ("lazytime", "nolazytime"), ("mand", "nomand"), ("dirsync", "")] {
        let shows = |case: &mut Case, options: &[&str]| -> Result<bool, Failed> {
            without_mount(&mut case.config, "/mnt");
            add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "/mnt", options));
            let report = case.report()?;
            Ok(row(&report, "/mnt")?["super"].as_array().is_some_and(|words| words.contains(&option.into())))
        };
        assert!(!shows(case, &[])?, "{option} without being asked for");
        assert!(shows(case, &[option])?, "{option}");
        assert!(opposite.is_empty() || !shows(case, &[option, opposite])?, "{opposite}");
    }
    Ok(())
}

/// A tmpfs refuses an option that it does not know, so that what it is not told cannot be one.
fn nothing(case: &mut Case) -> Outcome {
    for option in ["defaults", "iversion", "noiversion", "loud", "silent", "norelatime", "relatime"] {
        without_mount(&mut case.config, "/mnt");
        add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "/mnt", &[option, "size=16k"]));
        let end = case.run()?;
        assert_eq!(end.code, 0, "{option}: {}", end.stderr);
        check(&end.json()?, "/mnt", (&[], &["rw", "relatime"], &["nosuid"]))?;
    }
    Ok(())
}

/// A tmpfs of the host with another below it, both with these options.
fn tree(case: &Case, name: &str, options: &str) -> Result<(PathBuf, [HostMount; 2]), Failed> {
    let top = HostMount::tmpfs(case.directory.join(name), "mode=755")?;
    let below = HostMount::tmpfs(top.0.join("below"), "mode=755")?;
    for place in [&top.0, &below.0] {
        fs::write(place.join("file"), "x")?;
    }
    if !options.is_empty() {
        on_host(&["mount", "-o", &format!("remount,{options}")], &below.0)?;
        on_host(&["mount", "-o", &format!("remount,{options}")], &top.0)?;
    }
    // What is unmounted first is what lies below.
    Ok((top.0.clone(), [below, top]))
}

fn on_host(words: &[&str], path: &Path) -> Outcome {
    let done = Command::new(words[0]).args(&words[1..]).arg(path).status()?;
    if done.success() { Ok(()) } else { Err(format!("the test cannot {words:?} {}", path.display()).into()) }
}

/// A bind with any option has the options it is given and no others; but access times stay the source's unless a mode is
/// set, which undoing one does not.
fn take_back(case: &mut Case) -> Outcome {
    const ROWS: &[Row] = &[
        (&["atime"], &["noatime", "nodiratime"], &["nosuid"]),
        (&["dev"], &["rw", "noatime"], &["nodev", "nosuid"]),
        (&["diratime"], &["nodiratime"], &["nosuid"]),
        (&["exec"], &["rw", "noatime"], &["noexec", "nosuid"]),
        (&["relatime"], &["relatime"], &["noatime", "nodiratime"]),
        (&["rw"], &["rw", "noatime"], &["ro", "nosuid"]),
        (&["strictatime"], &[], &["relatime", "noatime", "nodiratime"]),
        (&["suid"], &["rw", "noatime"], &["nosuid", "nodev"]),
        (&["symfollow"], &["rw", "noatime"], &["nosymfollow", "nodev"]),
    ];
    let (source, _mounts) = tree(case, "source", "ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow")?;
    bound_with(case, &source, "bind", ROWS, &["/mnt"])
}

fn recursive(case: &mut Case) -> Outcome {
    const GIVEN: &[Row] = &[
        (&["rnoatime"], &["noatime"], &["relatime"]),
        (&["rnodev"], &["nodev"], &[]),
        (&["rnodiratime"], &["nodiratime"], &[]),
        (&["rnoexec"], &["noexec"], &[]),
        (&["rnosuid"], &["nosuid"], &[]),
        (&["rnosymfollow"], &["nosymfollow"], &[]),
        (&["rro"], &["ro"], &["rw"]),
        (&["rstrictatime"], &[], &["relatime", "noatime"]),
    ];
    const TAKEN: &[Row] = &[
        (&["ratime"], &["relatime", "nodev"], &["noatime"]),
        (&["rdev"], &["noexec"], &["nodev"]),
        (&["rdiratime"], &["noexec"], &["nodiratime"]),
        (&["rexec"], &["nodev"], &["noexec"]),
        (&["rnorelatime"], &["relatime", "nodev"], &["noatime"]),
        (&["rnostrictatime"], &["relatime", "nodev"], &["noatime"]),
        (&["rrelatime"], &["relatime", "nodev"], &["noatime"]),
        (&["rrw"], &["rw", "nodev"], &["ro"]),
        (&["rsuid"], &["nodev"], &["nosuid"]),
        (&["rsymfollow"], &["nodev"], &["nosymfollow"]),
    ];
    let (plain, _plain) = tree(case, "plain", "")?;
    bound_with(case, &plain, "rbind", GIVEN, &["/mnt", "/mnt/below"])?;
    let (flagged, _flagged) = tree(case, "flagged", "ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow")?;
    bound_with(case, &flagged, "rbind", TAKEN, &["/mnt", "/mnt/below"])
}

/// Binds `source` with the options of each row, and looks at the mounts at `points`.
fn bound_with(case: &mut Case, source: &Path, kind: &str, rows: &[Row], points: &[&str]) -> Outcome {
    for found in rows {
        without_mount(&mut case.config, "/mnt");
        add(&mut case.config, "/mounts", bind(source, "/mnt", &[&[kind], found.0].concat()));
        let report = case.report()?;
        points.iter().try_for_each(|point| check(&report, point, *found))?;
    }
    Ok(())
}

fn obeyed(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    let node = source.join("null");
    let made = Command::new("mknod").args(["-m", "666"]).arg(&node).args(["c", "1", "3"]).status()?;
    assert!(made.success(), "the test cannot make a device");
    std::os::unix::fs::symlink("file", source.join("link"))?;
    fs::write(source.join("file"), "x")?;
    let deeds: [(&str, &[&str], i32); 4] = [
        ("dev", &["open", "/mnt/null", "r"], 0),
        ("nodev", &["open", "/mnt/null", "r"], libc::EACCES),
        ("symfollow", &["read", "/mnt/link"], 0),
        ("nosymfollow", &["read", "/mnt/link"], libc::ELOOP),
    ];
    for (option, deed, expected) in deeds {
        without_mount(&mut case.config, "/mnt");
        add(&mut case.config, "/mounts", bind(&source, "/mnt", &["bind", option]));
        let answer = case.deed(deed)?;
        assert_eq!(answer["error"].as_i64().unwrap_or(0), i64::from(expected), "{option}: {answer}");
    }
    Ok(())
}

fn propagation(case: &mut Case) -> Outcome {
    // Options; what the mount itself and the one below it are then, by the kernel's tags.
    let rows: [(&[&str], &[&str], &[&str]); 8] = [
        (&["private"], &[], &["master"]),
        (&["rprivate"], &[], &[]),
        (&["shared"], &["shared", "master"], &["master"]),
        (&["rshared"], &["shared", "master"], &["shared", "master"]),
        (&["rshared", "slave"], &["master"], &["shared", "master"]),
        (&["rshared", "rslave"], &["master"], &["master"]),
        (&["unbindable"], &["unbindable"], &["master"]),
        (&["runbindable"], &["unbindable"], &["unbindable"]),
    ];
    let (source, _mounts) = tree(case, "source", "")?;
    on_host(&["mount", "--make-rshared"], &source)?;
    for (options, top, below) in rows {
        without_mount(&mut case.config, "/mnt");
        add(&mut case.config, "/mounts", bind(&source, "/mnt", &[&["rbind"], options].concat()));
        let report = case.report()?;
        for (point, expected) in [("/mnt", top), ("/mnt/below", below)] {
            let tags = row(&report, point)?["propagation"].clone();
            let kinds: Vec<&str> = tags
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|tag| tag.as_str()?.split(':').next())
                .filter(|kind| *kind != "propagate_from")
                .collect();
            assert_eq!(kinds, expected, "{options:?} at {point}");
        }
    }
    Ok(())
}

fn events(case: &mut Case) -> Outcome {
    let top = HostMount::tmpfs(case.directory.join("source"), "mode=755")?;
    on_host(&["mount", "--make-shared"], &top.0)?;
    let later = top.0.join("later");
    fs::create_dir(&later)?;
    for (place, option) in [("/mnt", "rslave"), ("/home", "rprivate")] {
        add(&mut case.config, "/mounts", bind(&top.0, place, &["rbind", option]));
    }
    case.config["linux"]["rootfsPropagation"] = "rslave".into();
    case.start_waiting()?;
    let _later = HostMount::tmpfs(later.clone(), "mode=755")?;
    fs::write(later.join("news"), "x")?;
    let seen = |case: &mut Case, place: &str| case.exec(&[], &["/probe", "list", place])?.success()?.json();
    assert_eq!(seen(case, "/mnt/later")?["ok"], json!(["news"]));
    assert_eq!(seen(case, "/home/later")?["ok"], json!([]));
    Ok(())
}

fn remount(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", mount("tmpfs", "first", "/mnt", &["size=64k", "nosuid"]));
    add(&mut case.config, "/mounts", json!({"destination": "/mnt", "options": ["remount", "ro", "size=128k"]}));
    let report = case.report()?;
    let at_place: Vec<&Value> =
        report["mounts"].as_array().into_iter().flatten().filter(|row| row["point"] == "/mnt").collect();
    assert_eq!(at_place.len(), 1, "{at_place:?}");
    check(&report, "/mnt", (&["remount"], &["ro", "nosuid"], &[]))?;
    let superblock = &row(&report, "/mnt")?["super"];
    assert!(superblock.as_array().is_some_and(|words| words.contains(&"size=128k".into())), "{superblock}");
    Ok(())
}

fn remount_nothing(case: &mut Case) -> Outcome {
    add(&mut case.config, "/mounts", json!({"destination": "/home", "options": ["remount", "ro"]}));
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("home") && end.stderr.contains("mounted"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// Who a bound file and one on a mount below it belong to, as seen inside.
fn owners(case: &mut Case, source: &Path, row: Value) -> Result<[Value; 2], Failed> {
    for place in ["file", "below/file"] {
        std::os::unix::fs::chown(source.join(place), Some(3), Some(3))?;
    }
    without_mount(&mut case.config, "/mnt");
    add(&mut case.config, "/mounts", row);
    let seen = |case: &mut Case, path: &str| Ok::<_, Failed>(case.deed(&["stat", path])?["ok"]["uid"].clone());
    Ok([seen(case, "/mnt/file")?, seen(case, "/mnt/below/file")?])
}

/// The host's ids as they are on disk are nobody's in the user namespace, unless the mount maps them.
fn idmap_of_container(case: &mut Case) -> Outcome {
    let (source, _mounts) = tree(case, "source", "")?;
    user_namespace(&mut case.config, (100_000, 100_000), 1000);
    case.bundle.give_to(100_000)?;
    for (option, expected) in [("nosuid", [65534, 65534]), ("idmap", [3, 65534]), ("ridmap", [3, 3])] {
        let seen = owners(case, &source, bind(&source, "/mnt", &["rbind", option]))?;
        assert_eq!(seen, expected.map(|uid| json!(uid)), "{option}");
    }
    Ok(())
}

fn idmap_own(case: &mut Case) -> Outcome {
    let (source, _mounts) = tree(case, "source", "")?;
    let map = json!([{"containerID": 0, "hostID": 5000, "size": 10}]);
    for (option, expected) in [("nosuid", [5003, 3]), ("idmap", [5003, 3]), ("ridmap", [5003, 5003])] {
        let mut row = bind(&source, "/mnt", &["rbind", option]);
        (row["uidMappings"], row["gidMappings"]) = (map.clone(), map.clone());
        assert_eq!(owners(case, &source, row)?, expected.map(|uid| json!(uid)), "{option}");
    }
    Ok(())
}

/// An overlay of directories whose names together are longer than what one call of the kernel's newer interface takes.
fn long(case: &mut Case) -> Outcome {
    let lowers: Vec<String> =
        ["low", "lower"].iter().map(|name| format!("{name}/{}", "directory/".repeat(18))).collect();
    for (number, lower) in lowers.iter().enumerate() {
        fs::create_dir_all(case.path(lower))?;
        fs::write(Path::new(&case.path(lower)).join(format!("file{number}")), "here")?;
    }
    let option = format!("lowerdir={}", lowers.iter().map(|lower| case.path(lower)).collect::<Vec<_>>().join(":"));
    assert!(option.len() > 300, "{option}");
    add(&mut case.config, "/mounts", mount("overlay", "overlay", "/overlay", &[&option, "nosuid", "private"]));
    let report = case.report()?;
    assert!(has(&report, "/overlay", "nosuid")? && row(&report, "/overlay")?["type"] == "overlay");
    for number in 0..2 {
        assert_eq!(case.deed(&["read", &format!("/overlay/file{number}")])?["ok"], "here");
    }
    Ok(())
}

fn copy_symlink(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    std::os::unix::fs::symlink("../home/cargo", source.join("link"))?;
    std::os::unix::fs::symlink("nowhere", source.join("dangling"))?;
    fs::write(source.join("file"), "tea")?;
    for name in ["link", "dangling", "file"] {
        add(&mut case.config, "/mounts", bind(&source.join(name), &format!("/opt/{name}"), &["rbind", "copy-symlink"]));
    }
    let report = case.report()?;
    assert!(row(&report, "/opt/file").is_ok() && row(&report, "/opt/link").is_err(), "what is no link is bound");
    // Now it is there already.
    assert_eq!(case.deed(&["read", "/opt/file"])?["ok"], "tea");
    let rootfs = case.bundle.rootfs();
    assert_eq!(fs::read_link(rootfs.join("opt/link"))?, Path::new("../home/cargo"));
    assert_eq!(fs::read_link(rootfs.join("opt/dangling"))?, Path::new("nowhere"));
    Ok(())
}

fn copy_symlink_over(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    std::os::unix::fs::symlink("elsewhere", source.join("link"))?;
    add(&mut case.config, "/mounts", bind(&source.join("link"), "/home", &["rbind", "copy-symlink"]));
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("/home") && end.stderr.contains("EEXIST"), "{}", end.stderr);
    Ok(())
}
