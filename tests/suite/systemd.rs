//! The systemd driver: where a container is put, what its scope is told, and a systemd that is slow, or has been there before.

use std::fs;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::json;

use super::case::Case;
use super::cgroup::directory_of;
use super::need::Need::{CgroupV2, Ferry, OrdinaryUser, Root, Systemd, Tool};
use super::output;
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("slice_prefix_name_is_where_it_is_put", &[Systemd], place),
    scenario("annotations_set_properties", &[Systemd], properties),
    scenario("annotations_that_would_do_more_are_refused", &[Systemd, Ferry], refused),
    scenario("an_idle_container_is_told_as_this_systemd_knows_it", &[Root, CgroupV2(&["cpu"]), Systemd, Ferry], idle),
    scenario("a_failed_unit_of_that_name_is_no_hindrance", &[Root, Systemd, Tool("systemd-run")], left_over),
    scenario("a_name_in_use_is_refused", &[Root, Systemd, Tool("systemd-run"), Ferry], in_use),
    scenario("a_scope_that_was_stopped_is_cleaned_up", &[Systemd], stopped),
    scenario("a_slow_systemd_is_waited_for", &[OrdinaryUser, Systemd], slow),
];

fn systemctl(args: &[&str]) -> Result<String, Failed> {
    let user = (!nix::unistd::geteuid().is_root()).then_some("--user");
    let output = Command::new("systemctl").args(user).args(args).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn scope(case: &Case) -> String {
    format!("ferry-{}.scope", case.id)
}

/// What is left of the case's scope with systemd.
fn units(case: &Case) -> Result<String, Failed> {
    systemctl(&["list-units", "--all", "--plain", "--quiet", &scope(case)])
}

fn delete(case: &mut Case) -> Outcome {
    let id = case.id.clone();
    case.call(&["delete", "--force", &id])?.success()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    assert_eq!(units(case)?, "");
    Ok(())
}

fn place(case: &mut Case) -> Outcome {
    case.driver = "systemd";
    let stem = case.id.replace('-', "_");
    let slice = format!("{stem}-inner.slice");
    case.config["linux"]["cgroupsPath"] = format!("{slice}:sea:{stem}").into();
    case.start_waiting()?;
    let id = case.id.clone();
    let path = directory_of(case, &id)?;
    let end = format!("{stem}.slice/{slice}/sea-{stem}.scope");
    assert!(path.ends_with(&end), "{} does not end in {end}", path.display());
    case.call(&["delete", "--force", &id])?.success()?;
    systemctl(&["stop", &format!("{stem}.slice")])?;
    assert!(!path.exists());
    // Another form is refused, with the one that is understood.
    case.config["linux"]["cgroupsPath"] = "/a/b".into();
    let end = case.run()?.failure()?;
    assert!(case.stage.runtime.name != "ferry" || end.stderr.contains("slice:prefix:name"), "{}", end.stderr);
    Ok(())
}

fn properties(case: &mut Case) -> Outcome {
    case.driver = "systemd";
    case.config["annotations"] = json!({
        "org.systemd.property.TimeoutStopUSec": "uint64 7000000",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        // podman sends this one with every container.
        "org.systemd.property.KillSignal": "10",
    });
    case.start_waiting()?;
    let told = systemctl(&["show", "-p", "TimeoutStopUSec,CollectMode,Delegate,KillSignal", &scope(case)])?;
    let mut lines: Vec<&str> = told.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["CollectMode=inactive-or-failed", "Delegate=yes", "KillSignal=10", "TimeoutStopUSec=7s"]);
    delete(case)
}

fn idle(case: &mut Case) -> Outcome {
    case.driver = "systemd";
    case.config["linux"]["resources"] = json!({"cpu": {"idle": 1}});
    case.start_waiting()?;
    let id = case.id.clone();
    assert_eq!(fs::read_to_string(directory_of(case, &id)?.join("cpu.idle"))?.trim(), "1");
    let told = systemctl(&["show", "-p", "CPUWeight", &scope(case)])?;
    assert!(["CPUWeight=idle", "CPUWeight=0", "CPUWeight=[not set]"].contains(&&*told), "{told}");
    delete(case)
}

