//! The rules of config.json that need no kernel: what is missing, contradictory or out of range, by JSON path.
//!
//! Vocabularies (mount options, capabilities, seccomp, namespaces) are checked by the tables that own them, when the plan
//! is made; what is here concerns the document alone.

use std::path::Path;

use super::config::{Config, Linux, Process};
use super::extensions;
use super::resources::{Resources, WeightDevice};
use crate::error::{Error, Result};

/// Checks a parsed configuration.
///
/// # Errors
/// The first field that breaks a rule.
pub fn check(config: &Config) -> Result<()> {
    version(&config.oci_version)?;
    match &config.root {
        None => {
            return Err(Error::config("root", "is missing").hint("name the root filesystem: {\"path\": \"rootfs\"}"));
        }
        Some(root) if root.path.as_os_str().is_empty() => return Err(Error::config("root.path", "is empty")),
        Some(root) => no_nul("root.path", &root.path)?,
    }
    if let Some(process) = &config.process {
        check_process(process, "process")?;
    }
    no_nul("hostname", Path::new(&config.hostname))?;
    for (index, mount) in config.mounts.iter().enumerate() {
        let at = |field: &str| format!("mounts[{index}].{field}");
        if mount.destination.as_os_str().is_empty() {
            return Err(Error::config(at("destination"), "is empty or missing"));
        }
        no_nul(&at("destination"), &mount.destination)?;
        no_nul(&at("source"), &mount.source)?;
        if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
            return Err(Error::config(at("uidMappings"), "uidMappings and gidMappings must be given together"));
        }
    }
    hooks(config)?;
    extensions::check(&config.annotations)?;
    linux(&config.linux)
}

/// Checks a process, also one given to `exec --process`; `at` is its JSON path.
///
/// # Errors
/// The first field that breaks a rule.
pub fn check_process(process: &Process, at: &str) -> Result<()> {
    let fault = |field: &str, why: &str| Err(Error::config(format!("{at}.{field}"), why.to_owned()));
    if process.args.is_empty() {
        return fault("args", "is empty or missing: there is nothing to run");
    }
    if process.args[0].is_empty() {
        // An engine that has no command to give finds exit code 127 by these words.
        return fault("args[0]", "is the empty string: exec: \"\": executable file not found in $PATH");
    }
    if !process.cwd.is_absolute() {
        let found = process.cwd.display();
        return fault("cwd", &format!("must be an absolute path, found {found:?}", found = found.to_string()));
    }
    for (index, text) in process.args.iter().enumerate() {
        no_nul(&format!("{at}.args[{index}]"), Path::new(text))?;
    }
    for (index, text) in process.env.iter().enumerate() {
        no_nul(&format!("{at}.env[{index}]"), Path::new(text))?;
    }
    no_nul(&format!("{at}.cwd"), &process.cwd)?;
    if let Some(score) = process.oom_score_adj
        && !(-1000..=1000).contains(&score)
    {
        return fault("oomScoreAdj", &format!("must be between -1000 and 1000, found {score}"));
    }
    if process.user.umask.is_some_and(|umask| umask > 0o777) {
        return fault("user.umask", "must be at most 511 (octal 777)");
    }
    let user = &process.user;
    if [user.uid, user.gid].iter().chain(&user.additional_gids).any(|id| *id == u32::MAX) {
        return fault("user", "4294967295 is not a valid id");
    }
    for (index, limit) in process.rlimits.iter().enumerate() {
        if process.rlimits[..index].iter().any(|earlier| earlier.kind == limit.kind) {
            return fault(&format!("rlimits[{index}].type"), &format!("{} is limited twice", limit.kind));
        }
        if limit.soft > limit.hard {
            return fault(&format!("rlimits[{index}].soft"), "is above the hard limit");
        }
    }
    Ok(())
}

/// SemVer of the major version that ferry knows; later minors only add fields. config.md#specification-version
fn version(version: &str) -> Result<()> {
    let fault = |why: String| Err(Error::config("ociVersion", why));
    if version.is_empty() {
        return fault("is missing".into());
    }
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<Option<u64>> = core.split('.').map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [Some(1), Some(_), Some(_)] => Ok(()),
        [Some(_), Some(_), Some(_)] => fault(format!("ferry implements {}, found {version}", super::VERSION)),
        _ => fault(format!("must be a version such as {}, found {version:?}", super::VERSION)),
    }
}

fn hooks(config: &Config) -> Result<()> {
    for (name, list) in config.hooks.named() {
        for (index, hook) in list.iter().enumerate() {
            let at = |field: &str| format!("hooks.{name}[{index}].{field}");
            if !hook.path.is_absolute() {
                return Err(Error::config(at("path"), "must be an absolute path"));
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(Error::config(at("timeout"), "must be greater than zero"));
            }
        }
    }
    Ok(())
}

fn linux(linux: &Linux) -> Result<()> {
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        let at = |field: &str| format!("linux.namespaces[{index}].{field}");
        if linux.namespaces[..index].iter().any(|earlier| earlier.kind == namespace.kind) {
            return Err(Error::config(at("type"), format!("the {} namespace is listed twice", namespace.kind)));
        }
        if !namespace.path.as_os_str().is_empty() && !namespace.path.is_absolute() {
            return Err(Error::config(at("path"), "must be an absolute path"));
        }
    }
    resources(&linux.resources)?;
    for (name, paths) in [("maskedPaths", &linux.masked_paths), ("readonlyPaths", &linux.readonly_paths)] {
        for (index, path) in paths.iter().enumerate() {
            if !path.is_absolute() {
                return Err(Error::config(format!("linux.{name}[{index}]"), "must be an absolute path"));
            }
            no_nul(&format!("linux.{name}[{index}]"), path)?;
        }
    }
    for (index, device) in linux.devices.iter().enumerate() {
        if !device.path.is_absolute() {
            return Err(Error::config(format!("linux.devices[{index}].path"), "must be an absolute path"));
        }
    }
    Ok(())
}

