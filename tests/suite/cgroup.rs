//! Control groups: where a container is put, what is limited, freezing, counting, and that nothing is left.
//!
//! What needs only the v2 tree (freezing, killing, places) runs on any host that has it mounted; what needs controllers
//! runs where they are in that tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::{Case, marked_processes};
use super::need::Need::{CgroupV2, Ferry, OrdinaryUser, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario("pause_and_resume", &[Root, CgroupV2(&[])], pause),
    scenario("a_paused_container_is_not_entered", &[Root, CgroupV2(&[])], paused_exec),
    scenario("a_paused_container_can_be_deleted_by_force", &[Root, CgroupV2(&[])], paused_delete),
    scenario("one_that_is_paused_before_its_start_is_not_started", &[Root, CgroupV2(&[])], paused_start),
    scenario("resume_of_a_running_container_is_refused", &[Root, CgroupV2(&[])], resume_running),
    scenario("kill_all_without_a_pid_namespace", &[Root, CgroupV2(&[])], kill_all),
    scenario("kill_all_without_a_cgroup", &[Root, Ferry], kill_all_related),
    scenario("delete_force_without_a_pid_namespace_leaves_no_process", &[Root, CgroupV2(&[])], delete_shared_pid),
    scenario("cgroups_path_is_where_it_is_put", &[Root, CgroupV2(&[])], path),
    scenario("exec_is_in_the_containers_cgroup", &[Root, CgroupV2(&[])], exec),
    scenario("a_cgroup_made_inside_is_removed_with_the_container", &[Root, CgroupV2(&[])], nested),
    scenario("a_container_divides_a_cgroup_that_is_mounted_writable", &[Root, Ferry, CgroupV2(&[])], owned),
    scenario("a_cgroup_that_cannot_be_written_stays_the_hosts", &[Root, Ferry, CgroupV2(&[])], not_owned),
    scenario("two_containers_do_not_share_a_cgroup", &[Root, CgroupV2(&[])], two),
    scenario("ps_shows_exactly_the_containers_processes", &[Root, CgroupV2(&[])], ps),
    scenario("the_cgroup_is_the_users_where_it_is_writable", &[Root, CgroupV2(&[])], owner),
    scenario("memory_limit", &[Root, CgroupV2(&["memory"])], memory),
    scenario("memory_swap_is_the_difference", &[Root, CgroupV2(&["memory"])], swap),
    scenario("too_much_memory_is_killed", &[Root, CgroupV2(&["memory"])], memory_kill),
    scenario("pids_limit", &[Root, CgroupV2(&["pids"])], pids),
    scenario("cpu_quota_and_weight", &[Root, CgroupV2(&["cpu"])], cpu),
    scenario("cpuset", &[Root, CgroupV2(&["cpuset"])], cpuset),
    scenario("unified", &[Root, CgroupV2(&["memory"])], unified),
    scenario("a_limit_out_of_range_is_refused", &[Root, CgroupV2(&["cpu"])], bad_limit),
    scenario("update", &[Root, CgroupV2(&["memory", "pids"])], update),
    scenario("update_from_a_file", &[Root, CgroupV2(&["memory"])], update_file),
    scenario("every_controller_counts_for_it", &[Root, CgroupV2(&["cpu", "memory", "pids"])], all_controllers),
    scenario("exec_below_the_containers_cgroup", &[Root, CgroupV2(&["pids"]), Ferry], exec_below),
    scenario("exec_follows_the_first_process", &[Root, CgroupV2(&["pids"]), Ferry], exec_follows),
    scenario("exec_where_the_cgroup_is_gone", &[Root, CgroupV2(&["pids"]), Ferry], exec_moved),
    scenario("events_stats", &[Root, CgroupV2(&["memory", "pids", "cpu"])], stats),
    scenario("without_a_tree_a_container_can_go_on", &[Root, Ferry, Tool("unshare")], without_a_tree),
    scenario("devices_are_denied", &[Root], devices),
    scenario("a_limit_without_delegation_is_refused", &[OrdinaryUser, Ferry], rootless_limit),
    scenario("without_limits_no_cgroup_is_needed", &[OrdinaryUser], rootless_none),
];

