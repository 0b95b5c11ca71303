//! Namespaces: new ones, joined ones, none, and what is inside each.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::mounts::HostMount;
use super::need::Need::{OrdinaryUser, Peer, Root};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("each_listed_namespace_is_new", &[], all_new),
    scenario("each_namespace_left_out_is_the_callers", &[Root], each_left_out),
    scenario("without_a_network_namespace_the_hosts_is_seen", &[], host_network),
    scenario("join_by_path", &[Root], join_by_path),
    scenario("join_a_pid_namespace", &[Root], join_pid),
    scenario("join_a_user_namespace", &[Root, Peer("runc", "1.1.5: no access to the root directory")], join_user),
    scenario("join_a_network_namespace_with_a_new_user_namespace", &[Root], join_network_new_user),
    scenario("join_from_inside_of_a_user_namespace", &[], join_from_inside),
    scenario("join_a_path_that_is_missing_is_refused", &[], join_missing),
    scenario("join_a_namespace_of_another_type_is_refused", &[Root, Peer("crun", "no check")], join_wrong_type),
    scenario("a_namespace_listed_twice_is_refused", &[Peer("crun", "succeeds")], listed_twice),
    scenario("a_relative_path_is_refused", &[Peer("crun", "no check")], relative_path),
    scenario("user_namespace_with_maps", &[Root], maps),
    scenario("user_namespace_with_several_maps", &[Root], several_maps),
    scenario("user_namespace_files_belong_to_the_mapped_ids", &[Root], file_owners),
    scenario(
        "user_namespace_message_queues_belong_to_its_root",
        &[Root, Peer("runc", "1.1.5: their group is nobody")],
        message_queues,
    ),
    scenario("user_namespace_of_a_single_id", &[OrdinaryUser], single_id),
    scenario("user_namespace_without_maps_is_refused", &[Root, Peer("crun", "invents a map")], no_maps),
    scenario(
        "maps_without_a_user_namespace_are_refused",
        &[Root, Peer("crun", "ignores them"), Peer("runc", "1.1.5: ignores them")],
        maps_alone,
    ),
    scenario("time_namespace_offsets", &[Peer("runc", "1.1.5 has none"), Peer("crun", "1.8.1 has none")], time_offsets),
    scenario(
        "nanoseconds_of_a_time_offset",
        &[Peer("runc", "1.1.5 has none"), Peer("crun", "1.8.1 has none")],
        time_nanosecs,
    ),
    scenario("hostname", &[], hostname),
    scenario("domainname", &[Peer("runc", "1.1.5 has none")], domainname),
    scenario("the_hosts_name_is_unchanged", &[], host_name_unchanged),
    scenario("hostname_without_a_uts_namespace_is_refused", &[Root], hostname_without_uts),
    scenario("loopback_is_up_in_a_new_network_namespace", &[], loopback),
    scenario("a_new_network_namespace_has_loopback_alone", &[], only_loopback),
    scenario("a_new_ipc_namespace_is_empty", &[], empty_ipc),
    scenario(
        "without_a_mount_namespace_nothing_of_the_host_is_touched",
        &[Root, Peer("runc", "mounts on the host"), Peer("crun", "mounts on the host")],
        nothing_mounted,
    ),
    scenario(
        "without_a_mount_namespace_the_hosts_own_root_is_not_mounted_over",
        &[Root, Peer("runc", "mounts on the host"), Peer("crun", "mounts on the host")],
        done_to_the_host,
    ),
    scenario(
        "without_a_mount_namespace_a_user_namespace_mounts_nothing",
        &[Root, Peer("runc", "mounts on the host"), Peer("crun", "mounts on the host")],
        with_a_user_namespace,
    ),
    scenario(
        "without_a_mount_namespace_mounts_are_the_hosts_until_the_end",
        &[Root, Peer("runc", "leaves them"), Peer("crun", "leaves them")],
        mounted_on_the_host,
    ),
    scenario("a_new_cgroup_namespace_begins_at_the_containers_cgroup", &[], cgroup_root),
];

const TYPES: [(&str, &str); 6] =
    [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("mount", "mnt"), ("cgroup", "cgroup")];

fn own(name: &str) -> Result<Value, Failed> {
    Ok(json!(fs::read_link(Path::new("/proc/self/ns").join(name))?))
}