fn refused(case: &mut Case) -> Outcome {
    case.driver = "systemd";
    for (name, value, why) in
        [("ExecStop", "'/bin/sh'", "lets no annotation set"), ("TasksMax", "plenty", "no whole number")]
    {
        case.config["annotations"] = json!({format!("org.systemd.property.{name}"): value});
        let end = case.run()?.failure()?;
        assert!(end.stderr.contains(name) && end.stderr.contains(why), "{}", end.stderr);
        assert_eq!(case.leftovers()?, Vec::<String>::new());
    }
    // Another driver has no scope that they could be properties of.
    case.driver = "cgroupfs";
    case.run()?.success().map(drop)
}

/// A scope of the case's name with somebody else's process in it, and flags of systemd-run's.
fn others(case: &Case, flags: &[&str]) -> Result<std::process::Child, Failed> {
    let unit = scope(case);
    let mut command = Command::new("systemd-run");
    command.args(["--scope", "--quiet", "--unit", &unit]).args(flags).args(["sleep", "600"]);
    Ok(command.spawn()?)
}

fn left_over(case: &mut Case) -> Outcome {
    case.driver = "systemd";
    // A scope fails when it has to be ended by its time limit.
    let mut child = others(case, &["-p", "RuntimeMaxSec=200ms"])?;
    output::wait(&mut child, case.patience())?;
    let unit = scope(case);
    for _ in 0..200 {
        if systemctl(&["is-failed", &unit])? == "failed" {
            break;
        }
    }
    assert_eq!(systemctl(&["is-failed", &unit])?, "failed");
    case.start_waiting()?;
    assert_eq!(systemctl(&["is-active", &unit])?, "active");
    delete(case)
}

fn in_use(case: &mut Case) -> Outcome {
    case.driver = "systemd";
    let mut child = others(case, &[])?;
    let unit = scope(case);
    for _ in 0..200 {
        if systemctl(&["is-active", &unit])? == "active" {
            break;
        }
    }
    let end = case.run()?.failure()?;
    let still = systemctl(&["is-active", &unit])?;
    child.kill()?;
    child.wait()?;
    assert!(end.stderr.contains("UnitExists") && end.stderr.contains(&unit), "{}", end.stderr);
    assert_eq!(still, "active");
    assert!(!case.state_root().join(&case.id).exists());
    Ok(())
}

fn stopped(case: &mut Case) -> Outcome {
    case.driver = "systemd";
    case.start_waiting()?;
    let pid = case.pid()?;
    systemctl(&["stop", &scope(case)])?;
    case.wait_for(pid)?;
    assert_eq!(case.state()?["status"], "stopped");
    let id = case.id.clone();
    case.call(&["delete", &id])?.success()?;
    assert_eq!(case.leftovers()?, Vec::<String>::new());
    Ok(())
}

/// The user's systemd stands still while this is there.
struct Standstill(nix::unistd::Pid);

impl Drop for Standstill {
    fn drop(&mut self) {
        nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGCONT).ok();
    }
}

fn slow(case: &mut Case) -> Outcome {
    case.driver = "systemd";
    let unit = format!("user@{}.service", nix::unistd::geteuid());
    let answer = Command::new("systemctl").args(["show", "-p", "MainPID", "--value", &unit]).output()?.stdout;
    let pid: i32 = String::from_utf8_lossy(&answer).trim().parse()?;
    let bundle = case.args(&["/probe", "sleep", "forever"]).write_config()?;
    let (pid, id) = (nix::unistd::Pid::from_raw(pid), case.id.clone());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    let standstill = Standstill(pid);
    let (mut child, mut lines) = case.spawn(&["run", "--detach", "--bundle", &bundle, &id])?;
    assert!(!output::wait_for_pid(child.id(), std::time::Duration::from_secs(2))?, "it did not wait for systemd");
    drop(standstill);
    lines.until("ready")?;
    assert_eq!(output::code(output::wait(&mut child, case.patience())?), 0);
    assert!(fs::read_to_string(format!("/proc/{}/cgroup", case.pid()?))?.trim_end().ends_with(&scope(case)));
    delete(case)
}
