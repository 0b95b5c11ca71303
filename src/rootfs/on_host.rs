//! The root filesystem of a container that shares the host's mount namespace.
//!
//! What it has mounted is the host's then, and there is no namespace whose end takes it away. So all of it is on one mount: the
//! root directory bound onto itself, private, so that nothing spreads from there to where else the host's mounts are seen. Taking
//! that one away takes everything. It is told from others at the same place, which the host may have had before, by their ids.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

use super::mount::{detached, place, propagate};
use super::pivot::open_directory;
use crate::error::{Context, Result};
use crate::path::{Root, fd_path};
use crate::procfs::mountinfo;

/// Binds the root directory onto itself.
///
/// # Errors
/// The directory missing, or the kernel's answer; ENOSYS before Linux 5.2.
pub fn attach(directory: &Path) -> Result<Root> {
    let cannot = || directory.display();
    let target = open_directory(directory)?;
    let tree = detached(target.as_fd(), Path::new(""), true).or_cannot("bind root filesystem", cannot())?;
    let alone =
        |tree| propagate(tree, (MsFlags::MS_PRIVATE | MsFlags::MS_REC).bits()).or_cannot("make private", cannot());
    alone(tree.as_fd())?;
    place(tree.as_fd(), target.as_fd()).or_cannot("bind root filesystem", cannot())?;
    // Again: what is mounted on a shared mount becomes shared.
    alone(tree.as_fd())?;
    Ok(Root::from_dir(tree, directory))
}

/// The ids of what is mounted at the root directory itself.
///
/// # Errors
/// The directory or the mount table cannot be read.
pub fn mounts_at(directory: &Path) -> Result<Vec<u64>> {
    let point = real_path(directory)?;
    let table = mountinfo::read().or_cannot("read", "the mount table")?;
    Ok(table.into_iter().filter(|row| row.point == point).map(|row| row.id).collect())
}

/// Takes away what is mounted at the root directory, with everything on it, down to a mount with one of these ids.
///
/// One at a time, from the top: where mounts spread to each other, one that was made here has a copy beneath those that were there
/// before, which goes with it.
///
/// # Errors
/// The kernel's answer.
pub fn detach(directory: &Path, before: &[u64]) -> Result<()> {
    loop {
        let mounted = match mounts_at(directory) {
            // It was removed, and what is mounted on a directory goes with it.
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(()),
            mounted => mounted?,
        };
        let top = mountinfo::id_of(open_directory(directory)?.as_fd()).or_cannot("look at", directory.display())?;
        if before.contains(&top) || !mounted.contains(&top) {
            return Ok(());
        }
        umount2(directory, MntFlags::MNT_DETACH)
            .or_cannot("unmount", directory.display())
            .map_err(|error| error.hint("it is the root of a container in the host's mount namespace"))?;
    }
}

/// As the mount table names it.
fn real_path(directory: &Path) -> Result<PathBuf> {
    let directory = open_directory(directory)?;
    let name = fd_path(directory.as_fd());
    std::fs::read_link(OsStr::from_bytes(name.as_bytes())).or_cannot("name", "the root filesystem")
}
