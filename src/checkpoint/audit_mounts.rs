//! Of [`super::audit`]: the mounts of a process. Every one must be where the configuration has one, be of what it says, and
//! as read-only as it says; and what hides or protects something must be there.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, fstat};

use super::external;
use crate::error::{Context, Result};
use crate::path::{Links, Root};
use crate::procfs::mountinfo::{self, Row};
use crate::rootfs::Rootfs;
use crate::rootfs::plan::{Mount, What};
use crate::sys::mount::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY,
};

/// Attributes that take something away, as the table of mounts has them.
const RESTRICTIONS: [(u64, &str); 5] = [
    (MOUNT_ATTR_RDONLY, "ro"),
    (MOUNT_ATTR_NOSUID, "nosuid"),
    (MOUNT_ATTR_NODEV, "nodev"),
    (MOUNT_ATTR_NOEXEC, "noexec"),
    (MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
];

type Verdict = std::result::Result<(), String>;

/// Looks at the mounts of a process, whose root is to be `own`; `Ok(Err(…))`: the configuration does not have them so.
///
/// # Errors
/// It cannot be looked at.
pub fn check(rootfs: &Rootfs, own: &Root, process: &Path) -> Result<Verdict> {
    let shown = mountinfo::read_of(process).or_cannot("read the mounts of", process.display())?;
    let root = Root::open(&process.join("root"))?;
    let place = |path: &Path| external::inside(&root, path);
    let mut known = BTreeSet::from([PathBuf::from("/"), PathBuf::from("/dev/console")]);
    for mount in &rootfs.mounts {
        known.insert(place(&mount.destination)?);
    }
    for path in rootfs.masked.iter().chain(&rootfs.readonly).chain(rootfs.devices.iter().map(|device| &device.path)) {
        known.insert(place(path)?);
    }
    let below = below_binds(rootfs, &root)?;
    for mount in &shown {
        if !known.contains(&mount.point) && !below.contains(&mount.point) {
            return Ok(Err(format!("has a mount that config.json does not have, on {}", mount.point.display())));
        }
    }
    let verdicts = [base(rootfs, own, &root, &shown)?, planned(rootfs, &root, &shown)?, hidden(rootfs, &root, &shown)?];
    Ok(verdicts.into_iter().collect())
}

/// The host's mounts below what is bound come along.
fn below_binds(rootfs: &Rootfs, root: &Root) -> Result<BTreeSet<PathBuf>> {
    let host = mountinfo::read().or_cannot("read", "/proc/self/mountinfo")?;
    let mut below = BTreeSet::new();
    for mount in &rootfs.mounts {
        let What::Bind(source) = &mount.what else { continue };
        let place = external::inside(root, &mount.destination)?;
        let rows = host.iter().filter_map(|row| row.point.strip_prefix(source).ok());
        below.extend(rows.map(|rest| place.join(rest)));
    }
    Ok(below)
}

/// The mount that is seen at a place: the last one there.
fn at<'a>(shown: &'a [Row], place: &Path) -> Option<&'a Row> {
    shown.iter().rfind(|mount| mount.point == place)
}

fn base(rootfs: &Rootfs, own: &Root, root: &Root, shown: &[Row]) -> Result<Verdict> {
    let row = at(shown, Path::new("/"));
    if rootfs.read_only_root && !row.is_some_and(|row| row.has("ro")) {
        return Ok(Err("can write to its root, which root.readonly forbids".to_owned()));
    }
    let same = identity(root.dir(), Path::new("/"))? == identity(own.dir(), Path::new("/"))?;
    Ok(if same { Ok(()) } else { Err("has another root filesystem".to_owned()) })
}

fn planned(rootfs: &Rootfs, root: &Root, shown: &[Row]) -> Result<Verdict> {
    let is_last = |index: usize, mount: &Mount| {
        rootfs.mounts[index + 1..].iter().all(|later| later.destination != mount.destination)
    };
    for (index, mount) in rootfs.mounts.iter().enumerate().filter(|(index, mount)| is_last(*index, mount)) {
        let place = external::inside(root, &mount.destination)?;
        let name = mount.destination.display();
        // One on a place that a later mount covers is not to be seen.
        let covered = rootfs.mounts[index + 1..].iter().any(|later| mount.destination.starts_with(&later.destination));
        let Some(row) = at(shown, &place) else {
            if covered {
                continue;
            }
            return Ok(Err(format!("lacks the mount on {name}")));
        };
        let missing = RESTRICTIONS.iter().find(|(bit, word)| mount.options.attributes.set & bit != 0 && !row.has(word));
        if let Some((_, word)) = missing {
            return Ok(Err(format!("has a mount without its option {word}, on {name}")));
        }
        if rootfs.read_only_last.contains(&mount.destination) && !row.has("ro") {
            return Ok(Err(format!("has a mount without its option ro, on {name}")));
        }
        if mount.idmap.is_some() && !row.has("idmapped") {
            return Ok(Err(format!("has a mount without its id mapping, on {name}")));
        }
        if let (What::Filesystem { kind, .. }, Some(key)) = (&mount.what, wider_data(root, mount, &place, row)?) {
            return Ok(Err(format!("has a {kind} with another option {key} than config.json has, on {name}")));
        }
        let same = match &mount.what {
            What::Filesystem { kind, .. } => row.kind == *kind,
            What::Cgroup => row.kind.starts_with("cgroup"),
            What::Bind(source) => {
                let inside = root.resolve(&place, Links::Refuse).or_cannot("look at", &name)?;
                identity(inside.as_fd(), &place)? == path_identity(source)?
            }
            What::Inside(_) | What::Remount => true,
        };
        if !same {
            return Ok(Err(format!("has something else mounted on {name} than config.json has")));
        }
    }
    Ok(Ok(()))
}