fn all_new(case: &mut Case) -> Outcome {
    let report = case.report()?;
    for (_, name) in TYPES {
        assert_ne!(report["namespaces"][name], own(name)?, "{name}");
    }
    let user_is_new = report["namespaces"]["user"] != own("user")?;
    assert_eq!(user_is_new, !nix::unistd::geteuid().is_root());
    Ok(())
}

fn each_left_out(case: &mut Case) -> Outcome {
    config::without_mount(&mut case.config, "/dev/mqueue");
    case.config["linux"]["maskedPaths"] = json!([]);
    case.config["linux"]["readonlyPaths"] = json!([]);
    let whole = case.config.clone();
    for (kind, name) in TYPES.iter().filter(|(kind, _)| *kind != "mount") {
        case.config = whole.clone();
        config::without_namespace(&mut case.config, kind);
        if *kind == "uts" {
            case.config["hostname"] = Value::Null;
        }
        let report = case.report()?;
        for (_, other) in TYPES {
            assert_eq!(report["namespaces"][other] == own(other)?, other == *name, "without {kind}: {other}");
        }
    }
    Ok(())
}

fn host_network(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "network");
    if !nix::unistd::geteuid().is_root() {
        // sysfs of a network namespace that belongs to another user namespace cannot be mounted.
        config::without_mount(&mut case.config, "/sys");
    }
    assert_eq!(case.report()?["namespaces"]["net"], own("net")?);
    Ok(())
}

/// A container that waits, whose namespaces another then joins; its first process.
fn holder(case: &mut Case) -> Result<u32, Failed> {
    let (id, mine) = (case.other_id(), case.config.clone());
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let pid_file = case.path("holder");
    case.begin(&["run", "-d", "--pid-file", &pid_file, "-b", &bundle, &id])?.until("ready")?;
    case.config = mine;
    Ok(fs::read_to_string(&pid_file)?.parse()?)
}

fn join_by_path(case: &mut Case) -> Outcome {
    let pid = holder(case)?;
    for (kind, name) in TYPES.iter().filter(|(kind, _)| !["pid", "mount"].contains(kind)) {
        config::join_namespace(&mut case.config, kind, &format!("/proc/{pid}/ns/{name}"));
    }
    case.config["hostname"] = Value::Null;
    let report = case.report()?;
    for (kind, name) in TYPES {
        let theirs = json!(fs::read_link(format!("/proc/{pid}/ns/{name}"))?);
        assert_eq!(report["namespaces"][name] == theirs, !["pid", "mount"].contains(&kind), "{kind}");
    }
    assert_eq!(report["hostname"], "ship");
    Ok(())
}

fn join_pid(case: &mut Case) -> Outcome {
    let pid = holder(case)?;
    config::join_namespace(&mut case.config, "pid", &format!("/proc/{pid}/ns/pid"));
    let report = case.report()?;
    assert_eq!(report["processes"], json!([1, report["pid"]]));
    assert_eq!(report["namespaces"]["pid"], json!(fs::read_link(format!("/proc/{pid}/ns/pid"))?));
    Ok(())
}

fn join_user(case: &mut Case) -> Outcome {
    let plain = case.config.clone();
    mapped(case, 100_000)?;
    let pid = holder(case)?;
    case.config = plain;
    config::join_namespace(&mut case.config, "user", &format!("/proc/{pid}/ns/user"));
    let report = case.report()?;
    assert_eq!(report["uid_map"], json!([[0, 100_000, 1000]]));
    assert_eq!(report["namespaces"]["user"], json!(fs::read_link(format!("/proc/{pid}/ns/user"))?));
    Ok(())
}

/// The network namespace belongs to the host's user namespace: it has to be joined before the new one is entered, and
/// sysfs cannot be mounted for it.
fn join_network_new_user(case: &mut Case) -> Outcome {
    let pid = holder(case)?;
    config::join_namespace(&mut case.config, "network", &format!("/proc/{pid}/ns/net"));
    config::without_mount(&mut case.config, "/sys");
    mapped(case, 100_000)?;
    let report = case.report()?;
    assert_eq!(report["namespaces"]["net"], json!(fs::read_link(format!("/proc/{pid}/ns/net"))?));
    assert_eq!(report["uid_map"], json!([[0, 100_000, 1000]]));
    Ok(())
}

