//! Migrations in which something fails, is cut, or is killed: once both ends have been asked to settle it, one copy runs and has lost
//! nothing, and never did two.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use serde_json::Value;

use super::case::{Case, names_in, remove_tree};
use super::checkpoint::CRIU;
use super::checkpoint_cut_off::thaws;
use super::migrate::{calling_with, counter, destination, printed, words};
use super::output::{self, Lines};
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("killed_at_any_moment_one_runs", CRIU, killed),
    scenario("killed_after_the_commit_one_runs", CRIU, killed_after_the_commit),
    scenario("a_disk_that_is_full_over_there_leaves_one", CRIU, full),
    scenario("cut_anywhere_one_runs", CRIU, cut),
];

/// At so many moments something is killed.
pub(super) fn moments() -> u32 {
    if std::env::var_os("FERRY_LONG").is_some() { 20 } else { 3 }
}

/// The word by which the end is known that has the container.
pub(super) const MIGRATES: &str = " migrate ";

/// What the case's own processes are called that have to do with a migration, by their command lines.
pub(super) fn of_this(case: &Case, word: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // The command that leads to the far end is one of the words of the end that calls it.
        let is_it = line.contains(word) && (word == MIGRATES || !line.contains(MIGRATES));
        if is_it && line.contains(&case.path("store")) && !line.starts_with("sh ") && !thaws(pid) {
            found.push(pid);
        }
    }
    found
}

pub(super) fn is_running(case: &mut Case, id: &str) -> Result<bool, Failed> {
    let answer = case.call(&["state", id])?;
    Ok(answer.code == 0 && answer.json()?["status"] == "running")
}

/// After something went wrong: once both ends have been asked to settle it, one runs and has lost nothing, and never did two.
pub(super) fn one_goes_on(case: &mut Case, row: Row, there: &str, what: &str) -> Outcome {
    let (store, to) = (case.path("store"), destination(case));
    one_goes_on_at(case, row, (there, &store, &to), what)
}

/// Asks both ends to settle what was cut off.
pub(super) fn settle(case: &mut Case, (there, store_there, to): (&str, &str, &str)) -> Outcome {
    let (here, store) = (case.id.clone(), case.path("store"));
    case.call(&["--store", &store, "migrate", "--recover", &here, to])?.success()?;
    case.call(&["--store", store_there, "migrate", "--recover", there])?.success().map(drop)
}

/// The same, with the store of the other end, and the words for it.
fn one_goes_on_at(case: &mut Case, mut row: Row, (there, store_there, to): (&str, &str, &str), what: &str) -> Outcome {
    settle(case, (there, store_there, to))?;
    let (here, store) = (case.id.clone(), case.path("store"));
    let (is_here, is_there) = (is_running(case, &here)?, is_running(case, there)?);
    if is_here == is_there {
        return Err(format!("{what}: here {is_here}, there {is_there}").into());
    }
    let said = |why| format!("{what}, here {is_here}: {why:?}");
    match is_here {
        true => {
            row.go_on(5).map_err(said)?;
            // What was restored there and ended again has not run: it would have gone on counting.
            let printed = fs::metadata(case.path(&format!("output/{there}.stdout"))).map_or(0, |file| file.len());
            if printed > 0 {
                return Err(format!("{what}: two ran").into());
            }
        }
        false => {
            let lines = printed(case, there)?;
            row.continued(lines).map_err(said)?;
        }
    }
    nothing_is_kept([&store, store_there], is_there, what)?;
    [&here, there].into_iter().try_for_each(|id| case.call(&["delete", "--force", id])?.success().map(drop))
}

