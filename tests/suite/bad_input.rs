//! Bundles that nobody means well with: each is refused in words that name the file and the field, in time, and leaves nothing.

use std::fs;

use serde_json::{Value, json};

use super::case::Case;
use super::errors::{refused, refused_text};
use super::need::Need::{Ferry, Peer, Root};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config::{add, mount};

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_config_cut_off_anywhere", &[Ferry], truncated),
    scenario("a_config_that_is_no_utf8", &[Ferry], no_utf8),
    scenario("a_config_that_is_nothing_like_one", &[Ferry], other_text),
    scenario("a_config_of_a_hundred_megabytes", &[Ferry], huge),
    scenario("a_config_that_is_no_file", &[Ferry], no_file),
    scenario("values_nested_deep_in_what_is_not_known", &[Ferry], nested),
    scenario("numbers_out_of_range", &[Ferry], numbers),
    scenario("fields_of_another_type", &[Ferry], types),
    scenario("a_field_there_twice", &[Ferry], twice),
    scenario("nul_bytes", &[Ferry], nul),
    scenario("a_program_without_a_name_is_not_found_in_engines_words", &[Ferry], nameless),
    scenario("paths_that_are_not_absolute", &[Ferry], relative),
    scenario("annotations_that_are_no_map_of_strings", &[Ferry], annotations),
    scenario("a_root_that_is_missing_or_no_directory", &[], root),
    scenario("a_mount_with_one_mapping", &[Ferry], one_mapping),
    scenario("the_same_mount_twice_is_mounted_twice", &[], duplicate_mounts),
    scenario("ten_thousand_mounts", &[], many_mounts),
    scenario("ids_that_lead_elsewhere", &[Peer("crun", "1.8.1 allows most")], ids),
    scenario("a_device_where_another_file_is", &[Root, Ferry], other_file),
    scenario("intel_rdt_without_resctrl", &[Ferry], no_resctrl),
    scenario("block_devices_without_numbers_or_rate", &[Ferry], block_devices),
    scenario("seccomp_rules_that_say_nothing", &[Ferry], seccomp_rules),
];

fn truncated(case: &mut Case) -> Outcome {
    let text = serde_json::to_string_pretty(&case.config)?;
    for part in 0..20 {
        let end = refused_text(case, &text[..text.len() * part / 20])?;
        assert!(end.stderr.contains("config.json"), "{part}: {}", end.stderr);
        assert!(end.stderr.contains("EOF") && end.stderr.contains("line"), "{part}: {}", end.stderr);
    }
    Ok(())
}

fn refused_bytes(case: &mut Case, bytes: &[u8]) -> Result<String, libtest_mimic::Failed> {
    fs::write(case.bundle.path().join("config.json"), bytes)?;
    let (bundle, id) = (case.bundle.path().display().to_string(), case.id.clone());
    let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(end.stderr)
}

fn no_utf8(case: &mut Case) -> Outcome {
    let text = case.config.to_string().replace("ship", "sh\u{1}p");
    let bytes: Vec<u8> = text.bytes().map(|byte| if byte == 1 { 0xff } else { byte }).collect();
    let told = refused_bytes(case, &bytes)?;
    assert!(told.contains("config.json"), "{told}");
    Ok(())
}

fn other_text(case: &mut Case) -> Outcome {
    for text in ["null", "[]", "\"config\"", "7", "{} {}", "\u{feff}{}", "{'root': 1}", "\u{7f}ELF"] {
        let end = refused_text(case, text)?;
        assert!(end.stderr.contains("config.json"), "{text}: {}", end.stderr);
    }
    Ok(())
}

