//! Of [`super::audit`]: resource limits, the OOM killer's score and the security label of a process.

use std::path::Path;

use nix::sys::resource::Resource;

use crate::error::{Context, Result};
use crate::launch::Plan;

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

/// Looks at one process; `Ok(Err(…))`: it has more than the plan gives.
///
/// # Errors
/// It cannot be looked at.
pub fn check(plan: &Plan, process: &Path) -> Result<std::result::Result<(), String>> {
    let Some(planned) = &plan.process else { return Ok(Ok(())) };
    let read = |path: &Path| std::fs::read_to_string(path).or_cannot("read", path.display());
    let table = read(&process.join("limits"))?;
    for limit in &planned.limits {
        let row = ROWS.iter().find(|(resource, _)| *resource == limit.resource).map_or("", |(_, row)| *row);
        if hard(&table, row).is_none_or(|hard| hard > limit.hard) {
            return Ok(Err(format!("has a higher limit than process.rlimits gives: {row}")));
        }
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
}
