//! Giving a container's cgroup every controller its host has, beyond those its limits need: so that what it uses is
//! counted, limits can be set later, and a service manager inside finds something to share out.
//!
//! None of it is asked for by the configuration, so what cannot be had is left. The rules that `fs` holds limits to stand:
//! a cgroup with processes of its own gives nothing to those below it.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::CWD;

use super::fs::{Cgroup, has_word, holds_processes};
use super::{Location, file};

/// Enables all controllers in the cgroups above `cgroup`, from the root of the tree down. Nothing is written where the
/// cgroup has them all, as where another container beside it was there before.
pub fn offer(location: &Location, cgroup: &Cgroup) {
    let all = file::read(CWD, location.mount.join(OFFERED)).unwrap_or_default();
    if all == offered(cgroup.dir.as_fd()) {
        return;
    }
    let Ok(mut above) = file::open_dir(CWD, &location.mount) else { return };
    for name in &location.path {
        enable(above.as_fd());
        match file::open_dir(above.as_fd(), name) {
            Ok(below) => above = below,
            // Somebody is taking it away: then nobody is left to offer anything to.
            Err(_) => return,
        }
    }
}

/// The file that names the controllers a cgroup has.
const OFFERED: &str = "cgroup.controllers";

fn offered(dir: BorrowedFd<'_>) -> String {
    file::read(dir, OFFERED).unwrap_or_default()
}

/// One at a time where they cannot be had together: each may be refused for its own reason.
fn enable(dir: BorrowedFd<'_>) {
    let enabled = file::read(dir, "cgroup.subtree_control").unwrap_or_default();
    let offered = offered(dir);
    let missing: Vec<&str> = offered.split_whitespace().filter(|name| !has_word(&enabled, name)).collect();
    if missing.is_empty() || holds_processes(dir) {
        return;
    }
    let command = |names: &[&str]| names.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    if file::write(dir, "cgroup.subtree_control", &command(&missing)).is_err() {
        for name in missing {
            // What cannot be had is left, see the module.
            file::write(dir, "cgroup.subtree_control", &command(&[name])).ok();
        }
    }
}