/// On a host that has mounted no cgroup tree, one that may do without goes on, and nobody else.
fn without_a_tree(case: &mut Case) -> Outcome {
    let mounts = case.config["mounts"].as_array().into_iter().flatten().filter(|row| row["type"] != "cgroup");
    case.config["mounts"] = mounts.cloned().collect();
    let (bundle, id) = (case.write_config()?, case.id.clone());
    let mut run = |rootless: &str| {
        let ferry = case.command(&["--rootless", rootless, "run", "--bundle", &bundle, &id]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", "umount -R /sys/fs/cgroup && exec \"$@\"", "sh"]);
        case.finish(command.arg(ferry.get_program()).args(ferry.get_args()))
    };
    run("true")?.success()?;
    for rootless in ["false", "auto"] {
        let end = run(rootless)?.failure()?;
        assert!(end.stderr.contains("cannot find a cgroup v2 tree"), "{rootless}: {}", end.stderr);
    }
    Ok(())
}

/// The container's directory in the v2 tree.
fn directory(case: &mut Case) -> Result<PathBuf, Failed> {
    let id = case.id.clone();
    directory_of(case, &id)
}

/// The directory of a container in the v2 tree.
pub fn directory_of(case: &mut Case, id: &str) -> Result<PathBuf, Failed> {
    let state = case.call(&["state", id])?.success()?.json()?;
    let text = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"]))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or("it is in no v2 cgroup")?;
    let tree = case.stage.cgroup_v2.clone().ok_or("there is no v2 tree")?;
    Ok(tree.join(path.trim_start_matches('/')))
}

/// A file of the container's cgroup.
fn file(case: &mut Case, name: &str) -> Result<String, Failed> {
    let path = directory(case)?.join(name);
    Ok(fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?.trim().to_owned())
}

fn limits(case: &mut Case, resources: Value) -> Outcome {
    case.config["linux"]["resources"] = resources;
    case.start_waiting()
}

fn verb(case: &mut Case, verb: &str) -> Outcome {
    let id = case.id.clone();
    case.call(&[verb, &id])?.success().map(drop)
}

fn pause(case: &mut Case) -> Outcome {
    let mut lines = case.args(&["/probe", "signal-wait"]).start()?;
    lines.until("ready")?;
    let (pid, id) = (case.pid()?, case.id.clone());
    verb(case, "pause")?;
    assert_eq!(case.state()?["status"], "paused");
    case.call(&["kill", &id, "USR1"])?.success()?;
    assert!(!super::output::wait_for_pid(pid, Duration::from_millis(200))?, "it went on while it was paused");
    verb(case, "resume")?;
    assert_eq!(lines.until("signal")?, "{\"signal\":10}");
    case.wait_for(pid)
}

fn paused_exec(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    verb(case, "pause")?;
    let end = case.exec(&[], &["/probe"])?.failure()?;
    assert!(end.stderr.contains("paused") || case.stage.runtime.name == "crun", "{}", end.stderr);
    Ok(())
}

fn paused_delete(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    verb(case, "pause")?;
    let (id, pid) = (case.id.clone(), case.pid()?);
    case.call(&["delete", "--force", &id])?.success()?;
    case.wait_for(pid)?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn paused_start(case: &mut Case) -> Outcome {
    let mut lines = case.args(&["/probe", "sleep", "forever"]).create()?;
    verb(case, "pause")?;
    assert_eq!(case.state()?["status"], "paused");
    let id = case.id.clone();
    let end = case.call(&["start", &id])?.failure()?;
    assert!(end.stderr.contains("paused"), "{}", end.stderr);
    verb(case, "resume")?;
    assert_eq!(case.state()?["status"], "created");
    verb(case, "start")?;
    lines.until("ready").map(drop)
}

fn resume_running(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    case.call(&["resume", &id])?.failure().map(drop)
}

/// Three processes in the host's pid namespace, which no kernel ends with the first.
fn shared_pid(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "pid");
    case.args(&["/probe", "fork", "3"]).start()?.until("ready")?;
    assert_eq!(marked_processes(&case.directory).len(), 4);
    Ok(())
}

fn all_end(case: &Case) -> Outcome {
    marked_processes(&case.directory).into_iter().try_for_each(|pid| case.wait_for(pid))?;
    assert_eq!(marked_processes(&case.directory), Vec::<u32>::new());
    Ok(())
}

fn kill_all(case: &mut Case) -> Outcome {
    shared_pid(case)?;
    let id = case.id.clone();
    case.call(&["kill", "--all", &id, "KILL"])?.success()?;
    all_end(case)
}

fn kill_all_related(case: &mut Case) -> Outcome {
    case.driver = "disabled";
    kill_all(case)
}

