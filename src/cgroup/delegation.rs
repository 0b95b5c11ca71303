//! Giving a container's cgroup to the user that its root is, so that the container may divide it further.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Uid, chownat};
use rustix::io::Errno;

use super::Cgroup;
use crate::error::{Context, Result};

/// Files that a cgroup's owner may write, where the kernel does not tell.
const DELEGATED: &str = "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n";

/// Gives the cgroup to the host user that the container's user is. Only the directory and the files the kernel calls safe to give
/// away change hands: never a limit (runtime-spec, Cgroup ownership).
///
/// # Errors
///
/// The kernel refuses. A file that this cgroup does not have is passed over.
pub fn delegate(cgroup: &Cgroup, uid: Uid) -> Result<()> {
    give_away(cgroup, uid, &delegated(Path::new("/sys/kernel/cgroup/delegate")))
}

/// The files that this kernel calls safe to give away, a line each.
fn delegated(list: &Path) -> String {
    std::fs::read_to_string(list).unwrap_or_else(|_| DELEGATED.into())
}

fn give_away(cgroup: &Cgroup, uid: Uid, list: &str) -> Result<()> {
    let no_group: Option<Gid> = None;
    for name in std::iter::once("").chain(list.lines()) {
        match chownat(cgroup, OsStr::from_bytes(name.as_bytes()), Some(uid), no_group, AtFlags::EMPTY_PATH) {
            Ok(()) | Err(Errno::NOENT) => {}
            answer => answer.or_cannot("give away", format!("{}/{name}", cgroup.path.display()))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::trial::Trial;
    use super::*;

    #[test]
    fn gives_away_the_directory_and_the_safe_files_only() {
        let Some(trial) = Trial::new("delegate") else { return };
        let cgroup = trial.create("box");
        delegate(&cgroup, Uid::from_raw(4321)).unwrap();
        let owner = |name: &str| std::fs::metadata(cgroup.path.join(name)).unwrap().uid();
        for (name, uid) in [("", 4321), ("cgroup.procs", 4321), ("cgroup.subtree_control", 4321), ("cgroup.freeze", 0)]
        {
            assert_eq!(owner(name), uid, "{name}");
        }
    }

    #[test]
    fn a_listed_file_that_is_not_there_is_passed_over() {
        let Some(trial) = Trial::new("absent") else { return };
        let cgroup = trial.create("box");
        give_away(&cgroup, Uid::from_raw(4321), "no.such.file\ncgroup.procs\n").unwrap();
        assert_eq!(std::fs::metadata(cgroup.path.join("cgroup.procs")).unwrap().uid(), 4321);
    }

    #[test]
    fn without_the_kernels_list_the_specifications_is_used() {
        let list = delegated(Path::new("/no/such/list"));
        assert_eq!(list.lines().collect::<Vec<_>>(), ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"]);
    }
}
