//! What a container uses, as containerd has it: its cgroup's files under protobuf's names.
//!
//! What runc's shape tells as cgroup v1 did (swap with memory in it, no limit as 0, reserved huge pages) is read from the
//! files once more.

use std::collections::BTreeMap;

use super::messages::metrics::{
    Cpu, HugeTlb, Io, IoEntry, Memory, MemoryEvents, Metrics, Pids, Pressure, Pressures, Rdma, RdmaEntry,
};
use crate::cgroup::Cgroup;
use crate::cgroup::stats::{self, BlkioEntry};
use crate::error::Result;

/// Reads them.
///
/// # Errors
/// The cgroup cannot be read.
pub fn read(cgroup: &Cgroup) -> Result<Metrics> {
    let number = |file: &str| -> Result<u64> { Ok(stats::number(cgroup, file)?.unwrap_or(0)) };
    let stats = stats::read(cgroup)?;
    let hugetlb = stats.hugetlb.iter().map(|(size, pages)| {
        Ok(HugeTlb {
            current: number(&format!("hugetlb.{size}.current"))?,
            max: number(&format!("hugetlb.{size}.max"))?,
            pagesize: size.clone(),
            failcnt: pages.failcnt,
        })
    });
    Ok(Metrics {
        pids: Some(Pids { current: stats.pids.current, limit: number("pids.max")? }),
        cpu: Some(cpu(&stats.cpu)),
        memory: Some(Memory {
            swap_usage: number("memory.swap.current")?,
            swap_limit: number("memory.swap.max")?,
            swap_max_usage: number("memory.swap.peak")?,
            ..memory(&stats.memory)
        }),
        rdma: Some(Rdma { current: rdma(&stats.rdma), limit: Vec::new() }),
        io: Some(Io { usage: io(&stats.blkio), psi: stats.blkio.psi.as_ref().map(pressures) }),
        hugetlb: hugetlb.collect::<Result<_>>()?,
        memory_events: Some(memory_events(&stats::memory_events(cgroup)?)),
    })
}

fn cpu(cpu: &stats::Cpu) -> Cpu {
    let micro = |nano: u64| nano / 1000;
    Cpu {
        usage_usec: micro(cpu.usage.total),
        user_usec: micro(cpu.usage.user),
        system_usec: micro(cpu.usage.kernel),
        nr_periods: cpu.throttling.periods,
        nr_throttled: cpu.throttling.throttled_periods,
        throttled_usec: micro(cpu.throttling.throttled_time),
        psi: cpu.psi.as_ref().map(pressures),
        ..Cpu::default()
    }
}

fn memory(memory: &stats::Memory) -> Memory {
    let raw = |name: &str| memory.raw.get(name).copied().unwrap_or(0);
    Memory {
        anon: raw("anon"),
        file: raw("file"),
        kernel_stack: raw("kernel_stack"),
        slab: raw("slab"),
        sock: raw("sock"),
        shmem: raw("shmem"),
        file_mapped: raw("file_mapped"),
        file_dirty: raw("file_dirty"),
        file_writeback: raw("file_writeback"),
        anon_thp: raw("anon_thp"),
        inactive_anon: raw("inactive_anon"),
        active_anon: raw("active_anon"),
        inactive_file: raw("inactive_file"),
        active_file: raw("active_file"),
        unevictable: raw("unevictable"),
        slab_reclaimable: raw("slab_reclaimable"),
        slab_unreclaimable: raw("slab_unreclaimable"),
        pgfault: raw("pgfault"),
        pgmajfault: raw("pgmajfault"),
        workingset_refault: raw("workingset_refault_anon") + raw("workingset_refault_file"),
        workingset_activate: raw("workingset_activate_anon") + raw("workingset_activate_file"),
        workingset_nodereclaim: raw("workingset_nodereclaim"),
        pgrefill: raw("pgrefill"),
        pgscan: raw("pgscan"),
        pgsteal: raw("pgsteal"),
        pgactivate: raw("pgactivate"),
        pgdeactivate: raw("pgdeactivate"),
        pglazyfree: raw("pglazyfree"),
        pglazyfreed: raw("pglazyfreed"),
        thp_fault_alloc: raw("thp_fault_alloc"),
        thp_collapse_alloc: raw("thp_collapse_alloc"),
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        max_usage: memory.usage.max,
        psi: memory.psi.as_ref().map(pressures),
        ..Memory::default()
    }
}

fn memory_events(events: &BTreeMap<String, u64>) -> MemoryEvents {
    let count = |name: &str| events.get(name).copied().unwrap_or(0);
    MemoryEvents {
        low: count("low"),
        high: count("high"),
        max: count("max"),
        oom: count("oom"),
        oom_kill: count("oom_kill"),
        oom_group_kill: count("oom_group_kill"),
    }
}