/// As the engine of an ordinary user calls it: as root of a user namespace, which has the network namespace to be joined, but
/// not the one that the runtime comes from and its hooks run in.
fn join_from_inside(case: &mut Case) -> Outcome {
    let (network, hooked) = (case.path("network"), case.path("hooked"));
    fs::write(&network, "")?;
    config::join_namespace(&mut case.config, "network", &network);
    config::without_mount(&mut case.config, "/sys");
    let note = format!("readlink /proc/self/ns/net >>{hooked}");
    case.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", note]}]});
    case.args(&["/probe"]);
    for own in [false, true] {
        config::without_namespace(&mut case.config, "user");
        case.config["linux"]["uidMappings"] = Value::Null;
        case.config["linux"]["gidMappings"] = Value::Null;
        if own {
            config::user_namespace(&mut case.config, (0, 0), 1);
        }
        let (bundle, id) = (case.write_config()?, case.id.clone());
        let runtime = case.command(&["run", "--bundle", &bundle, &id]);
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", "unshare --net=$0 true && exec \"$@\"", &network]);
        command.arg(runtime.get_program()).args(runtime.get_args());
        command.envs(runtime.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
        let report = case.finish(&mut command)?.success()?.json()?;
        let outside = fs::read_link("/proc/self/ns/net")?;
        assert_ne!(report["namespaces"]["net"], json!(outside));
        assert_eq!(fs::read_to_string(&hooked)?.lines().next(), outside.to_str());
        fs::remove_file(&hooked)?;
    }
    Ok(())
}

fn join_missing(case: &mut Case) -> Outcome {
    config::join_namespace(&mut case.config, "network", "/no/such/namespace");
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("/no/such/namespace") || case.stage.runtime.name == "crun", "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn join_wrong_type(case: &mut Case) -> Outcome {
    config::join_namespace(&mut case.config, "network", "/proc/self/ns/ipc");
    case.run()?.failure().map(drop)
}

fn listed_twice(case: &mut Case) -> Outcome {
    config::add(&mut case.config, "/linux/namespaces", json!({"type": "ipc"}));
    case.run()?.failure().map(drop)
}

fn relative_path(case: &mut Case) -> Outcome {
    config::join_namespace(&mut case.config, "ipc", "ns/ipc");
    case.run()?.failure().map(drop)
}

pub fn mapped(case: &mut Case, outside: u32) -> Outcome {
    config::user_namespace(&mut case.config, (outside, outside), 1000);
    Ok(case.bundle.give_to(outside)?)
}

fn maps(case: &mut Case) -> Outcome {
    mapped(case, 100_000)?;
    let report = case.report()?;
    assert_eq!((&report["uid_map"], &report["gid_map"]), (&json!([[0, 100_000, 1000]]), &json!([[0, 100_000, 1000]])));
    assert_eq!((&report["uid"]["real"], &report["setgroups"]), (&json!(0), &json!("allow")));
    assert_ne!(report["namespaces"]["user"], own("user")?);
    Ok(())
}

fn several_maps(case: &mut Case) -> Outcome {
    mapped(case, 100_000)?;
    let second = json!({"containerID": 5000, "hostID": 300_000, "size": 10});
    config::add(&mut case.config, "/linux/uidMappings", second.clone());
    config::add(&mut case.config, "/linux/gidMappings", second);
    case.config["process"]["user"] = json!({"uid": 5001, "gid": 5002, "additionalGids": [7, 5003]});
    let report = case.report()?;
    assert_eq!(report["uid_map"], json!([[0, 100_000, 1000], [5000, 300_000, 10]]));
    assert_eq!((&report["uid"]["effective"], &report["gid"]["effective"]), (&json!(5001), &json!(5002)));
    assert_eq!(report["groups"], json!([7, 5003]));
    Ok(())
}

fn file_owners(case: &mut Case) -> Outcome {
    use std::os::unix::fs::MetadataExt;
    mapped(case, 100_000)?;
    assert!(case.deed(&["write", "/home/new", "x"])?["error"].is_null());
    let made = fs::metadata(case.bundle.inside("home/new"))?;
    assert_eq!((made.uid(), made.gid()), (100_000, 100_000));
    assert_eq!(case.deed(&["stat", "/probe"])?["ok"]["uid"], 65534);
    assert_eq!(case.deed(&["stat", "/dev/null"])?["ok"]["major"], 1);
    Ok(())
}

