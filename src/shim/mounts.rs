//! A container's root: containerd tells which mounts it is made of, and a shim makes them on `rootfs` in the bundle.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::messages::Mount;
use crate::error::{Context, Result};
use crate::rootfs::mount::{attributes, clone_source, new_filesystem, place};
use crate::rootfs::options::{self, Options};
use crate::sys::loop_device;
use crate::sys::mount::MOUNT_ATTR_RDONLY;

/// Where the root is.
pub fn root(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

/// Makes the mounts, one upon the other. None is left when one fails.
///
/// # Errors
/// The kernel's answer.
pub fn make(mounts: &[Mount], bundle: &Path) -> Result<()> {
    let root = root(bundle);
    for mount in mounts {
        let target = root.join(mount.target.trim_start_matches('/'));
        one(mount, &target).map_err(|error| error.and_then(undo(bundle)))?;
    }
    Ok(())
}

fn one(mount: &Mount, target: &Path) -> Result<()> {
    let mut options = options::parse(&mount.options);
    let named = || format!("{} on {}", mount.source, target.display());
    let tree = if mount.kind == "bind" || options.bind.is_some() {
        let tree = clone_source(Path::new(&mount.source), &options, target.display())?;
        attributes(tree.as_fd(), &options).or_cannot("set attributes of", named())?;
        tree
    } else {
        // It is held until the mount does.
        let device = looped(&mount.source, &mut options)?;
        let source = device.as_ref().map_or_else(|| mount.source.clone(), |(_, path)| path.display().to_string());
        match new_filesystem(&mount.kind, &source, &apart(&options)) {
            // Before Linux 6.5 layers are told in one string.
            Err(refusal) if refusal.answer == Errno::EINVAL && mount.kind == "overlay" => {
                return in_one_string(mount, &options, target).or_cannot("mount", named());
            }
            Err(refusal) => return Err(refusal.answer).or_cannot("mount", format!("{} ({})", named(), refusal.words)),
            Ok(tree) => tree,
        }
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place_there = openat(CWD, target, flags, Mode::empty()).or_cannot("open", target.display())?;
    place(tree.as_fd(), place_there.as_fd()).or_cannot("mount", named())
}

/// The device that the option `loop` asks for, of a file: the option is mount(8)'s, and no filesystem knows it.
fn looped(source: &str, options: &mut Options) -> Result<Option<(File, PathBuf)>> {
    let Some(at) = options.data.iter().position(|(key, value)| key == "loop" && value.is_none()) else {
        return Ok(None);
    };
    options.data.remove(at);
    let read_only = options.attributes.set & MOUNT_ATTR_RDONLY != 0;
    let file = File::options().read(true).write(!read_only).open(source).or_cannot("open", source)?;
    loop_device::attach(file.as_fd(), read_only).or_cannot("make a loop device of", source).map(Some)
}

/// The same with each layer of an overlay for itself: fsconfig(2) takes no more than 256 bytes at once.
fn apart(options: &Options) -> Options {
    let mut data = Vec::new();
    for (key, value) in &options.data {
        match value {
            Some(layers) if key == "lowerdir" => {
                data.extend(layers.split(':').map(|layer| ("lowerdir+".to_owned(), Some(layer.to_owned()))));
            }
            _ => data.push((key.clone(), value.clone())),
        }
    }
    Options { data, ..options.clone() }
}

/// By mount(2), which takes a page of options.
fn in_one_string(overlay: &Mount, options: &Options, target: &Path) -> std::result::Result<(), Errno> {
    let words: Vec<String> = options
        .data
        .iter()
        .map(|(key, value)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        })
        .collect();
    let read_only = overlay.options.iter().any(|option| option == "ro");
    let flags = if read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    mount(Some(overlay.source.as_str()), target, Some("overlay"), flags, Some(words.join(",").as_str()))
}

/// Takes away whatever is mounted on the root.
///
/// # Errors
/// The kernel's answer.
pub fn undo(bundle: &Path) -> Result<()> {
    let root = root(bundle);
    loop {
        match umount2(&root, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Nothing is mounted there, or nothing is there.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            answer => answer.or_cannot("unmount", root.display())?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_one_by_one() {
        let words = ["workdir=/w", "lowerdir=/a:/b", "ro", "index=off"].map(str::to_owned);
        let told = apart(&options::parse(&words));
        let data: Vec<_> = told.data.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        let layers =
            [("workdir", Some("/w")), ("lowerdir+", Some("/a")), ("lowerdir+", Some("/b")), ("index", Some("off"))];
        assert_eq!(data, layers);
    }
}
