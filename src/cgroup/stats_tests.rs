//! Figures as the kernel writes them, and the JSON that engines parse.

use super::*;
use crate::cgroup::life;
use crate::cgroup::trial::{Trial, skip};

#[test]
fn cpu_in_nanoseconds() {
    let stat = "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 2\nnr_throttled 1\nthrottled_usec 9\n";
    let json = serde_json::to_value(cpu(stat, None)).unwrap();
    let expected = serde_json::json!({
        "usage": {"total": 7000, "kernel": 3000, "user": 4000},
        "throttling": {"periods": 2, "throttledPeriods": 1, "throttledTime": 9000},
    });
    assert_eq!(json, expected);
    assert_eq!(serde_json::to_value(cpu("", None)).unwrap(), serde_json::json!({}));
}

#[test]
fn io_by_device() {
    let stat = "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n\n253:0 rbytes=0\nodd line\n";
    let json = serde_json::to_value(blkio(stat, None)).unwrap();
    let expected = serde_json::json!({
        "ioServiceBytesRecursive": [
            {"major": 8, "minor": 16, "op": "Read", "value": 1},
            {"major": 8, "minor": 16, "op": "Write", "value": 2},
            {"major": 253, "op": "Read"},
        ],
        "ioServicedRecursive": [
            {"major": 8, "minor": 16, "op": "Read", "value": 3},
            {"major": 8, "minor": 16, "op": "Write", "value": 4},
        ],
    });
    assert_eq!(json, expected);
}

#[test]
fn pressure_lines() {
    let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
    let json = serde_json::to_value(pressure(text).unwrap()).unwrap();
    assert_eq!(json, serde_json::json!({"some": {"avg10": 1.5, "avg60": 0.25, "avg300": 0.0, "total": 42}}));
    assert_eq!(pressure(""), None);
}

#[test]
fn swap_is_told_with_memory_as_in_v1() {
    let entry = |limit, usage| MemoryEntry { limit, usage, max: 8, failcnt: 0 };
    assert_eq!(
        with_memory(entry(100, 10), &entry(1000, 20)),
        MemoryEntry { limit: 1100, usage: 30, max: 0, failcnt: 0 }
    );
    assert_eq!(with_memory(entry(u64::MAX, 0), &entry(1000, 0)).limit, u64::MAX);
}

#[test]
fn rdma_by_device() {
    let figures = rdma("mlx5_1 hca_handle=3 hca_object=10000\nrxe3 hca_handle=0 hca_object=max\n");
    assert_eq!(figures["mlx5_1"]["hca_object"], 10000);
    assert_eq!(figures["rxe3"].get("hca_object"), None);
}

#[test]
fn a_real_cgroup_counts_its_processes() {
    let Some(mut trial) = Trial::new("stats") else { return };
    let cgroup = trial.create("box");
    trial.start(&cgroup);
    trial.start(&cgroup);
    let stats = read(&cgroup).unwrap();
    assert_eq!(stats.pids.current, 2);
    let json = serde_json::to_value(stats).unwrap();
    for key in ["cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt"] {
        assert!(json[key].is_object(), "{key}: {json}");
    }
    assert!(json["network_interfaces"].is_null(), "{json}");
    // Ending takes time of the CPU, which stays on the cgroup's account.
    life::kill(&cgroup).unwrap();
    trial.signals();
    let stats = read(&cgroup).unwrap();
    assert!(stats.pids.current == 0 && stats.cpu.usage.total > 0, "{stats:?}");
}

#[test]
fn kills_are_those_for_want_of_memory() {
    assert_eq!(oom_kills("low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 1\n"), 3);
    assert_eq!(oom_kills("oom 4\n"), 0);
}

#[test]
fn a_cgroup_without_the_memory_controller_tells_of_no_kills() {
    let Some(trial) = Trial::new("kills") else { return };
    let cgroup = trial.create("box");
    if cgroup.path.join("memory.events").exists() {
        return skip("this host has the memory controller in cgroup v2");
    }
    assert!(MemoryEvents::open(&cgroup).unwrap().is_none());
}
