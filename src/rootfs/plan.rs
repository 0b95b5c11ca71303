//! From `root`, `mounts`, `linux.devices`, masked and read-only paths to an ordered list of what the child does.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use serde::Serialize;

use super::devices::{self, Node};
use super::idmapped::{self, Idmap};
use super::options::{self, Options};
use super::read_only;
use crate::error::{Error, Result};
use crate::namespaces::{Kind, Namespaces, User};
use crate::path::clean;
use crate::spec::config::{Config, Mount as MountConfig};

/// The root filesystem of a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rootfs {
    /// What stands at `/` before any mount.
    pub base: Base,
    /// Whether the host side opens the root directory for the child, as in [`Mount::handed`].
    pub handed: bool,
    /// Propagation of the mount tree the container starts from: `MS_SLAVE | MS_REC` unless configured.
    pub propagation: u64,
    /// Propagation of the root mount once it is the root, where configured.
    pub root_propagation: Option<u64>,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Mounts that become read-only in the end, since something is still made in them.
    pub read_only_last: Vec<PathBuf>,
    /// Device nodes, in order.
    pub devices: Vec<Node>,
    /// Whether `/dev` is the container's own, so that default nodes and links are made in it.
    pub own_dev: bool,
    /// Whether the container has a terminal of its own at `/dev/console`.
    pub terminal: bool,
    /// Paths that read as empty.
    pub masked: Vec<PathBuf>,
    /// Paths that cannot be written.
    pub readonly: Vec<PathBuf>,
    /// Whether the root itself is read-only.
    pub read_only_root: bool,
    /// Where all this is done.
    pub mounted_in: MountedIn,
    /// pivot_root(2), or (`--no-pivot`) a move and chroot(2).
    pub pivot: bool,
}

/// The mount namespace that a container's root is made in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum MountedIn {
    /// Its own.
    Own,
    /// The host's, which it shares: see [`super::on_host`].
    Host,
    /// None: it shares the host's and has nothing mounted. The process is only put in its root.
    Nowhere,
}

/// What stands at `/`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Base {
    /// A directory of the host, as it is.
    Directory(PathBuf),
    /// A directory of the host under a copy-on-write overlay whose upper layer is in memory and ends with the container.
    CopyOnWrite {
        /// The directory.
        lower: PathBuf,
        /// An empty directory of the host to stage upon, in the container's own mount namespace.
        stage: PathBuf,
    },
    /// An image's layers, shared with other containers, under an upper layer of the container's own.
    Layers(Layers),
}

/// Layers of an image, to be stacked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Layers {
    /// Directories of the host, the uppermost first.
    pub lowers: Vec<PathBuf>,
    /// Takes what the container writes; `None` for a tree that the host looks at.
    pub upper: Option<PathBuf>,
    /// Overlay's own, beside `upper`; without that, an empty directory that may be filled.
    pub work: PathBuf,
    /// A directory of the host to mount upon, in the container's own mount namespace: an empty one, or the one that `upper` and
    /// `work` are in.
    pub stage: PathBuf,
    /// Whether the layers' marks are those of a user namespace.
    pub userxattr: bool,
    /// Whether the lowers are filesystems of their own: then inode numbers have to be told apart.
    pub xino: bool,
}

/// One mount, its options parsed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mount {
    /// Where, inside; absolute and without `..`.
    pub destination: PathBuf,
    /// What is mounted.
    pub what: What,
    /// Options.
    pub options: Options,
    /// The id mapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idmap: Option<Idmap>,
    /// Whether the host side opens the source and hands it to the child: the child's root in a user namespace may have no
    /// right to walk there, and never has the right to map ids.
    pub handed: bool,
    /// The SELinux context of its root directory, where the filesystem takes none as an option.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_label: Option<String>,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// A new filesystem.
    Filesystem {
        /// Its type.
        kind: String,
        /// Its device, or a name to show.
        source: String,
    },
    /// A file or directory of the host.
    Bind(PathBuf),
    /// A file or directory of the container itself, as the mounts before this one left it: a source below the root
    /// filesystem. Absolute, as seen from inside.
    Inside(PathBuf),
    /// The container's view of the cgroup tree.
    Cgroup,
    /// Nothing: what is mounted there already gets the options.
    Remount,
}

