//! Tests of the table: a piece of JSON as an engine sends it, and what becomes of it.

use super::*;

fn planned(json: &str) -> Result<Limits> {
    plan_update(&serde_json::from_str(json).unwrap())
}

/// `file=value` of each write, the replacement after a bar.
fn shown(limits: &Limits) -> Vec<String> {
    let show = |write: &Write| match &write.otherwise {
        Otherwise::Refuse => format!("{}={}", write.file, write.value),
        Otherwise::Skip => format!("{}={} or not", write.file, write.value),
        Otherwise::Again => format!("{}={} again", write.file, write.value),
        Otherwise::Instead(file, value) => format!("{}={} | {file}={value}", write.file, write.value),
    };
    limits.writes.iter().map(show).collect()
}

#[test]
fn every_field_becomes_its_file() {
    for (json, writes) in [
        ("{}", &[] as &[&str]),
        (r#"{"pids": {}}"#, &[]),
        (r#"{"pids": {"limit": 20}}"#, &["pids.max=20"]),
        (r#"{"pids": {"limit": 0}}"#, &["pids.max=1"]),
        (r#"{"pids": {"limit": -1}}"#, &["pids.max=max"]),
        (r#"{"memory": {"limit": 33554432}}"#, &["memory.max=33554432"]),
        (r#"{"memory": {"limit": 0, "reservation": 0, "swap": 0}}"#, &[]),
        (r#"{"memory": {"limit": -1}}"#, &["memory.swap.max=max or not", "memory.max=max"]),
        (r#"{"memory": {"limit": -1, "swap": 5}}"#, &["memory.swap.max=5", "memory.max=max"]),
        (r#"{"memory": {"limit": 100, "swap": 300}}"#, &["memory.swap.max=200", "memory.max=100"]),
        (r#"{"memory": {"limit": 100, "swap": 100}}"#, &["memory.swap.max=0 or not", "memory.max=100"]),
        (r#"{"memory": {"limit": 100, "swap": -1}}"#, &["memory.swap.max=max or not", "memory.max=100"]),
        (r#"{"memory": {"swap": -1}}"#, &["memory.swap.max=max or not"]),
        (r#"{"memory": {"reservation": 50}}"#, &["memory.low=50"]),
        (r#"{"memory": {"kernel": -1, "kernelTCP": 0, "disableOOMKiller": false, "useHierarchy": true}}"#, &[]),
        (r#"{"cpu": {"shares": 1024}}"#, &["cpu.weight=100"]),
        (r#"{"cpu": {"shares": 0}}"#, &[]),
        (r#"{"cpu": {"quota": 50000}}"#, &["cpu.max=50000"]),
        (r#"{"cpu": {"quota": 50000, "period": 200000}}"#, &["cpu.max=50000 200000"]),
        (r#"{"cpu": {"quota": -1, "period": 200000}}"#, &["cpu.max=max 200000"]),
        (r#"{"cpu": {"quota": -1}}"#, &["cpu.max=max"]),
        (r#"{"cpu": {"period": 200000}}"#, &["cpu.max=max 200000"]),
        (r#"{"cpu": {"quota": 0, "period": 0, "realtimeRuntime": 0, "realtimePeriod": 0}}"#, &[]),
        (r#"{"cpu": {"quota": 5000, "burst": 5000}}"#, &["cpu.max.burst=5000 again", "cpu.max=5000"]),
        (r#"{"cpu": {"burst": 7}}"#, &["cpu.max.burst=7"]),
        (r#"{"cpu": {"idle": 1, "shares": 2}}"#, &["cpu.idle=1"]),
        (r#"{"cpu": {"idle": 0, "shares": 2}}"#, &["cpu.idle=0", "cpu.weight=1"]),
        (r#"{"cpu": {"cpus": "0-1", "mems": "0"}}"#, &["cpuset.cpus=0-1", "cpuset.mems=0"]),
        (r#"{"blockIO": {"weight": 500}}"#, &["io.bfq.weight=500 | io.weight=4950"]),
        (r#"{"blockIO": {"weight": 10}}"#, &["io.bfq.weight=10 | io.weight=1"]),
        (r#"{"blockIO": {"weight": 1000}}"#, &["io.bfq.weight=1000 | io.weight=10000"]),
        (
            r#"{"blockIO": {"weightDevice": [{"major": 8, "minor": 16, "weight": 10}]}}"#,
            &["io.bfq.weight=8:16 10 | io.weight=8:16 1"],
        ),
        (
            r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}, {"major": 8, "minor": 1, "rate": 0}],
                "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 601}],
                "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 602}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 603}]}}"#,
            &[
                "io.max=8:0 rbps=600",
                "io.max=8:1 rbps=max",
                "io.max=8:0 wbps=601",
                "io.max=8:0 riops=602",
                "io.max=8:0 wiops=603",
            ],
        ),
        (
            r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 18446744073709551615}]}"#,
            &["hugetlb.2MB.max=18446744073709551615", "hugetlb.2MB.rsvd.max=18446744073709551615 or not"],
        ),
        (
            r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "rxe3": {"hcaObjects": 1}}}"#,
            &["rdma.max=mlx5_1 hca_handle=3 hca_object=10000", "rdma.max=rxe3 hca_object=1"],
        ),
        (r#"{"network": {"classID": 0}}"#, &[]),
        (
            r#"{"unified": {"io.max": "8:0 rbps=1\n8:1 wbps=2\n", "misc.max": "sev 1", "memory.high": ""}}"#,
            &["io.max=8:0 rbps=1", "io.max=8:1 wbps=2", "memory.high=", "misc.max=sev 1"],
        ),
    ] {
        assert_eq!(shown(&planned(json).unwrap()), writes, "{json}");
    }
}

#[test]
fn what_cannot_be_limited_is_refused_by_its_path() {
    for (json, path, word) in [
        (r#"{"memory": {"swap": 5}}"#, "memory.swap to 5", "memory.limit is not set"),
        (r#"{"memory": {"limit": 6, "swap": 5}}"#, "memory.swap to 5", "memory.limit is more"),
        (r#"{"memory": {"limit": -2}}"#, "memory.limit to -2", "-1 for no limit"),
        (r#"{"memory": {"limit": 5, "swap": -2}}"#, "memory.swap to -2", "-1 for no limit"),
        (r#"{"memory": {"disableOOMKiller": true}}"#, "memory.disableOOMKiller", "OOM killer"),
        (r#"{"memory": {"kernel": 5}}"#, "memory.kernel to 5", "cgroup v2"),
        (r#"{"memory": {"kernelTCP": 5}}"#, "memory.kernelTCP to 5", "cgroup v2"),
        (r#"{"cpu": {"realtimeRuntime": 5}}"#, "cpu.realtimeRuntime to 5", "real-time"),
        (r#"{"cpu": {"realtimePeriod": 5}}"#, "cpu.realtimePeriod to 5", "real-time"),
        (r#"{"cpu": {"quota": 5, "burst": 6}}"#, "cpu.burst to 6", "more than cpu.quota"),
        (r#"{"blockIO": {"weight": 5}}"#, "blockIO.weight to 5", "10 to 1000"),
        (
            r#"{"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 1001}]}}"#,
            "blockIO.weightDevice to 1001",
            "10 to 1000",
        ),
        (r#"{"hugepageLimits": [{"pageSize": "../2MB"}]}"#, "hugepageLimits", "2MB"),
        (r#"{"hugepageLimits": [{"pageSize": "MB"}]}"#, "hugepageLimits", "2MB"),
        (r#"{"rdma": {"mlx5_1": {}}}"#, "rdma to mlx5_1", "hcaHandles"),
        (r#"{"rdma": {"a b": {"hcaObjects": 1}}}"#, "rdma", "no device's name"),
        (r#"{"network": {"classID": 9}}"#, "network.classID to 9", "v1 only"),
        (r#"{"network": {"priorities": [{"name": "eth0", "priority": 1}]}}"#, "network to priorities", "v1 only"),
        (r#"{"unified": {"memory": "1"}}"#, "unified[\"memory\"]", "controller.parameter"),
        (r#"{"unified": {"../x.y": "1"}}"#, "unified", "controller.parameter"),
        (r#"{"unified": {".max": "1"}}"#, "unified", "controller.parameter"),
        (r#"{"unified": {"cgroup.procs": "1"}}"#, "unified[\"cgroup.procs\"]", "not a limit"),
    ] {
        let error = planned(json).unwrap_err().to_string();
        assert!(error.contains(path) && error.contains(word), "{json}: {error}");
    }
}

#[test]
fn what_is_only_a_hint_is_noted() {
    let json = r#"{"memory": {"swappiness": 0, "useHierarchy": false}, "blockIO": {"leafWeight": 10,
        "weightDevice": [{"major": 8, "minor": 0, "leafWeight": 300}]}}"#;
    let limits = planned(json).unwrap();
    assert_eq!((limits.writes.len(), limits.notes.len(), limits.needs.len()), (0, 4, 0), "{:?}", limits.notes);
    assert!(limits.notes[0].starts_with("linux.resources.memory.swappiness is ignored"), "{:?}", limits.notes);
}

#[test]
fn needs_the_controllers_it_writes_to_and_no_others() {
    let json = r#"{"pids": {"limit": 1}, "cpu": {"cpus": "0"}, "unified": {"misc.max": "x", "cgroup.max.depth": "3",
        "cpu.pressure": "some 1 2"}}"#;
    let limits = planned(json).unwrap();
    assert_eq!(limits.needs, BTreeSet::from(["cpuset".into(), "misc".into(), "pids".into()]));
    assert_eq!(limits.writes[2].field, "unified[\"cgroup.max.depth\"]");
}

#[test]
fn the_check_before_an_update_is_carried() {
    let check = |json| planned(json).unwrap().memory_check;
    let both = MemoryCheck { limit: Some(5), with_swap: Some(9) };
    assert_eq!(check(r#"{"memory": {"checkBeforeUpdate": true, "limit": 5, "swap": 9}}"#), Some(both));
    assert_eq!(check(r#"{"memory": {"checkBeforeUpdate": true, "limit": -1}}"#), None);
    assert_eq!(check(r#"{"memory": {"checkBeforeUpdate": false, "limit": 5}}"#), None);
}

#[test]
fn shares_to_weight() {
    // The ends, the default, and values worked out apart from this code.
    for (shares, weight) in [
        (1, 1),
        (2, 1),
        (4, 2),
        (10, 4),
        (102, 17),
        (512, 59),
        (1024, 100),
        (2048, 174),
        (10_240, 639),
        (262_144, 10_000),
        (u64::MAX, 10_000),
    ] {
        assert_eq!(cpu_weight(shares), Some(weight), "{shares}");
    }
    assert_eq!(cpu_weight(0), None);
}

#[test]
fn devices_are_governed_at_creation_and_left_alone_by_an_update() {
    for json in ["{}", r#"{"devices": [{"allow": true, "access": "rwm"}]}"#] {
        assert_eq!(planned(json).unwrap().devices, None);
    }
    let created = plan(&Resources::default()).unwrap().devices.unwrap();
    assert!(created.iter().all(|rule| rule.allow) && !created.is_empty());
}
