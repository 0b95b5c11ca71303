//! Idmapped mounts: a bind whose files show other owners than they have on disk.
//!
//! The kernel takes the mapping as a user namespace, once, on a mount that is attached nowhere yet, from whoever has
//! CAP_SYS_ADMIN over the filesystem. That is the host side, not the child in its user namespace. mount_setattr(2);
//! config.md#posix-platform-mounts

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use serde::Serialize;

use super::options::Options;
use super::plan::What;
use crate::error::{Error, Result};
use crate::namespaces::{Namespaces, User, plan::ranges};
use crate::spec::config::{IdMapping, Mount as MountConfig};
use crate::sys::mount::{MOUNT_ATTR_IDMAP, MountAttr, mount_setattr};

/// The id mapping of one mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Idmap {
    /// Which ids become which.
    pub map: Map,
    /// Whether mounts below the source are mapped too.
    pub recursive: bool,
}

/// Which ids become which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Map {
    /// As in the container's user namespace: what belongs to root on disk belongs to the container's root.
    Container,
    /// As the mount says. `container_id` is the id on disk, `host_id` the one it is shown as.
    Own {
        /// User ids.
        uids: Vec<IdMapping>,
        /// Group ids.
        gids: Vec<IdMapping>,
    },
}

/// Plans the id mapping of a mount, where it has one; `at` is the mount's JSON path.
///
/// # Errors
/// Something other than a bind, an option without a mapping to take, a caller that may not map.
pub fn plan(
    mount: &MountConfig,
    what: &What,
    options: &Options,
    namespaces: &Namespaces,
    privileged: bool,
    at: &str,
) -> Result<Option<Idmap>> {
    let own = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    let field = if own { "uidMappings" } else { "options" };
    let fault = |why: &str| Error::config(format!("{at}.{field}"), why.to_owned());
    let map = match (own, options.idmap) {
        (false, None) => return Ok(None),
        (true, _) => Map::Own { uids: mount.uid_mappings.clone(), gids: mount.gid_mappings.clone() },
        (false, Some(_)) if namespaces.user == User::Inherit => {
            return Err(fault(
                "idmap without uidMappings takes the user namespace's mapping, and the container has none",
            ));
        }
        (false, Some(_)) => Map::Container,
    };
    if let Map::Own { uids, gids } = &map {
        ranges(uids, &format!("{at}.uidMappings"))?;
        ranges(gids, &format!("{at}.gidMappings"))?;
    }
    if !matches!(what, What::Bind(_) | What::Inside(_)) {
        return Err(fault("only a bind mount can be id-mapped"));
    }
    if !privileged {
        return Err(fault(
            "an id-mapped mount needs CAP_SYS_ADMIN over its filesystem, which an ordinary user has not",
        )
        .hint("leave the mapping out, or create the container as root"));
    }
    Ok(Some(Idmap { map, recursive: options.idmap == Some(true) }))
}

/// Gives the detached mount `tree` the mapping of a user namespace.
///
/// # Errors
/// EINVAL where its filesystem cannot, EPERM for one that is mapped already or is another user namespace's.
pub fn apply(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>, recursive: bool, named: &str) -> Result<()> {
    let attr = MountAttr { set: MOUNT_ATTR_IDMAP, userns: namespace.as_raw_fd() as u64, ..MountAttr::default() };
    mount_setattr(tree, c"", recursive, &attr).map_err(|answer| {
        let error = Error::kernel("map the ids of", named, answer);
        match answer {
            Errno::EINVAL if recursive => {
                error.hint("its filesystem, or one mounted below it, has no id-mapped mounts")
            }
            Errno::EINVAL => error.hint("its filesystem has no id-mapped mounts in this kernel"),
            Errno::EPERM => error.hint("it is id-mapped already, or its filesystem belongs to another user namespace"),
            Errno::ENOSYS => error.hint("id-mapped mounts need Linux 5.12"),
            _ => error,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::options::parse;

    const MAP: IdMapping = IdMapping { container_id: 0, host_id: 1000, size: 1 };

    fn planned(own: bool, options: &[&str], user: User, privileged: bool) -> Result<Option<Idmap>> {
        let maps = if own { vec![MAP] } else { Vec::new() };
        let mount = MountConfig { uid_mappings: maps.clone(), gid_mappings: maps, ..MountConfig::default() };
        let options = parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>());
        let what = match options.bind {
            Some(_) => What::Bind("/x".into()),
            None => What::Filesystem { kind: "tmpfs".into(), source: String::new() },
        };
        let namespaces = Namespaces { user, ..Namespaces::default() };
        plan(&mount, &what, &options, &namespaces, privileged, "mounts[3]")
    }

    #[test]
    fn mappings_of_the_mount_or_of_the_container() {
        let made = || User::Make { uids: vec![MAP], gids: vec![MAP] };
        let own = || Map::Own { uids: vec![MAP], gids: vec![MAP] };
        assert_eq!(planned(false, &["bind"], made(), true), Ok(None));
        let mapped = |map, recursive| Ok(Some(Idmap { map, recursive }));
        assert_eq!(planned(true, &["bind"], User::Inherit, true), mapped(own(), false));
        assert_eq!(planned(true, &["rbind", "ridmap"], made(), true), mapped(own(), true));
        assert_eq!(planned(false, &["rbind", "idmap"], made(), true), mapped(Map::Container, false));
    }

    #[test]
    fn faults() {
        let error = |own, options: &[&str], privileged| {
            planned(own, options, User::Inherit, privileged).unwrap_err().to_string()
        };
        assert!(error(false, &["bind", "idmap"], true).starts_with("mounts[3].options: idmap without uidMappings"));
        assert!(error(true, &["idmap"], true).starts_with("mounts[3].uidMappings: only a bind mount"));
        assert!(error(true, &["bind", "idmap"], false).starts_with("mounts[3].uidMappings: an id-mapped mount needs"));
    }
}
