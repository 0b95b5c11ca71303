//! `features`: what this runtime can do, whatever the host can. features.md, features-linux.md
//!
//! Every list comes from the table that parsing uses, and what is not built says so: an engine that trusts this structure
//! must not find out by a container that fails.

use serde_json::{Value, json};

use super::Setting;
use crate::cgroup::properties;
use crate::error::Result;
use crate::process::{memory_merge, scheduling};
use crate::rootfs::options;
use crate::security::{capabilities, seccomp};
use crate::spec::config::Hooks;
use crate::{namespaces, spec};

/// The oldest version of the specification whose bundles are taken.
const OLDEST: &str = "1.0.0";

/// The specification's features structure.
///
/// # Errors
/// None.
pub fn features(_setting: &Setting) -> Result<Value> {
    Ok(json!({
        "ociVersionMin": OLDEST,
        "ociVersionMax": spec::VERSION,
        "hooks": Hooks::default().named().map(|(name, _)| name),
        "mountOptions": options::names().collect::<Vec<_>>(),
        "linux": linux(),
        "annotations": {
            "ferry.version": env!("CARGO_PKG_VERSION"),
            // The name by which engines ask any runtime.
            "org.opencontainers.runc.checkpoint.enabled": "false",
        },
        // A name that ends in a dot stands for all that begin with it.
        "potentiallyUnsafeConfigAnnotations": [memory_merge::ANNOTATION, properties::PREFIX],
    }))
}

fn linux() -> Value {
    let mut namespaces = namespaces::TABLE.map(|row| row.name);
    namespaces.sort_unstable();
    json!({
        "namespaces": namespaces,
        "capabilities": capabilities::names(u64::MAX),
        "cgroup": { "v1": false, "v2": true, "systemd": true, "systemdUser": true, "rdma": true },
        "seccomp": {
            "enabled": true,
            "actions": seccomp::actions().collect::<Vec<_>>(),
            "operators": seccomp::operators().collect::<Vec<_>>(),
            "archs": seccomp::architectures().collect::<Vec<_>>(),
            "knownFlags": seccomp::flags().collect::<Vec<_>>(),
            "supportedFlags": seccomp::supported_flags().collect::<Vec<_>>(),
        },
        "apparmor": { "enabled": true },
        // Labels of processes are applied; those of mounts are not.
        "selinux": { "enabled": false },
        "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
        "memoryPolicy": {
            "modes": scheduling::memory_modes().collect::<Vec<_>>(),
            "flags": scheduling::memory_flags().collect::<Vec<_>>(),
        },
        "mountExtensions": { "idmap": { "enabled": true } },
        "netDevices": { "enabled": true },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structure() -> Value {
        features(&Setting::default()).unwrap()
    }

    fn strings(value: &Value) -> Vec<&str> {
        value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
    }

    /// The types that schema/features-schema.json and schema/features-linux.json of the specification require.
    #[test]
    fn every_property_is_one_of_the_specification_and_of_its_type() {
        let structure = structure();
        for (name, value) in structure.as_object().unwrap() {
            match name.as_str() {
                "ociVersionMin" | "ociVersionMax" => assert_eq!(value.as_str().unwrap().split('.').count(), 3),
                "hooks" | "mountOptions" | "potentiallyUnsafeConfigAnnotations" => drop(strings(value)),
                "annotations" => assert!(value.as_object().unwrap().values().all(Value::is_string)),
                "linux" => (),
                other => panic!("{other} is no property of features.md"),
            }
        }
        for (name, value) in structure["linux"].as_object().unwrap() {
            match name.as_str() {
                "namespaces" | "capabilities" => drop(strings(value)),
                "seccomp" => {
                    assert_eq!(value["enabled"], true);
                    for list in ["actions", "operators", "archs", "knownFlags", "supportedFlags"] {
                        assert!(!strings(&value[list]).is_empty(), "{list}");
                    }
                }
                "memoryPolicy" => assert_eq!((strings(&value["modes"]).len(), strings(&value["flags"]).len()), (7, 3)),
                "mountExtensions" => assert!(value["idmap"]["enabled"].is_boolean()),
                "cgroup" | "apparmor" | "selinux" | "intelRdt" | "netDevices" => {
                    assert!(value.as_object().unwrap().values().all(Value::is_boolean), "{name}");
                }
                other => panic!("linux.{other} is no property of features-linux.md"),
            }
        }
    }

    #[test]
    fn names_are_those_of_the_specification() {
        let structure = structure();
        let hooks = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        assert_eq!(strings(&structure["hooks"]), hooks);
        let namespaces = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];
        assert_eq!(strings(&structure["linux"]["namespaces"]), namespaces);
        let capabilities = strings(&structure["linux"]["capabilities"]);
        assert_eq!(
            (capabilities.len(), capabilities[0], capabilities[40]),
            (41, "CAP_CHOWN", "CAP_CHECKPOINT_RESTORE")
        );
        let options = strings(&structure["mountOptions"]);
        assert!(["bind", "rro", "nosuid", "tmpcopyup"].iter().all(|option| options.contains(option)));
    }

    /// What is refused must not be advertised.
    #[test]
    fn what_is_not_built_is_not_claimed() {
        let structure = structure();
        let linux = &structure["linux"];
        assert_eq!(linux["cgroup"]["v1"], false);
        let built = strings(&structure["mountOptions"]).contains(&"idmap");
        assert_eq!(linux["mountExtensions"]["idmap"]["enabled"], built);
        let supported = strings(&linux["seccomp"]["supportedFlags"]);
        assert!(supported.iter().all(|flag| strings(&linux["seccomp"]["knownFlags"]).contains(flag)));
    }
}
