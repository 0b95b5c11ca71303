//! The plan of a container: everything that is decided before the clone, as data. `explain` prints it; the child only
//! applies it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::Resource;
use serde::Serialize;

use super::ownership;
use crate::cgroup::location::Place;
use crate::cgroup::properties::Properties;
use crate::cgroup::{self, Driver, Limits, resctrl};
use crate::container::Id;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::log::Log;
use crate::namespaces::{self, Kind, Namespaces, User};
use crate::network::bandwidth::{self, Bandwidth};
use crate::network::devices::{self, Device};
use crate::process::{self, Command, Identity, limits::Limit, scheduling::Scheduling, sysctl::Sysctl};
use crate::rootfs::plan::{Mount, MountedIn, What};
use crate::rootfs::{self, Rootfs};
use crate::security::capabilities;
use crate::security::lsm::{self, Label};
use crate::security::seccomp::{self, Program};
use crate::spec::config::{Config, ConsoleSize, Hooks, Process};
use crate::spec::extensions;
use crate::spec::seccomp::Seccomp;
use crate::sys::stub;

/// What the command line adds to the configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// chroot(2) in place of pivot_root(2).
    pub no_pivot: bool,
    /// The caller's session keyring is used as it is.
    pub no_new_keyring: bool,
    /// So many descriptors from 3 on are passed to the process.
    pub preserve_fds: u32,
    /// Sockets that a service manager passes on (LISTEN_FDS), counted from 3.
    pub listen_fds: u32,
    /// Who makes the cgroup.
    pub cgroup_driver: Driver,
    /// Whether the container goes on where no cgroup can be had; unsaid, one of an ordinary user does that names no place for it.
    pub rootless: Option<bool>,
    /// The root is a copy-on-write overlay, staged upon this directory.
    pub copy_on_write: Option<PathBuf>,
    /// The root is an image's layers, stacked.
    pub layers: Option<rootfs::Layers>,
}

/// Everything that is done to start a container.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The container's id.
    pub id: Id,
    /// `ociVersion` of the configuration.
    pub oci_version: String,
    /// Absolute.
    pub bundle: PathBuf,
    /// Namespaces.
    pub namespaces: Namespaces,
    /// The session keyring's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyring: Option<String>,
    /// Host name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// NIS domain name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domainname: String,
    /// Whether the loopback interface is brought up.
    pub loopback: bool,
    /// Interfaces of the host that are moved in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net_devices: Vec<Device>,
    /// What its interfaces may carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Kernel parameters.
    pub sysctl: Vec<Sysctl>,
    /// The root filesystem.
    pub rootfs: Rootfs,
    /// The cgroup.
    pub cgroup: CgroupPlan,
    /// Cache and memory bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resctrl: Option<resctrl::Plan>,
    /// Hooks.
    #[serde(skip)]
    pub hooks: Hooks,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The process; absent for a container that is created and never started.
    pub process: Option<ProcessPlan>,
    /// What was passed over, for the log.
    pub warnings: Vec<String>,
}

/// Where the container's processes are accounted and limited.
#[derive(Debug, Clone, Serialize)]
pub struct CgroupPlan {
    /// Who makes it.
    pub driver: Driver,
    /// Where.
    #[serde(skip)]
    pub place: Place,
    /// What is written.
    #[serde(skip)]
    pub limits: Limits,
    /// What systemd is told beyond that.
    #[serde(skip)]
    pub properties: Properties,
    /// The user of the host that may divide it further, where the container's is not already its owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
}

/// Everything about one process: the container's first, or one that joins it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessPlan {
    /// What is executed.
    pub command: Command,
    /// Who it runs as.
    pub identity: Identity,
    /// Resource limits.
    pub limits: Vec<Limit>,
    /// Scheduling.
    pub scheduling: Scheduling,
    /// Whether it gets a terminal of its own.
    pub terminal: bool,
    /// The terminal's size.
    #[serde(skip)]
    pub console_size: Option<ConsoleSize>,
    /// Whether its memory may be merged with that of others.
    pub merge_memory: bool,
    /// Adjustment of the OOM killer's score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// The label that a security module gives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    /// The system call filter.
    #[serde(skip)]
    pub seccomp: Option<Program>,
    /// So many descriptors from 3 on stay open.
    pub preserve_fds: u32,
}

impl Plan {
    /// The plan's outline, for whoever follows a launch.
    pub fn say(&self, log: &Log) {
        let kinds = || self.namespaces.make.iter().map(|kind| kind.row().name).collect::<Vec<_>>().join(", ");
        if log.debugs() {
            log.debug(format_args!("container {}: new namespaces: {}", self.id, kinds()));
            log.debug(format_args!("container {}: mounts: {}", self.id, self.rootfs.mounts.len()));
        }
        self.process.iter().for_each(|process| process.say(log));
    }
}

