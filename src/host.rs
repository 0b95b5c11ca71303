//! What this kernel and this user may do: facts the plan is made from, each probed once and none before it is needed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::unistd::{getegid, geteuid};
use rustix::fs::{Access, access};

use crate::procfs;
use crate::sys::capability;

/// CAP_SYS_ADMIN: linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;

/// Where programs of the administrator's are, which an engine's PATH may leave out: CRIU and what it runs (ip, iptables),
/// mkfs.erofs.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Facts about the caller that every plan needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Whether CAP_SYS_ADMIN is in force, here or in the user namespace ferry itself runs in: without it a container
    /// needs a user namespace of its own.
    pub privileged: bool,
    /// The capabilities that ferry holds, as a mask, and so the most it can give outside of a new user namespace.
    pub permitted: u64,
}

/// Asks the kernel.
pub fn probe() -> Host {
    let (effective, permitted) = capability::capget().map_or((0, 0), |sets| (sets.effective, sets.permitted));
    let privileged = effective & (1 << CAP_SYS_ADMIN) != 0;
    Host { uid: geteuid().as_raw(), gid: getegid().as_raw(), privileged, permitted }
}

/// The user this process is outside of the user namespace it runs in: itself, where that is the host's. An engine of an
/// ordinary user calls ferry as root of a namespace of its own, and a service outside still sees the user.
/// user_namespaces(7)
pub fn outer_uid() -> u32 {
    let own = geteuid().as_raw();
    procfs::text("/proc/self/uid_map").ok().and_then(|map| outer_in(&map, own)).unwrap_or(own)
}

/// Whether this process is in a user namespace below the host's, which maps every id there is to itself. Without /proc there
/// is no telling, and the host's is likelier.
pub fn in_user_namespace() -> bool {
    procfs::text("/proc/self/uid_map").is_ok_and(|map| !maps_all(&map))
}

fn maps_all(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

fn outer_in(map: &str, own: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let fields: Vec<u32> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        match fields[..] {
            [inside, outside, count] if own >= inside && own - inside < count => outside.checked_add(own - inside),
            _ => None,
        }
    })
}

/// Where programs of the host's are looked for: in the caller's PATH, and after it in the system's.
pub fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(SYSTEM_PATH);
    path
}

/// A program of the host's.
pub fn program(name: &str) -> Option<PathBuf> {
    let is_program = |file: &Path| file.is_file() && access(file, Access::EXEC_OK).is_ok();
    std::env::split_paths(&search_path()).map(|dir| dir.join(name)).find(|file| is_program(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_own_programs_are_found_behind_the_callers() {
        assert!(std::env::split_paths(&search_path()).any(|dir| dir == Path::new("/usr/sbin")));
        assert!(program("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(program("no-such-program"), None);
    }

    #[test]
    fn the_hosts_user_namespace_maps_all_ids() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(!maps_all("0 1000 1\n") && !maps_all("0 0 1000\n1000 1000 4294966295\n") && !maps_all(""));
    }

    #[test]
    fn the_user_outside() {
        assert_eq!(outer_in("         0          0 4294967295\n", 0), Some(0));
        assert_eq!(outer_in("0 1000 1\n1 100000 65536\n", 0), Some(1000));
        assert_eq!(outer_in("0 1000 1\n1 100000 65536\n", 5), Some(100_004));
        assert_eq!(outer_in("1 100000 65536\n", 0), None);
    }
}
