//! The config.json that a test edits: what `runc spec` gives, with no terminal and the probe as program.

use serde_json::{Value, json};

/// Capabilities of the base configuration, in every set but inheritable and ambient.
pub const CAPABILITIES: &[&str] = &["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// The same as the kernel's mask.
pub const CAPABILITIES_MASK: &str = "0000000020000420";

/// The base configuration for a runtime run by `uid` and `gid`: an ordinary user gets a user namespace in which it alone
/// is mapped, as root.
pub fn base(uid: u32, gid: u32) -> Value {
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["/probe"],
            "env": ["PATH=/usr/bin:/bin:/", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "ship",
        "mounts": mounts(),
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    });
    if uid != 0 {
        user_namespace(&mut config, (uid, gid), 1);
    }
    config
}

fn mounts() -> Value {
    json!([
        mount("proc", "proc", "/proc", &[]),
        mount("tmpfs", "tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
        mount("tmpfs", "shm", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("mqueue", "mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
    ])
}

/// A row of `mounts`.
pub fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> Value {
    json!({"type": kind, "source": source, "destination": destination, "options": options})
}

/// A bind mount of a host path.
pub fn bind(source: &std::path::Path, destination: &str, options: &[&str]) -> Value {
    json!({"type": "bind", "source": source, "destination": destination, "options": options})
}

/// Adds a user namespace in which `size` ids from 0 are the host's from `outside`.
pub fn user_namespace(config: &mut Value, outside: (u32, u32), size: u32) {
    add(config, "/linux/namespaces", json!({"type": "user"}));
    config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": outside.0, "size": size}]);
    config["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": outside.1, "size": size}]);
}

/// Appends to the list at a JSON pointer.
pub fn add(config: &mut Value, pointer: &str, row: Value) {
    if let Some(list) = config.pointer_mut(pointer).and_then(Value::as_array_mut) {
        list.push(row);
    }
}

/// Takes a namespace out of the list.
pub fn without_namespace(config: &mut Value, kind: &str) {
    if let Some(list) = config.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut) {
        list.retain(|namespace| namespace["type"] != kind);
    }
}

/// Makes the container join the namespace at `path`, in place of a new one of that type.
pub fn join_namespace(config: &mut Value, kind: &str, path: &str) {
    without_namespace(config, kind);
    add(config, "/linux/namespaces", json!({"type": kind, "path": path}));
}

/// Takes a mount out of the list.
pub fn without_mount(config: &mut Value, destination: &str) {
    if let Some(list) = config.pointer_mut("/mounts").and_then(Value::as_array_mut) {
        list.retain(|mount| mount["destination"] != destination);
    }
}

/// Sets the five capability sets at once.
pub fn capabilities(config: &mut Value, names: &[&str]) {
    config["process"]["capabilities"] =
        json!({"bounding": names, "effective": names, "permitted": names, "inheritable": names, "ambient": names});
}