fn io(blkio: &stats::Blkio) -> Vec<IoEntry> {
    let mut devices: BTreeMap<(u64, u64), IoEntry> = BTreeMap::new();
    for (bytes, entries) in [(true, &blkio.io_service_bytes_recursive), (false, &blkio.io_serviced_recursive)] {
        for BlkioEntry { major, minor, op, value } in entries {
            let device = devices.entry((*major, *minor)).or_default();
            (device.major, device.minor) = (*major, *minor);
            match (bytes, *op) {
                (true, "Read") => device.rbytes = *value,
                (true, "Write") => device.wbytes = *value,
                (false, "Read") => device.rios = *value,
                (false, "Write") => device.wios = *value,
                _ => (),
            }
        }
    }
    devices.into_values().collect()
}

fn rdma(devices: &BTreeMap<String, BTreeMap<String, u64>>) -> Vec<RdmaEntry> {
    let count = |figures: &BTreeMap<String, u64>, name: &str| {
        u32::try_from(figures.get(name).copied().unwrap_or(0)).unwrap_or(u32::MAX)
    };
    let entry = |(device, figures): (&String, &BTreeMap<String, u64>)| RdmaEntry {
        device: device.clone(),
        hca_handles: count(figures, "hca_handle"),
        hca_objects: count(figures, "hca_object"),
    };
    devices.iter().map(entry).collect()
}

fn pressures(pressure: &stats::Pressure) -> Pressures {
    let line = |line: &stats::PressureLine| {
        Some(Pressure { avg10: line.avg10, avg60: line.avg60, avg300: line.avg300, total: line.total })
    };
    Pressures { some: line(&pressure.some), full: line(&pressure.full) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_device_come_together() {
        let entry = |op, value| BlkioEntry { major: 8, minor: 0, op, value };
        let blkio = stats::Blkio {
            io_service_bytes_recursive: vec![entry("Read", 1), entry("Write", 2)],
            io_serviced_recursive: vec![entry("Read", 3), entry("Write", 4)],
            psi: None,
        };
        let wanted = IoEntry { major: 8, minor: 0, rbytes: 1, wbytes: 2, rios: 3, wios: 4 };
        assert_eq!(io(&blkio), [wanted]);
    }

    /// The metrics of a cgroup with these files, put together by a test of this name.
    fn of_files(test: &str, files: &[(&str, &str)]) -> Metrics {
        let directory = std::env::temp_dir().join(format!("ferry-test-{test}-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        for (name, text) in files {
            std::fs::write(directory.join(name), text).unwrap();
        }
        let metrics = read(&crate::cgroup::fs::open(&directory).unwrap());
        for (name, _) in files {
            std::fs::remove_file(directory.join(name)).unwrap();
        }
        std::fs::remove_dir(&directory).unwrap();
        metrics.unwrap()
    }

    #[test]
    fn swap_is_counted_alone_and_time_in_microseconds() {
        let metrics = of_files(
            "swap",
            &[
                ("cpu.stat", "usage_usec 5\n"),
                ("memory.current", "10\n"),
                ("memory.swap.current", "4\n"),
                ("memory.swap.peak", "6\n"),
                ("memory.events", "oom_kill 2\n"),
            ],
        );
        assert_eq!(metrics.cpu.unwrap().usage_usec, 5);
        let memory = metrics.memory.unwrap();
        assert_eq!((memory.usage, memory.swap_usage, memory.swap_max_usage), (10, 4, 6));
        assert_eq!(metrics.memory_events.unwrap().oom_kill, 2);
    }

    #[test]
    fn limits_are_those_of_the_files() {
        let metrics = of_files(
            "limits",
            &[
                ("pids.max", "max\n"),
                ("memory.max", "max\n"),
                ("memory.swap.max", "0\n"),
                ("hugetlb.2MB.events", "max 3\n"),
                ("hugetlb.2MB.current", "2097152\n"),
                ("hugetlb.2MB.rsvd.current", "0\n"),
                ("hugetlb.2MB.max", "4194304\n"),
                ("hugetlb.1GB.events", "max 0\n"),
                ("hugetlb.1GB.max", "max\n"),
            ],
        );
        assert_eq!(metrics.pids.unwrap().limit, u64::MAX);
        let memory = metrics.memory.unwrap();
        assert_eq!((memory.usage_limit, memory.swap_limit), (u64::MAX, 0));
        let pages: Vec<_> = metrics.hugetlb.iter().map(|pages| (&*pages.pagesize, pages.current, pages.max)).collect();
        assert_eq!(pages, [("1GB", 0, u64::MAX), ("2MB", 2_097_152, 4_194_304)]);
        assert_eq!(metrics.hugetlb[1].failcnt, 3);
    }

    #[test]
    fn without_a_controller_there_is_no_limit_to_tell() {
        let metrics = of_files("none", &[("cgroup.procs", "7\n8\n")]);
        assert_eq!(metrics.pids.unwrap(), Pids { current: 2, limit: 0 });
        assert_eq!(metrics.memory.unwrap().swap_limit, 0);
    }
}
