//! Device nodes: the default ones every container has, those of `linux.devices`, and the links in `/dev`.
//!
//! A node is made by mknod where the kernel lets us; in a user namespace it does not, and the host's own node is bound
//! over an empty file. config-linux.md#devices, #default-devices

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mknodat, openat, statat, symlinkat,
};
use serde::Serialize;

use super::mount::{clone_tree, place};
use crate::error::{Context, Error, Result};
use crate::path::{Links, Root, errno};
use crate::spec::config::Device;

/// One device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Where, inside; absolute.
    pub path: PathBuf,
    /// Character, block or fifo.
    pub kind: NodeKind,
    /// Device numbers.
    pub major: u32,
    /// Device numbers.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
    /// Owner and group inside.
    pub owner: (u32, u32),
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// `c` and `u`.
    Character,
    /// `b`.
    Block,
    /// `p`.
    Fifo,
}

/// Default devices: name, major, minor. All are world-writable characters. config-linux.md#default-devices
const DEFAULT: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links in `/dev`: name, target. runtime-linux.md#dev-symbolic-links
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Plans the nodes: the default ones, each replaced where the configuration names the same path, then the others.
///
/// # Errors
/// An unknown type, device numbers out of range, the same path twice.
pub fn plan(configured: &[Device]) -> Result<Vec<Node>> {
    let configured: Vec<Node> =
        configured.iter().enumerate().map(|(index, device)| node(device, index)).collect::<Result<_>>()?;
    for (index, later) in configured.iter().enumerate() {
        if configured[..index].iter().any(|earlier| earlier.path == later.path && earlier != later) {
            let why = format!("{} is listed twice, with different contents", later.path.display());
            return Err(Error::config(format!("linux.devices[{index}].path"), why));
        }
    }
    let default = DEFAULT.iter().map(|(name, major, minor)| Node {
        path: Path::new("/dev").join(name),
        kind: NodeKind::Character,
        major: *major,
        minor: *minor,
        mode: 0o666,
        owner: (0, 0),
    });
    let replaced = |node: &Node| configured.iter().any(|other| other.path == node.path);
    let mut nodes: Vec<Node> = default.filter(|node| !replaced(node)).collect();
    nodes.extend(configured);
    Ok(nodes)
}

fn node(device: &Device, index: usize) -> Result<Node> {
    let fault = |field: &str, why: String| Error::config(format!("linux.devices[{index}].{field}"), why);
    let kind = match device.kind.as_str() {
        "c" | "u" => NodeKind::Character,
        "b" => NodeKind::Block,
        "p" => NodeKind::Fifo,
        other => return Err(fault("type", format!("unknown device type {other:?}; one of c, b, u, p"))),
    };
    let number =
        |field: &str, value: i64| u32::try_from(value).map_err(|_| fault(field, format!("is out of range: {value}")));
    let (major, minor) = match kind {
        NodeKind::Fifo => (0, 0),
        _ => (number("major", device.major)?, number("minor", device.minor)?),
    };
    Ok(Node {
        path: crate::path::clean(&device.path),
        kind,
        major,
        minor,
        mode: device.file_mode.unwrap_or(0o666) & 0o7777,
        owner: (device.uid.unwrap_or(0), device.gid.unwrap_or(0)),
    })
}

/// Makes the nodes and links inside `root`. The umask must be 0.
///
/// # Errors
/// The node and the kernel's answer.
pub fn make(root: &Root, nodes: &[Node]) -> Result<()> {
    let dev = root.make_dirs(Path::new("/dev"), 0o755, Links::Follow)?;
    for node in nodes {
        match (node.path.parent(), node.path.file_name()) {
            (Some(parent), Some(name)) if parent == Path::new("/dev") => {
                make_node(root, dev.as_fd(), Path::new(name), node)?
            }
            (Some(parent), Some(name)) => {
                let dir = root.make_dirs(parent, 0o755, Links::Follow)?;
                make_node(root, dir.as_fd(), Path::new(name), node)?;
            }
            _ => return Err(Error::said("make device", node.path.display().to_string(), "it has no name")),
        }
    }
    for (name, target) in LINKS {
        link(dev.as_fd(), name, target).or_cannot("make link", format_args!("/dev/{name}"))?;
    }
    if root.resolve(Path::new("/proc/kcore"), Links::Refuse).is_ok() {
        link(dev.as_fd(), "core", "/proc/kcore").or_cannot("make link", "/dev/core")?;
    }
    Ok(())
}

