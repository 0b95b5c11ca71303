//! `run --rootfs`: a command in a directory tree, with no bundle: the tree under a copy-on-write overlay, the usual mounts
//! and namespaces, and what the flags add.

use std::path::{Path, PathBuf};

use super::create::Source;
use super::{Setting, create, run};
use crate::error::{Error, Result};
use crate::host;
use crate::namespaces::id_map;
use crate::spec::config::{Config, Mount, Root};
use crate::spec::template;

/// What to run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// The container's id.
    pub id: String,
    /// The root filesystem.
    pub rootfs: PathBuf,
    /// argv.
    pub args: Vec<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Environment.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// User and group.
    pub user: Option<(u32, Option<u32>)>,
    /// Mounts beyond the usual.
    pub mounts: Vec<Mount>,
    /// Bytes.
    pub memory: Option<i64>,
    /// CPUs.
    pub cpus: Option<f64>,
    /// Tasks.
    pub pids_limit: Option<i64>,
    /// Read-only root.
    pub read_only: bool,
    /// A terminal.
    pub tty: bool,
    /// Does not wait.
    pub detach: bool,
    /// Gets the process id.
    pub pid_file: Option<PathBuf>,
    /// Of an image: its layers are EROFS images.
    pub erofs: bool,
}

/// The period over which CPU time is counted out, in microseconds; the kernel's own default.
const PERIOD: u64 = 100_000;

/// `run --rootfs`. Answers the program's exit status, or 0 when detached.
///
/// # Errors
/// What could not be done; nothing is left of it then.
pub fn run(setting: &Setting, options: &Options) -> Result<u8> {
    if options.detach && options.tty {
        return Err(Error::plain("--tty does not go with --detach").hint("give --no-tty"));
    }
    let config = config(options, &host::probe())?;
    let text =
        serde_json::to_vec(&config).map_err(|error| Error::said("write", "the configuration", error.to_string()))?;
    let path = options.rootfs.join("config.json");
    let source = Source {
        config,
        text,
        path,
        bundle: options.rootfs.clone(),
        copy_on_write: true,
        image: None,
        upper: None,
        again: None,
    };
    let create =
        create::Options { id: options.id.clone(), pid_file: options.pid_file.clone(), ..create::Options::default() };
    run::run_source(setting, &run::Options { create, detach: options.detach, ..run::Options::default() }, source)
}

/// The configuration that the flags describe.
pub(super) fn config(options: &Options, host: &host::Host) -> Result<Config> {
    let mut config = template::config(true);
    if !host.privileged {
        config = template::rootless(config, host.uid, host.gid);
        let (uids, gids) = id_map::of_caller(host);
        config.linux.uid_mappings = uids;
        config.linux.gid_mappings = gids;
        own_networking(&mut config);
    }
    config.root = Some(Root { path: options.rootfs.clone(), readonly: options.read_only });
    config.hostname = options.hostname.clone().unwrap_or_else(|| options.id.clone());
    config.mounts.extend(options.mounts.iter().cloned());
    let process = config.process.get_or_insert_default();
    process.terminal = options.tty;
    process.args.clone_from(&options.args);
    process.env.extend(options.env.iter().cloned());
    process.cwd = options.cwd.clone().unwrap_or_else(|| PathBuf::from("/"));
    if let Some((uid, gid)) = options.user {
        process.user.uid = uid;
        process.user.gid = gid.unwrap_or(uid);
    }
    let resources = &mut config.linux.resources;
    resources.memory.limit = options.memory;
    resources.pids.limit = options.pids_limit;
    if let Some(cpus) = options.cpus {
        resources.cpu.period = Some(PERIOD);
        // A whole number of microseconds, at least one; more CPUs than an i64 can say is no limit a host has.
        resources.cpu.quota = Some((cpus * PERIOD as f64).round().max(1.0) as i64);
    }
    Ok(config)
}

/// The template for ordinary users leaves the network namespace out, since a bundle may want the host's network; here the
/// container is to have its own, and with it a sysfs of its own.
fn own_networking(config: &mut Config) {
    let network = crate::spec::config::Namespace { kind: "network".into(), ..Default::default() };
    if !config.linux.namespaces.iter().any(|namespace| namespace.kind == network.kind) {
        config.linux.namespaces.push(network);
    }
    let sys = Path::new("/sys");
    if let (Some(mount), Some(own)) = (
        config.mounts.iter_mut().find(|mount| mount.destination == sys),
        template::config(true).mounts.into_iter().find(|mount| mount.destination == sys),
    ) {
        *mount = own;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::spec::config::IdMapping;

    #[test]
    fn flags_become_a_configuration() {
        let options = Options {
            id: "x".into(),
            rootfs: "/srv/tree".into(),
            args: vec!["sh".into()],
            memory: Some(64 << 20),
            cpus: Some(1.5),
            pids_limit: Some(10),
            user: Some((1000, None)),
            read_only: true,
            ..Options::default()
        };
        let config = config(&options, &Host { uid: 0, gid: 0, privileged: true, permitted: u64::MAX }).unwrap();
        assert_eq!(config.root, Some(Root { path: "/srv/tree".into(), readonly: true }));
        assert_eq!(config.hostname, "x");
        assert_eq!(config.linux.resources.cpu.quota, Some(150_000));
        assert_eq!(config.linux.resources.memory.limit, Some(64 << 20));
        let process = config.process.unwrap();
        assert_eq!((process.user.uid, process.user.gid, process.terminal), (1000, 1000, false));
    }

    #[test]
    fn an_ordinary_user_gets_namespaces_of_the_container_own() {
        let options = Options { id: "x".into(), rootfs: "/".into(), ..Options::default() };
        let config =
            config(&options, &Host { uid: 4_000_000, gid: 4_000_001, privileged: false, permitted: 0 }).unwrap();
        for kind in ["user", "network", "pid", "mount"] {
            assert!(config.linux.namespaces.iter().any(|namespace| namespace.kind == kind), "{kind}");
        }
        assert_eq!(config.linux.uid_mappings, [IdMapping { container_id: 0, host_id: 4_000_000, size: 1 }]);
        assert!(config.mounts.iter().any(|mount| mount.kind == "sysfs"));
    }
}
