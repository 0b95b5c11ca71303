//! Where the container's cgroup is: the v2 mount, our own place in it, and the path that `linux.cgroupsPath` names.
//!
//! Finding the mount costs one statfs on a pure host and two on a hybrid one; /proc/self/mountinfo, which has hundreds
//! of lines on a busy host, is read only where neither usual place holds a v2 tree.
//!
//! Source: runtime-spec config-linux.md#cgroups-path, cgroups(7), proc_pid_cgroup(5), proc_pid_mountinfo(5).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::procfs::{self, mountinfo};

/// `f_type` of a cgroup v2 filesystem, from linux/magic.h.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// Who makes the cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// ferry itself, in the filesystem.
    #[default]
    Cgroupfs,
    /// systemd, asked over D-Bus.
    Systemd,
    /// Nobody: the container stays in the cgroup of its starter.
    Disabled,
}

/// What holds the container: decided from the driver and `linux.cgroupsPath`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Nothing of its own: it stays in the cgroup of its starter.
    Nowhere,
    /// A directory that `fs::create` makes before the container is cloned into it.
    Directory(Location),
    /// A scope that `systemd::Manager::start` makes around the container once it is cloned.
    Scope(Unit),
}

/// The v2 tree of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Whether it stands beside cgroup v1 hierarchies, which then hold some or all controllers.
    pub hybrid: bool,
}

/// The place of one container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Where the v2 tree is mounted.
    pub mount: PathBuf,
    /// The cgroup's path below the mount: relative, not empty, of ordinary names only.
    pub path: PathBuf,
    /// Whether the configuration named it. A place that was asked for is never silently done without.
    pub explicit: bool,
}

/// A systemd unit, as `linux.cgroupsPath` names it for the systemd driver.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Unit {
    /// The slice it belongs to; empty: systemd's usual one.
    pub slice: String,
    /// What its name begins with.
    pub prefix: String,
    /// The container's part of its name.
    pub name: String,
}

impl Location {
    /// The absolute path of the cgroup's directory.
    pub fn dir(&self) -> PathBuf {
        self.mount.join(&self.path)
    }
}

impl Unit {
    /// The unit's whole name: a scope, or the slice that `name` says.
    pub fn full_name(&self) -> String {
        match (self.name.ends_with(".slice"), self.prefix.is_empty()) {
            (true, _) => self.name.clone(),
            (false, true) => format!("{}.scope", self.name),
            (false, false) => format!("{}-{}.scope", self.prefix, self.name),
        }
    }
}

/// Finds the v2 tree. `None`: this host has none mounted.
pub fn find_tree() -> Result<Option<Tree>> {
    for (mount, hybrid) in [("/sys/fs/cgroup", false), ("/sys/fs/cgroup/unified", true)] {
        if is_cgroup2(mount) {
            return Ok(Some(Tree { mount: mount.into(), hybrid }));
        }
    }
    let table = mountinfo::read().or_cannot("read", "/proc/self/mountinfo")?;
    Ok(tree_in(&table))
}

fn is_cgroup2(path: &str) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_SUPER_MAGIC)
}

/// The first v2 mount in a mount table, and whether there are v1 mounts too.
fn tree_in(table: &[mountinfo::Row]) -> Option<Tree> {
    let mount = table.iter().find(|row| row.kind == "cgroup2")?.point.clone();
    Some(Tree { mount, hybrid: table.iter().any(|row| row.kind == "cgroup") })
}

/// The path of our own cgroup in the v2 tree, from its mount's root (`/user.slice/…`).
///
/// # Errors
///
/// /proc is not mounted, or we are in no v2 cgroup.
pub fn own_path() -> Result<PathBuf> {
    let table = procfs::read("/proc/self/cgroup").or_cannot("read", "/proc/self/cgroup")?;
    own_path_in(&table).ok_or_else(|| Error::said("find our own cgroup in", "/proc/self/cgroup", "it has no line 0::"))
}

/// The absolute path of the cgroup that a process is in; `None` where there is no v2 tree.
///
/// # Errors
///
/// The process is gone.
pub fn of_process(pid: Pid) -> Result<Option<PathBuf>> {
    let file = format!("/proc/{pid}/cgroup");
    let table = procfs::read(&file).or_cannot("read", &file)?;
    let (Some(tree), Some(path)) = (find_tree()?, own_path_in(&table)) else { return Ok(None) };
    Ok(Some(tree.mount.join(path.strip_prefix("/").unwrap_or(&path))))
}