impl Plan {
    /// Whether what `create` leaves waiting is the stub, with everything done that can be done before: it has no more rights than the
    /// program, and is none of the host's files. ferry itself has to wait where something is left to do behind the gate, for hooks
    /// and for an agent; where the filter would not let it wait that has to be there by then; and where the limit on descriptors
    /// leaves none to the gate.
    pub fn waits_in_stub(&self) -> bool {
        /// Beside the streams and those that are preserved: the gate's own and the connection, with some to spare.
        const DESCRIPTORS: u64 = 16;
        let Some(process) = &self.process else { return false };
        let lets_wait = process.seccomp.as_ref().is_none_or(|filter| {
            filter.notify.is_none() && (process.identity.no_new_privileges || filter.lets_through(stub::GATE_CALLS))
        });
        let suffices = |limit: &Limit| {
            limit.resource != Resource::RLIMIT_NOFILE || limit.soft >= u64::from(process.preserve_fds) + DESCRIPTORS
        };
        self.hooks.start_container.is_empty() && lets_wait && process.limits.iter().all(suffices)
    }
}

impl ProcessPlan {
    /// The outline of one process.
    pub fn say(&self, log: &Log) {
        if !log.debugs() {
            return;
        }
        let Identity { uid, gid, .. } = self.identity;
        log.debug(format_args!("process {:?} as {uid}:{gid}", self.command.args));
        if let Some(program) = &self.seccomp {
            log.debug(format_args!("seccomp filter flags: {}", program.flags));
        }
    }
}

/// Plans a container. `bundle` is absolute.
///
/// # Errors
/// A field at fault, or something that this host or user cannot do.
pub fn plan(id: &Id, config: &Config, bundle: &Path, host: &Host, options: &Options) -> Result<Plan> {
    let mut warnings = Vec::new();
    let namespaces = namespaces::plan::plan(config)?;
    permitted(host, &namespaces)?;
    let root = rootfs::plan::directory(config, bundle);
    let around = rootfs::plan::Around { namespaces: &namespaces, bundle, root: &root, privileged: host.privileged };
    let mut rootfs = rootfs::plan::plan(config, around, !options.no_pivot)?;
    warnings.extend(without_effect(&rootfs.mounts));
    label(config, &mut rootfs.mounts)?;
    match rootfs.mounted_in {
        MountedIn::Own => (),
        _ if options.copy_on_write.is_some() || options.layers.is_some() => {
            let why = "a root with layers needs a mount namespace: without one it would be mounted on the host";
            return Err(Error::config("linux.namespaces", why));
        }
        MountedIn::Host => warnings.push(format!(
            "container {id} shares the host's mount namespace: what it mounts is mounted on the host, below {}, until it is \
             deleted",
            root.display()
        )),
        MountedIn::Nowhere => (),
    }
    if let (Some(stage), rootfs::Base::Directory(lower)) = (&options.copy_on_write, &rootfs.base) {
        rootfs.base = rootfs::Base::CopyOnWrite { lower: lower.clone(), stage: stage.clone() };
        rootfs.handed = false;
    }
    if let Some(layers) = &options.layers {
        rootfs.base = rootfs::Base::Layers(layers.clone());
        rootfs.handed = false;
    }
    let process = match &config.process {
        Some(process) => Some(plan_process(process, Some(config), "process", options, &mut warnings)?),
        None => None,
    };
    // In a user namespace of its own the container's root has them all.
    if let (User::Inherit, Some(process)) = (&namespaces.user, &process) {
        warnings.extend(capabilities::withheld(&process.identity.capabilities, host.permitted));
    }
    let limits = cgroup::resources::plan(&config.linux.resources)?;
    warnings.extend(limits.notes.iter().cloned());
    warnings.extend(extensions::unheeded(&config.annotations));
    let goes_on = options.rootless.unwrap_or(!host.privileged && config.linux.cgroups_path.is_empty());
    let place = match cgroup::location::find(options.cgroup_driver, &config.linux.cgroups_path, id.as_str()) {
        Err(error) if goes_on && limits.writes.is_empty() && error.errno() == Some(Errno::ENOENT) => Place::Nowhere,
        found => found?,
    };
    // Without a scope they mean nothing: engines set them whichever driver it is.
    let properties = match &place {
        Place::Scope(_) => cgroup::properties::of_annotations(&config.annotations)?,
        Place::Directory(_) | Place::Nowhere => Properties::default(),
    };
    // Asked for only where something would be done to it: it takes a look at the paths of what is joined.
    let apart = || namespaces.has_apart(Kind::Network);
    Ok(Plan {
        id: id.clone(),
        oci_version: config.oci_version.clone(),
        bundle: bundle.to_owned(),
        keyring: (!options.no_new_keyring).then(|| format!("_ses.{id}")),
        hostname: config.hostname.clone(),
        domainname: config.domainname.clone(),
        loopback: namespaces.makes(Kind::Network),
        net_devices: devices::plan(&config.linux.net_devices, apart, host.privileged)?,
        bandwidth: bandwidth::plan(&config.annotations, apart, host.privileged)?,
        sysctl: process::sysctl::plan(&config.linux.sysctl, &namespaces)?,
        rootfs,
        cgroup: CgroupPlan {
            driver: options.cgroup_driver,
            place,
            limits,
            properties,
            owner: ownership::of(config, &namespaces, host),
        },
        resctrl: resctrl::plan(config.linux.intel_rdt.as_ref(), id.as_str())?,
        hooks: config.hooks.clone(),
        annotations: config.annotations.clone(),
        process,
        namespaces,
        warnings,
    })
}

