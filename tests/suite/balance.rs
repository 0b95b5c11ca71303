//! `balance`: what an idle container gives back, and that its neighbour does not notice.

use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::{Value, json};

use super::case::Case;
use super::cgroup::directory_of;
use super::limits::{alone, give_disk, number, read};
use super::need::Need::{CgroupV2, Disk, Ferry, Root, Tool};
use super::output::{self, Lines};
use super::scenario::{Outcome, Scenario, scenario};

pub const SCENARIOS: &[Scenario] = &[
    scenario("half_of_what_lies_idle_comes_back", &[Root, CgroupV2(ALL), Disk, Ferry], idle),
    scenario("idle_memory_goes_to_swap", &[Root, CgroupV2(ALL), Disk, Ferry, Tool("mkswap"), Tool("swapon")], swap),
    scenario("a_dry_run_takes_nothing", &[Root, CgroupV2(ALL), Disk, Ferry], dry_run),
    scenario("what_was_promised_stays", &[Root, CgroupV2(ALL), Disk, Ferry], promised),
    scenario("without_containers_there_is_nothing_to_do", &[Ferry], nothing),
];

const ALL: &[&str] = &["cpu", "memory"];

fn file_bytes(place: &Path) -> Result<u64, Failed> {
    number(place, "memory.stat", "file")
}

/// A container that has read `megabytes` of the scratch disk from an offset, and does nothing.
fn start_idle(case: &mut Case, memory: Value, offset: u64, megabytes: u64) -> Result<(String, PathBuf), Failed> {
    case.config["linux"]["resources"] = json!({"memory": memory});
    give_disk(case)?;
    case.args(&["/probe", "cache", "/dev/scratch", &offset.to_string(), &megabytes.to_string()]);
    let id = case.start_other()?;
    let place = directory_of(case, &id)?;
    assert!(file_bytes(&place)? >= megabytes << 20);
    Ok((id, place))
}

/// What `balance --format json` says of a container.
fn told_of(told: &Value, id: &str) -> Value {
    told.as_array().into_iter().flatten().find(|one| one["id"] == id).cloned().unwrap_or_default()
}

/// The median of what the worker says it did in a millisecond, over its next `count` lines.
fn pace(lines: &mut Lines, count: usize) -> Result<f64, Failed> {
    let mut paces = Vec::new();
    for _ in 0..count {
        let line: Value = serde_json::from_str(&lines.until("pages")?)?;
        let number = |key: &str| line[key].as_f64().ok_or("it has no number");
        paces.push(number("pages")? / number("milliseconds")?);
    }
    paces.sort_by(f64::total_cmp);
    Ok(paces[count / 2])
}

fn idle(case: &mut Case) -> Outcome {
    let _alone = alone();
    case.config["linux"]["resources"] = json!({"memory": {"limit": -1}, "cpu": {"shares": 1024}});
    let mut lines = case.args(&["/probe", "work", "8"]).start()?;
    lines.until("ready")?;
    // A machine that does other things besides has good and bad moments: one good one out of three shows what is to be shown.
    let mut ratios = Vec::new();
    for attempt in 0..3 {
        let (id, place) = start_idle(case, json!({"limit": -1}), attempt * 64, 48)?;
        let before = pace(&mut lines, 6)?;
        let (mut child, mut told) = case.spawn(&["balance", "--interval", "400ms", "--format", "json"])?;
        let during = pace(&mut lines, 6)?;
        assert_eq!(output::code(output::wait(&mut child, case.patience())?), 0);
        let told: Value = serde_json::from_str(&told.until("[")?)?;
        let (left, told) = (file_bytes(&place)?, told_of(&told, &id));
        assert!(left <= 24 << 20, "{left} bytes of 48 MiB are left: {told}");
        assert!(told["reclaimed"].as_u64() >= Some(24 << 20), "{told}");
        assert_eq!(case.call(&["state", &id])?.success()?.json()?["status"], "running");
        case.call(&["delete", "--force", &id])?.success()?;
        ratios.push(during / before);
        if during >= before * 0.95 {
            return Ok(());
        }
    }
    Err(format!("the neighbour's pace fell to {ratios:.3?} of what it was").into())
}

/// A swap file, gone with this.
struct Swap(PathBuf);

impl Swap {
    fn new(path: PathBuf) -> Result<Self, Failed> {
        let swap = Self(path);
        std::fs::write(&swap.0, vec![0u8; 64 << 20])?;
        for program in ["mkswap", "swapon"] {
            let end = Command::new(program).arg(&swap.0).output()?;
            if !end.status.success() {
                return Err(format!("{program}: {}", String::from_utf8_lossy(&end.stderr)).into());
            }
        }
        Ok(swap)
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let off = Command::new("swapoff").arg(&self.0).status();
        let removed = std::fs::remove_file(&self.0);
        if !off.as_ref().is_ok_and(std::process::ExitStatus::success) || removed.is_err() {
            println!("{}: swap off: {off:?}, removed: {removed:?}", self.0.display());
        }
    }
}

fn swap(case: &mut Case) -> Outcome {
    let _alone = alone();
    // Not among temporary files, which may be in memory themselves.
    let _swap = Swap::new(Path::new("/var/tmp").join(&case.id))?;
    case.config["linux"]["resources"] = json!({"memory": {"limit": -1}});
    case.args(&["/probe", "hold", "32"]).start()?.until("ready")?;
    let id = case.id.clone();
    let place = directory_of(case, &id)?;
    case.call(&["balance", "--interval", "100ms"])?.success()?;
    let anonymous = number(&place, "memory.stat", "anon")?;
    assert!(anonymous <= 16 << 20, "{anonymous} bytes of 32 MiB are left");
    assert!(read(&place, "memory.swap.current")?.parse::<u64>()? >= 16 << 20);
    assert_eq!(case.state()?["status"], "running");
    case.call(&["delete", "--force", &id])?.success().map(drop)
}

fn dry_run(case: &mut Case) -> Outcome {
    let _alone = alone();
    let (id, place) = start_idle(case, json!({"limit": -1}), 0, 32)?;
    let told = case.call(&["balance", "--dry-run", "--interval", "300ms", "--format", "json"])?.success()?.json()?;
    let told = told_of(&told, &id);
    assert!(told["bytes"].as_u64() >= Some(7 << 20) && told["why"] == "idle", "{told}");
    assert!(told["cold"].as_u64() >= Some(32 << 20) && told["reclaimed"] == 0, "{told}");
    assert!(file_bytes(&place)? >= 32 << 20);
    // A target bounds what is taken.
    let told =
        case.call(&["balance", "--target", "4m", "--interval", "300ms", "--format", "json"])?.success()?.json()?;
    let reclaimed = told_of(&told, &id)["reclaimed"].as_u64();
    assert!(reclaimed >= Some(4 << 20) && reclaimed <= Some(8 << 20), "{told}");
    assert!(file_bytes(&place)? >= 22 << 20);
    Ok(())
}

fn promised(case: &mut Case) -> Outcome {
    let _alone = alone();
    let (id, place) = start_idle(case, json!({"reservation": 64 << 20}), 0, 32)?;
    let told = case.call(&["balance", "--interval", "300ms", "--format", "json"])?.success()?.json()?;
    let told = told_of(&told, &id);
    assert_eq!((&told["reclaimed"], &told["why"]), (&json!(0), &json!("settled")), "{told}");
    assert!(file_bytes(&place)? >= 32 << 20);
    Ok(())
}

fn nothing(case: &mut Case) -> Outcome {
    assert_eq!(case.call(&["balance", "--format", "json"])?.success()?.json()?, json!([]));
    Ok(())
}
