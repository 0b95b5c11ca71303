//! `/dev` in a container: the devices, links and terminals that the specification promises.

use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::Root;
use super::output;
use super::pseudo_terminal::Terminal;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("default_devices_have_their_numbers", &[], numbers),
    scenario("default_devices_can_be_opened", &[], open),
    scenario("links", &[], links),
    scenario("ptmx_leads_to_the_containers_own_terminals", &[], ptmx),
    scenario("nothing_else_is_there", &[], nothing_else),
    scenario("configured_devices", &[Root], configured),
    scenario("devices_by_bind_in_a_user_namespace", &[Root], bound),
    scenario("console_is_a_terminal_of_the_container", &[], console),
    scenario("no_console_without_a_terminal", &[], no_console),
    scenario("dev_of_the_host_can_be_bound", &[Root], host_dev),
    scenario("shm_and_mqueue", &[], shm),
];

const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

fn numbers(case: &mut Case) -> Outcome {
    for (name, major, minor) in DEVICES {
        let seen = &case.deed(&["stat", &format!("/dev/{name}")])?["ok"];
        assert_eq!([&seen["type"], &seen["mode"]], [&json!("char"), &json!("0666")], "{name}");
        assert_eq!([&seen["major"], &seen["minor"]], [&json!(major), &json!(minor)], "{name}");
    }
    Ok(())
}

fn open(case: &mut Case) -> Outcome {
    for name in ["null", "zero", "full", "urandom"] {
        assert!(case.deed(&["open", &format!("/dev/{name}"), "rw"])?["error"].is_null(), "{name}");
    }
    assert_eq!(case.deed(&["write", "/dev/full", "x"])?["error"], libc::ENOSPC);
    assert_eq!(case.deed(&["read", "/dev/null"])?["ok"], "");
    Ok(())
}

fn links(case: &mut Case) -> Outcome {
    let expected = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    for (name, target) in expected {
        assert_eq!(case.deed(&["stat", &format!("/dev/{name}")])?["ok"]["target"], target, "{name}");
    }
    Ok(())
}

fn ptmx(case: &mut Case) -> Outcome {
    assert_eq!(case.deed(&["stat", "/dev/ptmx"])?["ok"]["target"], "pts/ptmx");
    assert!(case.deed(&["open", "/dev/ptmx", "rw"])?["error"].is_null());
    assert_eq!(case.deed(&["list", "/dev/pts"])?["ok"], json!(["ptmx"]));
    Ok(())
}

fn nothing_else(case: &mut Case) -> Outcome {
    let names = case.deed(&["list", "/dev"])?["ok"].clone();
    let mut known = vec!["fd", "stdin", "stdout", "stderr", "ptmx", "pts", "shm", "mqueue", "core", "console"];
    known.extend(DEVICES.iter().map(|(name, ..)| *name));
    for name in names.as_array().into_iter().flatten().filter_map(Value::as_str) {
        assert!(known.contains(&name), "{name}");
    }
    Ok(())
}

fn configured(case: &mut Case) -> Outcome {
    case.config["linux"]["devices"] = json!([
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/dev/deep/pipe", "type": "p"},
        {"path": "/dev/deep/disk", "type": "b", "major": 7, "minor": 3, "fileMode": 0o600},
        {"path": "/elsewhere/zero", "type": "c", "major": 1, "minor": 5},
    ]);
    let fuse = case.deed(&["stat", "/dev/fuse"])?["ok"].clone();
    let disk = case.deed(&["stat", "/dev/deep/disk"])?["ok"].clone();
    let numbers =
        |seen: &Value| (seen["type"].clone(), seen["major"].clone(), seen["minor"].clone(), seen["mode"].clone());
    assert_eq!(numbers(&fuse), (json!("char"), json!(10), json!(229), json!("0640")));
    assert_eq!((&fuse["uid"], &fuse["gid"]), (&json!(5), &json!(6)));
    assert_eq!(numbers(&disk), (json!("block"), json!(7), json!(3), json!("0600")));
    assert_eq!(case.deed(&["stat", "/dev/deep/pipe"])?["ok"]["type"], "fifo");
    let zero = case.deed(&["stat", "/elsewhere/zero"])?["ok"].clone();
    assert_eq!((&zero["type"], &zero["major"], &zero["minor"]), (&json!("char"), &json!(1), &json!(5)));
    Ok(())
}

/// mknod is not allowed in a user namespace, so the host's devices are bound.
fn bound(case: &mut Case) -> Outcome {
    config::user_namespace(&mut case.config, (100_000, 100_000), 1000);
    case.bundle.give_to(100_000)?;
    numbers(case)?;
    open(case)
}

fn console(case: &mut Case) -> Outcome {
    case.config["process"]["terminal"] = true.into();
    let (bundle, id) = (case.args(&["/probe", "stat", "/dev/console"]).write_config()?, case.id.clone());
    let terminal = Terminal::open(&case.stage.probe, 24, 80)?;
    let mut child = terminal.spawn(&case.command(&["run", "-b", &bundle, &id]))?;
    let line = terminal.lines(case.patience())?.until("type")?;
    assert!(output::wait(&mut child, case.patience())?.success());
    let seen: Value = serde_json::from_str(&line)?;
    // 136 is the first major number of pseudo terminals' far ends.
    assert_eq!((&seen["ok"]["type"], &seen["ok"]["major"]), (&json!("char"), &json!(136)), "{seen}");
    Ok(())
}

fn no_console(case: &mut Case) -> Outcome {
    let seen = case.deed(&["stat", "/dev/console"])?;
    assert_ne!(seen["ok"]["major"], 136, "{seen}");
    Ok(())
}

fn host_dev(case: &mut Case) -> Outcome {
    for destination in ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev"] {
        config::without_mount(&mut case.config, destination);
    }
    let source = std::path::Path::new("/dev");
    config::add(&mut case.config, "/mounts", config::bind(source, "/dev", &["rbind", "rslave"]));
    let before = super::case::names_in(source).len();
    assert_eq!(case.deed(&["stat", "/dev/null"])?["ok"]["minor"], 3);
    assert_eq!(super::case::names_in(source).len(), before);
    Ok(())
}

fn shm(case: &mut Case) -> Outcome {
    assert!(case.deed(&["write", "/dev/shm/x", "x"])?["error"].is_null());
    assert_eq!(case.deed(&["stat", "/dev/shm"])?["ok"]["mode"], "1777");
    let mounts = case.args(&["/probe"]).report()?["mounts"].clone();
    let kind =
        |point: &str| mounts.as_array().into_iter().flatten().find(|row| row["point"] == point).map(|row| &row["type"]);
    assert_eq!((kind("/dev/shm"), kind("/dev/mqueue")), (Some(&json!("tmpfs")), Some(&json!("mqueue"))));
    Ok(())
}
