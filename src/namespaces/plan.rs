//! From `linux.namespaces` to what is made by the clone, what is made by the child, and what is joined by path.

use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use serde::Serialize;

use super::{Kind, TABLE};
use crate::error::{Error, Result};
use crate::spec::config::{Config, IdMapping, TimeOffset};

/// The namespaces of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Namespaces {
    /// The kinds made new, in the table's order.
    pub make: Vec<Kind>,
    /// The kinds joined by path, in the table's order; the user namespace is not among them.
    pub join: Vec<Join>,
    /// The user namespace.
    pub user: User,
    /// `CLOCK SECONDS NANOSECONDS` lines of /proc/self/timens_offsets, for a new time namespace.
    pub time_offsets: Vec<String>,
}

/// A namespace joined by path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Join {
    /// Which.
    pub kind: Kind,
    /// Where.
    pub path: PathBuf,
}

impl Join {
    /// One that cannot be looked at is told of when it is opened.
    fn is_callers_own(&self) -> bool {
        let which = |path: &Path| rustix::fs::stat(path).map(|file| (file.st_dev, file.st_ino));
        let own = Path::new("/proc/self/ns").join(self.kind.row().file);
        which(&own).is_ok_and(|own| which(&self.path) == Ok(own))
    }
}

/// The user namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum User {
    /// The caller's.
    #[default]
    Inherit,
    /// A new one.
    Make {
        /// User ids.
        uids: Vec<IdMapping>,
        /// Group ids.
        gids: Vec<IdMapping>,
    },
    /// An existing one.
    Join(PathBuf),
}

impl Namespaces {
    /// Whether a new namespace of this kind is made.
    pub fn makes(&self, kind: Kind) -> bool {
        self.make.contains(&kind)
    }

    /// Whether processes of another container are there when the first of this one comes, and have it in sight, or rights over it.
    pub fn has_company(&self) -> bool {
        matches!(self.user, User::Join(_)) || self.join.iter().any(|join| join.kind == Kind::Pid)
    }

    /// Whether the container has a namespace of this kind to itself or joined, instead of the caller's.
    pub fn has(&self, kind: Kind) -> bool {
        self.makes(kind)
            || self.join.iter().any(|join| join.kind == kind)
            || (kind == Kind::User && self.user != User::Inherit)
    }

    /// As [`Namespaces::has`], and not by the path of one that is the caller's own: what is changed in there is not the host's.
    pub fn has_apart(&self, kind: Kind) -> bool {
        self.has(kind) && !self.join.iter().any(|join| join.kind == kind && join.is_callers_own())
    }

    /// The bits for clone3. The cgroup namespace is not among them: its root would be the cloner's cgroup and not the one
    /// the child is born in (kernel/cgroup/namespace.c: copy_cgroup_ns). Neither is the time namespace, whose offsets
    /// cannot be written once a process is in it. The child makes both, and an ipc namespace that is
    /// [made later](Self::makes_ipc_later).
    pub fn clone_flags(&self) -> u64 {
        let later = |kind| matches!(kind, Kind::Cgroup | Kind::Time) || (kind == Kind::Ipc && self.makes_ipc_later());
        let made = |row: &&super::Row| self.makes(row.kind) && !later(row.kind);
        TABLE.iter().filter(made).fold(0, |flags, row| flags | row.flag as u64)
    }

    /// Whether the ipc namespace is made by the child once it has the ids of a new user namespace: its message queues'
    /// filesystem belongs to whoever makes it (ipc/mqueue.c: mq_init_ns), and the clone is nobody in there.
    pub fn makes_ipc_later(&self) -> bool {
        self.makes(Kind::User) && self.makes(Kind::Ipc)
    }
}

/// Plans the namespaces of a configuration.
///
/// # Errors
/// A field at fault: an unknown kind, mappings without a user namespace, a host name without a UTS namespace, and so on.
pub fn plan(config: &Config) -> Result<Namespaces> {
    let linux = &config.linux;
    let mut namespaces = Namespaces::default();
    let mut user_path = None;
    for row in &TABLE {
        let Some(entry) = linux.namespaces.iter().find(|entry| entry.kind == row.name) else { continue };
        let joined = !entry.path.as_os_str().is_empty();
        match (joined, row.kind) {
            (true, Kind::User) => user_path = Some(entry.path.clone()),
            (true, kind) => namespaces.join.push(Join { kind, path: entry.path.clone() }),
            (false, kind) => namespaces.make.push(kind),
        }
    }
    known_kinds(config)?;
    let (uids, gids) = (linux.uid_mappings.clone(), linux.gid_mappings.clone());
    namespaces.user = match user_path {
        Some(path) => User::Join(path),
        None if namespaces.makes(Kind::User) => User::Make { uids, gids },
        None => User::Inherit,
    };
    mappings(config, &namespaces.user)?;
    namespaces.time_offsets = time_offsets(&namespaces, &linux.time_offsets)?;
    names(config, &namespaces)?;
    Ok(namespaces)
}

fn known_kinds(config: &Config) -> Result<()> {
    let unknown = |kind: &str| !TABLE.iter().any(|row| row.name == kind);
    match config.linux.namespaces.iter().position(|entry| unknown(&entry.kind)) {
        None => Ok(()),
        Some(index) => {
            let known: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
            let found = &config.linux.namespaces[index].kind;
            let why = format!("unknown namespace {found:?}; one of {}", known.join(", "));
            Err(Error::config(format!("linux.namespaces[{index}].type"), why))
        }
    }
}

