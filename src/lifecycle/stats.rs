//! `stats`: what containers use, side by side. CPU time is a rate, so it takes two looks at a container.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::live::{self, Live};
use super::{Setting, events};
use crate::cgroup::stats::{BlkioEntry, Pressure, Stats, read};
use crate::cgroup::{Cgroup, life};
use crate::container::Store;
use crate::error::{Error, Result};
use crate::process::memory_merge::{self, Merged};

/// One look at a container.
#[derive(Debug, Clone)]
pub struct Sample {
    id: String,
    taken: Instant,
    /// `None`: the container has no cgroup.
    stats: Option<Stats>,
    ksm: Option<Merged>,
}

/// What a container uses; absent is what is not counted: for want of a cgroup, or of its controller.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The container.
    pub id: String,
    /// Of one CPU, since the last look; absent at the first.
    pub cpu_percent: Option<f64>,
    /// CPU time since it was created, in nanoseconds.
    pub cpu_time: Option<u64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes; absent: no limit.
    pub memory_limit: Option<u64>,
    /// Bytes in swap.
    pub swap: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
    /// Absent: no limit.
    pub pids_limit: Option<u64>,
    /// Bytes read from block devices since it was created.
    pub io_read: Option<u64>,
    /// Bytes written to block devices since it was created.
    pub io_written: Option<u64>,
    /// The share of the last ten seconds in which a task waited, in percent.
    pub pressure: Waits,
    /// What merging its memory with that of others saved, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ksm: Option<Merged>,
}

/// Percentages of time, by what was waited for; absent where this kernel does not count them.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Waits {
    /// A CPU.
    pub cpu: Option<f64>,
    /// Memory.
    pub memory: Option<f64>,
    /// Block I/O.
    pub io: Option<f64>,
}

/// Looks at the containers of these ids, or at all that have a process; in the order of their ids.
///
/// # Errors
/// One that was named does not run or has no cgroup; a cgroup cannot be read.
pub fn sample(setting: &Setting, ids: &[String]) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for id in ids {
        let container = live::open(setting, id)?;
        if !container.has_process() {
            return Err(Error::plain(format!("container not running: {id:?} is {}", container.status)));
        }
        samples.push(look(id, &container, &container.cgroup("count the usage of")?)?);
    }
    if ids.is_empty() {
        for id in Store::new(&setting.root).ids()? {
            samples.extend(look_if_there(setting, id.as_str())?);
        }
    }
    samples.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(samples)
}

/// Looks again at those that are still there.
///
/// # Errors
/// A cgroup cannot be read.
pub fn sample_again(setting: &Setting, ids: &[String]) -> Result<Vec<Sample>> {
    if ids.is_empty() {
        return sample(setting, ids);
    }
    let samples = ids.iter().map(|id| look_if_there(setting, id)).collect::<Result<Vec<_>>>()?;
    let mut samples: Vec<Sample> = samples.into_iter().flatten().collect();
    samples.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(samples)
}

