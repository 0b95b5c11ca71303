//! `update`: other limits for a container that is there.
//!
//! Only what was asked for is written, with what the record must add for it to make sense (a quota's period, the memory
//! that a limit of memory and swap together counts): a limit that somebody else has set in the meantime stays. What can
//! be known beforehand (values, controllers, files) is checked before the first write; what only the kernel knows is found
//! out by writing, and where it refuses, everything is put back as it was.
//!
//! Device rules stay those that the container was created with. Engines send all of linux.resources with every change, with
//! rules of their own list, and whoever wrote the bundle may have added to that: replacing them would take devices away.

use serde_json::{Map, Value};

use super::Setting;
use super::live::{self, Live};
use crate::cgroup::previous::Previous;
use crate::cgroup::{self, Cgroup, Limits, location, systemd};
use crate::container::store::Entry;
use crate::error::{Error, Result};
use crate::spec::resources::{BlockIo, Cpu, Memory, Pids, Resources, ThrottleDevice, WeightDevice};

/// Changes the limits of a container that has a process.
///
/// # Errors
/// It does not run or has no cgroup; a limit is out of range or cannot be enforced; the kernel refuses a value.
pub fn update(setting: &Setting, id: &str, asked: &Resources) -> Result<()> {
    let container = live::open_locked(setting, id)?;
    let recorded = recorded(&container)?;
    let change = change(&recorded, asked);
    let limits = cgroup::resources::plan_update(&change.write)?;
    for note in &limits.notes {
        setting.log.warning(note);
    }
    if limits.writes.is_empty() && limits.memory_check.is_none() {
        // The weight of one that is idle is for afterwards.
        return if change.record == recorded { Ok(()) } else { keep(&container.entry, &change.record) };
    }
    let cgroup = container.cgroup("update")?;
    check(&cgroup, &limits)?;
    let update = Update { container: &container, cgroup: &cgroup, previous: Previous::read(&cgroup, &limits) };
    update.carry_out(&limits, &change.record).map_err(|error| update.undo(error))
}

/// Says what [`update`] would find at fault with the limits by themselves, for what is done before it.
///
/// # Errors
/// The container does not run; a limit is out of range.
pub fn foresee(setting: &Setting, id: &str, asked: &Resources) -> Result<()> {
    let recorded = recorded(&live::open(setting, id)?)?;
    cgroup::resources::plan_update(&change(&recorded, asked).write).map(drop)
}

fn recorded(container: &Live) -> Result<Resources> {
    if !container.has_process() {
        let id = container.entry.id.as_str();
        return Err(Error::plain(format!("container not running: {id:?} is {}", container.status)));
    }
    Ok(container.entry.config()?.linux.resources)
}

/// An update under way.
struct Update<'a> {
    container: &'a Live,
    cgroup: &'a Cgroup,
    previous: Previous,
}

impl Update<'_> {
    fn carry_out(&self, limits: &Limits, record: &Resources) -> Result<()> {
        // Told first, because it can refuse, and because it would put its own idea of the limits back at its next reload.
        self.tell_systemd(limits)?;
        cgroup::fs::apply(self.cgroup, limits)?;
        keep(&self.container.entry, record)
    }

    fn tell_systemd(&self, limits: &Limits) -> Result<()> {
        match &self.container.record.unit {
            Some(unit) => systemd::Manager::connect()?.update(unit, limits),
            None => Ok(()),
        }
    }

    /// Puts back what was changed; `error` stays the one to tell, with what could not be put back beside it.
    fn undo(&self, error: Error) -> Error {
        let undone = [self.tell_systemd(&self.previous.limits()), self.previous.restore(self.cgroup)];
        undone.into_iter().fold(error, Error::and_then)
    }
}

/// Takes memory back from a container once, whatever its limits: page cache first, the rest as far as there is swap.
///
/// # Errors
/// It does not run, or has no memory controller; less than `bytes` could be taken back, with how much it was.
pub fn reclaim(setting: &Setting, id: &str, bytes: u64) -> Result<()> {
    let container = live::open(setting, id)?;
    if !container.has_process() {
        return Err(Error::plain(format!("container not running: {id:?} is {}", container.status)));
    }
    let reclaimed = cgroup::reclaim::reclaim(&container.cgroup("take memory back from")?, bytes)?;
    if reclaimed.whole {
        return Ok(());
    }
    let object = format!("{bytes} bytes from container {id:?}");
    Err(Error::said("take back", object, format!("no more than {} could be reclaimed", reclaimed.bytes))
        .hint("the rest is in use, protected (memory.min, memory.low), or has no swap to go to"))
}

