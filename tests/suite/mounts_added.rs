//! `mounts add` and `mounts remove`: what a container that runs gets and loses, and what is refused to it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Root};
use super::output::Output;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_bind_is_added_and_removed", &[Ferry], bind),
    scenario("a_file_is_bound", &[Ferry], file),
    scenario("a_filesystem_is_added", &[Ferry], filesystem),
    scenario("mounts_come_from_a_file", &[Ferry], from_file),
    scenario("into_a_user_namespace", &[Root, Ferry], user_namespace),
    scenario("a_read_only_source_stays_so_in_a_user_namespace", &[Root, Ferry], locked),
    scenario("into_a_created_container", &[Ferry], created),
    scenario("it_does_not_reach_the_host", &[Ferry], not_on_the_host),
    scenario("a_link_leads_nowhere_outside", &[Ferry], link),
    scenario("all_are_added_or_none", &[Ferry], all_or_none),
    scenario("what_was_added_is_taken_back_where_links_changed", &[Ferry], taken_back),
    scenario("paths_in_options_are_the_hosts", &[Root, Ferry], |case| layers(case, 0)),
    scenario("paths_in_options_are_the_hosts_in_a_user_namespace", &[Root, Ferry], layers_of_a_user),
    scenario("many_layers_are_added", &[Root, Ferry], |case| layers(case, 20)),
    scenario("what_shows_a_namespace_is_refused", &[Ferry], of_namespaces),
    scenario("the_root_and_what_is_masked_stay", &[Ferry], protected),
    scenario("no_link_is_followed_to_what_is_removed", &[Ferry], removal_by_link),
    scenario("nothing_mounted_there_is_told", &[Ferry], nothing_there),
    scenario("a_stopped_and_a_missing_container_are_refused", &[Ferry], no_container),
    scenario("a_container_without_a_mount_namespace_is_refused", &[Root, Ferry], no_namespace),
    scenario("what_is_no_mount_is_refused", &[Ferry], no_mount),
];

fn add(case: &mut Case, mounts: &Value) -> Result<Output, Failed> {
    let (id, text) = (case.id.clone(), mounts.to_string());
    case.call(&["mounts", "add", &id, &text])
}

fn remove(case: &mut Case, place: &str) -> Result<Output, Failed> {
    let id = case.id.clone();
    case.call(&["mounts", "remove", &id, place])
}

/// What the container reads in a file: its text, or the error's number.
fn read(case: &mut Case, path: &str) -> Result<Value, Failed> {
    let answer = case.exec(&[], &["/probe", "read", path])?.success()?.json()?;
    Ok(if answer["ok"].is_null() { answer["error"].clone() } else { answer["ok"].clone() })
}

fn write(case: &mut Case, path: &str) -> Result<Value, Failed> {
    Ok(case.exec(&[], &["/probe", "write", path, "x"])?.success()?.json()?["error"].clone())
}

/// A directory of the host with a file `cargo`, as a bind on `/home/hold`.
fn hold(case: &Case, options: &[&str]) -> Result<Value, Failed> {
    let source = case.host_directory("source")?;
    fs::write(source.join("cargo"), "tea")?;
    fs::set_permissions(source.join("cargo"), fs::Permissions::from_mode(0o644))?;
    Ok(config::bind(&source, "/home/hold", options))
}

fn bind(case: &mut Case) -> Outcome {
    let mount = hold(case, &["rbind", "ro"])?;
    case.start_waiting()?;
    add(case, &mount)?.success()?;
    assert_eq!(read(case, "/home/hold/cargo")?, "tea");
    assert_eq!(write(case, "/home/hold/new")?, libc::EROFS);
    remove(case, "/home/hold")?.success()?;
    assert_eq!(read(case, "/home/hold/cargo")?, libc::ENOENT);
    Ok(())
}

fn file(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?.join("letter");
    fs::write(&source, "dear")?;
    case.start_waiting()?;
    add(case, &config::bind(&source, "/etc/letter", &["bind"]))?.success()?;
    assert_eq!(read(case, "/etc/letter")?, "dear");
    remove(case, "/etc/letter")?.success()?;
    assert_eq!(read(case, "/etc/letter")?, "", "the file that was made to mount upon stays");
    Ok(())
}

