//! What limits do, measured: how much of a resource a container gets, and that its neighbour does not pay for it.
//!
//! The same under each driver. One is measured at a time, since they would measure each other otherwise.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::cgroup::directory_of;
use super::need::Need::{CgroupV2, Delegated, Disk, Root, Systemd};
use super::need::disk;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

const CGROUPFS: &str = "cgroupfs";
const SYSTEMD: &str = "systemd";

const CPU: &[&str] = &["cpu"];
const CPU_AND_SET: &[&str] = &["cpu", "cpuset"];
const MEMORY: &[&str] = &["memory"];
const PIDS: &[&str] = &["pids"];
const IO: &[&str] = &["io"];

pub const SCENARIOS: &[Scenario] = &[
    scenario("a_fifth_of_a_cpu", &[Delegated(CPU)], |case| quota(case, CGROUPFS)),
    scenario("a_fifth_of_a_cpu_under_systemd", &[Delegated(CPU), Systemd], |case| quota(case, SYSTEMD)),
    scenario("weights_share_a_cpu", &[Delegated(CPU_AND_SET)], |case| weights(case, CGROUPFS)),
    scenario("weights_share_a_cpu_under_systemd", &[Delegated(CPU_AND_SET), Systemd], |case| weights(case, SYSTEMD)),
    scenario("too_much_memory_kills_one_alone", &[Delegated(MEMORY)], |case| memory(case, CGROUPFS)),
    scenario("too_much_memory_kills_one_alone_under_systemd", &[Delegated(MEMORY), Systemd], |case| {
        memory(case, SYSTEMD)
    }),
    scenario("a_fork_bomb_stops", &[Delegated(PIDS)], |case| fork_bomb(case, CGROUPFS)),
    scenario("a_fork_bomb_stops_under_systemd", &[Delegated(PIDS), Systemd], |case| fork_bomb(case, SYSTEMD)),
    scenario("direct_io_takes_the_time_it_may", &[Root, CgroupV2(IO), Disk], |case| direct_io(case, CGROUPFS)),
    scenario("direct_io_takes_the_time_it_may_under_systemd", &[Root, CgroupV2(IO), Disk, Systemd], |case| {
        direct_io(case, SYSTEMD)
    }),
    scenario("a_denied_device_is_not_opened", &[Root, CgroupV2(&[])], |case| denied_device(case, CGROUPFS)),
    scenario("a_denied_device_is_not_opened_under_systemd", &[Root, CgroupV2(&[]), Systemd], |case| {
        denied_device(case, SYSTEMD)
    }),
    scenario("a_reservation_protects", &[Root, CgroupV2(MEMORY), Disk], |case| {
        let parent = format!("/{}-both", case.id);
        reservation(case, CGROUPFS, [format!("{parent}/protected"), format!("{parent}/other")])
    }),
    scenario("a_reservation_protects_under_systemd", &[Root, CgroupV2(MEMORY), Disk, Systemd], |case| {
        let slice = format!("{}.slice", case.id.replace('-', "_"));
        let id = case.id.clone();
        reservation(case, SYSTEMD, ["protected", "other"].map(|name| format!("{slice}:{id}:{name}")))?;
        // Slices stay where systemd was asked for one; this was the test's.
        std::process::Command::new("systemctl").args(["stop", &slice]).status()?;
        Ok(())
    }),
];

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// To be held while something is measured.
pub fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file of a cgroup.
pub fn read(directory: &Path, file: &str) -> Result<String, Failed> {
    let path = directory.join(file);
    Ok(fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?.trim().to_owned())
}

