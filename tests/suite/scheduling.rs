//! When and where a container's processes run: policies, NUMA nodes, processors.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::case::Case;
use super::need::Need::{Ferry, Peer, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("static_priority", &[Root, OLD_RUNC, OLD_CRUN], priority),
    scenario("flags", &[Root, OLD_RUNC, OLD_CRUN], flags),
    scenario("deadline", &[Root, OLD_RUNC, OLD_CRUN], deadline),
    scenario("what_the_kernel_refuses_is_told", &[Root, Ferry], refused),
    scenario("io_priority_of_each_class", &[Root, OLD_RUNC, OLD_CRUN], io_classes),
    scenario("io_priority_that_is_none_is_refused", &[Ferry], no_io_priority),
    scenario("memory_policy_with_nodes_and_flags", &[Ferry], memory_policy),
    scenario("a_memory_policy_that_cannot_be_is_refused", &[Ferry], no_memory_policy),
    scenario("exec_begins_on_the_initial_cpus", &[Ferry, Tool("strace")], initial),
    scenario("exec_without_final_cpus_stays_where_it_is", &[Ferry], no_final),
    scenario("the_callers_cpus_are_not_the_containers", &[Ferry, Tool("taskset")], callers_cpus),
    scenario("personality_of_each_domain", &[OLD_RUNC], personality),
];

const OLD_RUNC: super::need::Need = Peer("runc", "1.1.5 has none");
const OLD_CRUN: super::need::Need = Peer("crun", "1.8.1 has none");

fn attributes(case: &mut Case, scheduler: Value) -> Result<Value, libtest_mimic::Failed> {
    case.config["process"]["scheduler"] = scheduler;
    Ok(case.report()?["sched_attr"].clone())
}

fn priority(case: &mut Case) -> Outcome {
    for (name, policy) in [("SCHED_FIFO", libc::SCHED_FIFO), ("SCHED_RR", libc::SCHED_RR)] {
        let seen = attributes(case, json!({"policy": name, "priority": 7}))?;
        assert_eq!((&seen["policy"], &seen["priority"]), (&json!(policy), &json!(7)), "{name}");
    }
    let seen = attributes(case, json!({"policy": "SCHED_IDLE"}))?;
    assert_eq!(seen["policy"], libc::SCHED_IDLE);
    Ok(())
}

fn flags(case: &mut Case) -> Outcome {
    let with = |flags: &[&str]| json!({"policy": "SCHED_BATCH", "nice": 4, "flags": flags});
    let seen = attributes(case, with(&["SCHED_FLAG_RESET_ON_FORK"]))?;
    assert_eq!((&seen["policy"], &seen["flags"]), (&json!(libc::SCHED_BATCH), &json!(libc::SCHED_FLAG_RESET_ON_FORK)));
    assert_eq!(attributes(case, with(&[]))?["flags"], 0);
    Ok(())
}

fn deadline(case: &mut Case) -> Outcome {
    let wanted = json!({
        "policy": "SCHED_DEADLINE", "runtime": 10_000_000, "deadline": 50_000_000, "period": 100_000_000,
        "flags": ["SCHED_FLAG_RECLAIM"],
    });
    let seen = attributes(case, wanted.clone())?;
    assert_eq!(seen["policy"], libc::SCHED_DEADLINE);
    for field in ["runtime", "deadline", "period"] {
        assert_eq!(seen[field], wanted[field], "{field}");
    }
    assert_eq!(seen["flags"], libc::SCHED_FLAG_RECLAIM);
    Ok(())
}

fn refused(case: &mut Case) -> Outcome {
    let rows = [
        json!({"policy": "SCHED_FAST"}),
        json!({"policy": ""}),
        json!({"nice": 3}),
        json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_SLOW"]}),
        json!({"policy": "SCHED_FIFO", "priority": -1}),
        json!({"policy": "SCHED_FIFO", "priority": 100}),
        json!({"policy": "SCHED_DEADLINE", "runtime": 9, "deadline": 8, "period": 7}),
    ];
    for row in rows {
        case.config["process"]["scheduler"] = row.clone();
        let end = case.run()?.failure()?;
        assert!(end.stderr.contains("scheduler"), "{row}: {}", end.stderr);
    }
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

fn io_classes(case: &mut Case) -> Outcome {
    for (name, class) in [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)] {
        case.config["process"]["ioPriority"] = json!({"class": name, "priority": 5});
        assert_eq!(case.report()?["io_priority"], (class << 13) | 5, "{name}");
    }
    Ok(())
}

fn no_io_priority(case: &mut Case) -> Outcome {
    for row in [
        json!({"priority": 5}),
        json!({"class": "IOPRIO_CLASS_LATE", "priority": 5}),
        json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
        json!({"class": "IOPRIO_CLASS_BE", "priority": -1}),
    ] {
        case.config["process"]["ioPriority"] = row.clone();
        let end = case.run()?.failure()?;
        assert!(end.stderr.contains("process.ioPriority"), "{row}: {}", end.stderr);
    }
    Ok(())
}

