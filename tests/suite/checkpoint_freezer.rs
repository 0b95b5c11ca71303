//! A container stands still before CRIU comes, for no longer than it must, and goes on afterwards whatever becomes of ferry.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use libtest_mimic::Failed;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::case::{Case, marked_processes};
use super::checkpoint::{CRIU, images};
use super::output;
use super::row::Row;
use super::scenario::{Outcome, Scenario, scenario};

/// This file's scenarios.
pub const SCENARIOS: &[Scenario] = &[
    scenario("criu_need_not_wait_for_it", CRIU, not_waited_for),
    scenario("it_goes_on_where_ferry_is_killed_meanwhile", CRIU, killed),
];

/// CRIU says how often it has looked whether everything stands still, where it had to.
fn not_waited_for(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
    row.go_on(3)?;
    let (images, id) = (images(case), case.id.clone());
    case.call(&["--debug", "checkpoint", "--leave-running", "--image-path", &images, &id])?.success()?;
    let log = fs::read_to_string(format!("{images}/dump.log"))?;
    assert!(log.contains("freezing cgroup") && !log.contains("attempts done"), "{log}");
    assert_eq!(case.state()?["status"], "running");
    row.go_on(5)
}

/// Waits until the cgroup's processes stand still (`1`), or go on (`0`).
pub(super) fn until_frozen(case: &Case, cgroup: &Path, is: &str) -> Outcome {
    let (mut events, until) = (File::open(cgroup.join("cgroup.events"))?, Instant::now() + case.patience());
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.contains(&format!("frozen {is}")) {
            return Ok(());
        }
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now()))?;
        if poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], left)? == 0 {
            return Err(format!("its processes are not {is} in {text:?}").into());
        }
    }
}

/// A search path on which CRIU is a script, made of where CRIU itself is.
pub(super) fn path_with_criu(case: &Case, script: impl FnOnce(&Path) -> String) -> Result<OsString, Failed> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let criu = std::env::split_paths(&path).map(|path| path.join("criu")).find(|path| path.exists());
    let programs = case.host_directory("programs")?;
    fs::write(programs.join("criu"), script(&criu.ok_or("there is no criu")?))?;
    fs::set_permissions(programs.join("criu"), fs::Permissions::from_mode(0o755))?;
    Ok(std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&path)))?)
}

/// One that tells its version and, when it is asked for more, that it is about to stop the processes (criu/images/rpc.proto:
/// `criu_resp` with a `criu_notify`), and then does nothing.
fn idle_criu(case: &Case) -> Result<OsString, Failed> {
    let asked = case.path("asked");
    path_with_criu(case, |criu| {
        format!(
            "#!/bin/sh\n[ -e {asked} ] || {{ : >{asked}; exec {} \"$@\"; }}\n\
             printf '\\010\\006\\020\\001\\052\\012\\012\\010pre-dump' >&3; exec sleep 1000\n",
            criu.display(),
        )
    })
}

fn killed(case: &mut Case) -> Outcome {
    let mut row = Row::of(case.args(&["/probe", "ring"]).start()?);
    row.go_on(3)?;
    let (images, id) = (images(case), case.id.clone());
    let cgroup = case.cgroups().into_iter().next().ok_or("it has no cgroup")?;
    let path = idle_criu(case)?;
    let mut command = case.command(&["checkpoint", "--image-path", &images, &id]);
    let mut child = command.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    until_frozen(case, &cgroup, "1")?;
    assert_eq!(case.state()?["status"], "paused");
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL)?;
    output::wait(&mut child, case.patience())?;
    // CRIU may be at work on it yet.
    assert_eq!(case.state()?["status"], "paused");
    let is_idle = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x001000\0");
    let criu = marked_processes(&case.directory).into_iter().find(is_idle).ok_or("there is no CRIU")?;
    kill(Pid::from_raw(i32::try_from(criu)?), Signal::SIGKILL)?;
    until_frozen(case, &cgroup, "0")?;
    assert_eq!(case.state()?["status"], "running");
    row.go_on(5)
}
