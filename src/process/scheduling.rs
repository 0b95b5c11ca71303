//! CPU scheduling, I/O priority, execution domain and NUMA policy of the process. One table for each vocabulary.
//!
//! sched_setattr(2), ioprio_set(2), personality(2), set_mempolicy(2); config.md#linux-process, config-linux.md

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::personality::{Persona, set as set_personality};
use nix::unistd::Pid;
use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::spec::config::{Config, CpuAffinity, IoPriority, MemoryPolicy, Process, Scheduler};
use crate::sys::sched::{SchedAttr, ioprio_set, sched_setattr, set_mempolicy};

/// What is set; nothing unless it is configured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Scheduling {
    /// CPU scheduling policy.
    #[serde(skip)]
    pub scheduler: Option<SchedAttr>,
    /// `class << 13 | priority`.
    pub io_priority: Option<u16>,
    /// `PER_*`.
    pub personality: Option<i32>,
    /// Mode with flags, and the mask of nodes.
    pub memory_policy: Option<(i32, Vec<u64>)>,
    /// CPUs of a process that joins a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
}

/// CPUs by number; an empty list changes nothing. It is not for a container's first process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Affinity {
    /// Of ferry itself, until the process is in the container's cgroup.
    pub first: Vec<usize>,
    /// Of the process from then on.
    pub last: Vec<usize>,
}

const POLICIES: [(&str, u32); 7] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

const IO_CLASSES: [(&str, u16); 3] = [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];

/// `PER_LINUX`, `PER_LINUX32`: linux/personality.h.
const DOMAINS: [(&str, i32); 2] = [("LINUX", 0), ("LINUX32", 8)];

const MEMORY_MODES: [(&str, i32); 7] = [
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

const MEMORY_FLAGS: [(&str, i32); 3] =
    [("MPOL_F_STATIC_NODES", 1 << 15), ("MPOL_F_RELATIVE_NODES", 1 << 14), ("MPOL_F_NUMA_BALANCING", 1 << 13)];
/// Modes that take no nodes: set_mempolicy(2).
const NODELESS_MODES: [&str; 2] = ["MPOL_DEFAULT", "MPOL_LOCAL"];

/// Every mode a NUMA memory policy may have.
pub fn memory_modes() -> impl Iterator<Item = &'static str> {
    MEMORY_MODES.iter().map(|(name, _)| *name)
}

/// Every flag a NUMA memory policy may have.
pub fn memory_flags() -> impl Iterator<Item = &'static str> {
    MEMORY_FLAGS.iter().map(|(name, _)| *name)
}

/// Plans what a process is scheduled by; `at` is its JSON path. Personality and memory policy are the container's, and
/// come from `config` where there is one.
///
/// # Errors
/// An unknown name, a value out of range.
pub fn plan(process: &Process, config: Option<&Config>, at: &str) -> Result<Scheduling> {
    let linux = config.map(|config| &config.linux);
    if linux.and_then(|linux| linux.personality.as_ref()).is_some_and(|personality| !personality.flags.is_empty()) {
        return Err(Error::config("linux.personality.flags", "the specification defines none"));
    }
    let domain = linux.and_then(|linux| linux.personality.as_ref());
    let memory = linux.and_then(|linux| linux.memory_policy.as_ref());
    Ok(Scheduling {
        scheduler: process.scheduler.as_ref().map(|scheduler| policy(scheduler, at)).transpose()?,
        io_priority: process.io_priority.as_ref().map(|priority| io_priority(priority, at)).transpose()?,
        personality: domain
            .map(|personality| look_up(&DOMAINS, &personality.domain, "linux.personality.domain"))
            .transpose()?,
        memory_policy: memory.map(memory_policy).transpose()?,
        affinity: process.exec_cpu_affinity.as_ref().map(|affinity| cpus(affinity, at)).transpose()?,
    })
}

fn look_up<T: Copy>(table: &[(&str, T)], name: &str, at: &str) -> Result<T> {
    known(table, name, at, "unknown value")
}

/// The value of a name; `fault` is what one that is not in the table is called.
fn known<T: Copy>(table: &[(&str, T)], name: &str, at: &str, fault: &str) -> Result<T> {
    table.iter().find(|row| row.0 == name).map(|row| row.1).ok_or_else(|| {
        let known: Vec<&str> = table.iter().map(|row| row.0).collect();
        Error::config(at, format!("{fault} {name:?}; one of {}", known.join(", ")))
    })
}