/// numa_maps(5) names the policy of memory that has none of its own: the process's.
fn memory_policy(case: &mut Case) -> Outcome {
    for (policy, expected) in [
        (json!({"mode": "MPOL_BIND", "nodes": "0"}), "bind:0"),
        (json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}), "interleave:0"),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), "prefer:0"),
        (json!({"mode": "MPOL_LOCAL"}), "local"),
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}), "bind=static:0"),
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]}), "bind=relative:0"),
        (json!({"mode": "MPOL_DEFAULT"}), "default"),
    ] {
        case.config["linux"]["memoryPolicy"] = policy.clone();
        let seen = case.deed(&["read", "/proc/self/numa_maps"])?;
        let lines = seen["ok"].as_str().unwrap_or_default();
        assert!(!lines.is_empty(), "{policy}: {seen}");
        for line in lines.lines() {
            assert_eq!(line.split(' ').nth(1), Some(expected), "{policy}: {line}");
        }
    }
    Ok(())
}

fn no_memory_policy(case: &mut Case) -> Outcome {
    for policy in [
        json!({"nodes": "0"}),
        json!({"mode": "MPOL_NEAR"}),
        json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_FAR"]}),
        json!({"mode": "MPOL_BIND", "nodes": "0-"}),
        json!({"mode": "MPOL_BIND"}),
        json!({"mode": "MPOL_BIND", "nodes": "1000"}),
    ] {
        case.config["linux"]["memoryPolicy"] = policy.clone();
        let end = case.run()?.failure()?;
        assert!(
            end.stderr.contains("memoryPolicy") || end.stderr.contains("memory policy"),
            "{policy}: {}",
            end.stderr
        );
    }
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// Before the clone, and so before anything is in the container's cgroup.
fn initial(case: &mut Case) -> Outcome {
    case.config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    case.start_waiting()?;
    let (id, trace) = (case.id.clone(), case.path("trace"));
    let inner = case.command(&["exec", &id, "/probe", "exit", "0"]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", &trace, "-e", "trace=sched_setaffinity,clone3"]).stdin(Stdio::null());
    strace.arg(inner.get_program()).args(inner.get_args());
    strace.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    case.finish(&mut strace)?.success()?;
    let calls = std::fs::read_to_string(trace)?;
    let at = |what: &str| calls.lines().position(|line| line.contains(what));
    let (bound, cloned) = (at("sched_setaffinity("), at("clone3("));
    assert!(bound.is_some() && bound < cloned, "{calls}");
    assert!(calls.lines().any(|line| line.contains("sched_setaffinity(0, ") && line.contains("[0]")), "{calls}");
    Ok(())
}

fn no_final(case: &mut Case) -> Outcome {
    case.config["process"]["execCPUAffinity"] = json!({"initial": "0"});
    case.start_waiting()?;
    assert_eq!(case.exec(&[], &["/probe"])?.success()?.json()?["cpus"], "0");
    // It is about processes that join, and not about the first one.
    assert_eq!(case.exec(&[], &["/probe", "read", "/proc/1/status"])?.code, 0);
    Ok(())
}

/// An engine that is bound to the CPUs kept for the system starts containers that are not.
fn callers_cpus(case: &mut Case) -> Outcome {
    let all = case.report()?["cpus"].clone();
    let last = all.as_str().unwrap_or_default().rsplit([',', '-']).next().unwrap_or_default().to_owned();
    let bound = |case: &mut Case, args: &[&str]| -> Result<Value, libtest_mimic::Failed> {
        let inner = case.command(args);
        let mut taskset = Command::new("taskset");
        taskset.args(["--cpu-list", &last]).arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
        taskset.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        case.finish(&mut taskset)?.success()?.json()
    };
    let (bundle, id) = (case.args(&["/probe"]).write_config()?, case.id.clone());
    assert_eq!(bound(case, &["run", "--bundle", &bundle, &id])?["cpus"], all);
    case.start_waiting()?;
    assert_eq!(bound(case, &["exec", &id, "/probe"])?["cpus"], all);
    Ok(())
}

fn personality(case: &mut Case) -> Outcome {
    for (domain, expected) in [("LINUX", 0), ("LINUX32", 8)] {
        case.config["linux"]["personality"] = json!({"domain": domain});
        assert_eq!(case.report()?["personality"], expected, "{domain}");
    }
    for row in [json!({"domain": "PLAN9"}), json!({})] {
        case.config["linux"]["personality"] = row.clone();
        let end = case.run()?.failure()?;
        assert!(end.stderr.contains("personality") || case.stage.runtime.name != "ferry", "{row}: {}", end.stderr);
    }
    Ok(())
}
