//! Entering namespaces by path, for a child that is cloned into them.
//!
//! A child is born in what its parent has entered, but for the two that it joins by itself. ferry comes back from those that bind
//! it as well: for a pid or a time namespace only its children are bound.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;

use crate::error::{Context, Error, Result};
use crate::namespaces::plan::clone_flag;
use crate::namespaces::{Join, Kind};

/// Opens a namespace that is to be joined.
///
/// # Errors
/// What open(2) answers.
pub fn open(join: &Join) -> Result<OwnedFd> {
    nix::fcntl::open(&join.path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .or_cannot("open namespace", join.path.display())
        .map_err(|error| error.hint("the path must be a namespace's: /proc/PID/ns/…, or a bind mount of one"))
}

/// Joins a user namespace and others with it. What the host's rights suffice for is joined before they are given up: it need
/// not belong to the user namespace. What only the rights inside open comes after.
pub(super) fn around(user_namespace: &OwnedFd, user: &Path, joins: &[Join]) -> Result<()> {
    let mut later = Vec::new();
    for join in joins {
        match beside(std::slice::from_ref(join)) {
            Err(error) if error.errno() == Some(Errno::EPERM) => later.push(join.clone()),
            answer => drop(answer?),
        }
    }
    setns(user_namespace, CloneFlags::CLONE_NEWUSER).or_cannot("join user namespace", user.display())?;
    beside(&later).map(drop)
}

/// Whether the child joins it by itself: the mount namespace, which would change what paths mean here, and the cgroup
/// namespace, from inside of which the kernel clones nothing into a cgroup outside of it.
pub(super) fn is_the_childs(join: &Join) -> bool {
    matches!(join.kind, Kind::Mount | Kind::Cgroup)
}

/// Joins namespaces, but for those that the child joins; answers the way back for those that bind ferry
/// itself.
pub(super) fn beside(joins: &[Join]) -> Result<Vec<(CloneFlags, OwnedFd)>> {
    let mut way_back = Vec::new();
    for join in joins.iter().filter(|join| !is_the_childs(join)) {
        let namespace = open(join)?;
        let file = match join.kind {
            Kind::Pid => "pid_for_children",
            Kind::Time => "time_for_children",
            kind => kind.row().file,
        };
        let own = Join { kind: join.kind, path: Path::new("/proc/self/ns").join(file) };
        way_back.push((clone_flag(join.kind), open(&own)?));
        setns(namespace, clone_flag(join.kind)).map_err(|answer| not_joined(join, answer))?;
    }
    Ok(way_back)
}

/// What to say of a namespace that setns(2) refuses.
pub fn not_joined(join: &Join, answer: Errno) -> Error {
    let error = Error::kernel("join namespace", join.path.display().to_string(), answer);
    error.hint(format!("it must be a {} namespace that this user may enter", join.kind.row().name))
}

pub(super) fn leave(way_back: Vec<(CloneFlags, OwnedFd)>) -> Result<()> {
    way_back
        .into_iter()
        .try_for_each(|(flag, namespace)| setns(namespace, flag).or_cannot("return to", "ferry's own namespaces"))
}