/// Files of procfs that may be bound over, since that is what LXCFS does and no security rests on them; everything else
/// below `/proc` decides over labels, limits or the host (CVE-2019-16884).
const PROC_OVERLAYS: [&str; 12] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
    "/proc/version",
];

/// What the mounts of a container are planned from, beside its configuration.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The container's namespaces.
    pub namespaces: &'a Namespaces,
    /// Absolute: relative paths of the configuration start there.
    pub bundle: &'a Path,
    /// The host's directory that becomes the root filesystem, by its text: absolute and without `..`.
    pub root: &'a Path,
    /// Whether ferry has CAP_SYS_ADMIN.
    pub privileged: bool,
}

impl Around<'_> {
    /// Whether the host side may reach what the child may not.
    fn hands_over(&self) -> bool {
        self.privileged && self.namespaces.user != User::Inherit && self.namespaces.has(Kind::Mount)
    }

    /// What a path of the host is called inside, where it lies below the root filesystem. A root that is the host's own has
    /// no inside to tell from an outside.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(self.root).ok()?;
        (self.root != Path::new("/")).then(|| Path::new("/").join(below))
    }
}

/// Whether the source of a filesystem is a path, as a disk's is, and no mere name to show.
pub fn is_path(source: &str) -> bool {
    source.starts_with('/')
}

impl Rootfs {
    /// Whether the host side opens anything for the child.
    pub fn is_handed(&self) -> bool {
        self.handed || self.mounts.iter().any(|mount| mount.handed)
    }

    /// Whether a mount has ids of its own.
    pub fn is_mapped(&self) -> bool {
        self.mounts.iter().any(|mount| mount.idmap.is_some())
    }
}

/// The host's directory that becomes the root filesystem, for [`Around`].
pub fn directory(config: &Config, bundle: &Path) -> PathBuf {
    let root = config.root.as_ref().map_or(Path::new(""), |root| &root.path);
    clean(&bundle.join(root))
}

/// Plans the root filesystem.
///
/// # Errors
/// A field at fault.
pub fn plan(config: &Config, around: Around<'_>, pivot: bool) -> Result<Rootfs> {
    let namespaces = around.namespaces;
    let linux = &config.linux;
    let root = config.root.clone().unwrap_or_default();
    let (propagation, root_propagation) = propagation(&linux.rootfs_propagation)?;
    let mut mounts: Vec<Mount> = config
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| plan_mount(mount, around, &format!("mounts[{index}]")))
        .collect::<Result<_>>()?;
    let read_only_last = read_only::last(&mut mounts, config);
    let own_dev =
        !mounts.iter().any(|mount| mount.destination == Path::new("/dev") && matches!(mount.what, What::Bind(_)));
    let mounted_in = match namespaces.has(Kind::Mount) {
        true => MountedIn::Own,
        false => shared(config, around)?,
    };
    let mounts_any = mounted_in != MountedIn::Nowhere;
    let terminal = config.process.as_ref().is_some_and(|process| process.terminal);
    Ok(Rootfs {
        base: Base::Directory(around.bundle.join(&root.path)),
        handed: around.hands_over(),
        propagation,
        root_propagation,
        mounts,
        read_only_last,
        devices: if own_dev && mounts_any { devices::plan(&linux.devices)? } else { Vec::new() },
        own_dev: own_dev && mounts_any,
        terminal,
        masked: each_once(&linux.masked_paths),
        readonly: each_once(&linux.readonly_paths),
        read_only_root: root.readonly,
        mounted_in,
        // Without a mount namespace it would be the host's root that is exchanged.
        pivot: pivot && mounted_in == MountedIn::Own,
    })
}