fn policy(scheduler: &Scheduler, at: &str) -> Result<SchedAttr> {
    let policy = look_up(&POLICIES, &scheduler.policy, &format!("{at}.scheduler.policy"))?;
    let flag = |(index, name): (usize, &String)| look_up(&FLAGS, name, &format!("{at}.scheduler.flags[{index}]"));
    let flags = scheduler.flags.iter().enumerate().map(flag).try_fold(0, |all, flag| flag.map(|flag| all | flag))?;
    let priority = u32::try_from(scheduler.priority)
        .map_err(|_| Error::config(format!("{at}.scheduler.priority"), "must not be negative"))?;
    let Scheduler { nice, runtime, deadline, period, .. } = *scheduler;
    Ok(SchedAttr { size: 0, policy, flags, nice, priority, runtime, deadline, period })
}

fn io_priority(priority: &IoPriority, at: &str) -> Result<u16> {
    let class = look_up(&IO_CLASSES, &priority.class, &format!("{at}.ioPriority.class"))?;
    match u16::try_from(priority.priority) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => Err(Error::config(format!("{at}.ioPriority.priority"), "must be between 0 and 7")),
    }
}

fn memory_policy(policy: &MemoryPolicy) -> Result<(i32, Vec<u64>)> {
    let at = |field: &str| format!("linux.memoryPolicy.{field}");
    let mode = known(&MEMORY_MODES, &policy.mode, &at("mode"), "invalid memory policy mode")?;
    let flag = |(index, name): (usize, &String)| {
        known(&MEMORY_FLAGS, name, &at(&format!("flags[{index}]")), "invalid memory policy flag")
    };
    let flags = policy.flags.iter().enumerate().map(flag).try_fold(0, |all, flag| flag.map(|flag| all | flag))?;
    let (mask, count) = nodes(&policy.nodes)?;
    if count > 0 && NODELESS_MODES.contains(&policy.mode.as_str()) {
        let why = format!("the {} mode requires 0 nodes but got {count}", policy.mode);
        return Err(Error::config(at("nodes"), why));
    }
    Ok((mode | flags, mask))
}

fn cpus(affinity: &CpuAffinity, at: &str) -> Result<Affinity> {
    let list = |list: &str, field: &str| {
        let fault = || format!("must be a list such as 0-3,7, found {list:?}");
        numbers(list).ok_or_else(|| Error::config(format!("{at}.execCPUAffinity.{field}"), fault()))
    };
    Ok(Affinity { first: list(&affinity.first, "initial")?, last: list(&affinity.last, "final")? })
}

/// `0-3,7` as a mask, and how many nodes there are in it.
fn nodes(list: &str) -> Result<(Vec<u64>, usize)> {
    let fault = format!("invalid memory policy nodes {list:?}: must be a list such as 0-3,7, below {MOST}");
    let mask = mask(&numbers(list).ok_or_else(|| Error::config("linux.memoryPolicy.nodes", fault))?);
    let count = mask.iter().map(|word: &u64| word.count_ones() as usize).sum();
    Ok((mask, count))
}

/// Numbers as bits, the lowest word first.
fn mask(numbers: &[usize]) -> Vec<u64> {
    let mut mask = vec![0; numbers.iter().max().map_or(0, |last| last / 64 + 1)];
    numbers.iter().for_each(|number| mask[number / 64] |= 1 << (number % 64));
    mask
}

/// CPUs and memory nodes are numbered below this, as in Linux' own largest configurations.
const MOST: usize = 1024;

/// `0-3,7` as numbers.
fn numbers(list: &str) -> Option<Vec<usize>> {
    let mut numbers = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// Binds this process to these CPUs; to none: leaves it as it is.
///
/// # Errors
/// EINVAL where none of them is there for it.
pub fn bind_to(cpus: &[usize]) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu)).or_cannot("name", "a CPU of execCPUAffinity")?;
    sched_setaffinity(Pid::from_raw(0), &set)
        .or_cannot("bind to CPUs", format_args!("{cpus:?}"))
        .map_err(|error| error.hint("none of them is online and in the cgroup's cpuset"))
}

/// CPUs as a mask in one number, `0x3`, and any wider one from its highest word on.
pub fn hexadecimal(cpus: &[usize]) -> String {
    let words = mask(cpus);
    let (last, rest) = words.split_last().unwrap_or((&0, &[]));
    rest.iter().rev().fold(format!("0x{last:x}"), |text, word| text + &format!("{word:016x}"))
}

/// What policies need, of which the kernel's EPERM says neither: sched_setattr(2).
const NEEDS: &str = "real-time and deadline policies need CAP_SYS_NICE; and a deadline policy needs all CPUs: such a process \
    scheduler can't be used together with AllowedCPUs, that is linux.resources.cpu.cpus";

