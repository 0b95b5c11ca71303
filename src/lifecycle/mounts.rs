//! `mounts add`, `mounts remove`: what a container that is there has mounted.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::process::{PidfdFlags, pidfd_open};

use super::Setting;
use super::live::{self, Live};
use crate::container::record::Init;
use crate::error::{Context, Error, Result};
use crate::host;
use crate::launch::attach::{self, Inside};
use crate::launch::plan;
use crate::namespaces::{self, Kind};
use crate::path::clean;
use crate::rootfs::plan::{Around, Mount, What, directory, plan as plan_rootfs, plan_mount};
use crate::spec::Config;
use crate::spec::config::Mount as MountConfig;

/// Filesystems that show the inside of a namespace: the caller's, were they mounted by ferry.
const OF_NAMESPACES: [&str; 3] = ["proc", "sysfs", "mqueue"];

/// Adds mounts, in order: all of them, or none. They are of the form of config.json's `mounts`; a relative source is relative
/// to the bundle.
///
/// # Errors
/// The container has no process or no mount namespace; a mount that cannot be planned or made.
pub fn add(setting: &Setting, id: &str, mounts: &[MountConfig]) -> Result<()> {
    let (container, init, pidfd) = open(setting, id)?;
    let host = host::probe();
    let config = container.entry.config()?;
    let namespaces = namespaces::plan::plan(&config)?;
    let bundle = &container.record.bundle;
    let root = directory(&config, bundle);
    let around = Around { namespaces: &namespaces, bundle, root: &root, privileged: host.privileged };
    let each = mounts.iter().enumerate().map(|(index, mount)| planned(mount, around, &format!("mounts[{index}]")));
    let mut planned = each.collect::<Result<Vec<Mount>>>()?;
    plan::without_effect(&planned).for_each(|warning| setting.log.warning(warning));
    plan::label(&config, &mut planned)?;
    let propagation = plan_rootfs(&config, around, true)?.propagation;
    attach::add(inside(&container, &host, init, &pidfd), &planned, propagation)
}

/// Removes what is mounted on each of `places`, in order, with what is mounted below it. Processes that have files of it open
/// keep them.
///
/// # Errors
/// The container has no process or no mount namespace; the place is the root, or protected; nothing is mounted there.
pub fn remove(setting: &Setting, id: &str, places: &[PathBuf]) -> Result<()> {
    let (container, init, pidfd) = open(setting, id)?;
    let config = container.entry.config()?;
    let places: Vec<PathBuf> = places.iter().map(|place| clean(place)).collect();
    places.iter().try_for_each(|place| removable(place, &config))?;
    let places: Vec<&Path> = places.iter().map(PathBuf::as_path).collect();
    attach::remove(inside(&container, &host::probe(), init, &pidfd), &places)
}

/// The container, locked, and its first process by a descriptor that stays its own.
fn open(setting: &Setting, id: &str) -> Result<(Live, Init, OwnedFd)> {
    let container = live::open_locked(setting, id)?;
    let stopped = || Error::plain(format!("container not running: {id:?} is {}", container.status));
    let init = container.init().ok_or_else(stopped)?;
    let pid = rustix::process::Pid::from_raw(init.pid).ok_or_else(stopped)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).or_cannot("find", "the container's process")?;
    // Asked once the descriptor is held: from now on it is known whose it is.
    if !init.is_alive()? {
        return Err(stopped());
    }
    if container.entry.is_being_restored()? {
        let why = "it is being restored, and what is there is not the container yet";
        return Err(Error::said("change the mounts of", format!("container {id:?}"), why));
    }
    if !container.record.namespaces.contains(&Kind::Mount) {
        let why = "it has no mount namespace of its own: they would be the host's";
        return Err(Error::said("change the mounts of", format!("container {id:?}"), why));
    }
    Ok((container, init, pidfd))
}

fn inside<'a>(container: &Live, host: &'a host::Host, init: Init, pidfd: &'a OwnedFd) -> Inside<'a> {
    let user_namespace = container.record.namespaces.contains(&Kind::User);
    Inside { init: pidfd.as_fd(), pid: init.pid(), user_namespace, host }
}

fn planned(mount: &MountConfig, around: Around<'_>, at: &str) -> Result<Mount> {
    if mount.destination.as_os_str().is_empty() || clean(&mount.destination) == Path::new("/") {
        return Err(Error::config(format!("{at}.destination"), "must be a path below /"));
    }
    let planned = plan_mount(mount, around, at)?;
    match &planned.what {
        What::Filesystem { kind, .. } if OF_NAMESPACES.contains(&kind.as_str()) => (),
        What::Cgroup => (),
        What::Remount => {
            let why = "remount would change what the container has, also what covers masked paths";
            return Err(
                Error::config(format!("{at}.options"), why).hint("remove the mount, and add it with other options")
            );
        }
        What::Inside(_) if planned.idmap.is_some() => {
            let why = "the source is inside the container, and its ids cannot be mapped from there";
            return Err(Error::config(format!("{at}.source"), why));
        }
        _ => return Ok(planned),
    }
    let why = format!("{:?} cannot be added to a container that is there", mount.kind);
    Err(Error::config(format!("{at}.type"), why).hint("it shows a namespace from inside: set it in config.json"))
}

/// What covers a path must stay: under it is what the container is not to see or to write.
fn removable(place: &Path, config: &Config) -> Result<()> {
    let refused = |why: &str| Err(Error::said("unmount", place.display().to_string(), why.to_owned()));
    let covered = config.linux.masked_paths.iter().chain(&config.linux.readonly_paths);
    match () {
        () if place == Path::new("/") => refused("it is the container's root"),
        () if covered.map(|path| clean(path)).any(|path| path == place) => {
            refused("it is one of linux.maskedPaths or linux.readonlyPaths")
        }
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespaces::Namespaces;

    fn plan_one(kind: &str, destination: &str) -> Result<Mount> {
        let mount = MountConfig {
            kind: kind.into(),
            source: "/s".into(),
            destination: destination.into(),
            ..MountConfig::default()
        };
        let namespaces = Namespaces::default();
        let (bundle, root) = (Path::new("/b"), Path::new("/b/rootfs"));
        planned(&mount, Around { namespaces: &namespaces, bundle, root, privileged: true }, "mounts[0]")
    }

    #[test]
    fn what_shows_a_namespace_is_not_added() {
        for kind in ["proc", "sysfs", "mqueue", "cgroup", "cgroup2"] {
            let destination = if kind == "proc" { "/proc" } else { "/d" };
            let error = plan_one(kind, destination).unwrap_err().to_string();
            assert!(error.starts_with(&format!("mounts[0].type: {kind:?} cannot be added")), "{error}");
        }
        assert!(plan_one("bind", "/d").is_ok() && plan_one("tmpfs", "/d").is_ok());
    }

    #[test]
    fn the_root_is_no_place() {
        for place in ["/", "", "/..", "/a/.."] {
            assert!(plan_one("bind", place).unwrap_err().to_string().contains("must be a path below /"), "{place}");
        }
    }

    #[test]
    fn what_covers_a_path_stays() {
        let mut config = Config::default();
        config.linux.masked_paths = vec!["/proc/kcore".into()];
        config.linux.readonly_paths = vec!["/proc/sys".into()];
        for place in ["/", "/proc/kcore", "/proc/sys"] {
            assert!(removable(Path::new(place), &config).is_err(), "{place}");
        }
        assert!(removable(Path::new("/data"), &config).is_ok());
    }
}