/// What is done in the host's mount namespace for a container that shares it. What would reach beyond the container's root, or what
/// the kernel never does there, is refused.
fn shared(config: &Config, around: Around<'_>) -> Result<MountedIn> {
    let linux = &config.linux;
    let refused = |field: &str, why: &str| Err(Error::config(field, format!("needs a mount namespace: {why}")));
    if !linux.rootfs_propagation.is_empty() {
        return refused("linux.rootfsPropagation", "without one it would be done to the host");
    }
    let asked = [
        ("mounts", !config.mounts.is_empty()),
        ("root.readonly", config.root.as_ref().is_some_and(|root| root.readonly)),
        ("linux.maskedPaths", !linux.masked_paths.is_empty()),
        ("linux.readonlyPaths", !linux.readonly_paths.is_empty()),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        None => Ok(MountedIn::Nowhere),
        Some((field, _)) if around.root == Path::new("/") => refused(field, "without one it would be done to the host"),
        Some((field, _)) if around.namespaces.user != User::Inherit => {
            refused(field, "a user namespace cannot mount in the host's")
        }
        Some(_) => Ok(MountedIn::Host),
    }
}

/// Covered twice, a path would cost a mount more and be no better covered.
fn each_once(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut once: Vec<PathBuf> = Vec::with_capacity(paths.len());
    for path in paths.iter().map(|path| clean(path)) {
        if !once.contains(&path) {
            once.push(path);
        }
    }
    once
}

/// The propagation of the tree that the container starts from, and, where configured, of its root in the end.
///
/// The start is recursive whatever was asked for: a mount of the host that stayed shared below would be unmounted on the
/// host together with the old root. Only `shared` leaves the tree as it is, since binds of the container are then to be
/// peers of the host's mounts; and nothing can be bound out of an unbindable tree, so a root becomes so in the end.
fn propagation(name: &str) -> Result<(u64, Option<u64>)> {
    let start = |flag: MsFlags| (flag | MsFlags::MS_REC).bits();
    if name.is_empty() {
        // Mounts of the host reach the container, the container's never reach the host.
        return Ok((start(MsFlags::MS_SLAVE), None));
    }
    let flags = options::propagation(name).ok_or_else(|| {
        let why = format!("unknown propagation {name:?}; one of shared, slave, private, unbindable and their r-forms");
        Error::config("linux.rootfsPropagation", why)
    })?;
    let has = |flag: MsFlags| flags & flag.bits() != 0;
    let first = match () {
        () if has(MsFlags::MS_SHARED) => flags,
        () if has(MsFlags::MS_SLAVE) => start(MsFlags::MS_SLAVE),
        () => start(MsFlags::MS_PRIVATE),
    };
    Ok((first, Some(flags)))
}

