//! What a run would fail with, as far as that shows from outside: it is looked for in the order of a run, and nothing is made,
//! executed or connected to. What a mount, a hook or the program answers, only the run itself can tell.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, statat};

use super::{Setting, create};
use crate::cgroup::{self, Place, resctrl};
use crate::error::{Context, Result};
use crate::launch::plan::Plan;
use crate::launch::{enter, hooks};
use crate::namespaces::{Join, Kind, User};
use crate::network::devices;
use crate::path::Root;
use crate::process::limits;
use crate::procfs;
use crate::rootfs::pivot;
use crate::rootfs::plan::{Base, Mount, What};
use crate::sys::clone::namespace_flag;

/// Fails as the run would, and brings the plan to what would come of it: an ordinary user may have to do without a cgroup.
pub(super) fn run_begins(setting: &Setting, plan: &mut Plan) -> Result<()> {
    let made = create::make_cgroup(plan, setting.rootless, cgroup::fs::foresee)?;
    if let (Place::Directory(_), None) = (&plan.cgroup.place, made) {
        plan.cgroup.place = Place::Nowhere;
    }
    if let Some(process) = &plan.process {
        // These are ferry's own, which it is about to lose: trying is as good as looking.
        limits::raise_own(&process.limits)?;
    }
    namespaces(plan)?;
    // In a mount namespace that is joined, paths mean what they mean there.
    if !plan.namespaces.join.iter().any(|join| join.kind == Kind::Mount) {
        root_and_sources(plan)?;
    }
    devices::look_for(&plan.net_devices)?;
    plan.resctrl.as_ref().map(resctrl::locate).transpose()?;
    hooks::look_for(&plan.hooks, &plan.bundle)?;
    let known = procfs::text("/proc/filesystems").unwrap_or_default();
    plan.warnings.extend(unknown_filesystems(&plan.rootfs.mounts, &known));
    Ok(())
}

fn namespaces(plan: &Plan) -> Result<()> {
    let user = match &plan.namespaces.user {
        User::Join(path) => Some(Join { kind: Kind::User, path: path.clone() }),
        User::Inherit | User::Make { .. } => None,
    };
    plan.namespaces.join.iter().chain(&user).try_for_each(|join| {
        let namespace = enter::open(join)?;
        match namespace_flag(namespace.as_fd()) {
            Ok(flag) if flag == join.kind.row().flag => Ok(()),
            _ => Err(enter::not_joined(join, Errno::EINVAL)),
        }
    })
}

fn root_and_sources(plan: &Plan) -> Result<()> {
    let Base::Directory(directory) = &plan.rootfs.base else { return Ok(()) };
    let root = Root::from_dir(pivot::open_directory(directory)?, directory);
    // Where the root is the host's own, a source may be what an earlier mount brings.
    let mounts: &[Mount] = if directory == Path::new("/") { &[] } else { &plan.rootfs.mounts };
    mounts.iter().try_for_each(|mount| {
        let What::Bind(source) = &mount.what else { return Ok(()) };
        let flags = if mount.options.copy_link { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        let named = || format!("{} on {}", source.display(), root.name(&mount.destination));
        statat(CWD, source, flags).map(drop).or_cannot("bind", named()).map_err(|error| match error.errno() {
            Some(Errno::ENOENT) => error.hint("the source does not exist"),
            _ => error,
        })
    })
}

/// A warning each: the kernel may load a module for it once it is mounted.
fn unknown_filesystems(mounts: &[Mount], known: &str) -> Vec<String> {
    let is_known = |kind: &str| known.lines().any(|line| line.split_whitespace().next_back() == Some(kind));
    let unknown = |(index, mount): (usize, &Mount)| match &mount.what {
        // Behind a dot stands whose filesystem it is, as in fuse.sshfs.
        What::Filesystem { kind, .. } if !known.is_empty() && !is_known(kind.split('.').next().unwrap_or(kind)) => {
            Some(format!("mounts[{index}].type: the kernel has no filesystem {kind:?}, unless a module brings it"))
        }
        _ => None,
    };
    mounts.iter().enumerate().filter_map(unknown).collect()
}