/// A link that is there already stays, whatever it leads to: it is the image's.
fn link(dev: BorrowedFd<'_>, name: &str, target: &str) -> std::result::Result<(), Errno> {
    match symlinkat(target, dev, name) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(answer) => Err(errno(answer)),
    }
}

fn make_node(root: &Root, dir: BorrowedFd<'_>, name: &Path, node: &Node) -> Result<()> {
    let kind = match node.kind {
        NodeKind::Character => FileType::CharacterDevice,
        NodeKind::Block => FileType::BlockDevice,
        NodeKind::Fifo => FileType::Fifo,
    };
    let number = makedev(node.major, node.minor);
    let cannot = |answer| Error::kernel("make device", root.name(&node.path), errno(answer));
    match mknodat(dir, name, kind, Mode::from_raw_mode(node.mode), number) {
        Ok(()) if node.owner == (0, 0) => Ok(()),
        Ok(()) => {
            let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
            chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(cannot)
        }
        Err(rustix::io::Errno::EXIST) => {
            let there = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(cannot)?;
            let same = FileType::from_raw_mode(there.st_mode) == kind
                && (there.st_rdev == number || node.kind == NodeKind::Fifo);
            match same {
                true => Ok(()),
                // What the image has in the place of a default device is covered; a device that was asked for is not to be
                // where something else is. config-linux.md#devices
                false if is_default(node) => bind_node(root, dir, name, node),
                false => Err(Error::said("make device", root.name(&node.path), "another file is there already")),
            }
        }
        Err(rustix::io::Errno::PERM) => bind_node(root, dir, name, node),
        Err(answer) => Err(cannot(answer)),
    }
}

fn is_default(node: &Node) -> bool {
    DEFAULT.iter().any(|(name, ..)| node.path == Path::new("/dev").join(name))
}

/// Binds the host's node, checked by type and number, over a file of that name that is opened without following a link.
fn bind_node(root: &Root, dir: BorrowedFd<'_>, name: &Path, node: &Node) -> Result<()> {
    let named = root.name(&node.path);
    let tree = clone_tree(rustix::fs::CWD, &node.path, false).or_cannot("bind device", &named).map_err(|error| {
        error.hint("a container in a user namespace can only have devices that the host has at the same path")
    })?;
    let found = fstat(&tree).or_cannot("bind device", &named)?;
    if found.st_rdev != makedev(node.major, node.minor) && node.kind != NodeKind::Fifo {
        let why = format!("the host's {} is another device", node.path.display());
        return Err(Error::said("bind device", named, why));
    }
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY | OFlags::NONBLOCK;
    let target = match openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => openat(dir, name, flags | OFlags::EXCL, Mode::from_raw_mode(0o666)),
        answer => answer,
    };
    let target = target.or_cannot("make file for device", &named)?;
    if FileType::from_raw_mode(fstat(&target).or_cannot("bind device", &named)?.st_mode) == FileType::Symlink {
        return Err(Error::said("bind device", named, "the image has a symbolic link there"));
    }
    place(tree.as_fd(), target.as_fd()).or_cannot("bind device", named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, kind: &str, major: i64, minor: i64) -> Device {
        Device { path: path.into(), kind: kind.into(), major, minor, ..Device::default() }
    }

    #[test]
    fn configured_devices_replace_default_ones() {
        let nodes = plan(&[device("/dev/null", "c", 1, 5), device("/dev/fuse", "c", 10, 229)]).unwrap();
        assert_eq!(nodes.len(), 7);
        assert_eq!(
            nodes.iter().filter(|node| node.path == Path::new("/dev/null")).map(|node| node.minor).collect::<Vec<_>>(),
            [5]
        );
    }

    #[test]
    fn faults() {
        let error = |devices: &[Device]| plan(devices).unwrap_err().to_string();
        assert!(error(&[device("/dev/x", "q", 1, 1)]).starts_with("linux.devices[0].type: unknown device type"));
        assert!(error(&[device("/dev/x", "c", -1, 1)]).starts_with("linux.devices[0].major: is out of range"));
        assert!(error(&[device("/dev/x", "c", 1, 1), device("/dev/x", "c", 1, 2)]).contains("twice"));
    }
}
