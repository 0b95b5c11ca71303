//! `linux.resources` to cgroup v2 files: one table, one pure function.
//!
//! The specification speaks cgroup v1; [`ROWS`] says for each of its fields which controller and which files of cgroup v2
//! it becomes, in the order they are written, and how its value is converted. Zero means "not set" where runc and the
//! engines that drive it mean that (quota, period, memory limits, shares, weights). What cgroup v2 cannot do is an error
//! where it would have limited something, and a note where it was a hint for tuning.
//!
//! Source: runtime-spec config-linux.md#control-groups, the kernel's admin-guide/cgroup-v2.rst.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::spec::resources::{DeviceRule, Resources, ThrottleDevice};

use super::devices;

/// What to do with a container's cgroup: pure data, in the order it is applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// The files to write.
    pub writes: Vec<Write>,
    /// The controllers these files belong to.
    pub needs: BTreeSet<Cow<'static, str>>,
    /// Set by `memory.checkBeforeUpdate`: usage that the new limits must not lie below.
    pub memory_check: Option<MemoryCheck>,
    /// The device rules in force, ferry's own appended; `None`: leave devices as they are.
    pub devices: Option<Vec<DeviceRule>>,
    /// What was asked for and means nothing here; for the log.
    pub notes: Vec<String>,
}

/// One write to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The controller it belongs to; empty: the core, which is always there.
    pub controller: Cow<'static, str>,
    /// The file's name in the cgroup.
    pub file: Cow<'static, str>,
    /// What is written.
    pub value: String,
    /// The JSON path of the field it comes from, below `linux.resources`.
    pub field: Cow<'static, str>,
    /// What to do when the write fails in the one way that is foreseen.
    pub otherwise: Otherwise,
}

/// What becomes of a write whose file does not exist, or whose time has not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Otherwise {
    /// An error.
    Refuse,
    /// No file, no need: the kernel has not even the thing that would be limited.
    Skip,
    /// Where the file does not exist, this one takes its place.
    Instead(&'static str, String),
    /// EINVAL: once more after all other writes, because the kernel checks it against one of them.
    Again,
}

/// Usage that new memory limits must not lie below, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryCheck {
    /// The new limit of memory, where one is set.
    pub limit: Option<u64>,
    /// The new limit of memory and swap together, where one is set.
    pub with_swap: Option<u64>,
}