fn delete_shared_pid(case: &mut Case) -> Outcome {
    shared_pid(case)?;
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    all_end(case)?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn path(case: &mut Case) -> Outcome {
    let place = format!("/{}-harbour/berth", case.id);
    case.config["linux"]["cgroupsPath"] = place.as_str().into();
    case.start_waiting()?;
    let text = fs::read_to_string(format!("/proc/{}/cgroup", case.pid()?))?;
    assert!(text.lines().any(|line| line.ends_with(&place)), "{text}");
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    let left: Vec<PathBuf> = case.cgroups().into_iter().filter(|path| path.ends_with("berth")).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    // The parent was not the runtime's to make known; it is the test's to remove.
    case.cgroups().iter().rev().try_for_each(fs::remove_dir)?;
    Ok(())
}

fn exec(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (id, pid_file) = (case.id.clone(), case.path("pid"));
    case.begin(&["exec", "-d", "--pid-file", &pid_file, &id, "/probe", "sleep", "forever"])?.until("ready")?;
    let pid = fs::read_to_string(&pid_file)?;
    let of = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup"));
    assert_eq!(of(&pid)?, of(&case.pid()?.to_string())?);
    Ok(())
}

/// Also those that no limit needs: what the container uses is counted from its start.
fn all_controllers(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let offered = file(case, "cgroup.controllers")?;
    let words: Vec<&str> = offered.split_whitespace().collect();
    assert!(["cpu", "memory", "pids"].iter().all(|name| words.contains(name)), "{offered}");
    assert_ne!(file(case, "memory.current")?.trim(), "0");
    Ok(())
}

fn exec_below(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let own = directory(case)?;
    fs::create_dir(own.join("below"))?;
    let of = |report: &Value| report["cgroup"].to_string();
    let report = case.exec(&["--cgroup", "below"], &["/probe"])?.success()?.json()?;
    assert!(of(&report).contains("/below"), "{report}");
    for out in ["..", "below/../.."] {
        let end = case.exec(&["--cgroup", out], &["/probe"])?.failure()?;
        assert!(end.stderr.contains("bad sub cgroup path"), "{}", end.stderr);
    }
    let end = case.exec(&["--cgroup", "none"], &["/probe"])?.failure()?;
    assert!(end.stderr.contains("ENOENT") && end.stderr.contains("/none"), "{}", end.stderr);
    Ok(())
}

/// A domain that gives controllers away takes no process: `exec` follows the first one, but not where it was told better.
fn exec_follows(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let own = directory(case)?;
    fs::create_dir(own.join("below"))?;
    fs::write(own.join("below/cgroup.procs"), case.pid()?.to_string())?;
    fs::write(own.join("cgroup.subtree_control"), "+pids")?;
    case.exec(&[], &["/probe"])?.success()?;
    let end = case.exec(&["--cgroup", "/"], &["/probe"])?.failure()?;
    assert!(end.stderr.contains("EBUSY"), "{}", end.stderr);
    Ok(())
}

/// A container that has left its cgroup, which somebody then removed, still takes an `exec`.
fn exec_moved(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let own = directory(case)?;
    let other = own.with_file_name(format!("{}-other", case.id));
    fs::create_dir(&other)?;
    fs::write(other.join("cgroup.procs"), case.pid()?.to_string())?;
    fs::remove_dir(&own)?;
    let done = case.exec(&[], &["/probe"]).and_then(super::output::Output::success);
    let state = case.state();
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    fs::remove_dir(&other)?;
    done?;
    assert_eq!(state?["status"], "running");
    Ok(())
}

fn nested(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let inner = directory(case)?.join("made/inside");
    fs::create_dir_all(&inner)?;
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    assert!(!inner.exists());
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn two(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (bundle, other, pid_file) = (case.write_config()?, case.other_id(), case.path("other"));
    case.begin(&["run", "-d", "--pid-file", &pid_file, "-b", &bundle, &other])?.until("ready")?;
    let theirs = fs::read_to_string(format!("/proc/{}/cgroup", fs::read_to_string(&pid_file)?))?;
    assert_ne!(fs::read_to_string(format!("/proc/{}/cgroup", case.pid()?))?, theirs);
    case.call(&["delete", "--force", &other])?.success()?;
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn ps(case: &mut Case) -> Outcome {
    shared_pid(case)?;
    let id = case.id.clone();
    let told = case.call(&["ps", "--format", "json", &id])?.success()?.json()?;
    let mut pids: Vec<u64> = told.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    let mut expected: Vec<u64> = marked_processes(&case.directory).into_iter().map(u64::from).collect();
    pids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(pids, expected);
    Ok(())
}

/// Who owns the container's cgroup and files of it.
fn owners(case: &mut Case) -> Result<[u32; 3], Failed> {
    use std::os::unix::fs::MetadataExt;
    let place = directory(case)?;
    let owner = |path: PathBuf| fs::metadata(path).map(|data| data.uid());
    Ok([owner(place.clone())?, owner(place.join("cgroup.procs"))?, owner(place.join("cgroup.freeze"))?])
}

fn owner(case: &mut Case) -> Outcome {
    config::user_namespace(&mut case.config, (100_000, 100_000), 65536);
    case.config["process"]["user"] = json!({"uid": 7, "gid": 7});
    let plain = case.config.clone();
    let tree = |options: &[&str]| config::mount("cgroup", "cgroup", "/sys/fs/cgroup", options);
    let delete = |case: &mut Case| {
        let id = case.id.clone();
        case.call(&["delete", "--force", &id])?.success().map(drop)
    };
    config::add(&mut case.config, "/mounts", tree(&["nosuid"]));
    case.start_waiting()?;
    // The directory and what is safe to give away, but none of the limits nor the freezer.
    assert_eq!(owners(case)?, [100_007, 100_007, 0]);
    let inside = |path: &'static str| ["/probe", "mkdir", path];
    assert!(case.exec(&[], &inside("/sys/fs/cgroup/inner"))?.success()?.json()?["error"].is_null());
    delete(case)?;
    for (mount, namespace) in [(Some(tree(&["ro"])), true), (Some(tree(&["nosuid"])), false), (None, true)] {
        case.config = plain.clone();
        if let Some(mount) = mount {
            config::add(&mut case.config, "/mounts", mount);
        }
        if !namespace {
            config::without_namespace(&mut case.config, "cgroup");
        }
        case.start_waiting()?;
        assert_eq!(owners(case)?, [0, 0, 0], "namespace: {namespace}");
        delete(case)?;
    }
    Ok(())
}

fn memory(case: &mut Case) -> Outcome {
    limits(case, json!({"memory": {"limit": 67_108_864, "reservation": 33_554_432}}))?;
    assert_eq!((file(case, "memory.max")?, file(case, "memory.low")?), ("67108864".into(), "33554432".into()));
    Ok(())
}

fn swap(case: &mut Case) -> Outcome {
    limits(case, json!({"memory": {"limit": 67_108_864, "swap": 100_663_296}}))?;
    match file(case, "memory.swap.max") {
        Ok(text) => assert_eq!(text, "33554432"),
        Err(_) => assert!(!Path::new("/proc/swaps").exists() || fs::read_to_string("/proc/swaps")?.lines().count() < 2),
    }
    Ok(())
}

fn memory_kill(case: &mut Case) -> Outcome {
    case.config["linux"]["resources"] = json!({"memory": {"limit": 16_777_216, "swap": 16_777_216}});
    assert_eq!(case.args(&["/probe", "fill", "8"]).run()?.code, 0);
    assert_eq!(case.args(&["/probe", "fill", "64"]).run()?.code, 137);
    Ok(())
}

fn pids(case: &mut Case) -> Outcome {
    case.config["linux"]["resources"] = json!({"pids": {"limit": 5}});
    let end = case.args(&["/probe", "fork", "10"]).run()?;
    assert_eq!(end.code, 125, "{}", end.stdout);
    limits(case, json!({"pids": {"limit": 5}}))?;
    assert_eq!(file(case, "pids.max")?, "5");
    Ok(())
}

fn cpu(case: &mut Case) -> Outcome {
    limits(case, json!({"cpu": {"quota": 20_000, "period": 100_000, "shares": 1024}}))?;
    assert_eq!(file(case, "cpu.max")?, "20000 100000");
    let weight: u32 = file(case, "cpu.weight")?.parse()?;
    // The formula from shares to weight has changed between versions of the peers: 39 and 100 are both in use.
    assert!([39, 100].contains(&weight), "{weight}");
    Ok(())
}

fn cpuset(case: &mut Case) -> Outcome {
    limits(case, json!({"cpu": {"cpus": "0", "mems": "0"}}))?;
    assert_eq!(file(case, "cpuset.cpus")?, "0");
    assert_eq!(case.exec(&[], &["/probe"])?.success()?.json()?["cpus"], "0");
    Ok(())
}

fn unified(case: &mut Case) -> Outcome {
    limits(case, json!({"unified": {"memory.high": "50331648", "memory.max": "67108864"}}))?;
    assert_eq!((file(case, "memory.high")?, file(case, "memory.max")?), ("50331648".into(), "67108864".into()));
    Ok(())
}

fn bad_limit(case: &mut Case) -> Outcome {
    case.config["linux"]["resources"] = json!({"cpu": {"quota": 1, "period": 1}});
    case.run()?.failure()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn update(case: &mut Case) -> Outcome {
    limits(case, json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 10}}))?;
    let id = case.id.clone();
    case.call(&["update", "--memory", "33554432", "--pids-limit", "20", &id])?.success()?;
    assert_eq!((file(case, "memory.max")?, file(case, "pids.max")?), ("33554432".into(), "20".into()));
    Ok(())
}

fn update_file(case: &mut Case) -> Outcome {
    limits(case, json!({"memory": {"limit": 67_108_864}}))?;
    let (id, resources) = (case.id.clone(), case.path("resources.json"));
    fs::write(&resources, json!({"memory": {"limit": 50_331_648}}).to_string())?;
    case.call(&["update", "--resources", &resources, &id])?.success()?;
    assert_eq!(file(case, "memory.max")?, "50331648");
    Ok(())
}

fn stats(case: &mut Case) -> Outcome {
    limits(case, json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 10}}))?;
    let id = case.id.clone();
    let told = case.call(&["events", "--stats", &id])?.success()?.json()?;
    assert_eq!((&told["type"], &told["id"]), (&json!("stats"), &json!(id)));
    assert_eq!((&told["data"]["pids"]["current"], &told["data"]["pids"]["limit"]), (&json!(1), &json!(10)));
    assert_eq!(told["data"]["memory"]["usage"]["limit"], 67_108_864);
    assert!(told["data"]["memory"]["usage"]["usage"].as_u64().is_some_and(|bytes| bytes > 0), "{told}");
    assert!(told["data"]["cpu"]["usage"]["total"].as_u64().is_some_and(|time| time > 0), "{told}");
    Ok(())
}

