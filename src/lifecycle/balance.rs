//! `balance`: memory back from containers that do not use it, round by round until they have settled.
//!
//! Each round looks at every container, waits, looks again, and asks the kernel for what [`crate::cgroup::balance`] plans. A
//! container that ends meanwhile is left out of the next round.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use serde::Serialize;

use super::Setting;
use super::live;
use crate::cgroup::balance::{self, FIRST_STEP, Lists, Policy, Seen, Take};
use crate::cgroup::{Cgroup, reclaim, stats};
use crate::container::Store;
use crate::error::{Context, Error, Result};
use crate::procfs;
use crate::sys::sched::{SchedAttr, sched_setattr};

/// How to balance.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Only say what the first round would take.
    pub dry_run: bool,
    /// Bytes that are enough; `None`: all that lies idle.
    pub target: Option<u64>,
    /// Time between two looks.
    pub interval: Duration,
}

/// What came of a container.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// What was planned for it, in the last round.
    #[serde(flatten)]
    pub last: Take,
    /// Bytes reclaimed over all rounds.
    pub reclaimed: u64,
    /// Bytes that it read back meanwhile.
    pub refaulted: u64,
}

/// More rounds than a container takes to settle; one that never does is not followed for ever.
const MOST_ROUNDS: usize = 64;

/// The priority by which others come first: what is taken back can wait.
const NICE: i32 = 10;

/// Balances the containers that run and have memory to be counted. `wait` lets an interval pass; false ends it early.
///
/// # Errors
/// The containers cannot be listed, or the kernel refuses to reclaim.
pub fn balance(
    setting: &Setting,
    options: &Options,
    wait: &mut dyn FnMut(Duration) -> Result<bool>,
) -> Result<Vec<Outcome>> {
    sched_setattr(&SchedAttr { nice: NICE, ..SchedAttr::default() }).or_cannot("lower", "ferry's own priority")?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut steps: Vec<(String, f64)> = Vec::new();
    for _ in 0..MOST_ROUNDS {
        let before = look(setting)?;
        if before.is_empty() || !wait(options.interval)? {
            break;
        }
        let step = |id: &str| steps.iter().find(|(known, _)| known == id).map_or(FIRST_STEP, |(_, step)| *step);
        let seen: Vec<Seen> = pairs(&before, look(setting)?).map(|(old, new)| seen(old, &new, step(&new.id))).collect();
        let reclaimed = outcomes.iter().map(|outcome| outcome.reclaimed).sum::<u64>();
        let wanted = options.target.map(|target| target.saturating_sub(reclaimed));
        let policy = Policy { wanted, ..Policy::default() };
        let takes = balance::plan(&seen, &policy);
        note(&mut outcomes, &seen, &takes);
        if options.dry_run || takes.iter().all(|take| take.bytes == 0) {
            break;
        }
        steps = seen.iter().map(|seen| (seen.id.clone(), balance::next_step(seen, &policy))).collect();
        for take in takes.iter().filter(|take| take.bytes > 0) {
            let Some(look) = before.iter().find(|look| look.id == take.id) else { continue };
            let Some(bytes) = take_back(&look.cgroup, take.bytes)? else { continue };
            for outcome in outcomes.iter_mut().filter(|outcome| outcome.last.id == take.id) {
                outcome.reclaimed += bytes;
            }
            // What the kernel could not find now it will not find next time: the container has settled.
            if bytes < take.bytes / 4 {
                steps.iter_mut().filter(|(id, _)| *id == take.id).for_each(|(_, step)| *step = 0.0);
            }
        }
    }
    Ok(outcomes)
}

/// `None`: the container has ended.
fn take_back(cgroup: &Cgroup, bytes: u64) -> Result<Option<u64>> {
    match reclaim::reclaim(cgroup, bytes) {
        Ok(reclaimed) => Ok(Some(reclaimed.bytes)),
        Err(error) if matches!(error.errno(), Some(Errno::ENODEV)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One look at a container.
struct Look {
    id: String,
    cgroup: Cgroup,
    taken: Instant,
    stats: stats::Stats,
    promised: u64,
    swap: u64,
}

/// Those that run and whose memory is counted.
fn look(setting: &Setting) -> Result<Vec<Look>> {
    let free_swap = free_swap()?;
    let mut looks = Vec::new();
    for id in Store::new(&setting.root).ids()? {
        let Ok(container) = live::open(setting, id.as_str()) else { continue };
        if !container.has_process() || container.record.cgroup.is_none() {
            continue;
        }
        let Ok(cgroup) = container.cgroup("balance") else { continue };
        let stats = stats::read(&cgroup)?;
        if stats.memory.raw.is_empty() {
            continue;
        }
        let promised = stats::promised(&cgroup)?;
        let swap = stats::swap_left(&cgroup)?.min(free_swap);
        looks.push(Look { id: id.as_str().to_owned(), cgroup, taken: Instant::now(), stats, promised, swap });
    }
    Ok(looks)
}

fn pairs(before: &[Look], now: Vec<Look>) -> impl Iterator<Item = (&Look, Look)> {
    now.into_iter().filter_map(|now| Some((before.iter().find(|before| before.id == now.id)?, now)))
}

fn seen(before: &Look, now: &Look, step: f64) -> Seen {
    let raw = |look: &Look, key: &str| look.stats.memory.raw.get(key).copied().unwrap_or(0);
    let grown = |key: &str| raw(now, key).saturating_sub(raw(before, key));
    let stalled = |look: &Look| look.stats.memory.psi.as_ref().map_or(0, |pressure| pressure.some.total);
    let page = rustix::param::page_size() as u64;
    Seen {
        id: now.id.clone(),
        memory: now.stats.memory.usage.usage,
        promised: now.promised,
        file: Lists { active: raw(now, "active_file"), inactive: raw(now, "inactive_file") },
        anonymous: Lists { active: raw(now, "active_anon"), inactive: raw(now, "inactive_anon") },
        swap: now.swap,
        span: now.taken.saturating_duration_since(before.taken),
        cpu: Duration::from_nanos(now.stats.cpu.usage.total.saturating_sub(before.stats.cpu.usage.total)),
        stalled: Duration::from_micros(stalled(now).saturating_sub(stalled(before))),
        refaulted: (grown("workingset_refault_file") + grown("workingset_refault_anon")).saturating_mul(page),
        step,
    }
}

fn note(outcomes: &mut Vec<Outcome>, seen: &[Seen], takes: &[Take]) {
    for (seen, take) in seen.iter().zip(takes) {
        match outcomes.iter_mut().find(|outcome| outcome.last.id == take.id) {
            Some(outcome) => {
                outcome.last = take.clone();
                outcome.refaulted += seen.refaulted;
            }
            None => outcomes.push(Outcome { last: take.clone(), reclaimed: 0, refaulted: 0 }),
        }
    }
}

/// Bytes free in the host's swap.
fn free_swap() -> Result<u64> {
    let text = procfs::text("/proc/meminfo").or_cannot("read", "/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("SwapFree:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kilobytes
        .map(|kilobytes| kilobytes.saturating_mul(1024))
        .ok_or_else(|| Error::said("find SwapFree in", "/proc/meminfo", "it has none"))
}
