//! What a container weighs, which its destination needs room for.

use std::collections::BTreeSet;
use std::path::Path;

use nix::unistd::Pid;
use rustix::fs::{fstat, fstatvfs, stat};

use crate::cgroup;
use crate::error::{Context, Result};
use crate::lifecycle::live::Live;
use crate::lifecycle::own_root;
use crate::migrate::bodies;
use crate::path::{Links, Root};
use crate::procfs::{self, mountinfo};

/// Bytes of memory: what its processes have there and in swap, as they themselves are told (shared ones count for each), and what is in
/// its filesystems in memory.
pub fn memory(container: &Live) -> Result<u64> {
    let pids = cgroup::life::procs(&container.cgroup("migrate")?)?;
    // One that has ended meanwhile has none.
    let status = |pid: &Pid| procfs::text(format!("/proc/{pid}/status")).unwrap_or_default();
    let of_processes = pids.iter().map(|pid| held(&status(pid))).fold(0, u64::saturating_add);
    let of_files = container.init().map_or(Ok(0), |init| in_memory(init.pid()))?;
    Ok(of_processes.saturating_add(of_files))
}

/// What a process holds, resident and swapped out. proc_pid_status(5)
fn held(status: &str) -> u64 {
    let lines = status.lines().filter_map(|line| line.strip_prefix("VmRSS:").or_else(|| line.strip_prefix("VmSwap:")));
    let kibibytes = lines.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.fold(0, u64::saturating_add).saturating_mul(1024)
}

/// What is in the tmpfs that are mounted for this process and not here: one that is here too is the host's, and bound in.
fn in_memory(pid: Pid) -> Result<u64> {
    let is_tmpfs = |row: &mountinfo::Row| row.kind == "tmpfs";
    let own = mountinfo::read().or_cannot("read", "the mount table")?;
    let mut seen: BTreeSet<u64> = own
        .iter()
        .filter(|row| is_tmpfs(row))
        .filter_map(|row| stat(&row.point).ok())
        .map(|stat| stat.st_dev)
        .collect();
    let process = format!("/proc/{pid}");
    let rows = mountinfo::read_of(Path::new(&process)).or_cannot("read the mounts of process", pid)?;
    let root = Root::open(&Path::new(&process).join("root"))?;
    let mut bytes = 0_u64;
    for row in rows.iter().filter(|row| is_tmpfs(row)) {
        // Taken away, or covered by another, it is nothing that can be looked at.
        let Ok(found) = root.resolve(&row.point, Links::Refuse) else { continue };
        let (Ok(device), Ok(room)) = (fstat(&found).map(|stat| stat.st_dev), fstatvfs(&found)) else { continue };
        if seen.insert(device) {
            bytes = bytes.saturating_add(room.f_blocks.saturating_sub(room.f_bfree).saturating_mul(room.f_frsize));
        }
    }
    Ok(bytes)
}

/// Bytes of what it has changed in the files of its image, sent in rounds or at once.
pub fn files(container: &Live, in_rounds: bool) -> Result<u64> {
    let upper = own_root::Changes::of(container)?.upper()?;
    upper.map_or(Ok(0), |upper| bodies::weigh(&upper, in_rounds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_swapped_out_counts() {
        let status =
            "Name:\tx\nVmPeak:\t   9000 kB\nVmRSS:\t     300 kB\nRssAnon:\t     200 kB\nVmSwap:\t      20 kB\n";
        assert_eq!(held(status), 320 << 10);
        assert_eq!(held("Name:\tkthread\n"), 0);
    }
}