fn filesystem(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    add(case, &json!([config::mount("tmpfs", "tmpfs", "/home/memory", &["size=64k", "mode=755", "nodev"])]))?
        .success()?;
    assert_eq!(write(case, "/home/memory/new")?, Value::Null);
    let table = read(case, "/proc/self/mountinfo")?;
    let line = table.as_str().and_then(|table| table.lines().find(|line| line.contains(" /home/memory ")));
    assert!(line.is_some_and(|line| line.contains("nodev") && line.contains("size=64k")), "{line:?}");
    assert!(!case.bundle.inside("home/memory/new").exists());
    remove(case, "/home/memory")?.success().map(drop)
}

/// crun's form: a file with the section `mounts`, of which removing uses the destinations.
fn from_file(case: &mut Case) -> Outcome {
    let mount = hold(case, &["rbind"])?;
    let second = config::mount("tmpfs", "tmpfs", "/home/memory", &[]);
    let (file, id) = (case.path("mounts.json"), case.id.clone());
    fs::write(&file, json!([mount, second]).to_string())?;
    case.start_waiting()?;
    case.call(&["mounts", "add", &id, &file])?.success()?;
    assert_eq!(read(case, "/home/hold/cargo")?, "tea");
    assert_eq!(write(case, "/home/memory/new")?, Value::Null);
    case.call(&["mounts", "remove", &id, &file])?.success()?;
    assert_eq!(read(case, "/home/hold/cargo")?, libc::ENOENT);
    assert_eq!(read(case, "/home/memory/new")?, libc::ENOENT);
    Ok(())
}

fn mapped(case: &mut Case) -> Outcome {
    config::user_namespace(&mut case.config, (100_000, 100_000), 65536);
    Ok(case.bundle.give_to(100_000)?)
}

/// What is made belongs to the container's root; what is bound need not be in reach of it.
fn user_namespace(case: &mut Case) -> Outcome {
    mapped(case)?;
    let mount = hold(case, &["rbind"])?;
    let hidden = case.host_directory("hidden")?;
    fs::rename(case.directory.join("source"), hidden.join("source"))?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700))?;
    let mount = config::bind(&hidden.join("source"), mount["destination"].as_str().unwrap_or_default(), &["rbind"]);
    case.start_waiting()?;
    add(case, &json!([mount, config::mount("tmpfs", "tmpfs", "/home/memory", &[])]))?.success()?;
    assert_eq!(read(case, "/home/hold/cargo")?, "tea");
    assert_eq!(write(case, "/home/memory/new")?, Value::Null);
    let stat = case.exec(&[], &["/probe", "stat", "/home/memory/new"])?.success()?.json()?;
    assert_eq!(stat["ok"]["uid"], 0);
    remove(case, "/home/hold")?.success()?;
    remove(case, "/home/memory")?.success().map(drop)
}

/// The host's mount is read-only, and the container's root, who has every right inside, cannot make it another.
fn locked(case: &mut Case) -> Outcome {
    mapped(case)?;
    let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    case.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    let mount = hold(case, &["rbind"])?;
    let source = case.directory.join("source");
    let on_host = nix::mount::MsFlags::MS_BIND;
    let none: Option<&str> = None;
    nix::mount::mount(Some(&source), &source, none, on_host, none)?;
    nix::mount::mount(
        none,
        &source,
        none,
        on_host | nix::mount::MsFlags::MS_REMOUNT | nix::mount::MsFlags::MS_RDONLY,
        none,
    )?;
    let tried = case.start_waiting().and_then(|()| add(case, &mount)?.success()).and_then(|_| {
        // mount("", "/home/hold", "", MS_REMOUNT | MS_BIND, ""): writable again.
        let words = ["/probe", "remount", "/home/hold"];
        let answer = case.exec(&[], &words)?.success()?.json()?;
        Ok((answer, write(case, "/home/hold/new")?))
    });
    nix::mount::umount(&source)?;
    let (answer, written) = tried?;
    assert_eq!((&answer["error"], &written), (&json!(libc::EPERM), &json!(libc::EROFS)));
    Ok(())
}

fn created(case: &mut Case) -> Outcome {
    let mount = hold(case, &["rbind"])?;
    let id = case.id.clone();
    case.args(&["/probe", "read", "/home/hold/cargo"]);
    let mut lines = case.create()?;
    add(case, &mount)?.success()?;
    case.call(&["start", &id])?.success()?;
    lines.until("tea").map(drop)
}

