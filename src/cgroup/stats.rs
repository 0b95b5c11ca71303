//! What a cgroup uses, in the shape of `runc events --stats` (the event's `data`), which engines parse.
//!
//! The names are cgroup v1's, because that shape is; each field's doc says which file of cgroup v2 it comes from. A
//! controller that is not enabled has no files, and its part is then absent or zero, as runc writes it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Context, Result};

use super::file;
use super::fs::Cgroup;

/// Everything about one cgroup.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Stats {
    /// CPU time and throttling.
    pub cpu: Cpu,
    /// A part of cgroup v1 that has no figures in v2; engines expect it to be there.
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: Memory,
    /// Tasks.
    pub pids: Pids,
    /// Block I/O.
    pub blkio: Blkio,
    /// Huge pages by their size, `2MB`.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// RDMA by device. An addition to runc's shape.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, BTreeMap<String, u64>>,
    /// Cache and memory bandwidth allocation; filled by whoever governs resctrl.
    pub intel_rdt: IntelRdt,
    /// Null, as runc has it where the network is not its own to make. Its readers know the field.
    pub network_interfaces: (),
}

/// CPU time and throttling.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Cpu {
    /// cpu.stat
    #[serde(skip_serializing_if = "is_default")]
    pub usage: CpuUsage,
    /// cpu.stat
    #[serde(skip_serializing_if = "is_default")]
    pub throttling: Throttling,
    /// cpu.pressure
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// CPU time in nanoseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct CpuUsage {
    /// usage_usec
    #[serde(skip_serializing_if = "is_default")]
    pub total: u64,
    /// system_usec
    pub kernel: u64,
    /// user_usec
    pub user: u64,
}

/// How often and how long (in nanoseconds) the quota held the cgroup back.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// nr_periods
    #[serde(skip_serializing_if = "is_default")]
    pub periods: u64,
    /// nr_throttled
    #[serde(skip_serializing_if = "is_default")]
    pub throttled_periods: u64,
    /// throttled_usec
    #[serde(skip_serializing_if = "is_default")]
    pub throttled_time: u64,
}

/// cgroup v1's knobs of cpusets: always zero.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[expect(missing_docs, reason = "names of cgroup v1, kept for those who parse them")]
pub struct CpuSet {
    pub cpu_exclusive: u64,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// Memory in bytes.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Memory {
    /// memory.stat: file
    #[serde(skip_serializing_if = "is_default")]
    pub cache: u64,
    /// memory.current, .max, .peak; failcnt is the `max` of memory.events
    #[serde(skip_serializing_if = "is_default")]
    pub usage: MemoryEntry,
    /// Memory and swap together, as in cgroup v1: the sums of memory.* and memory.swap.*
    #[serde(skip_serializing_if = "is_default")]
    pub swap: MemoryEntry,
    /// memory.stat
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// memory.pressure
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One kind of memory in bytes. No limit is the largest number.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct MemoryEntry {
    /// The limit.
    pub limit: u64,
    /// The usage.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    /// The highest usage.
    #[serde(skip_serializing_if = "is_default")]
    pub max: u64,
    /// How often the limit was run into.
    pub failcnt: u64,
}

/// Tasks.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Pids {
    /// pids.current
    #[serde(skip_serializing_if = "is_default")]
    pub current: u64,
    /// pids.max; absent is no limit
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}

/// Block I/O, from io.stat.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    /// rbytes, wbytes
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// rios, wios
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// io.pressure
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One figure of one device.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct BlkioEntry {
    /// Device number.
    #[serde(skip_serializing_if = "is_default")]
    pub major: u64,
    /// Device number.
    #[serde(skip_serializing_if = "is_default")]
    pub minor: u64,
    /// `Read` or `Write`.
    pub op: &'static str,
    /// Bytes or operations.
    #[serde(skip_serializing_if = "is_default")]
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Hugetlb {
    /// hugetlb.SIZE.rsvd.current, or .current where reservations are not counted
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    /// hugetlb.SIZE.events: max
    pub failcnt: u64,
}

/// Cache and memory bandwidth allocation.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct IntelRdt {}

/// Pressure stall information: what share of time tasks waited.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Pressure {
    /// At least one task waited.
    #[serde(skip_serializing_if = "is_default")]
    pub some: PressureLine,
    /// All tasks waited.
    #[serde(skip_serializing_if = "is_default")]
    pub full: PressureLine,
}