/// A container that nobody named, and that may be going: none of what is missing is an error.
fn look_if_there(setting: &Setting, id: &str) -> Result<Option<Sample>> {
    let container = match live::open(setting, id) {
        Ok(container) if container.has_process() => container,
        _ => return Ok(None),
    };
    if container.record.cgroup.is_none() {
        return Ok(Some(Sample { id: id.to_owned(), taken: Instant::now(), stats: None, ksm: None }));
    }
    match container.cgroup("count the usage of") {
        Ok(cgroup) => look(id, &container, &cgroup).map(Some),
        Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn look(id: &str, container: &Live, cgroup: &Cgroup) -> Result<Sample> {
    let ksm = match events::is_merged(container)? {
        true => Some(memory_merge::merged(&life::procs(cgroup)?)),
        false => None,
    };
    Ok(Sample { id: id.to_owned(), taken: Instant::now(), stats: Some(read(cgroup)?), ksm })
}

/// What each container uses, with the rates since its sample in `before`.
pub fn usage(before: &[Sample], now: &[Sample]) -> Vec<Usage> {
    let earlier = |id: &str| before.iter().find(|sample| sample.id == id);
    now.iter().map(|sample| of(earlier(&sample.id), sample)).collect()
}

fn of(before: Option<&Sample>, now: &Sample) -> Usage {
    let Some(Stats { cpu, memory, pids, blkio, .. }) = &now.stats else {
        return Usage { id: now.id.clone(), ..Usage::default() };
    };
    let limit = |limit: u64| (limit != 0 && limit != u64::MAX).then_some(limit);
    let bytes = |op: &str| Some(sum(&blkio.io_service_bytes_recursive, op));
    // Without its controller there is not even the word that there is no limit.
    let in_use = (memory.usage.limit != 0).then_some(memory.usage.usage);
    Usage {
        id: now.id.clone(),
        cpu_percent: before.and_then(|before| {
            let used = cpu.usage.total.saturating_sub(before.stats.as_ref()?.cpu.usage.total);
            percent(used, now.taken.saturating_duration_since(before.taken))
        }),
        cpu_time: Some(cpu.usage.total),
        memory: in_use,
        memory_limit: limit(memory.usage.limit),
        swap: in_use.map(|in_use| memory.swap.usage.saturating_sub(in_use)),
        pids: Some(pids.current),
        pids_limit: limit(pids.limit),
        io_read: bytes("Read"),
        io_written: bytes("Write"),
        pressure: Waits { cpu: waits(&cpu.psi), memory: waits(&memory.psi), io: waits(&blkio.psi) },
        ksm: now.ksm,
    }
}

fn percent(nanoseconds: u64, span: Duration) -> Option<f64> {
    let percent = nanoseconds as f64 / span.as_nanos() as f64 * 100.0;
    percent.is_finite().then(|| (percent * 10.0).round() / 10.0)
}

fn sum(entries: &[BlkioEntry], op: &str) -> u64 {
    entries.iter().filter(|entry| entry.op == op).fold(0, |sum, entry| sum.saturating_add(entry.value))
}

fn waits(pressure: &Option<Pressure>) -> Option<f64> {
    pressure.as_ref().map(|pressure| pressure.some.avg10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::stats::{MemoryEntry, PressureLine};

    fn sample(id: &str, taken: Instant, cpu: u64) -> Sample {
        let mut stats = Stats::default();
        stats.cpu.usage.total = cpu;
        Sample { id: id.to_owned(), taken, stats: Some(stats), ksm: None }
    }

    #[test]
    fn cpu_time_is_a_rate_between_two_looks() {
        let began = Instant::now();
        let before = [sample("a", began, 1_000_000_000)];
        let later = began + Duration::from_secs(2);
        let now = [sample("a", later, 2_000_000_000), sample("b", later, 5)];
        let shares: Vec<_> = usage(&before, &now).into_iter().map(|usage| usage.cpu_percent).collect();
        assert_eq!(shares, [Some(50.0), None]);
        // No time has passed: there is no rate.
        assert_eq!(usage(&before, &before)[0].cpu_percent, None);
    }

    #[test]
    fn what_has_no_limit_says_so() {
        let mut now = sample("a", Instant::now(), 0);
        let stats = now.stats.as_mut().unwrap();
        stats.memory.usage = MemoryEntry { limit: u64::MAX, usage: 100, ..MemoryEntry::default() };
        stats.memory.swap = MemoryEntry { limit: u64::MAX, usage: 130, ..MemoryEntry::default() };
        stats.pids.limit = 9;
        let entry = |op, value| BlkioEntry { major: 8, minor: 0, op, value };
        stats.blkio.io_service_bytes_recursive = vec![entry("Read", 5), entry("Write", 6), entry("Read", 7)];
        let line = PressureLine { avg10: 1.5, ..PressureLine::default() };
        stats.memory.psi = Some(Pressure { some: line, ..Pressure::default() });
        let usage = &usage(&[], &[now])[0];
        assert_eq!((usage.memory, usage.memory_limit, usage.swap), (Some(100), None, Some(30)));
        assert_eq!((usage.pids_limit, usage.io_read, usage.io_written), (Some(9), Some(12), Some(6)));
        assert_eq!(usage.pressure, Waits { memory: Some(1.5), ..Waits::default() });
    }

    #[test]
    fn what_nobody_counts_is_not_nothing() {
        let now = sample("a", Instant::now(), 7);
        let without_controllers = &usage(&[], std::slice::from_ref(&now))[0];
        assert_eq!((without_controllers.memory, without_controllers.swap), (None, None));
        assert_eq!(without_controllers.cpu_time, Some(7));
        let without_a_cgroup = Sample { stats: None, ..now };
        assert_eq!(usage(&[], &[without_a_cgroup])[0], Usage { id: "a".to_owned(), ..Usage::default() });
    }
}