/// Plans one process; `at` is its JSON path, `config` the container's configuration.
///
/// # Errors
/// A field at fault.
pub fn plan_process(
    process: &Process,
    config: Option<&Config>,
    at: &str,
    options: &Options,
    warnings: &mut Vec<String>,
) -> Result<ProcessPlan> {
    let mut command = process::command::plan(process);
    if options.listen_fds > 0 {
        // The process is the first of its pid namespace, and reads that these descriptors are meant for it.
        command.env.push(format!("LISTEN_FDS={}", options.listen_fds));
        command.env.push("LISTEN_PID=1".into());
    }
    let seccomp = config.map(filter).transpose()?.flatten();
    warnings.extend(seccomp.iter().flat_map(|program| program.warnings.iter().cloned()));
    let keeps_groups = config.is_some_and(|config| extensions::keeps_groups(&config.annotations));
    let annotations = config.map(|config| &config.annotations);
    Ok(ProcessPlan {
        merge_memory: annotations.map_or(Ok(false), |asked| process::memory_merge::plan(asked, warnings))?,
        command,
        identity: process::identity::plan(process, keeps_groups, warnings),
        limits: process::limits::plan(&process.rlimits, &format!("{at}.rlimits"))?,
        scheduling: process::scheduling::plan(process, config, at)?,
        terminal: process.terminal,
        console_size: process.console_size,
        oom_score_adj: process.oom_score_adj,
        label: lsm::plan(process, at, lsm::probe, lsm::is_known)?,
        seccomp,
        preserve_fds: options.preserve_fds + options.listen_fds,
    })
}

/// The system call filter of a container, as its profile and its annotations have it.
///
/// # Errors
/// A field at fault.
pub fn filter(config: &Config) -> Result<Option<Program>> {
    let annotations = &config.annotations;
    if let Some(base64) = extensions::seccomp_filter(annotations) {
        let fault = |why| Error::config(extensions::seccomp_filter_path(), why);
        return seccomp::raw::program(base64).map(Some).map_err(fault);
    }
    let Some(profile) = &config.linux.seccomp else { return Ok(None) };
    let program = match extensions::seccomp_receiver(annotations) {
        Some(receiver) if profile.listener_path.as_os_str().is_empty() => {
            seccomp::compile(&Seccomp { listener_path: receiver.to_owned(), ..profile.clone() })?
        }
        _ => seccomp::compile(profile)?,
    };
    match program.as_ref().and_then(|program| program.unknown.first()) {
        Some(at) if extensions::refuses_unknown_calls(annotations) => {
            Err(Error::config(format!("linux.seccomp.{at}"), "names no system call that is known"))
        }
        _ => Ok(program),
    }
}

/// Options that binds pass over, for the log: engines send such, and a mistyped `ro` is one, too. To be asked before labels are added.
pub fn without_effect(mounts: &[Mount]) -> impl Iterator<Item = String> {
    let is_bind = |mount: &Mount| match mount.what {
        What::Bind(_) | What::Inside(_) => true,
        What::Remount => mount.options.bind.is_some(),
        What::Filesystem { .. } | What::Cgroup => false,
    };
    mounts.iter().enumerate().filter(move |(_, mount)| is_bind(mount)).flat_map(|(index, mount)| {
        let said =
            move |word| format!("mounts[{index}].options: {word:?} is no option of a bind mount, and has no effect");
        mount.options.own_words().map(said)
    })
}

/// Labels mounts.
///
/// # Errors
/// A label on a host without SELinux.
pub fn label(config: &Config, mounts: &mut [Mount]) -> Result<()> {
    let label = &config.linux.mount_label;
    if lsm::labels_mounts(label, lsm::probe, lsm::is_known)? {
        rootfs::label::add(mounts, extensions::mount_context(&config.annotations), label);
    }
    Ok(())
}

/// Without CAP_SYS_ADMIN every namespace needs a user namespace around it.
fn permitted(host: &Host, namespaces: &Namespaces) -> Result<()> {
    if host.privileged || namespaces.user != User::Inherit {
        return Ok(());
    }
    Err(Error::config("linux.namespaces", "has no user namespace, and without one only root can make a container")
        .hint("write a configuration for an ordinary user with `ferry spec --rootless`"))
}