fn not_on_the_host(case: &mut Case) -> Outcome {
    let mount = hold(case, &["rbind"])?;
    case.start_waiting()?;
    add(case, &mount)?.success()?;
    assert_eq!(fs::read_dir(case.bundle.inside("home/hold"))?.count(), 0, "only the place is made");
    Ok(())
}

/// `/home/out` of the image leads to a directory of the host's by name: inside, that is another one.
fn link(case: &mut Case) -> Outcome {
    let outside = case.host_directory("outside")?;
    let mount = hold(case, &["rbind"])?;
    case.bundle.link("home/out", &outside.display().to_string())?;
    case.start_waiting()?;
    let mount =
        config::bind(&case.directory.join("source"), "/home/out/hold", &[mount["options"][0].as_str().unwrap_or("")]);
    add(case, &mount)?.success()?;
    assert_eq!(fs::read_dir(&outside)?.count(), 0);
    let inside = format!("{}/hold/cargo", outside.display());
    assert_eq!(read(case, &inside)?, "tea", "the link is followed inside the root");
    let above = config::bind(&case.directory.join("source"), "/../../../../home/above", &["rbind"]);
    add(case, &above)?.success()?;
    assert_eq!(read(case, "/home/above/cargo")?, "tea");
    Ok(())
}

fn all_or_none(case: &mut Case) -> Outcome {
    let mount = hold(case, &["rbind"])?;
    case.start_waiting()?;
    let before = read(case, "/proc/self/mountinfo")?;
    let bad = config::mount("tmpfs", "tmpfs", "/home/memory", &["size=many"]);
    let end = add(case, &json!([mount, bad]))?.failure()?;
    assert!(end.stderr.contains("/home/memory"), "{}", end.stderr);
    assert_eq!(read(case, "/proc/self/mountinfo")?, before);
    let missing = config::bind(&case.directory.join("nothing"), "/home/hold", &["rbind"]);
    let end = add(case, &missing)?.failure()?;
    assert!(end.stderr.contains("the source does not exist"), "{}", end.stderr);
    Ok(())
}

/// Once the first is mounted, the way to it leads to what covers `/sys/firmware`.
fn taken_back(case: &mut Case) -> Outcome {
    let source = case.host_directory("source")?;
    fs::write(source.join("letter"), "dear")?;
    std::os::unix::fs::symlink("/sys", source.join("up"))?;
    case.bundle.directory("home/firmware")?;
    case.bundle.link("home/firmware/up", "/home")?;
    case.bundle.link("home/loop", "/home/firmware/up")?;
    case.start_waiting()?;
    let before = read(case, "/proc/self/mountinfo")?;
    let file = config::bind(&source.join("letter"), "/home/letter", &["bind"]);
    let turning = config::bind(&source, "/home/loop/firmware", &["rbind"]);
    let memory = config::mount("tmpfs", "tmpfs", "/home/memory", &[]);
    let bad = config::mount("tmpfs", "tmpfs", "/home/bad", &["size=many"]);
    let end = add(case, &json!([file, memory, turning, bad]))?.failure()?;
    assert!(end.stderr.contains("/home/bad") && !end.stderr.contains("and then"), "{}", end.stderr);
    assert_eq!(read(case, "/proc/self/mountinfo")?, before);
    Ok(())
}

/// What the container has at these paths is another thing, and is not what is stacked.
fn layers(case: &mut Case, more: usize) -> Outcome {
    let (upper, lower) = (case.host_directory("upper")?, case.host_directory("lower")?);
    fs::write(lower.join("cargo"), "tea")?;
    let inside = |path: &std::path::Path| path.strip_prefix("/").unwrap_or(path).display().to_string();
    case.bundle.directory(&inside(&upper))?;
    case.bundle.directory(&inside(&lower))?;
    case.bundle.file(&format!("{}/cargo", inside(&lower)), "forged")?;
    let more =
        (0..more).map(|number| case.host_directory(&format!("layer-{number}"))).collect::<Result<Vec<_>, _>>()?;
    let named = [upper, lower].iter().chain(&more).map(|layer| layer.display().to_string()).collect::<Vec<_>>();
    let mount = config::mount("overlay", "overlay", "/home/hold", &[&format!("lowerdir={}", named.join(":"))]);
    case.start_waiting()?;
    let before = read(case, "/proc/self/mountinfo")?;
    add(case, &mount)?.success()?;
    assert_eq!(read(case, "/home/hold/cargo")?, "tea");
    remove(case, "/home/hold")?.success()?;
    assert_eq!(read(case, "/proc/self/mountinfo")?, before);
    Ok(())
}

