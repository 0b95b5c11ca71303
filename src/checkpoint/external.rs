//! What a container has from outside, by the names CRIU is to know it by: mounts of the host's files, and namespaces that
//! are not its own.
//!
//! A name stands in the images; the same configuration gives the same names when it is dumped and when it is restored.
//! They are runc's: a mount's is its place inside, that of a masked file `/dev/null`, a namespace's `extRootNetNS`.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use rustix::fs::{FileType, Mode, OFlags, fstat, openat, stat};

use super::rpc::Pair;
use super::stage;
use crate::error::{Context, Error, Result};
use crate::namespaces::{Join, Kind, Namespaces};
use crate::path::{Links, Root, fd_path};
use crate::procfs::mountinfo::Row;
use crate::rootfs::Rootfs;
use crate::rootfs::plan::What;

/// The name of everything that masks a file.
const MASK: &str = "/dev/null";

/// Mounts from outside, for a dump: place and name. `root` is the container's, `table` what is mounted in it.
///
/// # Errors
/// The root cannot be read; a name that is no text.
pub fn dumped_mounts(rootfs: &Rootfs, namespaces: &Namespaces, root: &Root, table: &[Row]) -> Result<Vec<Pair>> {
    can_be_mapped(rootfs)?;
    let mut mounts = Vec::new();
    for place in outside_places(rootfs, namespaces) {
        let place = inside(root, place)?;
        mounts.push((text(&place)?, text(&place)?));
        // What was mounted below the source came along with it.
        for row in table.iter().filter(|row| row.point != place && row.point.starts_with(&place)) {
            let planned = rootfs.mounts.iter().any(|mount| mount.destination == row.point);
            if !planned {
                mounts.push((text(&row.point)?, text(&row.point)?));
            }
        }
    }
    for path in &rootfs.masked {
        if masks_file(root, path) {
            mounts.push((text(&inside(root, path)?)?, MASK.to_owned()));
        }
    }
    Ok(mounts)
}

fn masks_file(root: &Root, path: &Path) -> bool {
    let found = root.resolve(path, Links::Follow).ok().and_then(|file| fstat(&file).ok());
    found.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory)
}

/// CRIU binds what is bound from inside once the processes are there, from where no mapping can be had.
fn can_be_mapped(rootfs: &Rootfs) -> Result<()> {
    let mut mapped = rootfs.mounts.iter().filter(|mount| mount.idmap.is_some());
    match mapped.find(|mount| matches!(mount.what, What::Inside(_))) {
        Some(mount) => {
            Err(Error::said("keep the id mapping of", mount.destination.display().to_string(), "CRIU cannot")
                .hint("its source is inside the root filesystem: bind one from outside, or leave the mapping out"))
        }
        None => Ok(()),
    }
}

/// Mounts from outside, for a restore: name and source. `place` is where the root is staged, `cgroup` the cgroup on the host that
/// it sees where it has no cgroup namespace; `host` what is mounted on the host.
///
/// # Errors
/// A name that is no text.
pub fn restored_mounts(
    rootfs: &Rootfs,
    namespaces: &Namespaces,
    (root, place): (&Root, &Path),
    cgroup: Option<&Path>,
    host: &[Row],
) -> Result<Vec<Pair>> {
    let mut mounts = Vec::new();
    can_be_mapped(rootfs)?;
    for (index, mount) in rootfs.mounts.iter().enumerate() {
        let name = inside(root, &mount.destination)?;
        match &mount.what {
            What::Bind(source) => {
                let from = mount.idmap.as_ref().map_or(source.clone(), |_| stage::mapped_source(place, index));
                mounts.push((text(&name)?, text(&from)?));
                for row in host.iter().filter(|row| row.point != *source) {
                    if let Ok(below) = row.point.strip_prefix(source) {
                        mounts.push((text(&name.join(below))?, text(&from.join(below))?));
                    }
                }
            }
            What::Cgroup if !namespaces.has(Kind::Cgroup) => {
                if let Some(cgroup) = cgroup {
                    mounts.push((text(&name)?, text(cgroup)?));
                }
            }
            What::Cgroup | What::Filesystem { .. } | What::Inside(_) | What::Remount => (),
        }
    }
    if !rootfs.masked.is_empty() {
        mounts.push((MASK.to_owned(), MASK.to_owned()));
    }
    for device in &rootfs.devices {
        mounts.push((text(&inside(root, &device.path)?)?, text(&device.path)?));
    }
    Ok(mounts)
}