/// Other shares of the cache and of memory bandwidth, in the container's resctrl group: lines as `linux.intelRdt` has them.
///
/// # Errors
/// The container does not run or has no such group; the kernel refuses a line.
pub fn schemata(setting: &Setting, id: &str, asked: &Schemata) -> Result<()> {
    let container = live::open_locked(setting, id)?;
    if !container.has_process() {
        return Err(Error::plain(format!("container not running: {id:?} is {}", container.status)));
    }
    let Some(groups) = &container.record.resctrl else {
        return Err(Error::said("update", asked.flag(), format!("container {id:?} has no resctrl group")).hint(
            "it gets one from linux.intelRdt in its config.json, on a host where the resctrl filesystem is mounted",
        ));
    };
    let lines: Vec<&str> = asked.lines().map(|(_, line)| line).collect();
    cgroup::resctrl::update(groups, &lines)?;
    edit(&container.entry, |linux| {
        let rdt = linux.entry("intelRdt").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(rdt) = rdt {
            rdt.extend(asked.lines().map(|(field, line)| (field.to_owned(), line.into())));
        }
    })
}

/// Lines of a resctrl group's `schemata`, where they are to change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schemata {
    /// `L3:0=ff;1=ff`
    pub l3_cache: Option<String>,
    /// `MB:0=50;1=100`
    pub bandwidth: Option<String>,
}

impl Schemata {
    /// By the field of `linux.intelRdt`.
    fn lines(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let lines = [("l3CacheSchema", &self.l3_cache), ("memBwSchema", &self.bandwidth)];
        lines.into_iter().filter_map(|(field, line)| Some((field, line.as_deref()?)))
    }

    /// The flag that an error is about.
    fn flag(&self) -> &'static str {
        if self.l3_cache.is_some() { "--l3-cache-schema" } else { "--mem-bw-schema" }
    }
}

/// Everything that can be known before the first write.
fn check(cgroup: &Cgroup, limits: &Limits) -> Result<()> {
    // systemd writes a limit as soon as it is told, and the kernel kills what does not fit.
    limits.memory_check.map_or(Ok(()), |check| cgroup::fs::check_memory(cgroup, check))?;
    cgroup::fs::make_ready(cgroup, &location::of_existing(&cgroup.path)?, limits)
}

/// Puts the new limits into the container's copy of its configuration and leaves everything else in it as it is, also
/// what ferry does not know.
fn keep(entry: &Entry, resources: &Resources) -> Result<()> {
    let new = serde_json::to_value(resources).map_err(|why| unrecorded(entry, why.to_string()))?;
    edit(entry, |linux| drop(linux.insert("resources".into(), new)))
}

/// Changes `linux` in the container's copy of its configuration.
fn edit(entry: &Entry, change: impl FnOnce(&mut Map<String, Value>)) -> Result<()> {
    let mut config: Value = entry.config_document()?.parse()?;
    let linux = config.as_object_mut().map(|config| config.entry("linux").or_insert(Value::Null));
    match linux {
        Some(Value::Object(linux)) => change(linux),
        Some(linux @ Value::Null) => {
            let mut new = Map::new();
            change(&mut new);
            *linux = Value::Object(new);
        }
        _ => return Err(unrecorded(entry, "it is no configuration".into())),
    }
    entry.replace_config(config.to_string().as_bytes())
}

fn unrecorded(entry: &Entry, why: String) -> Error {
    Error::said("record the new limits in", entry.path().join("config.json").display().to_string(), why)
}

/// What a request comes to.
#[derive(Debug, PartialEq)]
struct Change {
    /// What is written to the cgroup.
    write: Resources,
    /// What holds afterwards.
    record: Resources,
}

/// Zero is "not set" for all of these, and changes nothing.
fn without_zeros(asked: &Resources) -> Resources {
    let Resources { mut memory, mut cpu, mut block_io, .. } = asked.clone();
    for bytes in [&mut memory.limit, &mut memory.reservation, &mut memory.swap] {
        *bytes = bytes.filter(|bytes| *bytes != 0);
    }
    cpu.shares = cpu.shares.filter(|shares| *shares != 0);
    cpu.quota = cpu.quota.filter(|quota| *quota != 0);
    cpu.period = cpu.period.filter(|period| *period != 0);
    for weight in [&mut block_io.weight, &mut block_io.leaf_weight] {
        *weight = weight.filter(|weight| *weight != 0);
    }
    Resources { memory, cpu, block_io, ..asked.clone() }
}