/// Plans one mount; `at` is its JSON path.
///
/// # Errors
/// A bind without a source, a mount over what must not be mounted over, an id mapping that cannot be.
pub fn plan_mount(mount: &MountConfig, around: Around<'_>, at: &str) -> Result<Mount> {
    let options = options::parse(&mount.options);
    let destination = clean(&mount.destination);
    // Written out as the host's path to it, as runc's users may.
    let destination = around.inside(&destination).unwrap_or(destination);
    if destination == Path::new("/") && !options.remount {
        // Processes that join would see it, and the container's first, which pivots below it, would not.
        let why = "is the root filesystem itself, which nothing may be mounted over";
        return Err(Error::config(format!("{at}.destination"), why).hint("what stands at / is said by root.path"));
    }
    let what = if options.remount {
        What::Remount
    } else if options.bind.is_some()
        || mount.kind == "bind"
        || mount.kind == "none" && !mount.source.as_os_str().is_empty()
    {
        if mount.source.as_os_str().is_empty() {
            return Err(Error::config(format!("{at}.source"), "is missing, and a bind mount needs it"));
        }
        let source = around.bundle.join(&mount.source);
        around.inside(&clean(&source)).map_or(What::Bind(source), What::Inside)
    } else if mount.kind == "cgroup" || mount.kind == "cgroup2" {
        What::Cgroup
    } else if mount.kind.is_empty() {
        return Err(Error::config(format!("{at}.type"), "is missing, and the mount is no bind"));
    } else {
        What::Filesystem { kind: mount.kind.clone(), source: mount.source.display().to_string() }
    };
    over_proc(&destination, &what, at)?;
    let idmap = idmapped::plan(mount, &what, &options, around.namespaces, around.privileged, at)?;
    if options.copy_up && !matches!(&what, What::Filesystem { kind, .. } if kind == "tmpfs") {
        return Err(Error::config(format!("{at}.options"), "tmpcopyup is only for tmpfs"));
    }
    // A link is made inside, by whoever mounts there.
    let handed = matches!(what, What::Bind(_)) && (idmap.is_some() || around.hands_over() && !options.copy_link);
    Ok(Mount { destination, what, options, idmap, handed, root_label: None })
}