/// The other limits are checked by the table that writes them.
fn resources(resources: &Resources) -> Result<()> {
    let bare = |device: &WeightDevice| device.weight.is_none() && device.leaf_weight.is_none();
    match resources.block_io.weight_device.iter().position(bare) {
        Some(index) => Err(Error::config(
            format!("linux.resources.blockIO.weightDevice[{index}]"),
            "has neither weight nor leafWeight",
        )),
        None => Ok(()),
    }
}

fn no_nul(at: &str, path: &Path) -> Result<()> {
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Error::config(at, "holds a NUL byte"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::config::{Device, Hook, IdMapping, Mount, Namespace, Root};
    use crate::spec::resources::{ThrottleDevice, WeightDevice};

    fn valid() -> Config {
        Config {
            oci_version: "1.3.0".into(),
            process: Some(Process { args: vec!["sh".into()], cwd: "/".into(), ..Process::default() }),
            root: Some(Root { path: "rootfs".into(), readonly: false }),
            ..Config::default()
        }
    }

    fn fault(change: impl FnOnce(&mut Config)) -> String {
        let mut config = valid();
        change(&mut config);
        check(&config).unwrap_err().to_string()
    }

    #[test]
    fn a_minimal_configuration_passes() {
        assert_eq!(check(&valid()), Ok(()));
    }

    #[test]
    fn faults_are_named_by_path() {
        assert_eq!(fault(|c| c.oci_version = "2.0.0".into()), "ociVersion: ferry implements 1.3.0, found 2.0.0");
        assert!(fault(|c| c.root = None).starts_with("root: is missing"));
        assert!(
            fault(|c| c.process.as_mut().unwrap().cwd = "x".into()).starts_with("process.cwd: must be an absolute")
        );
        assert!(fault(|c| c.process.as_mut().unwrap().args.clear()).starts_with("process.args: "));
        assert!(fault(|c| c.mounts.push(Mount::default())).starts_with("mounts[0].destination: "));
        let pid = Namespace { kind: "pid".into(), path: "".into() };
        let twice = fault(|c| c.linux.namespaces = vec![pid.clone(), pid]);
        assert_eq!(twice, "linux.namespaces[1].type: the pid namespace is listed twice");
    }

    #[test]
    fn paths_that_must_be_absolute() {
        let told = fault(|c| c.linux.masked_paths = vec!["/a".into(), "b".into()]);
        assert_eq!(told, "linux.maskedPaths[1]: must be an absolute path");
        let told = fault(|c| c.linux.readonly_paths = vec!["../a".into()]);
        assert_eq!(told, "linux.readonlyPaths[0]: must be an absolute path");
        for path in ["", "fuse", "./fuse"] {
            let device = Device { path: path.into(), kind: "c".into(), ..Device::default() };
            assert_eq!(fault(|c| c.linux.devices = vec![device]), "linux.devices[0].path: must be an absolute path");
        }
        for path in ["", "hook"] {
            let hook = Hook { path: path.into(), ..Hook::default() };
            let told = fault(|c| c.hooks.create_container = vec![hook]);
            assert_eq!(told, "hooks.createContainer[0].path: must be an absolute path");
        }
    }

    #[test]
    fn a_hook_has_more_than_no_time() {
        let hook = |timeout| Hook { path: "/x".into(), timeout: Some(timeout), ..Hook::default() };
        for timeout in [0, -1] {
            let told = fault(|c| c.hooks.poststop = vec![hook(1), hook(timeout)]);
            assert_eq!(told, "hooks.poststop[1].timeout: must be greater than zero");
        }
    }

    #[test]
    fn the_root_has_a_path() {
        assert_eq!(fault(|c| c.root = Some(Root::default())), "root.path: is empty");
    }

    #[test]
    fn a_mount_has_both_mappings_or_none() {
        let map = || vec![IdMapping { container_id: 0, host_id: 1, size: 1 }];
        let mount = || Mount { destination: "/x".into(), ..Mount::default() };
        for mount in [Mount { uid_mappings: map(), ..mount() }, Mount { gid_mappings: map(), ..mount() }] {
            let told = fault(|c| c.mounts = vec![mount]);
            assert_eq!(told, "mounts[0].uidMappings: uidMappings and gidMappings must be given together");
        }
    }

    #[test]
    fn a_device_with_a_weight_has_one() {
        let of = |text: &str| serde_json::from_str::<WeightDevice>(text);
        let told =
            fault(|c| c.linux.resources.block_io.weight_device = vec![of(r#"{"major": 8, "minor": 0}"#).unwrap()]);
        assert_eq!(told, "linux.resources.blockIO.weightDevice[0]: has neither weight nor leafWeight");
        for text in [r#"{"major": 8, "weight": 10}"#, r#"{"minor": 8, "weight": 10}"#] {
            assert!(of(text).unwrap_err().to_string().contains("missing field"), "{text}");
        }
        for text in [r#"{"major": 8, "minor": 0}"#, r#"{"minor": 0, "rate": 1}"#, r#"{"major": 8, "rate": 1}"#] {
            let device: Result<ThrottleDevice, _> = serde_json::from_str(text);
            assert!(device.unwrap_err().to_string().contains("missing field"), "{text}");
        }
    }
}
