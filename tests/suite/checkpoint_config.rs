//! What config.json says holds for a restored container as for a launched one, also where CRIU saves nothing of it; and what is a
//! pod's is left to the pod.

use std::fs;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::json;

use super::case::Case;
use super::checkpoint::{checkpoint, images, restore};
use super::need::Need::{CgroupV2, Criu, Ferry, Root, Tool};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};
use crate::rootfs_fixtures::config;

pub const SCENARIOS: &[Scenario] = &[
    scenario(
        "a_pods_names_and_parameters_stay_as_they_are",
        &[Ferry, Root, Criu, Tool("nsenter"), Tool("ipcmk")],
        joined_pod,
    ),
    scenario("what_criu_does_not_save_is_set_anew", &[Ferry, Root, Criu, Tool("ionice")], kept),
    scenario("the_hosts_cgroups_are_seen_as_before", &[Ferry, Root, Criu, CgroupV2(&[])], cgroups_of_the_host),
];

/// Whoever runs the pod changes them between the two.
fn joined_pod(case: &mut Case) -> Outcome {
    let (holder, first) = (case.other_id(), case.id.clone());
    case.id = holder.clone();
    case.start_waiting()?;
    let pid = case.pid()?;
    case.id = first;
    for kind in ["uts", "ipc"] {
        config::without_namespace(&mut case.config, kind);
        let path = format!("/proc/{pid}/ns/{kind}");
        config::add(&mut case.config, "/linux/namespaces", json!({"type": kind, "path": path}));
    }
    case.config["hostname"] = "".into();
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    let in_pod = |script: &str| -> Result<String, Failed> {
        let pid = pid.to_string();
        let output = Command::new("nsenter").args(["-t", &pid, "-u", "-i", "sh", "-c", script]).output()?;
        assert!(output.status.success(), "{script}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let (images, id) = (images(case), case.id.clone());
    in_pod("ipcmk -M 1000 && ipcmk -Q")?;
    let said = case.call(&["checkpoint", "--image-path", &images, &id])?.failure()?.stderr;
    assert!(said.contains("System V shared memory, message queues"), "{said}");
    assert!(!fs::exists(&images)?, "it was begun");
    row.go_on(5)?;
    in_pod("ipcrm --all")?;
    checkpoint(case, &[])?;
    let set = "cd /proc/sys; echo pier >kernel/hostname; echo port >kernel/domainname; echo 99999 >kernel/shmmax; \\
               echo 77 >fs/mqueue/msg_max";
    let read = "cd /proc/sys; cat kernel/hostname kernel/domainname kernel/shmmax fs/mqueue/msg_max";
    in_pod(set)?;
    let other = fs::read_to_string("/proc/sys/kernel/hostname")?;
    case.config["hooks"] = json!({"createRuntime": [{"path": "/bin/false"}]});
    case.write_config()?;
    assert!(restore(case, &[]).is_err(), "its hook did not fail");
    case.config["hooks"] = json!({});
    case.write_config()?;
    assert_eq!(in_pod(read)?, "pier\nport\n99999\n77\n");
    let lines = restore(case, &[])?;
    row.continued(lines)?;
    assert_eq!(in_pod(read)?, "pier\nport\n99999\n77\n");
    for kind in ["uts", "ipc"] {
        let own = format!("/proc/{}/ns/{kind}", case.pid()?);
        assert_eq!(fs::read_link(own)?, fs::read_link(format!("/proc/{pid}/ns/{kind}"))?);
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname")?, other, "the host's");
    Ok(())
}

/// What the first process has been given that CRIU saves nothing of.
fn settings(case: &mut Case) -> Result<Vec<String>, Failed> {
    let pid = case.pid()?.to_string();
    let priority = Command::new("ionice").args(["-p", &pid]).output()?;
    let memory = fs::read_to_string(format!("/proc/{pid}/numa_maps")).unwrap_or_default();
    let policies = memory.lines().filter(|line| line.contains("prefer:0")).count();
    let mut sysctl = |name: &str| -> Result<String, Failed> {
        Ok(case.exec(&[], &["/probe", "read", &format!("/proc/sys/{name}")])?.success()?.json()?["ok"].to_string())
    };
    Ok(vec![
        sysctl("net/ipv4/ip_forward")?,
        sysctl("net/ipv4/ip_unprivileged_port_start")?,
        sysctl("kernel/shmmax")?,
        String::from_utf8(priority.stdout)?,
        fs::read_to_string(format!("/proc/{pid}/personality"))?,
        format!("a memory policy: {}", memory.is_empty() || policies > 0),
    ])
}

fn kept(case: &mut Case) -> Outcome {
    case.config["linux"]["sysctl"] = json!({
        "net.ipv4.ip_forward": "1", "net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmax": "123456",
    });
    case.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    case.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_PREFERRED", "nodes": "0"});
    case.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    let before = settings(case)?;
    let given = ["1\\n", "80\\n", "123456\\n", "best-effort: prio 6", "8\n", "true"];
    assert!(before.iter().zip(given).all(|(had, given)| had.contains(given)), "{before:?}");
    checkpoint(case, &[])?;
    let lines = restore(case, &[])?;
    row.continued(lines)?;
    assert_eq!(settings(case)?, before);
    Ok(())
}

/// As it is seen without a cgroup namespace: with all that is the host's, and with what was open in it.
fn cgroups_of_the_host(case: &mut Case) -> Outcome {
    config::without_namespace(&mut case.config, "cgroup");
    let mount =
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]});
    config::add(&mut case.config, "/mounts", mount);
    case.config["linux"]["cgroupsPath"] = format!("/{}", case.id).into();
    case.config["process"]["cwd"] = format!("/sys/fs/cgroup/{}", case.id).into();
    let mut row = Row::of(case.args(&["/probe", "count", "1000000", "0"]).start()?);
    row.go_on(5)?;
    let own = |case: &mut Case| -> Result<String, Failed> {
        let path = format!("/sys/fs/cgroup/{}/cgroup.procs", case.id);
        Ok(case.exec(&[], &["/probe", "read", &path])?.success()?.json()?.to_string())
    };
    assert!(own(case)?.contains("\"ok\":\"1\\n"), "{}", own(case)?);
    checkpoint(case, &[])?;
    let lines = restore(case, &[])?;
    row.continued(lines)?;
    assert!(own(case)?.contains("\"ok\":\"1\\n"), "{}", own(case)?);
    Ok(())
}
