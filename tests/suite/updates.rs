//! `update`: its flags, one that is refused in the middle, and memory that is taken back.

use std::fs;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::cgroup::directory_of;
use super::limits::{alone, give_disk, number, read};
use super::need::Need::{CgroupV2, Delegated, Disk, Ferry, Root, Systemd};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("limits_by_the_flags_of_update", &[Root, CgroupV2(&["cpu", "cpuset", "memory", "pids"])], flags),
    scenario("weight_of_update", &[Root, CgroupV2(&["io"])], weight),
    scenario("what_only_cgroup_v1_had_is_told", &[Root, CgroupV2(&["cpu"]), Ferry], of_v1),
    scenario("schemata_without_a_resctrl_group_are_refused", &[Ferry], schemata),
    scenario("a_refused_update_changes_nothing", &[Delegated(ALL), Ferry], |case| refused(case, "cgroupfs")),
    scenario("a_refused_update_changes_nothing_under_systemd", &[Delegated(ALL), Systemd, Ferry], |case| {
        refused(case, "systemd")
    }),
    scenario("a_flag_that_cannot_be_read_changes_nothing", &[Root, CgroupV2(&[]), Ferry], unreadable),
    scenario("an_update_leaves_the_devices_alone", &[Root, CgroupV2(&[]), Ferry], devices),
    scenario("a_limit_below_the_usage_is_refused_when_asked", &[Delegated(ALL), Ferry], |case| {
        below_usage(case, "cgroupfs")
    }),
    scenario("a_limit_below_the_usage_is_refused_under_systemd", &[Delegated(ALL), Systemd, Ferry], |case| {
        below_usage(case, "systemd")
    }),
    scenario("systemd_is_told_of_an_update", &[Root, CgroupV2(ALL), Systemd], systemd),
    scenario("isolated_cpus_are_nobody_elses", &[Root, CgroupV2(ALL), Ferry], partition),
    scenario("memory_is_taken_back", &[Root, CgroupV2(ALL), Disk, Ferry], reclaim),
    scenario("memory_high_takes_back_what_is_above", &[Root, CgroupV2(ALL), Disk, Ferry], high),
];

const ALL: &[&str] = &["cpu", "cpuset", "memory", "pids"];

fn flags(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let place = directory_of(case, &id)?;
    for (flags, file, value) in [
        (&["--cpu-quota", "20000", "--cpu-period", "50000"][..], "cpu.max", "20000 50000"),
        (&["--cpu-burst", "1000"], "cpu.max.burst", "1000"),
        (&["--cpu-share", "2"], "cpu.weight", "1"),
        (&["--cpuset-cpus", "0"], "cpuset.cpus", "0"),
        (&["--cpuset-mems", "0"], "cpuset.mems", "0"),
        (&["--memory", "64m", "--memory-swap", "64m"], "memory.max", "67108864"),
        (&["--memory-reservation", "32m"], "memory.low", "33554432"),
        (&["--pids-limit", "33"], "pids.max", "33"),
        (&["--pids-limit", "-1"], "pids.max", "max"),
        (&["--cpu-idle", "1"], "cpu.idle", "1"),
    ] {
        case.call(&[&["update"], flags, &[&id]].concat())?.success()?;
        assert_eq!(fs::read_to_string(place.join(file))?.trim(), value, "{flags:?}");
    }
    // What the kernel has no more is told and passed over.
    let end = case.call(&["update", "--kernel-memory", "1m", "--kernel-memory-tcp", "1m", &id])?.success()?;
    assert!(
        case.stage.runtime.name != "ferry" || end.stderr.contains("kernel memory limits are ignored"),
        "{}",
        end.stderr
    );
    Ok(())
}

fn weight(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    let place = directory_of(case, &id)?;
    case.call(&["update", "--blkio-weight", "1000", &id])?.success()?;
    let weights = ["io.bfq.weight", "io.weight"].map(|file| fs::read_to_string(place.join(file)).unwrap_or_default());
    assert!(weights.iter().any(|text| text.contains("default 1000")), "{weights:?}");
    Ok(())
}

fn of_v1(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    for flags in [&["--cpu-rt-runtime", "1000"][..], &["--cpu-rt-period", "10000"]] {
        let end = case.call(&[&["update"], flags, &[&id]].concat())?;
        assert!(end.stderr.contains("realtime") || end.stderr.contains("real-time"), "{flags:?}: {}", end.stderr);
    }
    Ok(())
}

fn schemata(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let id = case.id.clone();
    for (flag, line) in [("--l3-cache-schema", "L3:0=f"), ("--mem-bw-schema", "MB:0=50")] {
        let end = case.call(&["update", flag, line, &id])?.failure()?;
        assert!(end.stderr.contains(flag) && end.stderr.contains("has no resctrl group"), "{}", end.stderr);
        let end = case.call(&["update", flag, "nonsense", &id])?.failure()?;
        assert!(end.stderr.contains(&format!("invalid value \"nonsense\" for {flag}")), "{}", end.stderr);
    }
    Ok(())
}