fn single_id(case: &mut Case) -> Outcome {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let report = case.report()?;
    assert_eq!((&report["uid_map"], &report["gid_map"]), (&json!([[0, uid, 1]]), &json!([[0, gid, 1]])));
    assert_eq!(report["uid"]["real"], 0);
    Ok(())
}

fn no_maps(case: &mut Case) -> Outcome {
    config::add(&mut case.config, "/linux/namespaces", json!({"type": "user"}));
    case.run()?.failure().map(drop)
}

fn maps_alone(case: &mut Case) -> Outcome {
    case.config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    case.run()?.failure().map(drop)
}

fn time_offsets(case: &mut Case) -> Outcome {
    config::add(&mut case.config, "/linux/namespaces", json!({"type": "time"}));
    case.config["linux"]["timeOffsets"] =
        json!({"boottime": {"secs": 1_000_000, "nanosecs": 0}, "monotonic": {"secs": 7}});
    let report = case.report()?;
    assert_ne!(report["namespaces"]["time"], own("time")?);
    let uptime = case.deed(&["read", "/proc/uptime"])?;
    let seconds: f64 = uptime["ok"].as_str().and_then(|text| text.split(' ').next()).unwrap_or_default().parse()?;
    assert!(seconds > 1_000_000.0, "{uptime}");
    Ok(())
}

fn message_queues(case: &mut Case) -> Outcome {
    mapped(case, 100_000)?;
    let queues = case.deed(&["stat", "/dev/mqueue"])?;
    assert_eq!((&queues["ok"]["uid"], &queues["ok"]["gid"]), (&json!(0), &json!(0)), "{queues}");
    Ok(())
}

fn time_nanosecs(case: &mut Case) -> Outcome {
    config::add(&mut case.config, "/linux/namespaces", json!({"type": "time"}));
    case.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 5000, "nanosecs": 900_000_000}});
    let seconds = |uptime: &str| uptime.split(' ').next().unwrap_or_default().parse::<f64>();
    let before = seconds(&std::fs::read_to_string("/proc/uptime")?)?;
    let inside = case.deed(&["read", "/proc/uptime"])?;
    let inside = seconds(inside["ok"].as_str().unwrap_or_default())?;
    // The file has hundredths.
    assert!(inside >= before + 5000.88, "{before} {inside}");
    Ok(())
}

fn hostname(case: &mut Case) -> Outcome {
    case.config["hostname"] = "frigate".into();
    assert_eq!(case.report()?["hostname"], "frigate");
    Ok(())
}

fn domainname(case: &mut Case) -> Outcome {
    case.config["domainname"] = "fleet.example".into();
    assert_eq!(case.report()?["domainname"], "fleet.example");
    Ok(())
}

fn host_name_unchanged(case: &mut Case) -> Outcome {
    let before = fs::read_to_string("/proc/sys/kernel/hostname")?;
    case.report()?;
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname")?, before);
    Ok(())
}

fn hostname_without_uts(case: &mut Case) -> Outcome {
    let before = fs::read_to_string("/proc/sys/kernel/hostname")?;
    config::without_namespace(&mut case.config, "uts");
    case.run()?.failure()?;
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname")?, before);
    Ok(())
}

fn loopback(case: &mut Case) -> Outcome {
    let flags = case.deed(&["read", "/sys/class/net/lo/flags"])?;
    assert_eq!(flags["ok"], "0x9\n", "IFF_UP and IFF_LOOPBACK");
    Ok(())
}

fn only_loopback(case: &mut Case) -> Outcome {
    let devices = case.deed(&["read", "/proc/net/dev"])?;
    let names: Vec<&str> = devices["ok"]
        .as_str()
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    // The kernel may add tunnels of its own modules to every namespace.
    assert!(names.contains(&"lo") && !names.iter().any(|name| name.starts_with("eth")), "{names:?}");
    Ok(())
}

fn empty_ipc(case: &mut Case) -> Outcome {
    let segments = case.deed(&["read", "/proc/sysvipc/shm"])?;
    assert_eq!(segments["ok"].as_str().map(|text| text.lines().count()), Some(1));
    Ok(())
}

