//! What limits a container's processes, brought into force around a first process that waits: its scope, its resctrl group,
//! its cgroup's limits and owner, and its devices. For a launch as for a restore.

use std::os::fd::AsFd;

use nix::unistd::Pid;

use super::plan::Plan;
use crate::cgroup::location::Place;
use crate::cgroup::{self, Cgroup, resctrl, systemd};
use crate::container::record::Record;
use crate::error::Result;
use crate::log::Log;
use crate::rootfs::plan::{What, is_path};

impl Plan {
    /// Has systemd make the container's scope around the process, where it is to be in one; `record` and `cgroup` are then its.
    ///
    /// # Errors
    /// systemd cannot be reached, or refuses.
    pub fn begin_scope(&self, pid: Pid, record: &mut Record, cgroup: &mut Option<Cgroup>) -> Result<()> {
        let Place::Scope(unit) = &self.cgroup.place else { return Ok(()) };
        let limits = &self.cgroup.limits;
        systemd::Manager::connect()?.start(unit, pid, limits, &self.cgroup.properties)?;
        let scope = cgroup::location::of_process(pid)?;
        *cgroup = scope.map(|path| cgroup::fs::open(&path)).transpose()?;
        if let Some(cgroup) = cgroup {
            // systemd enables the controllers that it has properties for, and no others.
            cgroup::fs::make_ready(cgroup, &cgroup::location::of_existing(&cgroup.path)?, limits)?;
        }
        record.cgroup = cgroup.as_ref().map(|cgroup| cgroup.path.clone());
        Ok(())
    }

    /// Whether the device program has to wait for the mounts: it would keep the child from opening the disk of one.
    pub fn mounts_disks(&self) -> bool {
        let is_disk = |what: &What| matches!(what, What::Filesystem { source, .. } if is_path(source));
        self.cgroup.limits.devices.is_some() && self.rootfs.mounts.iter().any(|mount| is_disk(&mount.what))
    }

    /// Brings into force what limits the process and those it will have, but for its devices.
    ///
    /// # Errors
    /// A limit that cannot be enforced.
    pub fn limit(&self, pid: Pid, record: &Record, cgroup: Option<&Cgroup>) -> Result<()> {
        if let (Some(plan), Some(groups)) = (&self.resctrl, &record.resctrl) {
            resctrl::apply(plan, groups, pid)?;
        }
        if let Some(cgroup) = cgroup {
            let limits = &self.cgroup.limits;
            match &self.cgroup.place {
                Place::Directory(location) => cgroup::controllers::offer(location, cgroup),
                _ => cgroup::controllers::offer(&cgroup::location::of_existing(&cgroup.path)?, cgroup),
            }
            cgroup::fs::apply(cgroup, limits)?;
            if let Some(owner) = self.cgroup.owner {
                cgroup::delegation::delegate(cgroup, rustix::fs::Uid::from_raw(owner))?;
            }
        }
        Ok(())
    }

    /// Brings into force which devices the process and those it will have may use.
    ///
    /// # Errors
    /// The kernel refuses the program.
    pub fn limit_devices(&self, cgroup: Option<&Cgroup>, log: &Log) -> Result<()> {
        if let (Some(cgroup), Some(rules)) = (cgroup, &self.cgroup.limits.devices) {
            let installed = cgroup::devices::install(cgroup.dir.as_fd(), rules)?;
            log.debug(format_args!("device rules: {installed:?}"));
        }
        Ok(())
    }
}
