//! Attacks by what the runtime reads: a configuration that is malformed, huge or overflows something, a record that is no
//! record.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::super::case::{Case, names_in};
use super::super::need::Need::{Ferry, Peer, Root, Tool};
use super::super::output::Output;
use super::super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::{add, join_namespace, mount};

pub const SCENARIOS: &[Scenario] = &[
    scenario("namespace_path_longer_than_any_message", &[], long_namespace_path),
    scenario("ten_thousand_id_mappings", &[Root], many_mappings),
    scenario("configuration_cut_off_anywhere", &[], cut_off),
    scenario("configuration_nested_beyond_measure", &[], nested),
    scenario("configuration_too_large", &[Ferry], too_large),
    scenario("configuration_with_bytes_that_are_no_text", &[TAKEN_BY_RUNC, TAKEN_BY_CRUN], no_text),
    scenario("strings_that_hide_a_nul", &[TAKEN_BY_RUNC, Peer("crun", "cuts them off there")], nul),
    scenario("a_record_that_is_none", &[Ferry], corrupt_record),
    scenario("a_record_of_another_container", &[Ferry], foreign_record),
    scenario("a_record_of_another_user", &[Ferry, Root, Tool("setpriv")], users_record),
    scenario("ids_that_are_paths", &[Peer("crun", "1.8.1 removes the directory of all containers")], ids),
];

const TAKEN_BY_RUNC: super::super::need::Need = Peer("runc", "1.1.5 takes them, changed");
const TAKEN_BY_CRUN: super::super::need::Need = Peer("crun", "1.8.1 takes them");

/// An error of the runtime's own: not a crash, and nothing left.
fn refused(case: &Case, end: Output) -> Outcome {
    let end = end.failure()?;
    assert!(end.code < 128 && !end.stderr.contains("panicked"), "{} {}", end.code, end.stderr);
    assert_eq!(names_in(&case.state_root()), Vec::<String>::new());
    Ok(())
}

/// CVE-2021-43784: a length of 16 bits was enough to hide the list of namespaces.
fn long_namespace_path(case: &mut Case) -> Outcome {
    let own = "/proc/self/ns/ipc";
    for length in [4096, 65_535, 65_536 + 20, 200_000] {
        join_namespace(&mut case.config, "ipc", &format!("{}{own}", "/".repeat(length)));
        let end = case.run()?;
        refused(case, end)?;
    }
    Ok(())
}

fn many_mappings(case: &mut Case) -> Outcome {
    let map: Vec<Value> =
        (0..10_000).map(|id| json!({"containerID": id, "hostID": 100_000 + 2 * id, "size": 1})).collect();
    add(&mut case.config, "/linux/namespaces", json!({"type": "user"}));
    case.config["linux"]["uidMappings"] = json!(map);
    case.config["linux"]["gidMappings"] = json!(map);
    case.bundle.give_to(100_000)?;
    let end = case.run()?;
    refused(case, end)
}

fn raw(case: &mut Case, text: &[u8]) -> Result<Output, libtest_mimic::Failed> {
    fs::write(case.bundle.path().join("config.json"), text)?;
    let (bundle, id) = (case.bundle.path().display().to_string(), case.id.clone());
    case.call(&["run", "--bundle", &bundle, &id])
}

fn cut_off(case: &mut Case) -> Outcome {
    let whole = serde_json::to_vec(&case.config)?;
    for length in (0..whole.len()).step_by(37) {
        let end = raw(case, &whole[..length])?;
        refused(case, end)?;
    }
    Ok(())
}

fn nested(case: &mut Case) -> Outcome {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let depth = 200_000;
        let text = format!("{{\"hooks\": {}{}}}", open.repeat(depth), close.repeat(depth));
        let end = raw(case, text.as_bytes())?;
        refused(case, end)?;
    }
    Ok(())
}

fn too_large(case: &mut Case) -> Outcome {
    case.config["annotations"] = json!({"a": "x".repeat(33 << 20)});
    let text = serde_json::to_vec(&case.config)?;
    let end = raw(case, &text)?;
    assert!(end.stderr.contains("larger than 32 MiB"), "{}", end.stderr);
    refused(case, end)
}

fn no_text(case: &mut Case) -> Outcome {
    case.config["hostname"] = "MARK".into();
    let text = serde_json::to_string(&case.config)?;
    let (before, after) = text.split_once("MARK").ok_or("no mark")?;
    for bytes in [&b"\xff\xfe"[..], b"\x00", b"\xed\xa0\x80", b"\n"] {
        let text = [before.as_bytes(), bytes, after.as_bytes()].concat();
        let end = raw(case, &text)?;
        refused(case, end)?;
    }
    Ok(())
}

/// The kernel would read each of them to the NUL only, and something else than what was checked would happen.
fn nul(case: &mut Case) -> Outcome {
    let base = case.config.clone();
    let edits: &[(&str, Value)] = &[
        ("/process/args", json!(["/probe\u{0}x"])),
        ("/process/cwd", json!("/\u{0}x")),
        ("/process/env", json!(["PATH=/\u{0}x"])),
        ("/root/path", json!("rootfs\u{0}x")),
        ("/linux/maskedPaths", json!(["/home\u{0}/x"])),
        ("/linux/readonlyPaths", json!(["/home\u{0}/x"])),
        ("/hostname", json!("a\u{0}b")),
    ];
    for (pointer, value) in edits {
        case.config = base.clone();
        *case.config.pointer_mut(pointer).ok_or("no such field")? = value.clone();
        let end = case.run()?;
        refused(case, end).map_err(|why| format!("{pointer}: {}", why.message().unwrap_or_default()))?;
    }
    for row in [mount("tmpfs", "t", "/mnt\u{0}/x", &[]), mount("tmpfs\u{0}x", "t", "/mnt", &[])] {
        case.config = base.clone();
        add(&mut case.config, "/mounts", row);
        let end = case.run()?;
        refused(case, end)?;
    }
    Ok(())
}