/// With the rights of the container's root, who may not look into every directory.
fn layers_of_a_user(case: &mut Case) -> Outcome {
    mapped(case)?;
    case.bundle.file("etc/passwd", "root:x:0:0:forged:/:/bin/sh\n")?;
    case.start_waiting()?;
    add(case, &config::mount("overlay", "overlay", "/home/hold", &["lowerdir=/etc:/usr"]))?.success()?;
    assert_eq!(read(case, "/home/hold/passwd")?, fs::read_to_string("/etc/passwd")?);
    Ok(())
}

fn of_namespaces(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/home/sys"), ("mqueue", "/home/queue"), ("cgroup2", "/home/c")]
    {
        let end = add(case, &config::mount(kind, kind, place, &[]))?.failure()?;
        assert!(end.stderr.contains(&format!("mounts[0].type: \"{kind}\" cannot be added")), "{}", end.stderr);
    }
    let source = case.host_directory("source")?;
    for place in ["/", "/proc/self", "/home/.."] {
        add(case, &config::bind(&source, place, &["rbind"]))?.failure()?;
    }
    Ok(())
}

fn protected(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let before = read(case, "/proc/self/mountinfo")?;
    for place in ["/", "/proc/kcore", "/proc/sys", "/sys/firmware", "/home/../proc/kcore"] {
        let end = remove(case, place)?.failure()?;
        assert!(end.stderr.contains("cannot unmount"), "{place}: {}", end.stderr);
    }
    assert_eq!(read(case, "/proc/self/mountinfo")?, before);
    Ok(())
}

fn removal_by_link(case: &mut Case) -> Outcome {
    case.bundle.link("home/kcore", "/proc/kcore")?;
    case.bundle.link("home/proc", "/proc")?;
    case.start_waiting()?;
    let before = read(case, "/proc/self/mountinfo")?;
    for place in ["/home/kcore", "/home/proc/kcore"] {
        remove(case, place)?.failure()?;
    }
    assert_eq!(read(case, "/proc/self/mountinfo")?, before);
    Ok(())
}

fn nothing_there(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    for (place, said) in [("/home", "nothing is mounted there"), ("/no/such/place", "ENOENT")] {
        let end = remove(case, place)?.failure()?;
        assert!(end.stderr.contains(said), "{place}: {}", end.stderr);
    }
    Ok(())
}

fn no_container(case: &mut Case) -> Outcome {
    let mount = hold(case, &["rbind"])?;
    let end = add(case, &mount)?.failure()?;
    assert!(end.stderr.contains("does not exist"), "{}", end.stderr);
    case.start_waiting()?;
    case.kill_and_wait("KILL")?;
    for end in [add(case, &mount)?, remove(case, "/proc")?] {
        let end = end.failure()?;
        assert!(end.stderr.contains("container not running"), "{}", end.stderr);
    }
    Ok(())
}

fn no_namespace(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "mount");
    for list in ["mounts", "linux/maskedPaths", "linux/readonlyPaths"] {
        if let Some(list) = case.config.pointer_mut(&format!("/{list}")) {
            *list = json!([]);
        }
    }
    let mount = hold(case, &["rbind"])?;
    case.start_waiting()?;
    let end = add(case, &mount)?.failure()?;
    assert!(end.stderr.contains("no mount namespace of its own"), "{}", end.stderr);
    Ok(())
}

fn no_mount(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    for (word, said) in [
        ("{\"destination\": ", "the command line"),
        ("[{\"destination\": 7}]", "[0].destination"),
        ("/no/such/file", "/no/such/file"),
    ] {
        let end = case.call(&["mounts", "add", &id, word])?.failure()?;
        assert!(end.stderr.contains(said), "{word}: {}", end.stderr);
    }
    let end = case.call(&["mounts", "move", &id, "/home"])?.failure()?;
    assert!(end.stderr.contains("\"move\" is neither add nor remove"), "{}", end.stderr);
    Ok(())
}