fn cgroup_root(case: &mut Case) -> Outcome {
    let report = case.report()?;
    for line in report["cgroup"].as_array().into_iter().flatten() {
        assert!(line.as_str().is_some_and(|line| line.ends_with(":/")), "{line}");
    }
    Ok(())
}

/// What would be done to the host itself.
fn done_to_the_host(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "mount");
    case.config["root"]["path"] = json!("/");
    case.config["root"]["readonly"] = json!(true);
    case.config["linux"]["rootfsPropagation"] = json!("shared");
    for (field, nothing) in [
        ("/linux/rootfsPropagation", json!("")),
        ("/mounts", json!([])),
        ("/root/readonly", json!(false)),
        ("/linux/maskedPaths", json!([])),
        ("/linux/readonlyPaths", json!([])),
    ] {
        let end = case.run()?.failure()?;
        let said = format!("{}: needs a mount namespace", field[1..].replace('/', "."));
        assert!(end.stderr.contains(&said), "{field}: {}", end.stderr);
        if let Some(value) = case.config.pointer_mut(field) {
            *value = nothing;
        }
    }
    Ok(())
}

fn with_a_user_namespace(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "mount");
    config::user_namespace(&mut case.config, (100_000, 100_000), 65536);
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("mounts: needs a mount namespace: a user namespace cannot"), "{}", end.stderr);
    Ok(())
}

/// How many mounts of the host there are at the container's root, or below it.
fn mounted_below(root: &Path) -> Result<usize, Failed> {
    let below = |line: &&str| line.split(' ').nth(4).is_some_and(|point| Path::new(point).starts_with(root));
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter(below).count())
}

/// Its mounts are the host's as long as it is there, and no longer; what the host had there before stays.
fn mounted_on_the_host(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "mount");
    case.config["root"]["readonly"] = json!(true);
    let rootfs = case.bundle.rootfs();
    let _around = HostMount::shared(case.bundle.path().to_owned())?;
    let _before = HostMount::of_itself(rootfs.clone())?;
    // Where the host's own mounts are shared, too, there is one more of it beneath.
    let before = mounted_below(&rootfs)?;
    case.start_waiting()?;
    assert!(mounted_below(&rootfs)? > before + 3, "nothing is mounted on the host");
    let seen = case.exec(&[], &["/probe", "list", "/proc/self"])?.success()?;
    assert!(seen.stdout.contains("mountinfo"), "{}", seen.stdout);
    let written = case.exec(&[], &["/probe", "write", "/new", "x"])?.success()?.json()?;
    assert_eq!(written["error"], nix::libc::EROFS, "{written}");
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(mounted_below(&rootfs)?, before);
    // One that never comes to be leaves nothing, either.
    case.args(&["/nowhere"]);
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("mount namespace: what it mounts is mounted on the host"), "{}", end.stderr);
    assert_eq!(mounted_below(&rootfs)?, before);
    // Nor does one that has ended by itself.
    case.args(&["/probe", "say", "aboard"]);
    assert_eq!(case.run()?.success()?.stdout.trim(), "aboard");
    assert_eq!(mounted_below(&rootfs)?, before);
    Ok(())
}

/// Nothing is mounted on the host, whose root stays what it is.
fn nothing_mounted(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "mount");
    case.args(&["/probe", "say", "aboard"]);
    for (field, nothing) in [
        ("/mounts", json!([])),
        ("/root/readonly", json!(false)),
        ("/linux/maskedPaths", json!([])),
        ("/linux/readonlyPaths", json!([])),
    ] {
        if let Some(value) = case.config.pointer_mut(field) {
            *value = nothing;
        }
    }
    // A root that is a mount point is one that pivot_root would take.
    let rootfs = case.bundle.rootfs();
    let mounted = HostMount::of_itself(rootfs)?;
    let host = || -> Result<_, Failed> {
        let root = fs::metadata("/")?;
        Ok((std::os::unix::fs::MetadataExt::ino(&root), fs::read_dir("/")?.count()))
    };
    let before = host()?;
    let end = case.run();
    let after = host()?;
    drop(mounted);
    assert_eq!((end?.success()?.stdout.trim(), before), ("aboard", after));
    Ok(())
}