fn mappings(config: &Config, user: &User) -> Result<()> {
    let linux = &config.linux;
    let given = !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty();
    match user {
        User::Inherit if given => {
            let why = "id mappings need a new user namespace, and linux.namespaces has none";
            Err(Error::config("linux.uidMappings", why))
        }
        User::Make { uids, .. } if uids.is_empty() => {
            Err(Error::config("linux.uidMappings", "is missing, and a new user namespace needs it"))
        }
        User::Make { gids, .. } if gids.is_empty() => {
            Err(Error::config("linux.gidMappings", "is missing, and a new user namespace needs it"))
        }
        User::Make { uids, gids } => {
            ranges(uids, "linux.uidMappings")?;
            ranges(gids, "linux.gidMappings")
        }
        User::Inherit | User::Join(_) => Ok(()),
    }
}

/// Checks the lines of an id map; `at` is its JSON path. The kernel takes at most 340, none of them empty or overlapping:
/// user_namespaces(7).
///
/// # Errors
/// The line at fault.
pub fn ranges(mappings: &[IdMapping], at: &str) -> Result<()> {
    const MOST: usize = 340;
    if mappings.len() > MOST {
        return Err(Error::config(at, format!("has {} entries, and the kernel takes at most {MOST}", mappings.len())));
    }
    for (index, mapping) in mappings.iter().enumerate() {
        if mapping.size == 0 {
            return Err(Error::config(format!("{at}[{index}].size"), "must be greater than zero"));
        }
        let end = |first: u32| first.checked_add(mapping.size - 1);
        if end(mapping.container_id).is_none() || end(mapping.host_id).is_none() {
            return Err(Error::config(format!("{at}[{index}].size"), "reaches beyond the largest id"));
        }
    }
    Ok(())
}

fn time_offsets(
    namespaces: &Namespaces,
    offsets: &std::collections::BTreeMap<String, TimeOffset>,
) -> Result<Vec<String>> {
    if offsets.is_empty() {
        return Ok(Vec::new());
    }
    if !namespaces.makes(Kind::Time) {
        return Err(Error::config("linux.timeOffsets", "needs a new time namespace, and linux.namespaces has none"));
    }
    let line = |(clock, offset): (&String, &TimeOffset)| match clock.as_str() {
        "monotonic" | "boottime" => Ok(format!("{clock} {} {}", offset.secs, offset.nanosecs)),
        _ => Err(Error::config(format!("linux.timeOffsets.{clock}"), "the clocks are monotonic and boottime")),
    };
    offsets.iter().map(line).collect()
}

fn names(config: &Config, namespaces: &Namespaces) -> Result<()> {
    for (field, value) in [("hostname", &config.hostname), ("domainname", &config.domainname)] {
        if !value.is_empty() && !namespaces.has(Kind::Uts) {
            return Err(Error::config(field, "needs a uts namespace: without one the host's own would change"));
        }
    }
    Ok(())
}

/// What nix calls the flags, for setns.
pub fn clone_flag(kind: Kind) -> CloneFlags {
    CloneFlags::from_bits_retain(kind.row().flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::config::Namespace;

    fn config(kinds: &[(&str, &str)]) -> Config {
        let mut config = Config::default();
        let entry = |(kind, path): &(&str, &str)| Namespace { kind: (*kind).into(), path: path.into() };
        config.linux.namespaces = kinds.iter().map(entry).collect();
        config
    }

    #[test]
    fn made_and_joined() {
        let config = config(&[("mount", ""), ("network", "/run/netns/x"), ("pid", ""), ("cgroup", ""), ("time", "")]);
        let namespaces = plan(&config).unwrap();
        assert_eq!(namespaces.make, [Kind::Pid, Kind::Cgroup, Kind::Time, Kind::Mount]);
        assert_eq!(namespaces.join, [Join { kind: Kind::Network, path: "/run/netns/x".into() }]);
        let flags = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS;
        assert_eq!(namespaces.clone_flags(), flags.bits() as u64);
    }

    #[test]
    fn the_callers_own_namespace_by_its_path_is_not_the_containers() {
        let joins = |path: &str| plan(&config(&[("network", path)])).unwrap();
        assert!(joins("/proc/self/ns/net").has(Kind::Network) && !joins("/proc/self/ns/net").has_apart(Kind::Network));
        assert!(joins("/proc/self/ns/uts").has_apart(Kind::Network), "another's, and of another kind: told of later");
        assert!(joins("").has_apart(Kind::Network) && joins("/nowhere").has_apart(Kind::Network));
    }

    #[test]
    fn ipc_is_made_inside_of_a_new_user_namespace() {
        let flags = |kinds: &[Kind]| Namespaces { make: kinds.to_vec(), ..Namespaces::default() }.clone_flags();
        let bits = |flags: CloneFlags| flags.bits() as u64;
        assert_eq!(flags(&[Kind::Ipc]), bits(CloneFlags::CLONE_NEWIPC));
        assert_eq!(flags(&[Kind::User, Kind::Uts]), bits(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWUTS));
        assert_eq!(flags(&[Kind::User, Kind::Ipc]), bits(CloneFlags::CLONE_NEWUSER));
    }

    #[test]
    fn faults() {
        let fault = |config: &Config| plan(config).unwrap_err().to_string();
        assert!(fault(&config(&[("pids", "")])).starts_with("linux.namespaces[0].type: unknown namespace \"pids\""));
        assert!(fault(&config(&[("user", "")])).starts_with("linux.uidMappings: is missing"));
        let mut named = config(&[]);
        named.hostname = "x".into();
        assert!(fault(&named).starts_with("hostname: needs a uts namespace"));
        let mut offset = config(&[("pid", "")]);
        offset.linux.time_offsets.insert("monotonic".into(), TimeOffset { secs: 1, nanosecs: 0 });
        assert!(fault(&offset).starts_with("linux.timeOffsets: needs a new time namespace"));
    }
}
