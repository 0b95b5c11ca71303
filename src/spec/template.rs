//! The configuration `ferry spec` writes: a shell in `rootfs`, confined as far as a shell bears it.
//!
//! Its content is that of `runc spec`, because tools edit that very file: they look for its mounts, its three
//! capabilities and its namespaces. Only the host name differs: there each runtime puts its own.

use serde::Serialize;

use super::config::{Capabilities, Config, IdMapping, Linux, Mount, Namespace, Process, Rlimit, Root};
use super::resources::{DeviceRule, Resources};
use crate::error::{Error, Result};

/// The version of the specification that is written and understood.
pub const OCI_VERSION: &str = "1.3.0";

const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
const NAMESPACES: [&str; 5] = ["pid", "network", "ipc", "uts", "mount"];

/// Destination, type, source and options of each mount.
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &[]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
];

/// Paths that tell too much about the host.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
];

/// Paths through which the host could be changed.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The configuration for root. With cgroup v2 (`unified`) it asks for a cgroup namespace too: in v1 one would hide
/// which controllers are mounted where.
pub fn config(unified: bool) -> Config {
    let kinds = NAMESPACES.iter().copied().chain(unified.then_some("cgroup"));
    Config {
        oci_version: OCI_VERSION.to_owned(),
        process: Some(process()),
        root: Some(Root { path: "rootfs".into(), readonly: true }),
        hostname: "ferry".to_owned(),
        mounts: MOUNTS.iter().map(mount).collect(),
        linux: Linux {
            namespaces: kinds.map(namespace).collect(),
            resources: Resources {
                devices: vec![DeviceRule { allow: false, access: "rwm".to_owned(), ..DeviceRule::default() }],
                ..Resources::default()
            },
            masked_paths: MASKED.iter().map(Into::into).collect(),
            readonly_paths: READONLY.iter().map(Into::into).collect(),
            ..Linux::default()
        },
        ..Config::default()
    }
}

/// Makes the configuration one that an ordinary user can run: a user namespace in which they are root, the host's
/// network, and nothing that takes more than their own one id.
pub fn rootless(mut config: Config, uid: u32, gid: u32) -> Config {
    let linux = &mut config.linux;
    linux.namespaces.retain(|namespace| namespace.kind != "network");
    linux.namespaces.push(namespace("user"));
    linux.uid_mappings = vec![IdMapping { container_id: 0, host_id: uid, size: 1 }];
    linux.gid_mappings = vec![IdMapping { container_id: 0, host_id: gid, size: 1 }];
    // Limits take a delegated cgroup, which not every user has.
    linux.resources = Resources::default();
    for each in &mut config.mounts {
        // sysfs shows the network namespace it was mounted from, so it takes root over that one: bind the host's.
        if each.destination.as_os_str() == "/sys" {
            *each = mount(&("/sys", "none", "/sys", &["rbind", "nosuid", "noexec", "nodev", "ro"]));
        }
        // Other ids than the mapped one do not exist inside.
        each.options.retain(|option| !option.starts_with("uid=") && !option.starts_with("gid="));
    }
    config
}

fn process() -> Process {
    let capabilities = || CAPABILITIES.iter().map(|&name| name.to_owned()).collect();
    Process {
        terminal: true,
        args: vec!["sh".to_owned()],
        env: vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "TERM=xterm".to_owned(),
        ],
        cwd: "/".into(),
        capabilities: Capabilities {
            bounding: capabilities(),
            effective: capabilities(),
            permitted: capabilities(),
            ..Capabilities::default()
        },
        rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: 1024, soft: 1024 }],
        no_new_privileges: true,
        ..Process::default()
    }
}

fn mount((destination, kind, source, options): &(&str, &str, &str, &[&str])) -> Mount {
    Mount {
        destination: destination.into(),
        kind: (*kind).to_owned(),
        source: source.into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..Mount::default()
    }
}

/// A configuration with a tab a level, as other runtimes write it.
///
/// # Errors
/// None in practice.
pub fn text(config: &Config) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, tabs);
    config.serialize(&mut writer).map_err(|why| Error::said("write", "config.json", why.to_string()))?;
    text.push(b'\n');
    Ok(text)
}

fn namespace(kind: &str) -> Namespace {
    Namespace { kind: kind.to_owned(), ..Namespace::default() }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What `runc spec` writes at its head, except for the host name.
    fn known() -> Value {
        let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
        json!({
            "ociVersion": "1.3.0",
            "process": {
                "terminal": true,
                "user": {"uid": 0, "gid": 0},
                "args": ["sh"],
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
                "cwd": "/",
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
                "noNewPrivileges": true
            },
            "root": {"path": "rootfs", "readonly": true},
            "hostname": "ferry",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                 "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                 "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
            ],
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "namespaces": [
                    {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
                ],
                "maskedPaths": [
                    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
                ],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
            }
        })
    }

    #[test]
    fn the_configuration_is_the_one_tools_know() {
        assert_eq!(serde_json::to_value(config(false)).unwrap(), known());
    }

    #[test]
    fn cgroup_v2_adds_a_cgroup_namespace() {
        let mut expected = known();
        expected["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
        assert_eq!(serde_json::to_value(config(true)).unwrap(), expected);
    }

    #[test]
    fn an_ordinary_user_gets_a_user_namespace_the_hosts_network_and_no_foreign_ids() {
        let mut expected = known();
        let linux = expected["linux"].as_object_mut().unwrap();
        linux.remove("resources");
        linux["namespaces"] = json!([
            {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}, {"type": "user"}
        ]);
        linux.insert("uidMappings".into(), json!([{"containerID": 0, "hostID": 1000, "size": 1}]));
        linux.insert("gidMappings".into(), json!([{"containerID": 0, "hostID": 1001, "size": 1}]));
        expected["mounts"][2]["options"].as_array_mut().unwrap().pop();
        expected["mounts"][5] = json!({"destination": "/sys", "type": "none", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
        assert_eq!(serde_json::to_value(rootless(config(true), 1000, 1001)).unwrap(), expected);
    }

    #[test]
    fn what_is_written_reads_back_as_it_was() {
        let text = serde_json::to_string(&config(true)).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config(true));
    }

    #[test]
    fn it_is_written_with_tabs() {
        let text = String::from_utf8(text(&config(true)).unwrap()).unwrap();
        assert!(
            text.starts_with("{\n\t\"ociVersion\": \"1.3.0\",\n\t\"process\": {\n\t\t\"terminal\": true"),
            "{text}"
        );
        assert!(text.ends_with("}\n"));
    }
}