fn change(recorded: &Resources, asked: &Resources) -> Change {
    let asked = &without_zeros(asked);
    let record = Resources {
        devices: recorded.devices.clone(),
        memory: memory(&recorded.memory, &asked.memory),
        cpu: cpu(&recorded.cpu, &asked.cpu),
        pids: Pids { limit: asked.pids.limit.or(recorded.pids.limit) },
        block_io: block_io(recorded, asked),
        hugepage_limits: upsert(&recorded.hugepage_limits, &asked.hugepage_limits, |a, b| a.page_size == b.page_size),
        network: recorded.network.clone(),
        rdma: recorded.rdma.iter().chain(&asked.rdma).map(|(name, limit)| (name.clone(), limit.clone())).collect(),
        unified: recorded.unified.iter().chain(&asked.unified).map(|(f, v)| (f.clone(), v.clone())).collect(),
    };
    let mut write = asked.clone();
    write.devices.clear();
    // The two are one number in the specification and two files of cgroup v2.
    if asked.memory.limit.is_some() || asked.memory.swap.is_some() {
        write.memory.limit = record.memory.limit;
        write.memory.swap = record.memory.swap;
    }
    // One file holds quota and period, and the kernel checks the burst against the quota.
    if asked.cpu.quota.is_some() || asked.cpu.period.is_some() || asked.cpu.burst.is_some() {
        let Cpu { quota, period, burst, .. } = record.cpu;
        write.cpu = Cpu { quota, period, burst, ..write.cpu };
    }
    // The kernel forgets the weight of a cgroup that was idle, and takes none for one that is.
    if record.cpu.idle.is_some_and(|idle| idle != 0) {
        write.cpu.shares = None;
    } else if write.cpu.shares.is_none() && asked.cpu.idle == Some(0) {
        write.cpu.shares = record.cpu.shares;
    }
    Change { write, record }
}

fn memory(recorded: &Memory, asked: &Memory) -> Memory {
    // Unlimited memory lifts the limit of memory and swap together with it: it could not be kept.
    let swap = if asked.limit == Some(-1) && asked.swap.is_none() { None } else { asked.swap.or(recorded.swap) };
    Memory {
        limit: asked.limit.or(recorded.limit),
        reservation: asked.reservation.or(recorded.reservation),
        swap,
        check_before_update: asked.check_before_update.or(recorded.check_before_update).filter(|check| *check),
        ..recorded.clone()
    }
}

fn cpu(recorded: &Cpu, asked: &Cpu) -> Cpu {
    let text = |asked: &String, recorded: &String| if asked.is_empty() { recorded.clone() } else { asked.clone() };
    Cpu {
        shares: asked.shares.or(recorded.shares),
        quota: asked.quota.or(recorded.quota),
        burst: asked.burst.or(recorded.burst),
        period: asked.period.or(recorded.period),
        cpus: text(&asked.cpus, &recorded.cpus),
        mems: text(&asked.mems, &recorded.mems),
        idle: asked.idle.or(recorded.idle),
        ..recorded.clone()
    }
}

fn block_io(recorded: &Resources, asked: &Resources) -> BlockIo {
    let (old, new) = (&recorded.block_io, &asked.block_io);
    let same = |a: &ThrottleDevice, b: &ThrottleDevice| (a.major, a.minor) == (b.major, b.minor);
    let same_weight = |a: &WeightDevice, b: &WeightDevice| (a.major, a.minor) == (b.major, b.minor);
    BlockIo {
        weight: new.weight.or(old.weight),
        leaf_weight: new.leaf_weight.or(old.leaf_weight),
        weight_device: upsert(&old.weight_device, &new.weight_device, same_weight),
        throttle_read_bps_device: upsert(&old.throttle_read_bps_device, &new.throttle_read_bps_device, same),
        throttle_write_bps_device: upsert(&old.throttle_write_bps_device, &new.throttle_write_bps_device, same),
        throttle_read_iops_device: upsert(&old.throttle_read_iops_device, &new.throttle_read_iops_device, same),
        throttle_write_iops_device: upsert(&old.throttle_write_iops_device, &new.throttle_write_iops_device, same),
    }
}

