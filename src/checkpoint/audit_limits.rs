//! Of [`super::audit`]: resource limits, scheduling, the OOM killer's score and the security label of a process.

use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

use crate::error::{Context, Result};
use crate::launch::Plan;
use crate::launch::plan::ProcessPlan;
use crate::procfs;

/// The rows of `/proc/PID/limits`. fs/proc/base.c, lnames
const ROWS: [(Resource, &str); 16] = [
    (Resource::RLIMIT_CPU, "Max cpu time"),
    (Resource::RLIMIT_FSIZE, "Max file size"),
    (Resource::RLIMIT_DATA, "Max data size"),
    (Resource::RLIMIT_STACK, "Max stack size"),
    (Resource::RLIMIT_CORE, "Max core file size"),
    (Resource::RLIMIT_RSS, "Max resident set"),
    (Resource::RLIMIT_NPROC, "Max processes"),
    (Resource::RLIMIT_NOFILE, "Max open files"),
    (Resource::RLIMIT_MEMLOCK, "Max locked memory"),
    (Resource::RLIMIT_AS, "Max address space"),
    (Resource::RLIMIT_LOCKS, "Max file locks"),
    (Resource::RLIMIT_SIGPENDING, "Max pending signals"),
    (Resource::RLIMIT_MSGQUEUE, "Max msgqueue size"),
    (Resource::RLIMIT_NICE, "Max nice priority"),
    (Resource::RLIMIT_RTPRIO, "Max realtime priority"),
    (Resource::RLIMIT_RTTIME, "Max realtime timeout"),
];

/// Capabilities that raise these limits, and priorities beyond them.
const SYS_NICE: u64 = 1 << 23;
const SYS_RESOURCE: u64 = 1 << 24;

type Verdict = std::result::Result<(), String>;

/// Looks at one process; `Ok(Err(…))`: it has more than the plan gives.
///
/// # Errors
/// It cannot be looked at.
pub fn check(plan: &Plan, process: &Path) -> Result<Verdict> {
    let Some(planned) = &plan.process else { return Ok(Ok(())) };
    let read = |path: &Path| procfs::text(path).or_cannot("read", path.display());
    let table = read(&process.join("limits"))?;
    for limit in &planned.limits {
        let row = ROWS.iter().find(|(resource, _)| *resource == limit.resource).map_or("", |(_, row)| *row);
        if hard(&table, row).is_none_or(|hard| hard > limit.hard) {
            return Ok(Err(format!("has a higher limit than process.rlimits gives: {row}")));
        }
    }
    if let Err(more) = scheduling(planned, process, &table)? {
        return Ok(Err(more));
    }
    let score = |text: String| text.trim().parse::<i32>().unwrap_or(i32::MIN);
    let least = match planned.oom_score_adj {
        Some(score) => score,
        None => score(read(Path::new("/proc/self/oom_score_adj"))?),
    };
    if score(read(&process.join("oom_score_adj"))?) < least {
        return Ok(Err("is safer from the OOM killer than process.oomScoreAdj makes it".to_owned()));
    }
    if let Some(label) = &planned.label {
        let own = if label.file.contains("apparmor") { "attr/apparmor/current" } else { "attr/current" };
        let wanted = label.text.strip_prefix("exec ").unwrap_or(&label.text);
        let current = read(&process.join(own))?;
        // AppArmor tells the mode behind the name.
        let current = current.trim_end_matches(['\0', '\n']).trim_end_matches(" (enforce)");
        if current != wanted {
            return Ok(Err(format!("has the security label {current:?} and not {wanted:?}")));
        }
    }
    Ok(Ok(()))
}

/// How the kernel schedules a thread.
#[derive(Debug, PartialEq, Eq)]
struct Scheduled {
    nice: i32,
    /// Of real-time policies; 0 for others.
    priority: u32,
    policy: u32,
}