/// Lets a process run on every CPU its cgroup has: what ferry's caller was bound to is not the container's business. It
/// stays bound where that is refused.
pub fn unbind(pid: Pid) {
    let mut all = CpuSet::new();
    if (0..CpuSet::count()).try_for_each(|cpu| all.set(cpu)).is_ok() {
        sched_setaffinity(pid, &all).ok();
    }
}

/// Applies what is planned to this process.
///
/// # Errors
/// EPERM without the capability, EINVAL for what this kernel does not take.
pub fn apply(scheduling: &Scheduling) -> Result<()> {
    if let Some(attr) = &scheduling.scheduler {
        sched_setattr(attr).or_cannot("set", "scheduler").map_err(|error| error.hint(NEEDS))?;
    }
    apply_inherited(scheduling)
}

/// Applies what is not the scheduler's: all of it is inherited by children, and kept by execve(2).
///
/// # Errors
/// As [`apply`].
pub fn apply_inherited(scheduling: &Scheduling) -> Result<()> {
    if let Some(value) = scheduling.io_priority {
        ioprio_set(value).or_cannot("set", "I/O priority")?;
    }
    if let Some(domain) = scheduling.personality {
        set_personality(Persona::from_bits_retain(domain)).or_cannot("set", "personality")?;
    }
    if let Some((mode, nodes)) = &scheduling.memory_policy {
        set_mempolicy(*mode, nodes).or_cannot("set", "memory policy").map_err(|error| {
            error.hint("the nodes must exist, and some modes must have nodes while others must not: set_mempolicy(2)")
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_lists() {
        assert_eq!(nodes("0-2,64").unwrap(), (vec![0b111, 1], 4));
        assert_eq!(nodes("").unwrap(), (Vec::new(), 0));
        assert!(nodes("3-1").is_err() && nodes("x").is_err() && nodes("5000").is_err());
    }

    #[test]
    fn memory_policies_that_the_kernel_would_refuse() {
        let refused = |mode: &str, nodes: &str, flags: &[&str]| {
            let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
            memory_policy(&MemoryPolicy { mode: mode.into(), nodes: nodes.into(), flags }).unwrap_err().to_string()
        };
        assert!(refused("", "0", &[]).starts_with("linux.memoryPolicy.mode: invalid memory policy mode \"\"; one of"));
        let flag = refused("MPOL_BIND", "0", &["MPOL_F_STATIC_NODES", "x"]);
        assert!(flag.starts_with("linux.memoryPolicy.flags[1]: invalid memory policy flag \"x\"; one of"), "{flag}");
        let nodes = refused("MPOL_BIND", "0-9876543210", &[]);
        assert!(nodes.starts_with("linux.memoryPolicy.nodes: invalid memory policy nodes"), "{nodes}");
        for mode in NODELESS_MODES {
            let nodes = refused(mode, "0-7", &[]);
            assert!(nodes.ends_with(&format!("the {mode} mode requires 0 nodes but got 8")), "{nodes}");
        }
    }

    #[test]
    fn cpus_of_a_joining_process() {
        let affinity = |first: &str, last: &str| {
            let affinity = CpuAffinity { first: first.into(), last: last.into() };
            plan(&Process { exec_cpu_affinity: Some(affinity), ..Process::default() }, None, "process")
        };
        let planned = affinity("0-2,5", "").unwrap().affinity;
        assert_eq!(planned, Some(Affinity { first: vec![0, 1, 2, 5], last: Vec::new() }));
        assert_eq!(hexadecimal(&[0, 1, 5]), "0x23");
        assert_eq!(hexadecimal(&[0, 64]), "0x10000000000000001");
        let error = affinity("", "2-").unwrap_err().to_string();
        assert!(error.starts_with("process.execCPUAffinity.final: must be a list such as"), "{error}");
    }

    #[test]
    fn a_personality_has_no_flags() {
        let mut config = Config::default();
        config.linux.personality =
            Some(crate::spec::config::Personality { domain: "LINUX".into(), flags: vec!["ADDR_NO_RANDOMIZE".into()] });
        let error = plan(&Process::default(), Some(&config), "process").unwrap_err().to_string();
        assert!(error.starts_with("linux.personality.flags: "), "{error}");
    }

    #[test]
    fn unknown_names() {
        let scheduler = Scheduler { policy: "SCHED_FAST".into(), ..Scheduler::default() };
        let process = Process { scheduler: Some(scheduler), ..Process::default() };
        let error = plan(&process, None, "process").unwrap_err().to_string();
        assert!(error.starts_with("process.scheduler.policy: unknown value \"SCHED_FAST\"; one of SCHED_OTHER"));
    }
}
