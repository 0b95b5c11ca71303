//! `image mount` and `image unmount`: an image's files, to be looked at on the host.
//!
//! The mount is noted as a use before it is made and until it is gone, so that the layers stay. What was noted and is not mounted,
//! prune takes away.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{CWD, Mode, OFlags, openat, readlink};

use super::Setting;
use crate::error::{Context, Error, Result};
use crate::host;
use crate::image::store::layers;
use crate::image::store::uses::{Use, User};
use crate::lifecycle::run_image;
use crate::path::fd_path;
use crate::rootfs::Layers;
use crate::rootfs::layers as stack;

/// `image mount`.
///
/// # Errors
/// There is no such image, or the kernel refuses.
pub fn mount(setting: &Setting, wanted: &str, point: &Path) -> Result<()> {
    if !host::probe().privileged {
        return Err(Error::plain("only root can mount an image on the host")
            .hint("`ferry run --image` needs no root; `ferry bundle create` makes a directory of an image's files"));
    }
    let store = super::with_images(setting)?;
    // Held from before the layers are looked up until their use is noted.
    let _guard = store.share()?;
    let image = store.image(wanted)?;
    let userxattr = run_image::unpacked(&store, &image)?;
    if image.chain.is_empty() {
        return Err(Error::said("mount", format!("{wanted:?}"), "the image has no layers"));
    }
    let user = User::Mount(real_path(point)?);
    if find(&store.uses()?, &user).is_some_and(Use::is_live) {
        return Err(Error::said("mount an image on", point.display().to_string(), "there is one already")
            .hint("`ferry image unmount` takes it away"));
    }
    let name = image.name.clone().unwrap_or_else(|| image.descriptor.digest.to_string());
    let used = Use::new(user, name, image.descriptor.digest.clone(), image.chain.clone());
    let own = store.begin_use(&used)?;
    let mut lowers: Vec<PathBuf> =
        image.chain.iter().rev().map(|id| store.path(layers::directory(id)).join("diff")).collect();
    if lowers.len() == 1 {
        // An overlay has two layers at least: under a single one lies an empty directory.
        lowers.push(own.join("upper"));
    }
    let User::Mount(stage) = &used.user else { return Ok(()) };
    let layers = Layers { lowers, upper: None, work: own.join("work"), stage: stage.clone(), userxattr, xino: false };
    match stack::mount(&layers) {
        Ok(_) => Ok(()),
        Err(error) => Err(match store.end_use(&used.user) {
            Ok(()) => error,
            Err(_) => error.hint(format!("{} is left: `ferry image prune` removes it", own.display())),
        }),
    }
}

/// `image unmount`.
///
/// # Errors
/// No image is mounted there, or something still uses it.
pub fn unmount(setting: &Setting, point: &Path) -> Result<()> {
    let store = super::with_images(setting)?;
    let _guard = store.share()?;
    let user = User::Mount(real_path(point)?);
    let uses = store.uses()?;
    let User::Mount(point) = &user else { return Ok(()) };
    let Some(used) = find(&uses, &user) else {
        return Err(Error::plain(format!("no image is mounted on {}", point.display()))
            .hint("--store before the verb says where images are"));
    };
    if used.is_live() {
        umount2(point, MntFlags::UMOUNT_NOFOLLOW).or_cannot("unmount", point.display()).map_err(|error| match error
            .errno()
        {
            Some(Errno::EBUSY) => error.hint("something still works in there"),
            Some(Errno::EINVAL) => error.hint("it is mounted in another mount namespace"),
            _ => error,
        })?;
    }
    store.end_use(&user)
}

fn find<'a>(uses: &'a [(String, Option<Use>)], user: &User) -> Option<&'a Use> {
    uses.iter().filter_map(|(_, used)| used.as_ref()).find(|used| used.user == *user)
}

/// A directory's path as the mount table has it.
fn real_path(path: &Path) -> Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, path, flags, Mode::empty()).or_cannot("open", path.display())?;
    let real = readlink(fd_path(dir.as_fd()).as_c_str(), Vec::new()).or_cannot("find the path of", path.display())?;
    Ok(PathBuf::from(OsString::from_vec(real.into_bytes())))
}