/// The files an update below touches, as they stand.
fn files(case: &mut Case) -> Result<Vec<String>, Failed> {
    let id = case.id.clone();
    let place = directory_of(case, &id)?;
    ["pids.max", "memory.max", "memory.low", "cpu.weight", "cpu.max", "cpu.max.burst", "cpuset.cpus"]
        .iter()
        .map(|file| read(&place, file).map(|text| format!("{file} {text}")))
        .collect()
}

fn update(case: &mut Case, resources: &Value) -> Result<super::output::Output, Failed> {
    let (id, file) = (case.id.clone(), case.path("resources.json"));
    fs::write(&file, resources.to_string())?;
    case.call(&["update", "--resources", &file, &id])
}

/// What the runtime keeps of the limits.
fn recorded(case: &Case) -> Result<Value, Failed> {
    let text = fs::read_to_string(case.state_root().join(&case.id).join("config.json"))?;
    Ok(serde_json::from_str::<Value>(&text)?["linux"]["resources"].clone())
}

const BEFORE: &str = r#"{"pids": {"limit": 100}, "memory": {"limit": 134217728, "reservation": 4194304},
    "cpu": {"quota": 50000, "period": 100000, "burst": 10000, "shares": 1024}}"#;

/// Everything that comes before the CPUs in the order of writing, and CPUs that no kernel has.
fn impossible() -> Value {
    json!({"pids": {"limit": 50}, "memory": {"limit": 67_108_864, "reservation": 8_388_608},
        "cpu": {"quota": 5_000, "period": 10_000, "burst": 1_000, "shares": 512, "cpus": "0-99999"}})
}

fn refused(case: &mut Case, driver: &'static str) -> Outcome {
    case.driver = driver;
    case.config["linux"]["resources"] = serde_json::from_str(BEFORE)?;
    case.start_waiting()?;
    let (before, kept) = (files(case)?, recorded(case)?);
    let end = update(case, &impossible())?.failure()?;
    assert!(end.stderr.contains("cpu.cpus") && !end.stderr.contains("and then"), "{}", end.stderr);
    assert_eq!((files(case)?, recorded(case)?), (before.clone(), kept));
    // All of it would have been possible but for the CPUs.
    let mut possible = impossible();
    possible["cpu"]["cpus"] = json!("0");
    update(case, &possible)?.success()?;
    assert_ne!(files(case)?, before);
    Ok(())
}

/// Engines send rules of their own list with each update, and a wrapper may have added to that list in the bundle.
fn devices(case: &mut Case) -> Outcome {
    let none = json!({"allow": false, "access": "rwm"});
    let added = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "w"});
    case.config["linux"]["resources"] = json!({"devices": [none, added]});
    case.config["linux"]["devices"] = json!([{"path": "/dev/log-of-the-kernel", "type": "c", "major": 1, "minor": 11}]);
    case.start_waiting()?;
    let kept = recorded(case)?;
    for rules in [json!([none]), json!([{"allow": true, "access": "rwm"}])] {
        update(case, &json!({"devices": rules}))?.success()?;
        assert_eq!(recorded(case)?, kept);
        for (how, answer) in [("w", Value::Null), ("r", json!(libc::EPERM))] {
            let opened = case.exec(&[], &["/probe", "open", "/dev/log-of-the-kernel", how])?.success()?.json()?;
            assert_eq!(opened["error"], answer, "{how}: {opened}");
        }
    }
    Ok(())
}

fn below_usage(case: &mut Case, driver: &'static str) -> Outcome {
    case.driver = driver;
    case.config["linux"]["resources"] = serde_json::from_str(BEFORE)?;
    case.args(&["/probe", "hold", "24"]).start()?.until("ready")?;
    let before = files(case)?;
    let limit = json!({"pids": {"limit": 7}, "memory": {"limit": 16 << 20, "checkBeforeUpdate": true}});
    let end = update(case, &limit)?.failure()?;
    assert!(end.stderr.contains("memory.limit") && end.stderr.contains("uses"), "{}", end.stderr);
    assert_eq!(files(case)?, before);
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn systemd(case: &mut Case) -> Outcome {
    case.driver = "systemd";
    case.config["linux"]["resources"] = serde_json::from_str(BEFORE)?;
    case.start_waiting()?;
    let told = |case: &Case| -> Result<String, Failed> {
        let unit = format!("ferry-{}.scope", case.id);
        let properties = "TasksMax,MemoryMax,CPUQuotaPerSecUSec,AllowedCPUs,Delegate";
        let output = Command::new("systemctl").args(["show", "-p", properties, &unit]).output()?;
        let mut lines: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines.join(" "))
    };
    assert_eq!(told(case)?, "AllowedCPUs= CPUQuotaPerSecUSec=500ms Delegate=yes MemoryMax=134217728 TasksMax=100");
    update(case, &impossible())?.failure()?;
    assert_eq!(told(case)?, "AllowedCPUs= CPUQuotaPerSecUSec=500ms Delegate=yes MemoryMax=134217728 TasksMax=100");
    let new = json!({"pids": {"limit": 50}, "cpu": {"cpus": "0-1", "quota": -1}});
    update(case, &new)?.success()?;
    assert_eq!(told(case)?, "AllowedCPUs=0-1 CPUQuotaPerSecUSec=infinity Delegate=yes MemoryMax=134217728 TasksMax=50");
    // What systemd was told survives its writing all files anew.
    let before = files(case)?;
    assert!(Command::new("systemctl").arg("daemon-reload").status()?.success());
    assert_eq!(files(case)?, before);
    Ok(())
}