/// One row of the table: a field of `linux.resources` and what it becomes.
pub struct Row {
    /// The JSON path below `linux.resources`.
    pub field: &'static str,
    /// The controller; empty: the core, or none.
    pub controller: &'static str,
    /// The files it may write, for people: `explain`, `features` and the manual.
    pub files: &'static str,
    plan: fn(&Resources, &mut Draft<'_>) -> Result<()>,
}

/// Every field of `linux.resources` but `devices`, in the order they are applied.
pub const ROWS: &[Row] = &[
    row("pids.limit", "pids", "pids.max", pids),
    // Swap before memory, so that a limit lowered below the usage cannot flee into swap that is about to be forbidden.
    row("memory.swap", "memory", "memory.swap.max", swap),
    row("memory.limit", "memory", "memory.max", |r, out| out.bytes("memory.max", r.memory.limit)),
    row("memory.reservation", "memory", "memory.low", |r, out| out.bytes("memory.low", r.memory.reservation)),
    row("memory.checkBeforeUpdate", "memory", "memory.current", check_before_update),
    row("memory.kernel", "", "", |r, out| out.obsolete(r.memory.kernel, "counts it as memory.limit")),
    row("memory.kernelTCP", "", "", |r, out| out.obsolete(r.memory.kernel_tcp, "counts it as memory.limit")),
    row("memory.disableOOMKiller", "", "", disable_oom_killer),
    row("memory.swappiness", "", "", |r, out| out.ignored(r.memory.swappiness.is_some(), "has it for the host only")),
    row("memory.useHierarchy", "", "", |r, out| {
        out.ignored(r.memory.use_hierarchy == Some(false), "always counts a cgroup's children with it")
    }),
    // A cgroup with cpu.idle 1 refuses a weight: it is out of that state before it gets one, and is given none to go into it.
    row("cpu.idle", "cpu", "cpu.idle", |r, out| out.number("cpu.idle", r.cpu.idle.filter(|idle| *idle == 0))),
    row("cpu.shares", "cpu", "cpu.weight", |r, out| {
        let shares = r.cpu.shares.filter(|_| r.cpu.idle.is_none_or(|idle| idle == 0));
        out.number("cpu.weight", shares.and_then(cpu_weight))
    }),
    row("cpu.idle", "cpu", "cpu.idle", |r, out| out.number("cpu.idle", r.cpu.idle.filter(|idle| *idle != 0))),
    row("cpu.burst", "cpu", "cpu.max.burst", burst),
    row("cpu.quota", "cpu", "cpu.max", cpu_max),
    row("cpu.realtimeRuntime", "", "", |r, out| {
        out.obsolete(r.cpu.realtime_runtime, "has no real-time shares; use process.scheduler")
    }),
    row("cpu.realtimePeriod", "", "", |r, out| {
        let period = r.cpu.realtime_period.map(|period| i64::try_from(period).unwrap_or(i64::MAX));
        out.obsolete(period, "has no real-time shares; use process.scheduler")
    }),
    row("cpu.cpus", "cpuset", "cpuset.cpus", |r, out| out.text("cpuset.cpus", &r.cpu.cpus)),
    row("cpu.mems", "cpuset", "cpuset.mems", |r, out| out.text("cpuset.mems", &r.cpu.mems)),
    row("blockIO.weight", "io", "io.bfq.weight or io.weight", io_weight),
    row("blockIO.leafWeight", "", "", |r, out| {
        out.ignored(r.block_io.leaf_weight.is_some_and(|weight| weight > 0), "weighs a cgroup's own tasks no other way")
    }),
    row("blockIO.weightDevice", "io", "io.bfq.weight or io.weight", device_weights),
    row("blockIO.throttleReadBpsDevice", "io", "io.max", |r, out| {
        out.throttle("rbps", &r.block_io.throttle_read_bps_device)
    }),
    row("blockIO.throttleWriteBpsDevice", "io", "io.max", |r, out| {
        out.throttle("wbps", &r.block_io.throttle_write_bps_device)
    }),
    row("blockIO.throttleReadIOPSDevice", "io", "io.max", |r, out| {
        out.throttle("riops", &r.block_io.throttle_read_iops_device)
    }),
    row("blockIO.throttleWriteIOPSDevice", "io", "io.max", |r, out| {
        out.throttle("wiops", &r.block_io.throttle_write_iops_device)
    }),
    row("hugepageLimits", "hugetlb", "hugetlb.SIZE.max, hugetlb.SIZE.rsvd.max", huge_pages),
    row("rdma", "rdma", "rdma.max", rdma),
    row("network", "", "", network),
    // Last, so that a file named outright wins over what a v1 field was converted to.
    row("unified", "", "any", unified),
];

const fn row(
    field: &'static str,
    controller: &'static str,
    files: &'static str,
    plan: fn(&Resources, &mut Draft<'_>) -> Result<()>,
) -> Row {
    Row { field, controller, files, plan }
}

/// Plans a new container's cgroup. Devices are always governed: see [`devices::in_force`].
///
/// # Errors
///
/// A value is out of range, contradicts another, or asks for what cgroup v2 cannot limit.
pub fn plan(resources: &Resources) -> Result<Limits> {
    let mut limits = plan_update(resources)?;
    limits.devices = Some(devices::in_force(&resources.devices));
    Ok(limits)
}

/// Plans a change of a running container's cgroup: as [`plan`], but nothing about devices changes.
///
/// A period alone is planned as a period without quota, so the caller merges a change into the recorded resources first.
///
/// # Errors
///
/// As [`plan`].
pub fn plan_update(resources: &Resources) -> Result<Limits> {
    let mut limits = Limits::default();
    for row in ROWS {
        (row.plan)(resources, &mut Draft { row, limits: &mut limits })?;
    }
    Ok(limits)
}

/// The plan as it grows, seen from one row.
struct Draft<'plan> {
    row: &'static Row,
    limits: &'plan mut Limits,
}

impl Draft<'_> {
    fn write(&mut self, file: impl Into<Cow<'static, str>>, value: String, otherwise: Otherwise) {
        let controller = Cow::Borrowed(self.row.controller);
        self.push(Write { controller, file: file.into(), value, field: self.row.field.into(), otherwise });
    }

    fn push(&mut self, write: Write) {
        if !write.controller.is_empty() {
            self.limits.needs.insert(write.controller.clone());
        }
        self.limits.writes.push(write);
    }

    fn number(&mut self, file: &'static str, value: Option<impl ToString>) -> Result<()> {
        if let Some(value) = value {
            self.write(file, value.to_string(), Otherwise::Refuse);
        }
        Ok(())
    }

    fn text(&mut self, file: &'static str, value: &str) -> Result<()> {
        self.number(file, (!value.is_empty()).then_some(value))
    }

    /// Bytes, where -1 is no limit and 0 is not set.
    fn bytes(&mut self, file: &'static str, value: Option<i64>) -> Result<()> {
        match value {
            None | Some(0) => Ok(()),
            Some(-1) => self.text(file, "max"),
            Some(bytes @ 1..) => self.number(file, Some(bytes)),
            Some(bytes) => Err(self.refuse(bytes, "bytes are at least 0, or -1 for no limit")),
        }
    }