/// One line of pressure: percentages over 10, 60 and 300 seconds, and the total in microseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[expect(missing_docs, reason = "the kernel's own names of the figures")]
pub struct PressureLine {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads everything.
///
/// # Errors
///
/// The cgroup cannot be read. Single files that are not there are absent values.
pub fn read(cgroup: &Cgroup) -> Result<Stats> {
    let source = Source(cgroup);
    Ok(Stats {
        cpu: cpu(&source.text("cpu.stat")?, source.pressure("cpu.pressure")?),
        memory: memory(&source)?,
        pids: pids(&source)?,
        blkio: blkio(&source.text("io.stat")?, source.pressure("io.pressure")?),
        hugetlb: hugetlb(&source)?,
        rdma: rdma(&source.text("rdma.current")?),
        ..Stats::default()
    })
}

/// How often memory ran short, and what came of it: memory.events, empty without the controller.
///
/// # Errors
///
/// It cannot be read.
pub fn memory_events(cgroup: &Cgroup) -> Result<BTreeMap<String, u64>> {
    Source(cgroup).text("memory.events").map(|text| key_values(&text))
}

/// What memory.min and memory.low promise the cgroup: the larger of the two, in bytes.
///
/// # Errors
///
/// They cannot be read.
pub fn promised(cgroup: &Cgroup) -> Result<u64> {
    let source = Source(cgroup);
    Ok(source.number("memory.min")?.max(source.number("memory.low")?).unwrap_or(0))
}

/// How much more of the cgroup may go to swap by its own limit, in bytes; none without swap accounting.
///
/// # Errors
///
/// The limit cannot be read.
pub fn swap_left(cgroup: &Cgroup) -> Result<u64> {
    let source = Source(cgroup);
    let (limit, used) = (source.number("memory.swap.max")?, source.number("memory.swap.current")?);
    Ok(limit.unwrap_or(0).saturating_sub(used.unwrap_or(0)))
}

/// The number in one file of the cgroup, where `max` is the largest; none without the file.
///
/// # Errors
///
/// It cannot be read.
pub fn number(cgroup: &Cgroup, name: &str) -> Result<Option<u64>> {
    Source(cgroup).number(name)
}

/// The file through which the kernel tells of processes it has killed for want of memory, held open: poll(2) for
/// `POLLPRI` wakes when it changes.
#[derive(Debug)]
pub struct MemoryEvents {
    file: OwnedFd,
    path: PathBuf,
    kills: u64,
}

impl AsFd for MemoryEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl MemoryEvents {
    /// Opens it and counts the kills so far. `None`: the cgroup is without the memory controller.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or read.
    pub fn open(cgroup: &Cgroup) -> Result<Option<Self>> {
        let path = cgroup.path.join("memory.events");
        let file = match openat(cgroup, "memory.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT | Errno::NODEV) => return Ok(None),
            file => file.or_cannot("open", path.display())?,
        };
        let mut events = Self { file, path, kills: 0 };
        events.new_kills()?;
        Ok(Some(events))
    }

    /// How many processes were killed since this was last asked. A cgroup that is removed tells of no more.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn new_kills(&mut self) -> Result<u64> {
        let text = match file::read_all(&self.file) {
            Err(Errno::NODEV) => return Ok(0),
            text => text.or_cannot("read", self.path.display())?,
        };
        let kills = oom_kills(&text);
        Ok(kills.saturating_sub(std::mem::replace(&mut self.kills, kills)))
    }
}

fn oom_kills(memory_events: &str) -> u64 {
    file::value_of(memory_events, "oom_kill").and_then(|count| count.parse().ok()).unwrap_or(0)
}

struct Source<'cgroup>(&'cgroup Cgroup);

impl Source<'_> {
    /// The text of a file; empty if it is not there, or its kind of accounting is switched off.
    fn text(&self, name: &str) -> Result<String> {
        match file::read(self.0.as_fd(), name) {
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(String::new()),
            answer => answer.or_cannot("read", self.0.path.join(name).display()),
        }
    }

    /// A single number; `max` is the largest.
    fn number(&self, name: &str) -> Result<Option<u64>> {
        let text = self.text(name)?;
        Ok(if text.trim_end() == "max" { Some(u64::MAX) } else { text.trim_end().parse().ok() })
    }

    fn pressure(&self, name: &str) -> Result<Option<Pressure>> {
        self.text(name).map(|text| pressure(&text))
    }
}

fn key_values(text: &str) -> BTreeMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect()
}