fn devices(case: &mut Case) -> Outcome {
    config::capabilities(&mut case.config, &["CAP_MKNOD"]);
    case.config["linux"]["resources"] = json!({"devices": [
        {"allow": false, "access": "rwm"},
    ]});
    case.config["linux"]["devices"] = json!([{"path": "/dev/log-of-the-kernel", "type": "c", "major": 1, "minor": 11}]);
    // Any node may be made, as with runc; what counts is that it cannot be opened. All in the container's own /dev: the
    // temporary directory may be on a file system where no device can be opened at all.
    assert!(case.deed(&["mknod", "/dev/mem", "1", "1"])?["error"].is_null());
    assert_eq!(case.deed(&["open", "/dev/log-of-the-kernel", "r"])?["error"], libc::EPERM);
    assert!(case.deed(&["open", "/dev/zero", "r"])?["error"].is_null());
    Ok(())
}

fn rootless_limit(case: &mut Case) -> Outcome {
    case.config["linux"]["cgroupsPath"] = "/no/delegation/here".into();
    case.config["linux"]["resources"] = json!({"memory": {"limit": 67_108_864}});
    let end = case.run()?.failure()?;
    assert!(end.stderr.contains("memory") || end.stderr.contains("cgroup"), "{}", end.stderr);
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn rootless_none(case: &mut Case) -> Outcome {
    case.report().map(drop)
}

/// A container whose root is an ordinary user of the host, with its cgroup mounted.
fn with_cgroup_mount(case: &mut Case, options: &[&str]) -> Outcome {
    config::user_namespace(&mut case.config, (100_000, 100_000), 1000);
    case.bundle.give_to(100_000)?;
    config::add(&mut case.config, "/mounts", config::mount("cgroup", "cgroup", "/sys/fs/cgroup", options));
    Ok(())
}

fn owner_inside(case: &mut Case, name: &str) -> Result<Value, Failed> {
    Ok(case.deed(&["stat", &format!("/sys/fs/cgroup/{name}")])?["ok"]["uid"].clone())
}

fn owned(case: &mut Case) -> Outcome {
    with_cgroup_mount(case, &["nosuid", "noexec", "nodev"])?;
    for name in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
        assert_eq!(owner_inside(case, name)?, 0, "{name:?}");
    }
    for name in ["cgroup.freeze", "cgroup.max.depth", "cgroup.events"] {
        assert_eq!(owner_inside(case, name)?, 65534, "{name}");
    }
    assert!(case.deed(&["mkdir", "/sys/fs/cgroup/below"])?["error"].is_null());
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn not_owned(case: &mut Case) -> Outcome {
    let plain = case.config.clone();
    with_cgroup_mount(case, &["nosuid", "noexec", "nodev", "ro"])?;
    assert_eq!(owner_inside(case, "cgroup.procs")?, 65534);
    case.config = plain;
    with_cgroup_mount(case, &["nosuid", "noexec", "nodev"])?;
    config::without_namespace(&mut case.config, "cgroup");
    assert_eq!(owner_inside(case, "cgroup.procs")?, 65534);
    Ok(())
}
