//! New filesystems that something is still made in before they are read-only.

use std::path::{Path, PathBuf};

use super::plan::{Mount, What, is_path};
use crate::path::clean;
use crate::spec::config::Config;
use crate::sys::mount::MOUNT_ATTR_RDONLY;

/// Takes the read-only attribute from new filesystems that something is still made in, and answers their places. On a disk nothing is
/// made: it is not to be written to at all. What is the kernel's own has nothing made in it either; and where the host's is
/// read-only, a user namespace gets no other one. fs/namespace.c, mnt_already_visible
pub fn last(mounts: &mut [Mount], config: &Config) -> Vec<PathBuf> {
    let places: Vec<PathBuf> = mounts.iter().map(|mount| mount.destination.clone()).collect();
    let made = made(config);
    let hooks = &config.hooks;
    // They may make anything anywhere.
    let has_hooks = [&hooks.prestart, &hooks.create_runtime, &hooks.create_container].iter().any(|of| !of.is_empty());
    let mut last = Vec::new();
    for (index, mount) in mounts.iter_mut().enumerate() {
        let (place, later) = (&mount.destination, &places[index + 1..]);
        let is_dev = place == Path::new("/dev");
        let is_writable = match &mount.what {
            What::Filesystem { kind, .. } if matches!(kind.as_str(), "sysfs" | "proc") => false,
            What::Filesystem { kind, source } => is_dev || kind == "tmpfs" || !is_path(source),
            _ => false,
        };
        if !is_writable || mount.options.attributes.set & MOUNT_ATTR_RDONLY == 0 {
            continue;
        }
        let below = |path: &PathBuf| path != place && path.starts_with(place);
        let is_in_sight = !later.contains(place);
        if is_dev || later.iter().any(below) || is_in_sight && (has_hooks || made.iter().any(below)) {
            mount.options.attributes.set &= !MOUNT_ATTR_RDONLY;
            last.push(place.clone());
        }
    }
    last
}

/// What is made once everything is mounted.
fn made(config: &Config) -> Vec<PathBuf> {
    let devices = config.linux.devices.iter().map(|device| &device.path);
    let cwd = config.process.iter().map(|process| &process.cwd);
    devices.chain(cwd).map(|path| clean(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespaces::Namespaces;
    use crate::rootfs::plan::{Around, plan_mount};
    use crate::spec::config::{Device, Hook, Mount as MountConfig, Process};

    /// Places that are read-only last, and whether each mount is read-only from the start.
    fn outcome(mounts: &[(&str, &str, &str)], config: &Config) -> (Vec<PathBuf>, Vec<bool>) {
        let namespaces = Namespaces::default();
        let root = Path::new("/bundle/rootfs");
        let around = Around { namespaces: &namespaces, bundle: Path::new("/bundle"), root, privileged: true };
        let planned = |&(kind, source, destination): &(&str, &str, &str)| {
            let (kind, options) = (kind.into(), vec!["ro".into()]);
            let (source, destination) = (source.into(), destination.into());
            plan_mount(&MountConfig { kind, source, destination, options, ..MountConfig::default() }, around, "")
                .unwrap()
        };
        let mut mounts: Vec<Mount> = mounts.iter().map(planned).collect();
        let last = last(&mut mounts, config);
        (last, mounts.iter().map(|mount| mount.options.attributes.set & MOUNT_ATTR_RDONLY != 0).collect())
    }

    #[test]
    fn what_is_still_written_to_is_read_only_last() {
        let config = Config::default();
        let (last, at_once) = outcome(&["/dev", "/a", "/a/b", "/c"].map(|place| ("tmpfs", "tmpfs", place)), &config);
        assert_eq!((last, at_once), (vec!["/dev".into(), "/a".into()], vec![false, false, true, true]));
        let kernels = [("sysfs", "sysfs", "/sys"), ("tmpfs", "tmpfs", "/sys/fs/cgroup")];
        assert_eq!(outcome(&kernels, &config), (vec![], vec![true, true]));
        let disk = [("ext4", "/dev/sda", "/a"), ("tmpfs", "tmpfs", "/a/b")];
        assert_eq!(outcome(&disk, &config), (vec![], vec![true, true]), "a disk is not written to");
    }

    #[test]
    fn a_place_for_what_comes_after_the_mounts_is_read_only_last() {
        let one = [("tmpfs", "tmpfs", "/a")];
        let (now, later) = ((vec![], vec![true]), (vec!["/a".into()], vec![false]));
        let with_cwd = |cwd: &str| {
            let process = Process { cwd: cwd.into(), ..Process::default() };
            Config { process: Some(process), ..Config::default() }
        };
        assert_eq!(outcome(&one, &with_cwd("/a/b/../c")), later);
        assert_eq!(outcome(&one, &with_cwd("/a")), now);
        assert_eq!(outcome(&one, &with_cwd("/ab/c")), now);
        let mut with_device = Config::default();
        with_device.linux.devices.push(Device { path: "/a/null".into(), ..Device::default() });
        assert_eq!(outcome(&one, &with_device), later);
        let mut with_hooks = Config::default();
        with_hooks.hooks.create_container.push(Hook::default());
        assert_eq!(outcome(&one, &with_hooks), later);
        assert_eq!(outcome(&[one[0], one[0]], &with_hooks), (vec!["/a".into()], vec![true, false]), "the one in sight");
    }
}
