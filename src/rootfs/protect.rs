//! Masked and read-only paths: what of procfs and sysfs a container does not see or cannot write.
//!
//! Each path is resolved once, inside the root, and the mount goes onto that descriptor: a link that is swapped between
//! two look-ups cannot leave the real file uncovered (GHSA-3q8j-pf29-vwv8). The `/dev/null` that covers a file is the
//! host's, checked by device number; the image's may be a link to anything (CVE-2025-31133).

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{CWD, FileType, fstat, makedev};

use super::mount::{clone_tree, new_filesystem, place, read_only};
use super::options;
use crate::error::{Context, Error, Result};
use crate::path::{Links, Root};

/// Covers the paths: a directory with one empty read-only tmpfs that all share, anything else with `/dev/null`. What does
/// not exist is skipped. config-linux.md#masked-paths
///
/// # Errors
/// The path and the kernel's answer.
pub fn mask(root: &Root, paths: &[PathBuf]) -> Result<()> {
    let mut null: Option<OwnedFd> = None;
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(target) = existing(root, path)? else { continue };
        let named = || root.name(path);
        let is_dir = FileType::from_raw_mode(fstat(&target).or_cannot("mask", named())?.st_mode) == FileType::Directory;
        let cover = match (is_dir, &empty) {
            (true, None) => empty.insert(empty_directory()?),
            // A mount that has its place can be cloned; each clone costs no superblock of its own.
            (true, Some(placed)) => &clone_tree(placed.as_fd(), Path::new(""), false).or_cannot("mask", named())?,
            (false, _) => {
                let null = match &null {
                    Some(null) => null,
                    None => null.insert(host_null()?),
                };
                &clone_tree(null.as_fd(), Path::new(""), false).or_cannot("mask", named())?
            }
        };
        place(cover.as_fd(), target.as_fd()).or_cannot("mask", named())?;
    }
    Ok(())
}

/// Makes the paths read-only, with everything mounted below them. What does not exist is skipped.
/// config-linux.md#readonly-paths
///
/// # Errors
/// The path and the kernel's answer.
pub fn write_protect(root: &Root, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        let Some(target) = existing(root, path)? else { continue };
        let named = || root.name(path);
        let copy = clone_tree(target.as_fd(), Path::new(""), true).or_cannot("write-protect", named())?;
        read_only(copy.as_fd(), true).or_cannot("write-protect", named())?;
        place(copy.as_fd(), target.as_fd()).or_cannot("write-protect", named())?;
    }
    Ok(())
}

/// Makes mounts read-only that something had to be made in before: themselves only.
///
/// # Errors
/// The path and the kernel's answer.
pub fn finish_read_only(root: &Root, places: &[PathBuf]) -> Result<()> {
    for place in places {
        let named = || root.name(place);
        let mount = root.resolve(place, Links::Follow).or_cannot("find", named())?;
        read_only(mount.as_fd(), false).or_cannot("make read-only", named())?;
    }
    Ok(())
}

fn existing(root: &Root, path: &Path) -> Result<Option<OwnedFd>> {
    match root.resolve(path, Links::Follow) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(answer) => Err(Error::kernel("protect", root.name(path), answer)),
    }
}

/// The host's `/dev/null`, which must be what its name says.
fn host_null() -> Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::openat(CWD, "/dev/null", flags, rustix::fs::Mode::empty()).or_cannot("open", "/dev/null")?;
    let found = fstat(&null).or_cannot("open", "/dev/null")?;
    if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice || found.st_rdev != makedev(1, 3) {
        return Err(Error::said("mask paths with", "/dev/null", "the host's is not the null device (char 1:3)"));
    }
    Ok(null)
}

fn empty_directory() -> Result<OwnedFd> {
    let options = options::parse(&["ro".into(), "nr_blocks=1".into(), "nr_inodes=1".into()]);
    new_filesystem("tmpfs", "tmpfs", &options)
        .map_err(|refusal| Error::kernel("mask a directory with", "tmpfs", refusal.answer))
}
