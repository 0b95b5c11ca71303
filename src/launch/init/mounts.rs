//! The step that makes the container's mounts, in the order of the configuration.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::{Init, unexpected};
use crate::error::Result;
use crate::launch::protocol::Message;
use crate::namespaces::{Kind, User};
use crate::rootfs::mount::{self, CgroupView};
use crate::rootfs::plan::{Mount, What};
use crate::sys::clone::exit_now;

impl Init<'_> {
    /// Makes every mount, in order.
    pub(super) fn mounts(&mut self) -> Result<()> {
        let namespaces = &self.plan.namespaces;
        let namespaced = namespaces.has(Kind::Cgroup);
        let host_path = match namespaced || namespaces.user != User::Inherit {
            true => self.cgroup.clone().or_else(cgroup_tree),
            // The host's cgroup namespace was asked for: what /proc/self/cgroup names is found there.
            false => cgroup_tree(),
        };
        let view = CgroupView { namespaced, host_path };
        for (index, mount) in self.plan.rootfs.mounts.iter().enumerate() {
            let source = match (&mount.what, &mount.idmap) {
                (What::Inside(source), Some(_)) => Some(self.mapped_copy(index, mount, source)?),
                _ => self.handed.sources.remove(&index),
            };
            mount::make(self.root()?, mount, source, &view)?;
        }
        Ok(())
    }

    /// A copy of a source that is inside, its ids mapped by the host side: here there may be no right to.
    fn mapped_copy(&mut self, index: usize, mount: &Mount, source: &Path) -> Result<OwnedFd> {
        let copy = mount::clone_inside(self.root()?, source, &mount.options, &mount.destination)?;
        self.channel.send(&Message::Map(u32::try_from(index).unwrap_or(u32::MAX)), Some(copy.as_fd()))?;
        loop {
            match self.channel.receive()? {
                Some((Message::Mapped, _)) => return Ok(copy),
                Some((Message::Go, _)) => self.let_go = true,
                Some(_) => return Err(unexpected()),
                None => exit_now(1),
            }
        }
    }
}

/// The tree as a whole, for a container that has no cgroup of its own and therefore sees the host's, which it cannot write.
fn cgroup_tree() -> Option<PathBuf> {
    crate::cgroup::location::find_tree().ok().flatten().map(|tree| tree.mount)
}