fn own_path_in(table: &[u8]) -> Option<PathBuf> {
    let path = table.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    // A cgroup that was removed while we are in it keeps its path, with this mark.
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

/// The place that `linux.cgroupsPath` names: an absolute path counts from the mount, a relative one stands beside our
/// own cgroup, and so does the container's id where the path is empty.
///
/// Beside and not below, because our own cgroup holds processes (us), and a cgroup that holds processes cannot give
/// controllers to its children (the rule of no internal processes, cgroups(7)).
///
/// # Errors
///
/// The path leads upwards, names the root itself, or has a character that the kernel cannot take.
pub fn locate(tree: &Tree, own: &Path, cgroups_path: &str, id: &str) -> Result<Location> {
    let explicit = !cgroups_path.is_empty();
    let asked = Path::new(if explicit { cgroups_path } else { id });
    let mut path = if asked.has_root() { PathBuf::new() } else { below_mount(own.parent().unwrap_or(own), own)? };
    let base = path.as_os_str().len();
    push_names(&mut path, asked)?;
    if path.as_os_str().len() == base {
        return Err(refused(asked, "it names no cgroup of the container's own"));
    }
    Ok(Location { mount: tree.mount.clone(), path, explicit })
}

fn below_mount(parent: &Path, own: &Path) -> Result<PathBuf> {
    let mut path = PathBuf::new();
    push_names(&mut path, parent).map_err(|_| {
        Error::said("place the container beside our own cgroup", own.display().to_string(), "it is outside of our view")
            .hint("give an absolute linux.cgroupsPath")
    })?;
    Ok(path)
}

fn push_names(path: &mut PathBuf, asked: &Path) -> Result<()> {
    // The kernel refuses a newline in a cgroup's name, and a NUL ends a path: say so before anything is made.
    if asked.as_os_str().as_bytes().iter().any(|byte| matches!(byte, 0 | b'\n')) {
        return Err(refused(asked, "a name has a NUL or a newline in it"));
    }
    for component in asked.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => return Err(refused(asked, "it leads upwards (..)")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(())
}

fn refused(path: &Path, why: &str) -> Error {
    Error::said("use linux.cgroupsPath", format!("{path:?}"), why)
}

/// Reads `slice:prefix:name`, the systemd driver's form of `linux.cgroupsPath`; empty: the container's id in the usual
/// slice.
///
/// # Errors
///
/// The path has another form, or a name in it systemd cannot take.
pub fn parse_unit(cgroups_path: &str, id: &str) -> Result<Unit> {
    if cgroups_path.is_empty() {
        return Ok(Unit { slice: String::new(), prefix: "ferry".into(), name: id.into() });
    }
    let refused = |why| refused(Path::new(cgroups_path), why);
    let [slice, prefix, name] = cgroups_path.split(':').collect::<Vec<_>>()[..] else {
        return Err(refused("the systemd driver takes slice:prefix:name"));
    };
    if name.is_empty() || cgroups_path.contains(|c: char| c == '/' || c.is_control() || c.is_whitespace()) {
        return Err(refused("a unit's name must not be empty nor hold slashes or blanks"));
    }
    if !(slice.is_empty() || slice.ends_with(".slice")) {
        return Err(refused("the first part must be a slice").hint("for example system.slice:ferry:web"));
    }
    Ok(Unit { slice: slice.into(), prefix: prefix.into(), name: name.into() })
}

/// The place of a cgroup that exists, from the absolute path of its directory.
///
/// # Errors
///
/// The path is not below the v2 tree of this host.
pub fn of_existing(dir: &Path) -> Result<Location> {
    let tree = find_tree()?;
    let place = tree.as_ref().and_then(|tree| Some((&tree.mount, dir.strip_prefix(&tree.mount).ok()?)));
    match place {
        Some((mount, path)) => Ok(Location { mount: mount.clone(), path: path.into(), explicit: true }),
        None => Err(Error::said("find the cgroup", dir.display().to_string(), "no cgroup v2 tree is mounted above it")),
    }
}

/// Finds the place of a container's cgroup on this host.
///
/// # Errors
///
/// There is no v2 tree, or the path is refused.
pub fn find(driver: Driver, cgroups_path: &str, id: &str) -> Result<Place> {
    match driver {
        Driver::Disabled => Ok(Place::Nowhere),
        Driver::Systemd => parse_unit(cgroups_path, id).map(Place::Scope),
        Driver::Cgroupfs => {
            let tree = find_tree()?.ok_or_else(|| {
                Error::kernel("find a cgroup v2 tree under", "/sys/fs/cgroup", Errno::ENOENT)
                    .hint("mount one: mount -t cgroup2 none /sys/fs/cgroup")
            })?;
            // An absolute path does not depend on where we are.
            let own = if cgroups_path.starts_with('/') { PathBuf::from("/") } else { own_path()? };
            locate(&tree, &own, cgroups_path, id).map(Place::Directory)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(own: &str, asked: &str) -> Result<Location> {
        let tree = Tree { mount: "/sys/fs/cgroup".into(), hybrid: false };
        locate(&tree, Path::new(own), asked, "box")
    }

    #[test]
    fn places() {
        for (own, asked, path, explicit) in [
            ("/user.slice/session-1.scope", "", "user.slice/box", false),
            ("/", "", "box", false),
            ("/a", "", "box", false),
            ("/user.slice/session-1.scope", "sub/web", "user.slice/sub/web", true),
            ("/user.slice/session-1.scope", "/sub//./web/", "sub/web", true),
            ("/../elsewhere", "/sub", "sub", true),
        ] {
            let found = place(own, asked).unwrap();
            assert_eq!((found.path.to_str().unwrap(), found.explicit), (path, explicit), "{own} {asked}");
        }
        assert_eq!(place("/", "/a/b").unwrap().dir(), Path::new("/sys/fs/cgroup/a/b"));
    }

    #[test]
    fn refusals() {
        for (own, asked, word) in [
            ("/", "/a/../../b", "upwards"),
            ("/", "..", "upwards"),
            ("/", "/", "no cgroup"),
            ("/a/b", ".", "no cgroup"),
            ("/", "/a\0b", "NUL"),
            ("/", "/a\nb", "newline"),
            ("/../outside/us", "", "outside of our view"),
        ] {
            let error = place(own, asked).unwrap_err().to_string();
            assert!(error.contains(word), "{own} {asked:?}: {error}");
        }
    }

    #[test]
    fn mountinfo_with_escapes_and_optional_fields() {
        let table = b"31 23 0:28 / /sys rw shared:7 master:2 - tmpfs tmpfs rw\n\
            32 31 0:29 / /c/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /c/my\\040tree rw,relatime shared:1 - cgroup2 cgroup2 rw\n\
            42 31 0:38 / /second rw - cgroup2 cgroup2 rw\n";
        assert_eq!(tree_in(&mountinfo::rows(table)), Some(Tree { mount: "/c/my tree".into(), hybrid: true }));
        assert_eq!(tree_in(&mountinfo::rows(b"31 23 0:28 / /cgroup2 rw - tmpfs cgroup2 rw\n")), None);
    }

    #[test]
    fn own_cgroup() {
        assert_eq!(own_path_in(b"4:memory:/x\n0::/a/b\n"), Some("/a/b".into()));
        assert_eq!(own_path_in(b"0::/a/b (deleted)\n"), Some("/a/b".into()));
        assert_eq!(own_path_in(b"4:memory:/x\n"), None);
    }

    #[test]
    fn a_directory_outside_of_the_tree_is_no_cgroup() {
        let error = of_existing(Path::new("/etc")).unwrap_err().to_string();
        assert!(error.starts_with("cannot find the cgroup /etc"), "{error}");
        if let Some(tree) = find_tree().unwrap() {
            let location = of_existing(&tree.mount.join("a/b")).unwrap();
            assert_eq!((location.path.as_path(), location.explicit), (Path::new("a/b"), true));
        }
    }

    #[test]
    fn systemd_units() {
        let unit = parse_unit("system.slice:ferry:web", "id").unwrap();
        assert_eq!(unit.full_name(), "ferry-web.scope");
        assert_eq!(parse_unit("", "id").unwrap().full_name(), "ferry-id.scope");
        assert_eq!(parse_unit(":x:pod.slice", "id").unwrap().full_name(), "pod.slice");
        for bad in ["/a/b", "a:b", "a.slice:b:", "a.slice:b:c/d", "a:b:c"] {
            assert!(parse_unit(bad, "id").is_err(), "{bad}");
        }
        let unit = Unit { slice: String::new(), prefix: "ferry".into(), name: "web".into() };
        assert_eq!(find(Driver::Systemd, "", "web").unwrap(), Place::Scope(unit));
        assert_eq!(find(Driver::Disabled, "/a", "web").unwrap(), Place::Nowhere);
    }
}
