//! Waiting until processes that are about to end have ended, where what is decided depends on who is there.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use super::create;
use super::pause::PATIENCE;
use crate::cgroup::{self, life};
use crate::error::{Context, Error, Result};
use crate::procfs;

/// A CRIU whose ferry was killed ends what it has restored. It is in the container's cgroup; one that is ending itself has left it
/// and has no command line any more, and traces what it restored until it has ended that.
pub fn criu(cgroup: &cgroup::Cgroup) -> Result<()> {
    let words = |pid: Pid| procfs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_criu = |line: &[u8]| line.split(|byte| *byte == 0).any(|word| word == b"swrk");
    for pid in life::procs(cgroup)? {
        if is_criu(&words(pid)) {
            wait_for(pid)?;
        }
        match procfs::tracer(pid).ok().flatten().map(|tracer| (tracer, words(tracer))) {
            Some((tracer, line)) if line.is_empty() || is_criu(&line) => wait_for(tracer)?,
            _ => (),
        }
    }
    Ok(())
}

/// A process that was killed is there for a moment longer, and looks like any other. Freezing waits for those: it is done once
/// every process stands still or is gone.
pub fn the_dying(cgroup: &cgroup::Cgroup) -> Result<()> {
    let frozen = life::freeze(cgroup, PATIENCE);
    let thawed = life::thaw(cgroup, PATIENCE);
    frozen.and(thawed)
}

fn wait_for(pid: Pid) -> Result<()> {
    let Some(number) = rustix::process::Pid::from_raw(pid.as_raw()) else { return Ok(()) };
    let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        pidfd => pidfd.or_cannot("find", "CRIU")?,
    };
    let limit = PollTimeout::try_from(create::PATIENCE).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit) {
        Ok(0) => Err(Error::said("wait for", format!("CRIU (process {pid})"), "it does not end")),
        Ok(_) => Ok(()),
        Err(answer) => Err(Error::kernel("wait for", "CRIU", answer)),
    }
}