/// The first option of a filesystem's own, of those that take something away, that it does not have as it is planned.
fn wider_data<'a>(root: &Root, mount: &'a Mount, place: &Path, row: &Row) -> Result<Option<&'a str>> {
    if !matches!(row.kind.as_str(), "tmpfs" | "proc") {
        return Ok(None);
    }
    let here = root.resolve(place, Links::Refuse).or_cannot("look at", mount.destination.display())?;
    let size = rustix::fs::fstatvfs(&here).or_cannot("look at", mount.destination.display())?;
    let has = |key: &str, value: &str| row.data.split(',').any(|word| word.split_once('=') == Some((key, value)));
    let wider = |key: &str, value: &str| match (row.kind.as_str(), key) {
        ("tmpfs", "size") => is_more(size.f_blocks.saturating_mul(size.f_frsize), value, size.f_frsize),
        ("tmpfs", "nr_blocks") => is_more(size.f_blocks, value, 1),
        ("tmpfs", "nr_inodes") => is_more(size.f_files, value, 1),
        ("proc", "hidepid") => !names_of(value).any(|name| name == "off" || has(key, name)),
        ("proc", "subset") => !has(key, value),
        _ => false,
    };
    let given = mount.options.data.iter().filter_map(|(key, value)| Some((key.as_str(), value.as_deref()?)));
    // Of one key the last holds.
    let given: std::collections::BTreeMap<&str, &str> = given.collect();
    Ok(given.into_iter().find(|(key, value)| wider(key, value)).map(|(key, _)| key))
}

/// Whether a tmpfs has more than `limit`, of which none has 0. A share of the memory is another on every machine.
fn is_more(has: u64, limit: &str, unit: u64) -> bool {
    let digits = limit.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let Ok(number) = digits.parse::<u64>() else { return false };
    let shift = match &limit[digits.len()..] {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return false,
    };
    let bytes = number.saturating_mul(1 << shift);
    let limit = bytes.checked_next_multiple_of(unit).unwrap_or(bytes);
    limit > 0 && (has == 0 || has > limit)
}

/// How a procfs hides processes: by number, and by the name that it shows since Linux 5.8.
fn names_of(hidepid: &str) -> impl Iterator<Item = &'static str> {
    const NAMES: [[&str; 2]; 4] = [["0", "off"], ["1", "noaccess"], ["2", "invisible"], ["4", "ptraceable"]];
    NAMES.into_iter().filter(move |names| names.contains(&hidepid)).flatten()
}

/// What is masked reads as nothing, and what cannot be written is on a mount that says so.
fn hidden(rootfs: &Rootfs, root: &Root, shown: &[Row]) -> Result<Verdict> {
    for path in &rootfs.masked {
        let Ok(found) = root.resolve(path, Links::Follow) else { continue };
        let stat = fstat(&found).or_cannot("look at", path.display())?;
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3);
        let row = at(shown, &external::inside(root, path)?);
        let is_empty = FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && row.is_some_and(|row| row.kind == "tmpfs" && row.has("ro"));
        if !is_null && !is_empty {
            return Ok(Err(format!("sees {}, which linux.maskedPaths hides", path.display())));
        }
    }
    for path in &rootfs.readonly {
        if root.resolve(path, Links::Follow).is_err() {
            continue;
        }
        let place = external::inside(root, path)?;
        // It may have been masked over, or lie on a mount that cannot be written as a whole.
        let over = shown.iter().filter(|row| place.starts_with(&row.point));
        let nearest = over.max_by_key(|row| row.point.components().count());
        if !nearest.is_some_and(|row| row.has("ro")) {
            return Ok(Err(format!("can write to {}, which linux.readonlyPaths forbids", path.display())));
        }
    }
    Ok(Ok(()))
}

fn identity(file: std::os::fd::BorrowedFd<'_>, named: &Path) -> Result<(u64, u64)> {
    let stat = fstat(file).or_cannot("look at", named.display())?;
    Ok((stat.st_dev, stat.st_ino))
}

fn path_identity(path: &Path) -> Result<(u64, u64)> {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    let file: OwnedFd =
        openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).or_cannot("open", path.display())?;
    identity(file.as_fd(), path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tmpfs_has_more_or_not() {
        for (has, limit, more) in [
            (65_536, "64k", false),
            (65_537, "64k", true),
            (0, "64k", true),
            (0, "0", false),
            (4096, "1", false),
            (8192, "1", true),
            (1 << 40, "50%", false),
            (1 << 40, "2t", false),
            (1 << 21, "1M", true),
        ] {
            assert_eq!(is_more(has, limit, 4096), more, "{has} of {limit}");
        }
    }

    #[test]
    fn hidden_processes_by_number_and_by_name() {
        assert!(names_of("2").eq(["2", "invisible"]) && names_of("invisible").eq(["2", "invisible"]));
        assert!(names_of("0").any(|name| name == "off"));
        assert_eq!(names_of("x").count(), 0);
    }
}