/// Of blanks, which a parser might read to their end, and sparse, so that it costs the disk nothing.
fn huge(case: &mut Case) -> Outcome {
    let path = case.bundle.path().join("config.json");
    fs::write(&path, case.config.to_string())?;
    fs::File::options().write(true).open(&path)?.set_len(100 << 20)?;
    let (bundle, id) = (case.bundle.path().display().to_string(), case.id.clone());
    let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.contains("config.json") && end.stderr.contains("larger than 32 MiB"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn no_file(case: &mut Case) -> Outcome {
    let path = case.bundle.path().join("config.json");
    let (bundle, id) = (case.bundle.path().display().to_string(), case.id.clone());
    fs::create_dir(&path)?;
    let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.contains("config.json"), "{}", end.stderr);
    fs::remove_dir(&path)?;
    // What never ends is read no further than any file.
    std::os::unix::fs::symlink("/dev/zero", &path)?;
    let end = case.call(&["create", "--bundle", &bundle, &id])?.failure()?;
    assert!(end.stderr.contains("config.json"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// What is not known is passed over, however deep it is; nothing that is known is nested without end.
fn nested(case: &mut Case) -> Outcome {
    let whole = case.args(&["/probe", "exit", "5"]).config.to_string();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
        fs::write(case.bundle.path().join("config.json"), whole.replacen('{', &format!("{{\"unknown\": {deep},"), 1))?;
        let (bundle, id) = (case.bundle.path().display().to_string(), case.id.clone());
        let end = case.call(&["run", "--bundle", &bundle, &id])?;
        assert_eq!(end.code, 5, "{:.300}", end.stderr);
        for known in ["process", "mounts", "annotations"] {
            let end = refused_text(case, &whole.replacen('{', &format!("{{\"{known}\": {deep},"), 1))?;
            assert!(end.stderr.contains("config.json"), "{known}: {:.300}", end.stderr);
            assert!(end.stderr.len() < 4000, "{known}: {}", end.stderr.len());
        }
    }
    Ok(())
}

/// Sets the value at a JSON pointer, or adds it to the object above.
fn set(config: &mut Value, pointer: &str, value: Value) {
    let (above, name) = pointer.rsplit_once('/').unwrap_or_default();
    if let Some(place) = config.pointer_mut(above) {
        match place {
            Value::Object(map) => drop(map.insert(name.to_owned(), value)),
            Value::Array(list) => list.push(value),
            _ => (),
        }
    }
}

/// Each value in its place is refused, and the field is named with its line.
fn each_refused(case: &mut Case, rows: &[(&str, Value, &str)]) -> Outcome {
    let whole = case.config.clone();
    for (pointer, value, field) in rows {
        case.config = whole.clone();
        set(&mut case.config, pointer, value.clone());
        let text = serde_json::to_string_pretty(&case.config)?;
        let end = refused_text(case, &text)?;
        assert!(end.stderr.contains(field), "{pointer} = {value}: {}", end.stderr);
        let located =
            end.stderr.split_once("config.json:").map(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
        assert_eq!(located, Some(true), "{pointer} = {value}: {}", end.stderr);
    }
    Ok(())
}

fn numbers(case: &mut Case) -> Outcome {
    let rlimit = |soft: Value| json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": 10}]);
    let device = |minor: Value| json!([{"path": "/dev/x", "type": "c", "major": 1, "minor": minor}]);
    let map = |size: Value| json!([{"containerID": 0, "hostID": 0, "size": size}]);
    each_refused(
        case,
        &[
            ("/process/user/uid", json!(-1), "process.user.uid"),
            ("/process/user/uid", json!(1u64 << 32), "process.user.uid"),
            ("/process/user/gid", json!(1.5), "process.user.gid"),
            ("/process/user/additionalGids", json!([0, -5]), "process.user.additionalGids[1]"),
            ("/process/user/umask", json!(0o1000), "process.user.umask"),
            ("/process/rlimits", rlimit(json!(-1)), "process.rlimits[0].soft"),
            ("/process/rlimits", rlimit(json!(1e300)), "process.rlimits[0].soft"),
            ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj"),
            ("/process/oomScoreAdj", json!(-1001), "process.oomScoreAdj"),
            ("/process/oomScoreAdj", json!(1i64 << 40), "process.oomScoreAdj"),
            ("/process/consoleSize", json!({"height": 70_000, "width": 1}), "process.consoleSize.height"),
            ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), "process.ioPriority.priority"),
            ("/linux/devices", device(json!(-1)), "linux.devices[0].minor"),
            ("/linux/devices", device(json!(u64::MAX)), "linux.devices[0].minor"),
            ("/linux/devices", device(json!(1u64 << 40)), "linux.devices[0].minor"),
            ("/linux/uidMappings", map(json!(-1)), "linux.uidMappings[0].size"),
            ("/linux/resources", json!({"pids": {"limit": 1e20}}), "linux.resources.pids.limit"),
            ("/linux/resources", json!({"cpu": {"shares": -1}}), "linux.resources.cpu.shares"),
            ("/linux/timeOffsets", json!({"monotonic": {"secs": u64::MAX}}), "linux.timeOffsets.monotonic.secs"),
            ("/hooks", json!({"prestart": [{"path": "/x", "timeout": 0}]}), "hooks.prestart[0].timeout"),
            ("/hooks", json!({"poststop": [{"path": "/x", "timeout": -9}]}), "hooks.poststop[0].timeout"),
            ("/hooks", json!({"poststop": [{"path": "/x", "timeout": u64::MAX}]}), "hooks.poststop[0].timeout"),
        ],
    )
}

fn types(case: &mut Case) -> Outcome {
    each_refused(
        case,
        &[
            ("/ociVersion", json!(1.0), "ociVersion"),
            ("/process/args", json!("sh"), "process.args"),
            ("/process/args", json!(["sh", 1]), "process.args[1]"),
            ("/process/env", json!({"PATH": "/bin"}), "process.env"),
            ("/process/cwd", json!(["/"]), "process.cwd"),
            ("/process/terminal", json!("no"), "process.terminal"),
            ("/process/user", json!("root"), "process.user"),
            ("/root", json!("rootfs"), "root"),
            ("/root/path", json!(7), "root.path"),
            ("/root/readonly", json!(1), "root.readonly"),
            ("/mounts", json!({}), "mounts"),
            ("/mounts/-", json!("/proc"), "mounts[6]"),
            ("/mounts/-", json!({"destination": "/x", "type": "tmpfs", "options": "ro"}), "mounts[6].options"),
            ("/hooks", json!({"prestart": {"path": "/x"}}), "hooks.prestart"),
            ("/linux", json!(true), "linux"),
            ("/linux/namespaces", json!(["pid"]), "linux.namespaces[0]"),
            ("/linux/maskedPaths", json!("/proc"), "linux.maskedPaths"),
            ("/linux/sysctl", json!({"net.ipv4.ip_forward": 1}), "linux.sysctl.net.ipv4.ip_forward"),
            ("/linux/seccomp", json!({"syscalls": {}}), "linux.seccomp.syscalls"),
        ],
    )
}

fn twice(case: &mut Case) -> Outcome {
    let text = case.config.to_string().replacen('{', "{\"hostname\": \"other\", ", 1);
    let end = refused_text(case, &text)?;
    assert!(end.stderr.contains("hostname"), "{}", end.stderr);
    Ok(())
}

/// A C string would end there, and mean another thing than what was checked.
fn nul(case: &mut Case) -> Outcome {
    let bind = |source: &str, place: &str| json!({"destination": place, "source": source, "options": ["bind"]});
    each_refused(
        case,
        &[
            ("/process/args", json!(["/probe\0x"]), "process.args[0]"),
            ("/process/env", json!(["A=1", "B=\0"]), "process.env[1]"),
            ("/process/cwd", json!("/\0"), "process.cwd"),
            ("/root/path", json!("rootfs\0"), "root.path"),
            ("/hostname", json!("a\0b"), "hostname"),
            ("/mounts/-", bind("/tmp\0", "/mnt"), "mounts[6].source"),
            ("/mounts/-", bind("/tmp", "/mnt\0"), "mounts[6].destination"),
            ("/linux/maskedPaths", json!(["/proc/\0"]), "linux.maskedPaths[0]"),
            ("/linux/readonlyPaths", json!(["/proc/\0"]), "linux.readonlyPaths[0]"),
        ],
    )
}

/// As of an engine whose image has no command: podman and docker take 127 from these words. The runtime's own exit code is
/// that of any program that is not found.
fn nameless(case: &mut Case) -> Outcome {
    case.config["process"]["args"] = json!([""]);
    let text = case.config.to_string();
    let end = refused_text(case, &text)?;
    assert!(
        end.stderr.contains("process.args[0]: is the empty string: exec: \"\": executable file not found in $PATH"),
        "{}",
        end.stderr
    );
    let nameless = end.code;
    case.config["process"]["args"] = json!(["no-such-program"]);
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("executable file not found in $PATH"), "{}", end.stderr);
    assert_eq!((nameless, end.code), (1, 1));
    Ok(())
}

fn relative(case: &mut Case) -> Outcome {
    let device = |path: &str| json!([{"path": path, "type": "c", "major": 1, "minor": 3}]);
    each_refused(
        case,
        &[
            ("/process/cwd", json!("home"), "process.cwd"),
            ("/process/cwd", json!(""), "process.cwd"),
            ("/linux/maskedPaths", json!(["/proc/kcore", "proc/keys"]), "linux.maskedPaths[1]"),
            ("/linux/readonlyPaths", json!([""]), "linux.readonlyPaths[0]"),
            ("/linux/devices", device("dev/x"), "linux.devices[0].path"),
            ("/linux/devices", json!([{"type": "c", "major": 1, "minor": 3}]), "linux.devices[0].path"),
            ("/root", json!({}), "root.path"),
            ("/root", json!({"path": ""}), "root.path"),
            ("/mounts/-", json!({"type": "tmpfs"}), "mounts[6].destination"),
        ],
    )
}

fn annotations(case: &mut Case) -> Outcome {
    each_refused(
        case,
        &[
            ("/annotations", json!(["a"]), "annotations"),
            ("/annotations", json!({"a": 1}), "annotations"),
            ("/annotations", json!({"": "x"}), "annotations"),
        ],
    )?;
    let text = case.config.to_string().replacen('{', "{\"annotations\": {\"a\": \"x\", \"a\": \"x\"}, ", 1);
    let end = refused_text(case, &text)?;
    assert!(end.stderr.contains("annotations") && end.stderr.contains("twice"), "{}", end.stderr);
    Ok(())
}

fn root(case: &mut Case) -> Outcome {
    fs::write(case.bundle.path().join("file"), "x")?;
    std::os::unix::fs::symlink("nowhere", case.bundle.path().join("link"))?;
    for path in ["missing", "file", "link", "rootfs/probe"] {
        case.config["root"]["path"] = path.into();
        let end = refused(case)?;
        assert!(end.stderr.contains(path) || case.stage.runtime.name != "ferry", "{path}: {}", end.stderr);
    }
    if let Some(config) = case.config.as_object_mut() {
        config.remove("root");
    }
    let end = refused(case)?;
    assert!(end.stderr.contains("root"), "{}", end.stderr);
    Ok(())
}

fn one_mapping(case: &mut Case) -> Outcome {
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    for field in ["uidMappings", "gidMappings"] {
        let row = json!({"destination": "/mnt", "source": "/tmp", "options": ["bind"], field: map});
        each_refused(case, &[("/mounts/-", row, "mounts[6].uidMappings")])?;
    }
    Ok(())
}

fn duplicate_mounts(case: &mut Case) -> Outcome {
    for source in ["first", "second"] {
        add(&mut case.config, "/mounts", mount("tmpfs", source, "/mnt", &["nosuid"]));
    }
    let report = case.report()?;
    let sources: Vec<&Value> = report["mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|row| row["point"] == "/mnt")
        .map(|row| &row["source"])
        .collect();
    assert_eq!(sources, ["first", "second"]);
    Ok(())
}

fn many_mounts(case: &mut Case) -> Outcome {
    const MANY: usize = 10_000;
    let source = case.host_directory("source")?;
    fs::write(source.join("file"), "x")?;
    add(&mut case.config, "/mounts", mount("tmpfs", "tmpfs", "/mnt", &[]));
    let rows =
        (0..MANY).map(|index| crate::rootfs_fixtures::config::bind(&source, &format!("/mnt/{index}"), &["bind"]));
    rows.for_each(|row| add(&mut case.config, "/mounts", row));
    case.args(&["/probe", "read", &format!("/mnt/{}/file", MANY - 1)]);
    assert_eq!(case.run()?.success()?.json()?["ok"], "x");
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn ids(case: &mut Case) -> Outcome {
    let bundle = case.write_config()?;
    let long = "a".repeat(1024);
    for id in ["", ".", "..", "a/b", "/", "../../x", "a\nb", "a b", "\u{e4}", "a*", "$(id)", &long] {
        for verb in
            [&["create", "--bundle", &bundle, id][..], &["state", id], &["delete", "--force", id], &["kill", id]]
        {
            let end = case.call(verb)?.failure()?;
            assert!(end.stderr.len() < 1000, "{verb:?}: {}", end.stderr);
        }
    }
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    assert!(!case.directory.join("x").exists() && case.bundle.path().exists());
    Ok(())
}

fn other_file(case: &mut Case) -> Outcome {
    for (destination, text) in [("home/node", "mine"), ("home/pipe", "mine")] {
        case.bundle.file(destination, text)?;
    }
    for row in [
        json!({"path": "/home/node", "type": "c", "major": 1, "minor": 3}),
        json!({"path": "/home/node", "type": "b", "major": 1, "minor": 3}),
        json!({"path": "/home/pipe", "type": "p"}),
        // There already, as another device.
        json!({"path": "/home/zero", "type": "c", "major": 1, "minor": 3}),
    ] {
        let zero = case.bundle.inside("home/zero");
        if !zero.exists() {
            let made = std::process::Command::new("mknod").arg(&zero).args(["c", "1", "5"]).status()?;
            assert!(made.success(), "the test cannot make a device");
        }
        case.config["linux"]["devices"] = json!([row]);
        let end = refused(case)?;
        assert!(end.stderr.contains("device") && end.stderr.contains("another file"), "{row}: {}", end.stderr);
    }
    assert_eq!(fs::read_to_string(case.bundle.inside("home/node"))?, "mine");
    // The very device is one that is there.
    case.config["linux"]["devices"] = json!([{"path": "/home/zero", "type": "c", "major": 1, "minor": 5}]);
    assert_eq!(case.deed(&["stat", "/home/zero"])?["ok"]["minor"], 5);
    Ok(())
}

fn no_resctrl(case: &mut Case) -> Outcome {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(2) == Some("resctrl")) {
        return Err("this test is for a machine without resctrl".into());
    }
    for row in
        [json!({}), json!({"closID": "gold"}), json!({"l3CacheSchema": "L3:0=f"}), json!({"enableMonitoring": true})]
    {
        case.config["linux"]["intelRdt"] = row.clone();
        let end = refused(case)?;
        assert!(end.stderr.contains("linux.intelRdt") && end.stderr.contains("resctrl"), "{row}: {}", end.stderr);
    }
    Ok(())
}

fn block_devices(case: &mut Case) -> Outcome {
    let place = |field: &str, row: Value| json!({"blockIO": {field: [row]}});
    each_refused(
        case,
        &[
            ("/linux/resources", place("weightDevice", json!({"major": 8, "minor": 0})), "blockIO.weightDevice[0]"),
            ("/linux/resources", place("weightDevice", json!({"minor": 0, "weight": 10})), "blockIO.weightDevice[0]"),
            (
                "/linux/resources",
                place("throttleReadBpsDevice", json!({"major": 8, "minor": 0})),
                "blockIO.throttleReadBpsDevice[0]",
            ),
            (
                "/linux/resources",
                place("throttleWriteIOPSDevice", json!({"major": 8, "rate": 9})),
                "blockIO.throttleWriteIOPSDevice[0]",
            ),
        ],
    )
}

fn seccomp_rules(case: &mut Case) -> Outcome {
    let profile = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    for (rule, field) in [
        (json!({"action": "SCMP_ACT_KILL"}), "syscalls[0].names"),
        (json!({"names": [], "action": "SCMP_ACT_KILL"}), "syscalls[0].names"),
        (json!({"names": ["read"]}), "syscalls[0].action"),
        (json!({"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1}), "syscalls[0].errnoRet"),
    ] {
        case.config["linux"]["seccomp"] = profile(rule.clone());
        let end = refused(case)?;
        assert!(end.stderr.contains(field), "{rule}: {}", end.stderr);
    }
    Ok(())
}