/// Where the host's files, and devices of the host, may be mounted.
fn outside_places<'a>(rootfs: &'a Rootfs, namespaces: &Namespaces) -> impl Iterator<Item = &'a Path> {
    let shared_cgroups = !namespaces.has(Kind::Cgroup);
    let binds = rootfs.mounts.iter().filter(move |mount| match mount.what {
        What::Bind(_) => true,
        What::Cgroup => shared_cgroups,
        What::Filesystem { .. } | What::Inside(_) | What::Remount => false,
    });
    let devices = rootfs.devices.iter().map(|device| device.path.as_path());
    binds.map(|mount| mount.destination.as_path()).chain(devices)
}

/// A place inside the root as the mount table has it: links followed. One that is not there has the name it is given.
pub fn inside(root: &Root, place: &Path) -> Result<PathBuf> {
    let Ok(found) = root.resolve(place, Links::Follow) else { return Ok(place.to_owned()) };
    let (found, root) = (name_of(&found)?, name_of(root.dir())?);
    Ok(match found.strip_prefix(&root) {
        Ok(below) => Path::new("/").join(below),
        Err(_) => place.to_owned(),
    })
}

fn name_of(fd: impl AsFd) -> Result<PathBuf> {
    let link = fd_path(fd.as_fd());
    std::fs::read_link(OsStr::from_bytes(link.as_bytes())).or_cannot("name", "a file of the container")
}

/// CRIU's protocol has texts where paths are bytes.
pub fn text(path: &Path) -> Result<String> {
    String::from_utf8(path.as_os_str().to_owned().into_vec())
        .map_err(|_| Error::said("name to CRIU", path.display().to_string(), "it is not UTF-8"))
}

/// The name of a namespace that CRIU leaves to ferry, where it can: network and pid.
fn key(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Network => Some("extRootNetNS"),
        Kind::Pid => Some("extRootPidNS"),
        _ => None,
    }
}

/// Namespaces that are not the container's own, for a dump, in the words of `--external`.
///
/// # Errors
/// The process is gone.
pub fn dumped_namespaces(namespaces: &Namespaces, pid: Pid) -> Result<Vec<String>> {
    let joined = namespaces.join.iter().filter_map(|join| Some((join.kind, key(join.kind)?)));
    joined
        .map(|(kind, key)| {
            let file = kind.row().file;
            let path = format!("/proc/{pid}/ns/{file}");
            let inode = stat(&path).or_cannot("look at namespace", &path)?.st_ino;
            Ok(format!("{file}[{inode}]:{key}"))
        })
        .collect()
}

/// Namespaces to be joined in a restore.
#[derive(Debug, Default)]
pub struct Joined {
    /// By descriptor: name, and the namespace.
    pub inherited: Vec<(&'static str, OwnedFd)>,
    /// By path: kind, and path.
    pub by_path: Vec<Pair>,
}

/// Opens the namespaces that a container is restored into.
///
/// # Errors
/// One that is not there, or a kind that CRIU cannot join.
pub fn restored_namespaces(namespaces: &Namespaces) -> Result<Joined> {
    let mut joined = Joined::default();
    for Join { kind, path } in &namespaces.join {
        match (kind, key(*kind)) {
            (_, Some(key)) => {
                let namespace = openat(rustix::fs::CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
                let namespace = namespace.or_cannot("open namespace", path.display())?;
                joined.inherited.push((key, namespace));
            }
            (Kind::Cgroup, _) => {
                return Err(Error::said("restore into cgroup namespace", path.display().to_string(), "CRIU cannot")
                    .hint("leave the path out of linux.namespaces: the container then gets one of its own"));
            }
            (kind, None) => joined.by_path.push((kind.row().file.to_owned(), text(path)?)),
        }
    }
    if let crate::namespaces::User::Join(path) = &namespaces.user {
        joined.by_path.push((Kind::User.row().file.to_owned(), text(path)?));
    }
    Ok(joined)
}