/// No thread may come before others by more than the configuration, or ferry that starts containers with what it has itself, gives.
fn scheduling(planned: &ProcessPlan, process: &Path, limits: &str) -> Result<Verdict> {
    const DEADLINE: u32 = 6;
    let capabilities = &planned.identity.capabilities;
    let given = capabilities.bounding | capabilities.permitted;
    if given & SYS_NICE != 0 {
        return Ok(Ok(()));
    }
    // Limits by which a process without the capability may raise itself.
    let most = |resource: Resource| match planned.limits.iter().find(|limit| limit.resource == resource) {
        Some(limit) => Ok(limit.hard),
        None => getrlimit(resource).map(|(_, hard)| hard).or_cannot("read", "ferry's own limits"),
    };
    let (most_priority, most_nice) = (most(Resource::RLIMIT_RTPRIO)?, most(Resource::RLIMIT_NICE)?);
    let is_higher = |row: &str, most: u64| hard(limits, row).is_none_or(|hard| hard > most);
    if given & SYS_RESOURCE == 0
        && (is_higher("Max realtime priority", most_priority) || is_higher("Max nice priority", most_nice))
    {
        return Ok(Err("may raise its priority by a limit that process.rlimits does not give".to_owned()));
    }
    let own = scheduled(Path::new("/proc/self"))?;
    let (nice, priority, policy) = match &planned.scheduling.scheduler {
        Some(attr) => (attr.nice, attr.priority, attr.policy),
        // Whoever restores may well be nicer than whoever started it.
        None => (own.nice.min(0), own.priority, own.policy),
    };
    let nice = i64::from(nice).min(20 - most_nice.min(40) as i64);
    let threads = process.join("task");
    for thread in procfs::numbers(&threads).or_cannot("read", process.display())? {
        let thread = scheduled(&threads.join(thread.to_string()))?;
        let is_more = u64::from(thread.priority) > most_priority.max(priority.into())
            || thread.policy == DEADLINE && policy != DEADLINE
            || i64::from(thread.nice) < nice;
        if is_more {
            return Ok(Err("has a higher priority than process.scheduler gives".to_owned()));
        }
    }
    Ok(Ok(()))
}

fn scheduled(directory: &Path) -> Result<Scheduled> {
    let path = directory.join("stat");
    let text = procfs::text(&path).or_cannot("read", path.display())?;
    row(&text).ok_or(nix::errno::Errno::EPROTO).or_cannot("read", path.display())
}

/// Fields 19, 40 and 41, of which the third is the first behind the name, which may hold anything. proc_pid_stat(5)
fn row(text: &str) -> Option<Scheduled> {
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3);
    Some(Scheduled {
        nice: field(19)?.parse().ok()?,
        priority: field(40)?.parse().ok()?,
        policy: field(41)?.parse().ok()?,
    })
}

/// The hard limit of a row, whose columns are of fixed widths.
fn hard(table: &str, row: &str) -> Option<u64> {
    let line = table.lines().find(|line| !row.is_empty() && line.starts_with(row))?;
    match line.get(row.len()..)?.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_has_its_row() {
        let own = std::fs::read_to_string("/proc/self/limits").unwrap();
        for (resource, row) in ROWS {
            let (_, ceiling) = nix::sys::resource::getrlimit(resource).unwrap();
            assert_eq!(hard(&own, row), Some(ceiling), "{row}");
        }
        assert_eq!(hard(&own, ""), None);
    }

    #[test]
    fn a_thread_tells_its_scheduling_whatever_its_name() {
        let numbers = |from: u32, to: u32| (from..=to).map(|number| number.to_string()).collect::<Vec<_>>().join(" ");
        let line = format!("1 (a) S 1 (b) S {} -5 {} 50 1 0 0", numbers(4, 18), numbers(20, 39));
        assert_eq!(row(&line), Some(Scheduled { nice: -5, priority: 50, policy: 1 }));
        assert_eq!(row("1 (a) S 1 2"), None);
    }
}