fn cpu(stat: &str, psi: Option<Pressure>) -> Cpu {
    let number = |key| file::value_of(stat, key).and_then(|value| value.parse().ok()).unwrap_or(0u64);
    let nanoseconds = |key| number(key).saturating_mul(1000);
    Cpu {
        usage: CpuUsage {
            total: nanoseconds("usage_usec"),
            kernel: nanoseconds("system_usec"),
            user: nanoseconds("user_usec"),
        },
        throttling: Throttling {
            periods: number("nr_periods"),
            throttled_periods: number("nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
        },
        psi,
    }
}

fn memory(source: &Source<'_>) -> Result<Memory> {
    let raw = key_values(&source.text("memory.stat")?);
    let events = source.text("memory.events")?;
    let entry = |kind: &str| -> Result<MemoryEntry> {
        let number = |file: &str| Ok(source.number(&format!("memory.{kind}{file}"))?.unwrap_or(0));
        Ok(MemoryEntry { limit: number("max")?, usage: number("current")?, max: number("peak")?, failcnt: 0 })
    };
    let mut usage = entry("")?;
    usage.failcnt = file::value_of(&events, "max").and_then(|count| count.parse().ok()).unwrap_or(0);
    let swap = with_memory(entry("swap.")?, &usage);
    let cache = raw.get("file").copied().unwrap_or(0);
    Ok(Memory { cache, usage, swap, raw, psi: source.pressure("memory.pressure")? })
}

/// Swap as cgroup v1 counts it. The highest sum of the two is not the sum of the two highest, so it is left out.
fn with_memory(swap: MemoryEntry, memory: &MemoryEntry) -> MemoryEntry {
    MemoryEntry {
        limit: swap.limit.saturating_add(memory.limit),
        usage: swap.usage.saturating_add(memory.usage),
        max: 0,
        failcnt: 0,
    }
}

/// Without the controller the processes are counted; a limit there is none then.
fn pids(source: &Source<'_>) -> Result<Pids> {
    let current = match source.number("pids.current")? {
        Some(current) => current,
        None => source.text("cgroup.procs")?.lines().count() as u64,
    };
    let limit = source.number("pids.max")?.filter(|limit| *limit != u64::MAX);
    Ok(Pids { current, limit: limit.unwrap_or(0) })
}

fn blkio(stat: &str, psi: Option<Pressure>) -> Blkio {
    let mut blkio = Blkio { psi, ..Blkio::default() };
    for line in stat.lines() {
        let mut words = line.split(' ');
        let numbers = words.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = numbers.map(|(major, minor)| (major.parse(), minor.parse())) else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (table, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            table.extend(value.parse().ok().map(|value| BlkioEntry { major, minor, op, value }));
        }
    }
    blkio
}

/// The sizes are those the cgroup has files for.
fn hugetlb(source: &Source<'_>) -> Result<BTreeMap<String, Hugetlb>> {
    let mut sizes = BTreeMap::new();
    let object = || source.0.path.display().to_string();
    for entry in Dir::read_from(source.0.as_fd()).or_cannot("list", object())? {
        let entry = entry.or_cannot("list", object())?;
        let name = entry.file_name().to_string_lossy();
        let Some(size) = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(".events")) else { continue };
        let usage = match source.number(&format!("hugetlb.{size}.rsvd.current"))? {
            Some(usage) => usage,
            None => source.number(&format!("hugetlb.{size}.current"))?.unwrap_or(0),
        };
        let events = source.text(&format!("hugetlb.{size}.events"))?;
        let failcnt = file::value_of(&events, "max").and_then(|count| count.parse().ok()).unwrap_or(0);
        sizes.insert(size.to_owned(), Hugetlb { usage, failcnt });
    }
    Ok(sizes)
}

fn rdma(current: &str) -> BTreeMap<String, BTreeMap<String, u64>> {
    let device = |line: &str| {
        let (device, rest) = line.split_once(' ')?;
        let figures = rest.split(' ').filter_map(|word| word.split_once('='));
        Some((device.to_owned(), figures.filter_map(|(key, value)| Some((key.into(), value.parse().ok()?))).collect()))
    };
    current.lines().filter_map(device).collect()
}

fn pressure(text: &str) -> Option<Pressure> {
    if text.is_empty() {
        return None;
    }
    let line = |kind: &str| {
        let mut line = PressureLine::default();
        let words = file::value_of(text, kind).unwrap_or("").split(' ');
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "avg10" => line.avg10 = value.parse().unwrap_or(0.0),
                "avg60" => line.avg60 = value.parse().unwrap_or(0.0),
                "avg300" => line.avg300 = value.parse().unwrap_or(0.0),
                "total" => line.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        line
    };
    Some(Pressure { some: line("some"), full: line("full") })
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
