//! Filesystems: overlays, with and without a user namespace around them, and mounts with id mappings.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::Finding;
use super::attempt::{attempt, become_root, errno, scratch, write};
use crate::host::Host;
use crate::namespaces::Kind;
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};
use crate::sys::mount::{MOUNT_ATTR_IDMAP, MountAttr, mount_setattr};

/// What was found.
pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    if host.privileged {
        let tried = attempt(&[Kind::Mount], &overlay);
        findings.push(overlay_finding(
            "overlayfs",
            tried,
            "modprobe overlay, or a kernel built with CONFIG_OVERLAY_FS",
        ));
    }
    let tried = attempt(&[Kind::User, Kind::Mount], &|| become_root(host).and_then(|()| overlay()));
    let fix = "Linux 5.11 or later, with user namespaces for this user";
    findings.push(overlay_finding("overlayfs in a user namespace", tried, fix));
    findings.push(idmapped(host));
    findings
}

fn overlay_finding(subject: &'static str, tried: Result<(), Errno>, fix: &str) -> Finding {
    match tried {
        Ok(()) => Finding::ok(subject, "available"),
        Err(answer) => {
            Finding::warning(subject, format!("refused: {}; `run --rootfs` cannot be used so", answer.desc()), fix)
        }
    }
}

fn overlay() -> Result<(), Errno> {
    let place = scratch()?;
    for dir in ["lower", "upper", "work", "merged"] {
        fs::create_dir(format!("{place}/{dir}")).map_err(errno)?;
    }
    let options = format!("lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work");
    let merged = format!("{place}/merged");
    mount(Some("overlay"), merged.as_str(), Some("overlay"), MsFlags::empty(), Some(options.as_str()))
}

fn idmapped(host: &Host) -> Finding {
    let subject = "idmapped mounts";
    if !host.privileged {
        return Finding::warning(subject, "not tried: they are root's to make", "run ferry doctor as root to see");
    }
    match attempt(&[Kind::Mount], &map_root) {
        Ok(()) => Finding::ok(subject, "available on the filesystem of /"),
        Err(answer) => {
            let found = format!("refused on the filesystem of /: {}", answer.desc());
            Finding::warning(subject, found, "Linux 5.12 or later, and a filesystem that supports them")
        }
    }
}

/// Maps the ids of a copy of `/` through a user namespace, which a child of its own holds open meanwhile.
fn map_root() -> Result<(), Errno> {
    let (held, hold) = nix::unistd::pipe()?;
    match clone_either_way(Kind::User.row().flag as u64, Parent::Caller)? {
        Cloned::Child => {
            drop(hold);
            // Ends as soon as nobody has the other end any more.
            exit_now(nix::unistd::read(&held, &mut [0]).map_or(1, |_| 0))
        }
        Cloned::Parent { pid, .. } => {
            let mapped = map_through(pid);
            drop(hold);
            waitpid(pid, None)?;
            mapped
        }
    }
}

fn map_through(pid: Pid) -> Result<(), Errno> {
    for map in ["uid_map", "gid_map"] {
        write(&format!("/proc/{pid}/{map}"), "0 100000 65536")?;
    }
    let namespace = File::open(format!("/proc/{pid}/ns/user")).map_err(errno)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = open_tree(CWD, "/", flags).map_err(errno)?;
    let attr = MountAttr { set: MOUNT_ATTR_IDMAP, userns: namespace.as_raw_fd() as u64, ..MountAttr::default() };
    mount_setattr(copy.as_fd(), c"", false, &attr)
}
