//! Sharing memory between containers: the kernel's same-page merging (KSM) for all of a container's processes.
//!
//! Only for a container that asks for it, by annotation or flag: whoever can time a write can tell whether a page was shared,
//! and so what others have in memory. The setting is made in the child and passes to all its children and what they execute.
//!
//! Source: the kernel's admin-guide/mm/ksm.rst; prctl(2), PR_SET_MEMORY_MERGE; proc_pid_ksm_stat in filesystems/proc.rst.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::Pid;
use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::procfs;
use crate::sys::memory::set_memory_merge;

/// The annotation that asks for it: `true` or `false`.
pub const ANNOTATION: &str = "dev.ferry.ksm";

/// Linux 6.7: before, a program that is executed begins without the setting.
const SINCE: (u32, u32) = (6, 7);

const RUN: &str = "/sys/kernel/mm/ksm/run";

/// Whether the container's memory is to be merged. A host that merges nothing at present is worth a warning.
///
/// # Errors
/// The annotation has another value, or this kernel cannot.
pub fn plan(annotations: &BTreeMap<String, String>, warnings: &mut Vec<String>) -> Result<bool> {
    match annotations.get(ANNOTATION).map(String::as_str) {
        None | Some("false") => return Ok(false),
        Some("true") => {}
        Some(value) => {
            let object = format!("annotation {ANNOTATION} to {value:?}");
            return Err(Error::said("set", object, "it is either \"true\" or \"false\""));
        }
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if !is_since(&release, SINCE) {
        let why = format!("this is Linux {release}: a program keeps the setting when it is executed since Linux 6.7");
        return Err(Error::said("merge memory of", "the container", why));
    }
    match fs::read_to_string(RUN) {
        Ok(state) if state.trim_end() == "1" => {}
        Ok(_) => warnings.push(format!("memory is not merged while the host's KSM stands still: echo 1 > {RUN}")),
        Err(error) => {
            return Err(error)
                .or_cannot("read", RUN)
                .map_err(|error| error.hint("a kernel built without CONFIG_KSM cannot merge memory"));
        }
    }
    Ok(true)
}

/// Whether a release (`6.12.1-amd64`) is at least that version.
fn is_since(release: &str, since: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|digits| digits.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= since
}

/// Lets the kernel merge this process' memory, and that of what comes of it.
///
/// # Errors
/// The kernel was built without KSM.
pub fn apply() -> Result<()> {
    set_memory_merge().or_cannot("have the kernel merge the memory of", "the container")
}

/// What merging did for a set of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Merged {
    /// Bytes of pages that share a page with others, and of pages of zeros that take none.
    pub merged: u64,
    /// Bytes saved: that, less what the kernel needs to keep the books. Negative where it costs more than it saves.
    pub profit: i64,
}

/// Sums what merging saved for processes. One that is gone, or is not ours to look at, saved nothing.
pub fn merged(pids: &[Pid]) -> Merged {
    let page = rustix::param::page_size() as u64;
    let texts = pids.iter().filter_map(|pid| procfs::text(format!("/proc/{pid}/ksm_stat")).ok());
    texts.map(|text| merged_in(&text, page)).fold(Merged::default(), |sum, one| Merged {
        merged: sum.merged.saturating_add(one.merged),
        profit: sum.profit.saturating_add(one.profit),
    })
}

fn merged_in(ksm_stat: &str, page: u64) -> Merged {
    let number = |key: &str| -> i64 {
        let value = ksm_stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    let pages = number("ksm_merging_pages").saturating_add(number("ksm_zero_pages"));
    Merged { merged: u64::try_from(pages).unwrap_or(0).saturating_mul(page), profit: number("ksm_process_profit") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_true_asks_for_it_and_nonsense_is_refused() {
        let asked = |value: &str| plan(&[(ANNOTATION.to_owned(), value.to_owned())].into(), &mut Vec::new());
        assert!(!plan(&BTreeMap::new(), &mut Vec::new()).unwrap());
        assert!(!asked("false").unwrap());
        assert!(asked("yes").unwrap_err().to_string().contains("either \"true\" or \"false\""));
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        for (release, is) in [("6.7.0", true), ("6.12.1-amd64", true), ("10.0", true), ("6.6.99", false), ("x", false)]
        {
            assert_eq!(is_since(release, SINCE), is, "{release}");
        }
    }

    #[test]
    fn the_kernels_figures() {
        let text = "ksm_rmap_items 10\nksm_zero_pages 1\nksm_merging_pages 4\nksm_process_profit -640\n";
        assert_eq!(merged_in(text, 4096), Merged { merged: 5 * 4096, profit: -640 });
        assert_eq!(merged_in("", 4096), Merged::default());
    }
}
