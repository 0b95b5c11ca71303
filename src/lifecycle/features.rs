//! `features`: what this runtime can do, whatever the host can. features.md, features-linux.md
//!
//! Every list comes from the table that parsing uses, and what is not built says so: an engine that trusts this structure
//! must not find out by a container that fails.

use serde_json::{Value, json};

use super::Setting;
use crate::error::Result;
use crate::process::scheduling;
use crate::rootfs::options;
use crate::security::{capabilities, seccomp};
use crate::spec::config::Hooks;
use crate::spec::extensions;
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
            // The name by which engines ask any runtime; whether the host has a CRIU is for `doctor` to say.
            "org.opencontainers.runc.checkpoint.enabled": "true",
        },
        // Each makes ferry do something on the host: an engine is not to let an image's author set them. A name that ends in a
        // dot stands for all that begin with it.
        "potentiallyUnsafeConfigAnnotations": extensions::names().collect::<Vec<_>>(),
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
        "selinux": { "enabled": true },
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
    fn every_annotation_that_some_module_reads_is_told() {
        let structure = structure();
        let told = strings(&structure["potentiallyUnsafeConfigAnnotations"]);
        for name in
            [crate::process::memory_merge::ANNOTATION, crate::cgroup::properties::PREFIX, "run.oci.hooks.stdout"]
        {
            assert!(told.contains(&name), "{name}: {told:?}");
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

    /// Whatever the host's kernel is: where it lacks the thing, a container that asks for it gets a clear error.
    #[test]
    fn what_is_built_is_claimed() {
        let linux = &structure()["linux"];
        for name in ["apparmor", "selinux", "intelRdt", "netDevices"] {
            assert_eq!(linux[name]["enabled"], true, "{name}");
        }
    }

    /// What is told is what the parser of each field takes, and an engine that picks one is not refused.
    #[test]
    fn what_is_told_is_understood() {
        let structure = structure();
        let linux = &structure["linux"];
        for name in strings(&linux["capabilities"]) {
            assert!(capabilities::number(name).is_some(), "{name}");
        }
        let profile = |action: &str, field: &str, name: &str| {
            let mut profile = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/agent",
                "syscalls": [{"names": ["getpgid"], "action": action}],
            });
            if !field.is_empty() {
                profile[field] = json!([name]);
            }
            seccomp::compile(&serde_json::from_value(profile).unwrap()).map(Option::unwrap)
        };
        for action in strings(&linux["seccomp"]["actions"]) {
            profile(action, "", "").unwrap();
        }
        for name in strings(&linux["seccomp"]["archs"]) {
            profile("SCMP_ACT_ERRNO", "architectures", name).unwrap();
        }
        let set = |name| profile("SCMP_ACT_NOTIFY", "flags", name).unwrap().flags;
        let none = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
        for name in strings(&linux["seccomp"]["knownFlags"]) {
            // A process of one thread has nothing to synchronize.
            assert!(set(name) != none || name == "SECCOMP_FILTER_FLAG_TSYNC", "{name} is taken, and not set");
        }
        for name in strings(&linux["seccomp"]["supportedFlags"]) {
            assert!(crate::sys::seccomp::flags_available(set(name)), "{name}");
        }
    }

    #[test]
    fn memory_policies_that_are_told_are_understood() {
        let structure = structure();
        let policy = &structure["linux"]["memoryPolicy"];
        let planned = |mode: &str, flags: &[&str]| {
            let mut config = spec::Config::default();
            let nodes = if ["MPOL_DEFAULT", "MPOL_LOCAL"].contains(&mode) { "" } else { "0" };
            config.linux.memory_policy =
                serde_json::from_value(json!({"mode": mode, "nodes": nodes, "flags": flags})).unwrap();
            scheduling::plan(&spec::config::Process::default(), Some(&config), "process")
                .unwrap()
                .memory_policy
                .unwrap()
                .0
        };
        let modes: std::collections::BTreeSet<i32> =
            strings(&policy["modes"]).iter().map(|mode| planned(mode, &[])).collect();
        assert_eq!(modes.len(), strings(&policy["modes"]).len(), "each is one of its own");
        for flag in strings(&policy["flags"]) {
            assert_ne!(planned("MPOL_BIND", &[flag]), planned("MPOL_BIND", &[]), "{flag}");
        }
    }

    /// None of them is passed on to the filesystem as an option of its own; those of every superblock are the kernel's.
    #[test]
    fn mount_options_that_are_told_are_understood() {
        const OF_SUPERBLOCKS: [&str; 7] = ["async", "dirsync", "lazytime", "mand", "nolazytime", "nomand", "sync"];
        let structure = structure();
        let told = strings(&structure["mountOptions"]);
        assert_eq!(told.len(), 63);
        for name in told {
            let own: Vec<String> = options::parse(&[name.to_owned()]).data.into_iter().map(|(key, _)| key).collect();
            assert!(own.is_empty() || own == [name] && OF_SUPERBLOCKS.contains(&name), "{name}: {own:?}");
        }
        for name in ["mode", "size", "uid", "newinstance", "lowerdir", "subset", "hidepid"] {
            assert!(!strings(&structure["mountOptions"]).contains(&name), "{name}");
        }
    }

    #[test]
    fn versions_are_in_order() {
        let number = |field: &str| {
            let structure = structure();
            let version = structure[field].as_str().unwrap().to_owned();
            version.split('.').map(|number| number.parse().unwrap()).collect::<Vec<u32>>()
        };
        assert!(number("ociVersionMin") <= number("ociVersionMax"));
        assert_eq!(number("ociVersionMax"), [1, 3, 0]);
    }

    /// Null would say that it is not known, and so would an empty list.
    #[test]
    fn nothing_is_null_or_empty() {
        fn look(at: &str, value: &Value) {
            match value {
                Value::Null => panic!("{at} is null"),
                Value::String(text) => assert!(!text.is_empty(), "{at} is empty"),
                Value::Array(list) => {
                    assert!(!list.is_empty(), "{at} is empty");
                    list.iter().enumerate().for_each(|(index, item)| look(&format!("{at}[{index}]"), item));
                }
                Value::Object(map) => {
                    assert!(!map.is_empty(), "{at} is empty");
                    map.iter().for_each(|(name, item)| look(&format!("{at}.{name}"), item));
                }
                Value::Bool(_) | Value::Number(_) => (),
            }
        }
        look("", &structure());
    }
}