    fn throttle(&mut self, key: &str, devices: &[ThrottleDevice]) -> Result<()> {
        for ThrottleDevice { major, minor, rate } in devices {
            // In v1 a rate of 0 lifts the limit; v2 has a word for that and takes no 0.
            let rate = if *rate == 0 { "max".into() } else { rate.to_string() };
            self.write("io.max", format!("{major}:{minor} {key}={rate}"), Otherwise::Refuse);
        }
        Ok(())
    }

    /// A limit of v1 that v2 does not have: refused where it would limit something.
    fn obsolete(&mut self, value: Option<i64>, instead: &str) -> Result<()> {
        match value {
            None | Some(..=0) => Ok(()),
            Some(value) => Err(self.refuse(value, &format!("cgroup v2 {instead}"))),
        }
    }

    /// A hint of v1 that v2 does not have.
    fn ignored(&mut self, asked: bool, why: &str) -> Result<()> {
        if asked {
            self.limits.notes.push(format!("linux.resources.{} is ignored: cgroup v2 {why}", self.row.field));
        }
        Ok(())
    }

    fn refuse(&self, value: impl ToString, why: &str) -> Error {
        refuse(self.row.field, value, why)
    }
}

fn refuse(field: &str, value: impl ToString, why: &str) -> Error {
    Error::said("set", format!("linux.resources.{field} to {}", value.to_string()), why)
}

fn pids(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    let value = match r.pids.limit {
        None => return Ok(()),
        Some(..0) => "max".into(),
        // A limit of 0 is valid, not absent (runtime-spec, config-linux.md#pids). The kernel would not let even the
        // container's first process in; with 1 that one runs and cannot fork, which is what 0 says once it is in.
        Some(limit) => limit.max(1).to_string(),
    };
    out.number("pids.max", Some(value))
}

/// In v1 `swap` is memory and swap together; v2 limits swap by itself.
fn swap(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    let value = match (r.memory.swap.unwrap_or(0), r.memory.limit.unwrap_or(0)) {
        // Unlimited memory alone lifts both, as it did in v1.
        (0, -1) | (-1, _) => "max".into(),
        (0, _) => return Ok(()),
        (swap @ ..-1, _) => return Err(out.refuse(swap, "bytes are at least 0, or -1 for no limit")),
        (swap, 0) => {
            return Err(out.refuse(swap, "it is memory and swap together, and memory.limit is not set"));
        }
        (swap, -1) => swap.to_string(),
        (swap, limit) if swap < limit => {
            return Err(out.refuse(swap, "it is memory and swap together, and memory.limit is more"));
        }
        (swap, limit) => (swap.saturating_sub(limit)).to_string(),
    };
    // A kernel without swap accounting has no file, and no swap to give or to forbid.
    let otherwise = if matches!(value.as_str(), "max" | "0") { Otherwise::Skip } else { Otherwise::Refuse };
    out.write("memory.swap.max", value, otherwise);
    Ok(())
}

fn check_before_update(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    let positive = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0);
    let (limit, with_swap) = (positive(r.memory.limit), positive(r.memory.swap));
    if r.memory.check_before_update == Some(true) && (limit.is_some() || with_swap.is_some()) {
        out.limits.memory_check = Some(MemoryCheck { limit, with_swap });
    }
    Ok(())
}

fn disable_oom_killer(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    match r.memory.disable_oom_killer {
        Some(true) => Err(out
            .refuse(true, "cgroup v2 cannot switch the OOM killer off")
            .hint("unified \"memory.high\" slows a container down instead of killing it")),
        _ => Ok(()),
    }
}

/// Weight from shares: 2..=262144 to 1..=10000 through the default of either, 1024 to 100, by a parabola of logarithms.
///
/// `10^((l² + 125 l) / 612 − 7/34)`, `l = log2(shares)`, rounded up: what runc, crun and Kubernetes convert with since
/// 2025. 0 is not set.
fn cpu_weight(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1..=2 => Some(1),
        262_144.. => Some(10_000),
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            Some(10f64.powf(exponent).ceil() as u64)
        }
    }
}

fn burst(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    let Some(burst) = r.cpu.burst else { return Ok(()) };
    if let Some(quota @ 1..) = r.cpu.quota
        && burst > quota.unsigned_abs()
    {
        return Err(out.refuse(burst, "it is more than cpu.quota"));
    }
    // The kernel holds burst <= quota at every moment: it may be too early (the quota grows) or too late (it shrinks).
    let otherwise = if cpu_limit(r).is_some() { Otherwise::Again } else { Otherwise::Refuse };
    out.write("cpu.max.burst", burst.to_string(), otherwise);
    Ok(())
}

fn cpu_max(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    out.number("cpu.max", cpu_limit(r))
}