fn over_proc(destination: &Path, what: &What, at: &str) -> Result<()> {
    let Ok(below) = destination.strip_prefix("/proc") else { return Ok(()) };
    if *what == What::Remount {
        return Ok(());
    }
    let is_proc = matches!(what, What::Filesystem { kind, .. } if kind == "proc");
    let bound_proc = matches!(what, What::Bind(source) if source == Path::new("/proc"));
    let allowed = if below.as_os_str().is_empty() {
        is_proc || bound_proc
    } else {
        PROC_OVERLAYS.iter().any(|path| destination == Path::new(path))
    };
    if allowed {
        return Ok(());
    }
    let why = format!("{} must be procfs itself: nothing may be mounted over it", destination.display());
    Err(Error::config(format!("{at}.destination"), why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, destination: &str, options: &[&str]) -> MountConfig {
        MountConfig {
            kind: kind.into(),
            source: source.into(),
            destination: destination.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            ..MountConfig::default()
        }
    }

    fn what(mount: &MountConfig) -> Result<What> {
        let namespaces = Namespaces::default();
        plan_mount(mount, around(&namespaces, true), "mounts[0]").map(|mount| mount.what)
    }

    fn around(namespaces: &Namespaces, privileged: bool) -> Around<'_> {
        Around { namespaces, bundle: Path::new("/bundle"), root: Path::new("/bundle/rootfs"), privileged }
    }

    #[test]
    fn the_host_side_opens_what_a_mapped_root_may_not_reach() {
        let user = User::Make { uids: Vec::new(), gids: Vec::new() };
        let mapped = Namespaces { make: vec![Kind::User, Kind::Mount], user, ..Namespaces::default() };
        let plain = Namespaces { make: vec![Kind::Mount], ..Namespaces::default() };
        let handed = |kind: &str, namespaces, privileged| {
            plan_mount(&mount(kind, "/source", "/d", &[]), around(namespaces, privileged), "mounts[0]").unwrap().handed
        };
        assert!(handed("bind", &mapped, true));
        assert!(!handed("bind", &mapped, false), "an ordinary user reaches no more than its child does");
        assert!(!handed("bind", &plain, true));
        assert!(!handed("tmpfs", &mapped, true));
    }

    #[test]
    fn paths_below_the_root_are_the_containers_own() {
        let namespaces = Namespaces::default();
        let planned = |source: &str, destination: &str, root: &str| {
            let around = Around { root: Path::new(root), ..around(&namespaces, true) };
            let mount = plan_mount(&mount("bind", source, destination, &["bind"]), around, "mounts[0]").unwrap();
            (mount.what, mount.destination)
        };
        let inside = |source: &str, destination: &str| (What::Inside(source.into()), destination.into());
        assert_eq!(planned("/bundle/rootfs/a", "/bundle/rootfs/b", "/bundle/rootfs"), inside("/a", "/b"));
        assert_eq!(planned("rootfs/../rootfs/a", "/b", "/bundle/rootfs"), inside("/a", "/b"));
        let outside = (What::Bind("/bundle/rootfs2/a".into()), PathBuf::from("/b"));
        assert_eq!(planned("/bundle/rootfs2/a", "/b", "/bundle/rootfs"), outside);
        assert_eq!(planned("/dev/null", "/b", "/"), (What::Bind("/dev/null".into()), "/b".into()));
    }

    #[test]
    fn a_path_is_covered_once() {
        assert_eq!(each_once(&["/a".into(), "/b/../a".into(), "/b".into()]), [Path::new("/a"), Path::new("/b")]);
    }

    #[test]
    fn kinds_of_mounts() {
        let proc = What::Filesystem { kind: "proc".into(), source: "proc".into() };
        assert_eq!(what(&mount("proc", "proc", "/proc", &[])), Ok(proc));
        assert_eq!(what(&mount("bind", "data", "/d", &[])), Ok(What::Bind("/bundle/data".into())));
        assert_eq!(what(&mount("", "/data", "d", &["rbind"])), Ok(What::Bind("/data".into())));
        assert_eq!(what(&mount("cgroup", "cgroup", "/sys/fs/cgroup", &["ro"])), Ok(What::Cgroup));
    }

    #[test]
    fn nothing_may_be_mounted_over_proc() {
        for destination in ["/proc", "/proc/self/attr", "proc/../proc", "/proc/sys"] {
            let error = what(&mount("bind", "/x", destination, &["bind"])).unwrap_err().to_string();
            assert!(error.starts_with("mounts[0].destination: /proc"), "{error}");
        }
        assert!(what(&mount("tmpfs", "tmpfs", "/proc", &[])).is_err());
        assert!(what(&mount("bind", "/lxcfs/meminfo", "/proc/meminfo", &["bind"])).is_ok());
    }

    #[test]
    fn nothing_may_be_mounted_over_the_root() {
        for destination in ["/", "/home/..", ".", "/bundle/rootfs/"] {
            for one in [mount("tmpfs", "tmpfs", destination, &[]), mount("bind", "/x", destination, &["bind"])] {
                let error = what(&one).unwrap_err().to_string();
                assert!(error.starts_with("mounts[0].destination: is the root filesystem"), "{error}");
            }
        }
        assert_eq!(what(&mount("", "", "/", &["remount", "ro"])), Ok(What::Remount));
    }

    #[test]
    fn the_tree_is_cut_off_below_as_well() {
        let bits = |flags: MsFlags| flags.bits();
        let (slave, private) = (bits(MsFlags::MS_SLAVE | MsFlags::MS_REC), bits(MsFlags::MS_PRIVATE | MsFlags::MS_REC));
        assert_eq!(propagation(""), Ok((slave, None)));
        assert_eq!(propagation("slave"), Ok((slave, Some(bits(MsFlags::MS_SLAVE)))));
        assert_eq!(propagation("private"), Ok((private, Some(bits(MsFlags::MS_PRIVATE)))));
        assert_eq!(propagation("unbindable"), Ok((private, Some(bits(MsFlags::MS_UNBINDABLE)))));
        assert_eq!(propagation("shared"), Ok((bits(MsFlags::MS_SHARED), Some(bits(MsFlags::MS_SHARED)))));
        assert!(propagation("sharde").is_err());
    }

    #[test]
    fn faults() {
        let error = |mount| what(&mount).unwrap_err().to_string();
        assert_eq!(error(mount("bind", "", "/x", &[])), "mounts[0].source: is missing, and a bind mount needs it");
        assert_eq!(error(mount("", "", "/x", &[])), "mounts[0].type: is missing, and the mount is no bind");
    }
}