/// Neither end keeps anything of a migration; but one that was killed before it heard that the source is done keeps its journal, which
/// says that it has it, for a month.
pub(super) fn nothing_is_kept(stores: [&str; 2], went: bool, what: &str) -> Outcome {
    for store in stores {
        for name in names_in(&Path::new(store).join("migrations")) {
            let path = Path::new(store).join("migrations").join(&name);
            let journal: Value = serde_json::from_slice(&fs::read(path.join("journal.json"))?)?;
            if !went || !name.ends_with(".destination") || journal["state"] != "active" {
                return Err(format!("{what}: {journal}").into());
            }
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// CRIU, of the ferry that takes a container.
pub(super) fn restoring(case: &Case) -> Vec<i32> {
    let receivers = of_this(case, " receive ");
    let children = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let all: Vec<String> = receivers.iter().map(children).collect();
    let pids = all.iter().flat_map(|pids| pids.split_whitespace()).filter_map(|pid| pid.parse().ok());
    let is_criu = |pid: &i32| {
        std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().windows(4).any(|at| at == b"swrk")
    };
    pids.filter(is_criu).collect()
}

/// Either end's ferry is killed at a moment, or the CRIU that restores. (A CRIU that is killed while it saves a process can take
/// that one along.)
#[allow(clippy::disallowed_methods, reason = "the moment is what the test is about")]
fn killed(case: &mut Case) -> Outcome {
    use nix::sys::signal::{Signal, kill};
    let (store, to) = (case.path("store"), destination(case));
    for whom in [MIGRATES, " receive ", "criu"] {
        for number in 0..moments() {
            let (here, there) = (case.id.clone(), case.other_id());
            let row = counter(case)?;
            let words = words(&["--timeout", "20s", "--progress", "json"], &store, (&here, &there), &to);
            let (mut child, mut told): (Child, Lines) = case.spawn(&words)?;
            if whom == "criu" {
                // Until then there is one at the far end that is only looked at.
                told.until("stop-and-copy")?;
                let end = Instant::now() + case.patience();
                while restoring(case).is_empty() && child.try_wait()?.is_none() && Instant::now() < end {}
            }
            std::thread::sleep(Duration::from_millis(u64::from(number) * if moments() > 3 { 25 } else { 150 }));
            let victims = if whom == "criu" { restoring(case) } else { of_this(case, whom) };
            for pid in victims {
                kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
            output::wait(&mut child, case.patience())?;
            for pid in of_this(case, " receive ") {
                case.wait_for(u32::try_from(pid)?)?;
            }
            one_goes_on(case, row, &there, &format!("{whom} at {number}"))?;
        }
    }
    Ok(())
}

/// The destination's ferry and its CRIU are killed together, at the commit or a moment after it.
#[allow(clippy::disallowed_methods, reason = "the moment is what the test is about")]
fn killed_after_the_commit(case: &mut Case) -> Outcome {
    use nix::sys::signal::{Signal, kill};
    let (store, to) = (case.path("store"), destination(case));
    for number in 0..moments() {
        let (here, there) = (case.id.clone(), case.other_id());
        let row = counter(case)?;
        let words = words(&["--timeout", "20s", "--progress", "json"], &store, (&here, &there), &to);
        let (mut child, mut told): (Child, Lines) = case.spawn(&words)?;
        told.until("stop-and-copy")?;
        // Restoring goes on until after the commit: those that are there before it are the ones.
        told.until("commit")?;
        let victims = [of_this(case, " receive "), restoring(case)].concat();
        told.until("activate")?;
        std::thread::sleep(Duration::from_millis(u64::from(number) * if moments() > 3 { 3 } else { 20 }));
        for pid in victims {
            kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        output::wait(&mut child, case.patience())?;
        for pid in of_this(case, " receive ") {
            case.wait_for(u32::try_from(pid)?)?;
        }
        one_goes_on(case, row, &there, &format!("both at {number} after the commit"))?;
    }
    Ok(())
}

/// A disk of so many bytes, for as long as this is there.
struct Disk(PathBuf);

impl Disk {
    fn at(path: PathBuf) -> Result<Self, Failed> {
        fs::create_dir_all(&path)?;
        let none = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("store"), &path, Some("tmpfs"), none, Some("mode=755,size=64m"))?;
        Ok(Self(path))
    }

    /// Until nothing more fits.
    fn fill(&self) -> Outcome {
        let mut file = fs::File::create(self.0.join("full"))?;
        while file.write_all(&[7; 1 << 16]).is_ok() {}
        Ok(())
    }

    fn free(&self) -> Outcome {
        Ok(fs::remove_file(self.0.join("full"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let gone = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
    }
}

/// The destination's disk, where it keeps images and its journal, is full from some step on.
fn full(case: &mut Case) -> Outcome {
    let disk = Disk::at(case.directory.join("store-there"))?;
    let (store, store_there) = (case.path("store"), case.path("store-there"));
    let receive = format!("receive --stdio --timeout 5s --output {}", case.path("output"));
    let to = format!("exec:exec {} {receive}", calling_with(case, &store_there));
    for step in ["reserve", "stop-and-copy", "commit", "activate"] {
        let row = counter(case)?;
        let (here, there) = (case.id.clone(), case.other_id());
        let words = words(&["--timeout", "5s", "--progress", "json"], &store, (&here, &there), &to);
        let (mut child, mut told): (Child, Lines) = case.spawn(&words)?;
        told.until(step)?;
        disk.fill()?;
        output::wait(&mut child, case.patience())?;
        for pid in of_this(case, " receive ") {
            case.wait_for(u32::try_from(pid)?)?;
        }
        disk.free()?;
        one_goes_on_at(case, row, (&there, &store_there, &to), &format!("full from {step} on"))?;
    }
    Ok(())
}

/// The connection ends after so many bytes, in either direction.
fn cut(case: &mut Case) -> Outcome {
    let ferry = destination(case).trim_start_matches("exec:exec ").to_owned();
    // What goes there is some ten thousand bytes, and what comes back some hundred.
    let forth = (0..moments()).map(|step| (step + 1) * 40_000 / moments());
    let back = (0..moments()).map(|step| 1500 + step * 900 / moments());
    let ways = forth.map(|bytes| format!("exec:dd bs=1 count={bytes} status=none | {ferry}"));
    let ways: Vec<String> =
        ways.chain(back.map(|bytes| format!("exec:{ferry} | dd bs=1 count={bytes} status=none"))).collect();
    for way in ways {
        let row = counter(case)?;
        let (store, here, there) = (case.path("store"), case.id.clone(), case.other_id());
        case.call(&words(&["--timeout", "3s"], &store, (&here, &there), &way))?;
        for pid in of_this(case, " receive ") {
            case.wait_for(u32::try_from(pid)?)?;
        }
        one_goes_on(case, row, &there, &way)?;
    }
    Ok(())
}