fn partition(case: &mut Case) -> Outcome {
    let _alone = alone();
    let tree = case.stage.cgroup_v2.clone().ok_or("there is no v2 tree")?;
    let others = || read(&tree, "cpuset.cpus.effective");
    let all = others()?;
    let (first, last) = all.split_once('-').ok_or("one CPU cannot be shared out")?;
    case.config["linux"]["cgroupsPath"] = format!("/{}", case.id).into();
    let asked = |cpus: &str| json!({"unified": {"cpuset.cpus": cpus, "cpuset.cpus.partition": "isolated"}});
    // All CPUs would leave none to the others.
    case.config["linux"]["resources"] = asked(&all);
    let end = case.args(&["/probe", "sleep", "forever"]).run()?.failure()?;
    assert!(end.stderr.contains("cpuset.cpus.partition") && end.stderr.contains("isolated"), "{}", end.stderr);
    assert_eq!((case.leftovers()?, others()?), (Vec::<String>::new(), all.clone()));
    case.config["linux"]["resources"] = asked(last);
    case.start_waiting()?;
    assert_eq!(case.exec(&[], &["/probe"])?.success()?.json()?["cpus"], last);
    let left = others()?;
    assert!(left.starts_with(first) && !left.contains(last), "{left}");
    // An update to what cannot be leaves the partition as it is.
    update(case, &asked(&all))?.failure()?;
    assert_eq!(others()?, left);
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(others()?, all);
    Ok(())
}

fn cached(case: &mut Case) -> Result<std::path::PathBuf, Failed> {
    case.config["linux"]["resources"] = json!({"memory": {"limit": -1}});
    give_disk(case)?;
    case.args(&["/probe", "cache", "/dev/scratch", "128", "32"]).start()?.until("ready")?;
    let id = case.id.clone();
    directory_of(case, &id)
}

fn reclaim(case: &mut Case) -> Outcome {
    let place = cached(case)?;
    let now = || read(&place, "memory.current").and_then(|text| Ok(text.parse::<u64>()?));
    let (before, id) = (now()?, case.id.clone());
    assert!(before >= 32 << 20, "{before}");
    case.call(&["update", "--memory-reclaim", "16m", &id])?.success()?;
    let after = now()?;
    assert!(after <= before - (15 << 20), "{before} bytes before, {after} after");
    let end = case.call(&["update", "--memory-reclaim", "1g", &id])?.failure()?;
    assert!(end.stderr.contains("no more than ") && end.stderr.contains("could be reclaimed"), "{}", end.stderr);
    assert_eq!(case.state()?["status"], "running");
    Ok(())
}

fn high(case: &mut Case) -> Outcome {
    let (place, id) = (cached(case)?, case.id.clone());
    case.call(&["update", "--memory-high", "16m", "--memory-min", "1m", &id])?.success()?;
    assert_eq!((read(&place, "memory.high")?, read(&place, "memory.min")?), ("16777216".into(), "1048576".into()));
    assert!(number(&place, "memory.stat", "file")? <= 16 << 20);
    case.call(&["update", "--memory-high", "-1", &id])?.success()?;
    assert_eq!(read(&place, "memory.high")?, "max");
    Ok(())
}

fn unreadable(case: &mut Case) -> Outcome {
    case.start_waiting()?;
    let (id, file) = (case.id.clone(), case.path("limits.json"));
    fs::write(&file, json!({"unified": {"cgroup.max.depth": "5"}}).to_string())?;
    let depth = directory_of(case, &id)?.join("cgroup.max.depth");
    let said = case.call(&["update", "--resources", &file, "--memory-reclaim", "zz", &id])?.failure()?.stderr;
    assert!(said.contains("--memory-reclaim"), "{said}");
    assert_eq!(fs::read_to_string(&depth)?, "max\n");
    case.call(&["update", "--resources", &file, &id])?.success()?;
    assert_eq!(fs::read_to_string(&depth)?, "5\n");
    Ok(())
}
