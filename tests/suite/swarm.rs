//! Many containers at once, and processes that run from whoever would freeze or kill them: nothing may be left.

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::json;

use super::case::{Case, marked_processes};
use super::cgroup::directory_of;
use super::limits::{alone, read};
use super::need::Need::{CgroupV2, Ferry, Root, Systemd};
use super::output;
use super::scenario::{Outcome, Scenario, scenario};
use super::stage::is_long;

pub const SCENARIOS: &[Scenario] = &[
    scenario("many_at_once_leave_nothing", &[Root, CgroupV2(&[]), Ferry], |case| swarm(case, "cgroupfs")),
    scenario("many_at_once_leave_nothing_under_systemd", &[Root, CgroupV2(&["pids"]), Systemd, Ferry], |case| {
        swarm(case, "systemd")
    }),
    scenario("who_forks_while_frozen_or_killed_is_caught", &[Root, CgroupV2(&[])], relay),
];

/// How many verbs run at a time.
const THREADS: usize = 8;

/// One container's life, by verbs that each may fail.
fn live_and_die(case: &Case, bundle: &str, id: &str, update: bool) -> Outcome {
    let call = |args: &[&str]| output::run(&mut case.command(args), case.patience()).and_then(output::Output::success);
    call(&["create", "--bundle", bundle, id])?;
    call(&["start", id])?;
    if update {
        call(&["update", "--pids-limit", "30", id])?;
    }
    call(&["kill", id, "KILL"])?;
    call(&["delete", "--force", id]).map(drop)
}

fn swarm(case: &mut Case, driver: &'static str) -> Outcome {
    let _alone = alone();
    let limits = driver == "systemd" || super::need::Need::CgroupV2(&["pids"]).missing(&case.stage).is_none();
    case.driver = driver;
    // A rule that no default covers, so that every container has a device program.
    let rule = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]);
    case.config["linux"]["resources"] = json!({"devices": rule});
    if limits {
        case.config["linux"]["resources"]["pids"] = json!({"limit": 20});
    }
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let programs = device_programs();
    // Whether the kernel shows them at all: else there is nothing to be counted, and nothing is shown of them below.
    case.start()?.until("ready")?;
    let shown = device_programs();
    assert!(shown > 0 || !has_program_symbols(), "no device program is shown while a container has one");
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    let ids: Vec<String> = (0..if is_long() { 200 } else { 16 }).map(|_| case.other_id()).collect();
    let shared = &*case;
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let live = |first: usize| {
            let mut mine = ids.iter().skip(first).step_by(THREADS);
            let bundle = &bundle;
            scope.spawn(move || mine.try_for_each(|id| live_and_die(shared, bundle, id, limits)))
        };
        let threads: Vec<_> = (0..THREADS).map(live).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread died".into()))).collect()
    });
    outcomes.into_iter().collect::<Outcome>()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    if driver == "systemd" {
        let pattern = format!("ferry-{}*", case.id);
        let mut units = std::process::Command::new("systemctl");
        let left = units.args(["list-units", "--all", "--plain", "--quiet", &pattern]).output()?.stdout;
        assert_eq!(String::from_utf8_lossy(&left), "");
    }
    // The kernel frees programs once nobody can be running them any more.
    wait_until(case, "device programs are left", || device_programs() <= programs)
}

/// Device programs of ferry's that the kernel has loaded: those it compiled have a symbol each.
fn device_programs() -> usize {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    symbols.lines().filter(|line| line.contains("ferry_devices")).count()
}

/// net.core.bpf_jit_kallsyms, which only the machine's root sees at work.
fn has_program_symbols() -> bool {
    fs::read_to_string("/proc/sys/net/core/bpf_jit_kallsyms").is_ok_and(|setting| setting.trim() == "1")
}

/// For what no event tells of.
#[allow(clippy::disallowed_methods, reason = "the kernel does not tell when it frees what is no longer used")]
fn wait_until(case: &Case, otherwise: &str, is_so: impl Fn() -> bool) -> Outcome {
    let until = Instant::now() + case.patience();
    while !is_so() {
        if Instant::now() > until {
            return Err(Failed::from(otherwise));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn relay(case: &mut Case) -> Outcome {
    for _ in 0..if is_long() { 40 } else { 4 } {
        case.args(&["/probe", "relay"]).start()?.until("ready")?;
        let id = case.id.clone();
        let place = directory_of(case, &id)?;
        case.call(&["pause", &id])?.success()?;
        // Frozen as a whole: nobody comes or goes.
        assert!(read(&place, "cgroup.events")?.contains("frozen 1"));
        let frozen = read(&place, "cgroup.procs")?;
        assert!(frozen.lines().count() >= 2, "{frozen}");
        assert_eq!(read(&place, "cgroup.procs")?, frozen);
        case.call(&["resume", &id])?.success()?;
        case.call(&["kill", "--all", &id, "KILL"])?.success()?;
        case.call(&["delete", "--force", &id])?.success()?;
        assert_eq!(marked_processes(&case.directory), Vec::<u32>::new());
        assert_eq!(case.leftovers()?, Vec::<String>::new());
    }
    Ok(())
}