/// A number of a file of `key value` lines.
pub fn number(directory: &Path, file: &str, key: &str) -> Result<u64, Failed> {
    let text = read(directory, file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    Ok(value.ok_or_else(|| format!("{file} has no {key}"))?.parse()?)
}

fn resources(case: &mut Case, driver: &'static str, resources: Value) {
    case.driver = driver;
    case.config["linux"]["resources"] = resources;
}

/// The containers' CPU time in a span of time, as shares of one CPU.
#[allow(clippy::disallowed_methods, reason = "what is measured is a span of time")]
fn cpu_shares(directories: &[PathBuf], span: Duration) -> Result<Vec<f64>, Failed> {
    let now = || directories.iter().map(|directory| number(directory, "cpu.stat", "usage_usec")).collect();
    let (began, before): (_, Result<Vec<u64>, Failed>) = (Instant::now(), now());
    std::thread::sleep(span);
    let (after, wall): (Result<Vec<u64>, Failed>, _) = (now(), began.elapsed());
    let used = after?.into_iter().zip(before?).map(|(after, before)| (after - before) as f64 / 1e6);
    Ok(used.map(|seconds| seconds / wall.as_secs_f64()).collect())
}

fn quota(case: &mut Case, driver: &'static str) -> Outcome {
    let _alone = alone();
    resources(case, driver, json!({"cpu": {"quota": 20_000, "period": 100_000}}));
    case.args(&["/probe", "burn"]).start()?.until("ready")?;
    let id = case.id.clone();
    let place = directory_of(case, &id)?;
    let share = cpu_shares(&[place], Duration::from_secs(5))?[0];
    assert!((0.17..=0.23).contains(&share), "a quota of 20% gave {:.1}% of a CPU", share * 100.0);
    Ok(())
}

fn weights(case: &mut Case, driver: &'static str) -> Outcome {
    let _alone = alone();
    let weight = |weight: &str| json!({"cpu": {"cpus": "0", "mems": "0"}, "unified": {"cpu.weight": weight}});
    resources(case, driver, weight("100"));
    case.args(&["/probe", "burn"]).start()?.until("ready")?;
    resources(case, driver, weight("300"));
    let (id, other) = (case.id.clone(), case.start_other()?);
    let places = [directory_of(case, &id)?, directory_of(case, &other)?];
    let shares = cpu_shares(&places, Duration::from_secs(6))?;
    let ratio = shares[1] / shares[0];
    assert!((2.7..=3.3).contains(&ratio), "weights of 100 and 300 gave {shares:.3?}, 1:{ratio:.2}");
    Ok(())
}

fn memory(case: &mut Case, driver: &'static str) -> Outcome {
    resources(case, driver, json!({"memory": {"limit": 33_554_432, "swap": 33_554_432}}));
    case.start_waiting()?;
    let (id, neighbour) = (case.id.clone(), case.start_other()?);
    let (mut events, mut told) = case.spawn(&["events", "--interval", "200ms", &id])?;
    told.until("\"stats\"")?;
    let (mut other_events, mut other_told) = case.spawn(&["events", "--interval", "200ms", &neighbour])?;
    other_told.until("\"stats\"")?;
    assert_eq!(case.exec(&[], &["/probe", "fill", "8"])?.code, 0);
    assert_eq!(case.exec(&[], &["/probe", "fill", "64"])?.code, 137);
    let line: Value = serde_json::from_str(&told.until("\"oom\"")?)?;
    assert_eq!(line, json!({"type": "oom", "id": id}));
    let line: Value = serde_json::from_str(&other_told.until("\"stats\"")?)?;
    assert_eq!(line["id"], json!(neighbour));
    for child in [&mut events, &mut other_events] {
        child.kill()?;
        child.wait()?;
    }
    // The kernel takes the one that has grown: the first process has not.
    for (id, kills) in [(&id, 1), (&neighbour, 0)] {
        let place = directory_of(case, id)?;
        assert_eq!(number(&place, "memory.events", "oom_kill")?, kills, "{id}");
        assert_eq!(case.call(&["state", id])?.success()?.json()?["status"], "running");
    }
    Ok(())
}

fn fork_bomb(case: &mut Case, driver: &'static str) -> Outcome {
    resources(case, driver, json!({"pids": {"limit": 30}}));
    let mut lines = case.args(&["/probe", "bomb"]).start()?;
    assert_eq!(lines.until("error")?, format!("{{\"error\":{}}}", libc::EAGAIN));
    let id = case.id.clone();
    let place = directory_of(case, &id)?;
    assert_eq!((read(&place, "pids.current")?, read(&place, "pids.max")?), ("30".into(), "30".into()));
    assert!(number(&place, "pids.events", "max")? > 0);
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// The scratch device as `/dev/scratch` of the container, and its number.
pub fn give_disk(case: &mut Case) -> Result<(u64, u64), Failed> {
    let number = fs::metadata(disk().ok_or("there is no scratch device")?)?.rdev();
    let (major, minor) = (u64::from(libc::major(number)), u64::from(libc::minor(number)));
    let node = json!({"path": "/dev/scratch", "type": "b", "major": major, "minor": minor});
    case.config["linux"]["devices"] = json!([node]);
    let rule = json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": "rw"});
    case.config["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}, rule]);
    Ok((major, minor))
}

fn direct_io(case: &mut Case, driver: &'static str) -> Outcome {
    const RATE: u64 = 1 << 20;
    let _alone = alone();
    resources(case, driver, json!({}));
    let (major, minor) = give_disk(case)?;
    let rate = json!([{"major": major, "minor": minor, "rate": RATE}]);
    case.config["linux"]["resources"]["blockIO"] =
        json!({"throttleReadBpsDevice": rate, "throttleWriteBpsDevice": rate});
    for (how, megabytes) in [("write", 4u64), ("read", 4)] {
        let told = case.deed(&["direct", how, "/dev/scratch", &megabytes.to_string()])?;
        let seconds = told["seconds"].as_f64().ok_or("no time was told")?;
        let expected = ((megabytes << 20) / RATE) as f64;
        let right = expected * 0.85..=expected * 1.15;
        assert!(right.contains(&seconds), "{how} of {megabytes} MiB at 1 MiB/s took {seconds:.2} s");
    }
    Ok(())
}

fn denied_device(case: &mut Case, driver: &'static str) -> Outcome {
    case.config["linux"]["devices"] = json!([{"path": "/dev/log-of-the-kernel", "type": "c", "major": 1, "minor": 11}]);
    config::capabilities(&mut case.config, &["CAP_SYSLOG", "CAP_SYS_ADMIN"]);
    for (allow, answer) in [(false, json!(libc::EPERM)), (true, Value::Null)] {
        let rule = json!({"allow": allow, "type": "c", "major": 1, "minor": 11, "access": "r"});
        resources(case, driver, json!({"devices": [rule]}));
        case.start_waiting()?;
        let opened = case.exec(&[], &["/probe", "open", "/dev/log-of-the-kernel", "r"])?.success()?.json()?;
        assert_eq!(opened["error"], answer);
        let id = case.id.clone();
        case.call(&["delete", "--force", &id])?.success()?;
    }
    Ok(())
}

/// Both read more into the page cache than the cgroup around them may hold: what goes is the other's.
fn reservation(case: &mut Case, driver: &'static str, places: [String; 2]) -> Outcome {
    const PROTECTED: u64 = 20 << 20;
    let _alone = alone();
    let [protected, other] = places;
    resources(case, driver, json!({"memory": {"reservation": 24 << 20}}));
    give_disk(case)?;
    case.config["linux"]["cgroupsPath"] = protected.into();
    case.args(&["/probe", "cache", "/dev/scratch", "0", "20"]).start()?.until("ready")?;
    let id = case.id.clone();
    let place = directory_of(case, &id)?;
    let around = place.parent().ok_or("it is in the root")?.to_owned();
    assert!(number(&place, "memory.stat", "file")? >= PROTECTED);
    fs::write(around.join("memory.max"), (44u64 << 20).to_string())?;
    resources(case, driver, json!({"memory": {}}));
    give_disk(case)?;
    case.config["linux"]["cgroupsPath"] = other.into();
    case.args(&["/probe", "cache", "/dev/scratch", "64", "60"]);
    let other = case.start_other()?;
    let other_place = directory_of(case, &other)?;
    let (kept, others) = (number(&place, "memory.stat", "file")?, number(&other_place, "memory.stat", "file")?);
    assert!(kept >= PROTECTED * 95 / 100, "the protected one was left {kept} of {PROTECTED} bytes");
    assert!(others < 30 << 20, "the other one, which had read 60 MiB, was left {others} bytes");
    for id in [&id, &other] {
        case.call(&["delete", "--force", id])?.success()?;
    }
    if around.exists() && driver == CGROUPFS {
        fs::remove_dir(&around)?;
    }
    Ok(())
}