/// `QUOTA PERIOD`; without a period the kernel keeps the one it has, 100000 in a new cgroup.
fn cpu_limit(r: &Resources) -> Option<String> {
    let quota = match r.cpu.quota.unwrap_or(0) {
        0 => None,
        ..0 => Some("max".to_string()),
        quota => Some(quota.to_string()),
    };
    match (quota, r.cpu.period.unwrap_or(0)) {
        (quota, 0) => quota,
        (quota, period) => Some(format!("{} {period}", quota.as_deref().unwrap_or("max"))),
    }
}

/// io.weight's 1..=10000 from the specification's 10..=1000, which is also the BFQ scheduler's.
fn converted_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

fn checked_weight(weight: Option<u16>, out: &Draft<'_>) -> Result<Option<u16>> {
    match weight {
        None | Some(0) => Ok(None),
        Some(weight @ 10..=1000) => Ok(Some(weight)),
        Some(weight) => Err(out.refuse(weight, "a weight is 10 to 1000")),
    }
}

fn io_weight(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    if let Some(weight) = checked_weight(r.block_io.weight, out)? {
        let instead = Otherwise::Instead("io.weight", converted_weight(weight).to_string());
        out.write("io.bfq.weight", weight.to_string(), instead);
    }
    Ok(())
}

fn device_weights(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    for device in &r.block_io.weight_device {
        let (major, minor) = (device.major, device.minor);
        if let Some(weight) = checked_weight(device.weight, out)? {
            let instead = Otherwise::Instead("io.weight", format!("{major}:{minor} {}", converted_weight(weight)));
            out.write("io.bfq.weight", format!("{major}:{minor} {weight}"), instead);
        }
        out.ignored(device.leaf_weight.is_some_and(|w| w > 0), "weighs a cgroup's own tasks no other way: leafWeight")?;
    }
    Ok(())
}

fn huge_pages(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    for page in &r.hugepage_limits {
        let size = &page.page_size;
        let number = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
        if !number.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())) {
            return Err(out.refuse(format!("{size:?}"), "a page size is written as 64KB, 2MB or 1GB"));
        }
        out.write(format!("hugetlb.{size}.max"), page.limit.to_string(), Otherwise::Refuse);
        // Reservations are counted since Linux 5.7; before, faults are all there is.
        out.write(format!("hugetlb.{size}.rsvd.max"), page.limit.to_string(), Otherwise::Skip);
    }
    Ok(())
}

fn rdma(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    for (device, limit) in &r.rdma {
        if device.is_empty() || device.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(out.refuse(format!("{device:?}"), "that is no device's name"));
        }
        let handles = limit.hca_handles.map(|count| format!(" hca_handle={count}")).unwrap_or_default();
        let objects = limit.hca_objects.map(|count| format!(" hca_object={count}")).unwrap_or_default();
        if handles.is_empty() && objects.is_empty() {
            return Err(out.refuse(device, "one of hcaHandles and hcaObjects is needed"));
        }
        out.write("rdma.max", format!("{device}{handles}{objects}"), Otherwise::Refuse);
    }
    Ok(())
}

fn network(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    if let Some(class @ 1..) = r.network.class_id {
        return Err(refuse("network.classID", class, "net_cls is a controller of cgroup v1 only"));
    }
    if !r.network.priorities.is_empty() {
        return Err(out.refuse("priorities", "net_prio is a controller of cgroup v1 only"));
    }
    Ok(())
}

/// Files through which ferry itself moves, stops and ends containers.
const RESERVED: &[&str] = &["cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.freeze", "cgroup.type"];

fn unified(r: &Resources, out: &mut Draft<'_>) -> Result<()> {
    for (file, value) in &r.unified {
        let field = format!("unified[{file:?}]");
        let name = file.split_once('.').filter(|(controller, rest)| !controller.is_empty() && !rest.is_empty());
        let Some((controller, rest)) = name.filter(|_| !file.contains(['/', '\0'])) else {
            return Err(refuse(&field, format!("{value:?}"), "a file of cgroup v2 is named controller.parameter"));
        };
        if RESERVED.contains(&file.as_str()) {
            return Err(refuse(
                &field,
                format!("{value:?}"),
                "that file is not a limit; ferry works through it itself",
            ));
        }
        // The core has files of its own, and pressure is told (and its triggers armed) without any controller.
        let core = controller == "cgroup" || rest == "pressure";
        let controller: Cow<'static, str> = if core { "".into() } else { controller.to_string().into() };
        // Files keyed by device take one line a write.
        for line in if value.is_empty() { vec![""] } else { value.lines().collect() } {
            let (controller, file) = (controller.clone(), file.clone().into());
            let field = field.clone().into();
            out.push(Write { controller, file, value: line.into(), field, otherwise: Otherwise::Refuse });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