/// The old entries, each replaced by the new one about the same thing, and the new ones about other things.
fn upsert<T: Clone>(old: &[T], new: &[T], same: impl Fn(&T, &T) -> bool) -> Vec<T> {
    let kept = old.iter().filter(|old| !new.iter().any(|new| same(old, new)));
    kept.chain(new).cloned().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn changed(recorded: Value, asked: Value) -> (Value, Value) {
        let parse = |json| serde_json::from_value::<Resources>(json).unwrap();
        let change = change(&parse(recorded), &parse(asked));
        (serde_json::to_value(change.write).unwrap(), serde_json::to_value(change.record).unwrap())
    }

    #[test]
    fn only_what_was_asked_for_is_written() {
        let recorded = json!({"pids": {"limit": 5}, "memory": {"limit": 100}, "cpu": {"shares": 512}});
        let (write, record) = changed(recorded, json!({"pids": {"limit": 9}}));
        assert_eq!(write, json!({"pids": {"limit": 9}}));
        assert_eq!(record, json!({"pids": {"limit": 9}, "memory": {"limit": 100}, "cpu": {"shares": 512}}));
    }

    #[test]
    fn memory_and_swap_are_counted_together() {
        let recorded = json!({"memory": {"limit": 100, "swap": 300}});
        let both = json!({"memory": {"limit": 200, "swap": 300}});
        assert_eq!(changed(recorded.clone(), json!({"memory": {"limit": 200}})), (both.clone(), both));
        let lifted = json!({"memory": {"limit": -1}});
        assert_eq!(changed(recorded, lifted.clone()), (lifted.clone(), lifted.clone()));
        let limits = cgroup::resources::plan_update(&serde_json::from_value(lifted).unwrap()).unwrap();
        let writes: Vec<_> = limits.writes.iter().map(|write| (&*write.file, &*write.value)).collect();
        assert_eq!(writes, [("memory.swap.max", "max"), ("memory.max", "max")]);
    }

    #[test]
    fn a_period_keeps_its_quota_and_a_quota_its_period() {
        let recorded = json!({"cpu": {"quota": 5000, "period": 50000, "shares": 2}});
        let (write, _) = changed(recorded.clone(), json!({"cpu": {"period": 10000}}));
        assert_eq!(write, json!({"cpu": {"quota": 5000, "period": 10000}}));
        let (write, record) = changed(recorded, json!({"cpu": {"quota": -1, "period": 0}}));
        assert_eq!(write, json!({"cpu": {"quota": -1, "period": 50000}}));
        assert_eq!(record, json!({"cpu": {"quota": -1, "period": 50000, "shares": 2}}));
    }

    #[test]
    fn an_idle_cgroup_takes_no_weight_and_gets_it_back_afterwards() {
        let recorded = json!({"cpu": {"shares": 512}});
        let (write, record) = changed(recorded, json!({"cpu": {"idle": 1}}));
        assert_eq!(write, json!({"cpu": {"idle": 1}}));
        let (write, _) = changed(record.clone(), json!({"cpu": {"idle": 0}}));
        assert_eq!(write, json!({"cpu": {"idle": 0, "shares": 512}}));
        // One that is given meanwhile is for afterwards, and so is one that is given with it.
        for (asked, written) in [
            (json!({"cpu": {"shares": 256}}), json!({})),
            (json!({"cpu": {"shares": 256, "idle": 1}}), json!({"cpu": {"idle": 1}})),
        ] {
            let (write, record) = changed(record.clone(), asked);
            assert_eq!((write, &record["cpu"]), (written, &json!({"shares": 256, "idle": 1})));
        }
    }

    #[test]
    fn zero_changes_nothing() {
        let recorded = json!({"memory": {"limit": 100, "swap": 300, "reservation": 50}, "blockIO": {"weight": 20}});
        let zeros = json!({"memory": {"limit": 0, "swap": 0, "reservation": 0}, "blockIO": {"weight": 0},
            "cpu": {"shares": 0, "quota": 0, "period": 0}});
        assert_eq!(changed(recorded.clone(), zeros), (json!({}), recorded.clone()));
        let (write, record) = changed(recorded, json!({"memory": {"limit": 0, "swap": 400}}));
        assert_eq!((&write, &record["memory"]["swap"]), (&json!({"memory": {"limit": 100, "swap": 400}}), &json!(400)));
    }

    #[test]
    fn device_rules_stay_those_of_the_creation() {
        let rules = json!({"devices": [{"allow": false, "access": "rwm"}]});
        for asked in [rules.clone(), json!({"devices": [{"allow": true, "access": "rwm"}]})] {
            assert_eq!(changed(rules.clone(), asked), (json!({}), rules.clone()));
        }
    }

    #[test]
    fn usage_above_a_checked_limit_is_found_before_anybody_is_told() {
        let Some(tree) = location::find_tree().unwrap() else { return println!("skipped: no cgroup v2 tree") };
        let directory = std::env::temp_dir().join(format!("ferry-test-usage-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("memory.current"), "4096\n").unwrap();
        let files = cgroup::fs::open(&directory).unwrap();
        let cgroup = Cgroup { path: tree.mount.join("box"), ..files };
        let checked = |limit| {
            let memory_check = Some(cgroup::resources::MemoryCheck { limit: Some(limit), with_swap: None });
            check(&cgroup, &Limits { memory_check, ..Limits::default() })
        };
        let (below, above) = (checked(4096), checked(4097));
        std::fs::remove_file(directory.join("memory.current")).unwrap();
        std::fs::remove_dir(&directory).unwrap();
        let error = below.unwrap_err().to_string();
        assert!(
            error.contains("memory.limit to 4096: rejecting memory limit: the container uses 4096 bytes"),
            "{error}"
        );
        above.unwrap();
    }

    #[test]
    fn a_device_has_one_rate() {
        let rate = |rate: u64| json!({"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": rate}]}});
        assert_eq!(changed(rate(1), rate(2)), (rate(2), rate(2)));
    }
}
