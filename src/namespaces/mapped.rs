//! A user namespace that nobody lives in: the kernel takes the id mapping of a mount only in the form of one.
//!
//! A process is cloned into a new user namespace, waits there until its maps are written and its namespace is held by a
//! descriptor, and ends. It waits on a pipe whose other end only ferry has, so that it ends with ferry in any case.
//! mount_setattr(2), user_namespaces(7)

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, pipe2, read};

use super::{Kind, id_map};
use crate::error::{Context, Result};
use crate::spec::config::IdMapping;
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};

/// A new user namespace with these maps.
///
/// # Errors
/// What stands in the way of a user namespace, or of its maps: EPERM for ids that are not the caller's to map.
pub fn user_namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    let (wait, hold) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
    let cloned = clone_either_way(CloneFlags::CLONE_NEWUSER.bits() as u64, Parent::Caller);
    match cloned.or_cannot("make", "a user namespace for id mappings")? {
        Cloned::Child => {
            drop(hold);
            // Whatever it answers, this process has nothing else to do.
            exit_now(i32::from(read(&wait, &mut [0]).is_err()))
        }
        Cloned::Parent { pid, .. } => {
            let namespace = id_map::write_directly(pid, uids, gids).and_then(|()| of_process(pid));
            drop(hold);
            reap(pid)?;
            namespace
        }
    }
}

/// The user namespace that `pid` is in.
///
/// # Errors
/// ENOENT for a process that has gone; EACCES for another user's.
pub fn of_process(pid: Pid) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{}", Kind::User.row().file);
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).or_cannot("open namespace", path)
}

fn reap(pid: Pid) -> Result<()> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => (),
            answer => return answer.map(drop).or_cannot("wait for", "the process in a user namespace for id mappings"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    /// Where user namespaces may be made at all: elsewhere there is nothing to look at.
    #[test]
    fn a_namespace_outlives_the_process_that_carried_its_maps() {
        let host = crate::host::probe();
        if !host.privileged {
            return;
        }
        let map = [IdMapping { container_id: 0, host_id: 100_000, size: 10 }];
        let namespace = user_namespace(&map, &map).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap();
        assert!(link.to_string_lossy().starts_with("user:["), "{link:?}");
        assert_ne!(link, std::fs::read_link("/proc/self/ns/user").unwrap());
    }

    #[test]
    fn overlapping_maps_are_refused() {
        let map = [IdMapping { container_id: 0, host_id: 100_000, size: 10 }; 2];
        assert!(user_namespace(&map, &map).unwrap_err().to_string().starts_with("cannot write id map"));
    }
}