fn corrupt_record(case: &mut Case) -> Outcome {
    let id = case.id.clone();
    for text in ["", "{", "null", "[]", "{\"format\": 1}", "{\"format\": 99}", &"[".repeat(100_000), "\u{0}\u{0}"] {
        case.args(&["/probe", "exit", "0"]).create()?;
        let pid = case.pid()?;
        let record = case.state_root().join(&id).join("state.json");
        let good = fs::read(&record)?;
        fs::write(&record, text)?;
        for verb in [&["state", &id][..], &["start", &id], &["kill", &id], &["delete", &id], &["exec", &id, "/probe"]] {
            let end = case.call(verb)?.failure()?;
            assert!(end.code < 128 || end.code == 255, "{verb:?} {text:.20}: {} {}", end.code, end.stderr);
        }
        // One bad record does not hide the others.
        case.call(&["list"])?.success()?;
        fs::write(&record, good)?;
        case.call(&["delete", "--force", &id])?.success()?;
        case.wait_for(pid)?;
    }
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// A record that names another's process and cgroup is refused by its id.
fn foreign_record(case: &mut Case) -> Outcome {
    let other = case.other_id();
    let (bundle, id) = (case.args(&["/probe", "exit", "0"]).write_config()?, case.id.clone());
    case.begin(&["create", "--bundle", &bundle, &other])?;
    case.begin(&["create", "--bundle", &bundle, &id])?;
    let record = |id: &str| case.state_root().join(id).join("state.json");
    let good = fs::read(record(&id))?;
    fs::copy(record(&other), record(&id))?;
    case.call(&["kill", &id, "KILL"])?.failure()?;
    fs::write(case.state_root().join(&id).join("state.json"), good)?;
    case.call(&["delete", "--force", &id])?.success()?;
    let state = case.call(&["state", &other])?.success()?.json()?;
    assert_eq!(state["status"], "created");
    Ok(())
}

/// In a directory where everybody may, somebody else is first, and names a process of the victim's as a container.
fn users_record(case: &mut Case) -> Outcome {
    const VICTIM: u32 = 4242;
    const OTHER: u32 = 4243;
    case.start_waiting()?;
    let id = case.id.clone();
    let (pid, root, own) = (case.pid()?, case.host_directory("made-up")?, case.state_root().join(&id));
    let entry = case.host_directory(&format!("made-up/{id}"))?;
    for name in ["state.json", "config.json"] {
        fs::copy(own.join(name), entry.join(name))?;
        fs::set_permissions(entry.join(name), Permissions::from_mode(0o644))?;
    }
    let ferry = case.stage.runtime.path.clone();
    let call = |case: &mut Case, user: u32, verb: &[&str]| {
        let (user, group) = (format!("--reuid={user}"), format!("--regid={user}"));
        let mut command = Command::new("setpriv");
        command.args([&user, &group, "--clear-groups"]).arg(&ferry).arg("--root").arg(&root).args(verb);
        case.finish(command.stdin(Stdio::null()))
    };
    let said = format!("it belongs to user {OTHER}");
    for (of_root, of_entry) in [(OTHER, OTHER), (0, OTHER)] {
        chown(&root, Some(of_root), None)?;
        chown(&entry, Some(of_entry), None)?;
        for verb in [&["state", &id][..], &["kill", &id, "KILL"], &["delete", "--force", &id], &["exec", &id, "/probe"]]
        {
            let end = call(case, VICTIM, verb)?.failure()?;
            assert!(end.stderr.contains(&said), "{verb:?}: {}", end.stderr);
        }
        let list = call(case, VICTIM, &["list"])?;
        assert!(list.stderr.contains(&said) && !list.stdout.contains(&id), "{} {}", list.stdout, list.stderr);
        // Whoever may do anything was told where to look.
        assert_eq!(call(case, 0, &["state", &id])?.success()?.json()?["pid"], pid);
    }
    for (of_root, of_entry) in [(VICTIM, VICTIM), (0, VICTIM), (0, 0)] {
        chown(&root, Some(of_root), None)?;
        chown(&entry, Some(of_entry), None)?;
        assert_eq!(call(case, VICTIM, &["state", &id])?.success()?.json()?["pid"], pid);
        assert!(call(case, VICTIM, &["list"])?.success()?.stdout.contains(&id));
    }
    Ok(())
}

fn ids(case: &mut Case) -> Outcome {
    let kept = case.host_directory("state/kept")?;
    let bundle = case.write_config()?;
    for id in ["..", ".", "../kept", "kept/../x", "/etc", "a/b", "", "a\nb", "a b"] {
        case.call(&["run", "--bundle", &bundle, "--", id])?.failure()?;
        case.call(&["delete", "--force", "--", id])?;
        case.call(&["state", "--", id])?.failure()?;
        assert!(kept.is_dir(), "{id:?}");
    }
    fs::remove_dir(&kept)?;
    Ok(())
}
