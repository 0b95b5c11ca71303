//! Who is at work on a container for long, with its lock held: a checkpoint or a restore, and the CRIU that does it.
//!
//! Noted beside the record, so that `delete --force` need not wait for one that hangs: it asks that one to give up, or ends
//! it. The note is of no meaning once the lock is free, but for a CRIU that outlived its ferry.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::record::Init;
use crate::error::{Context, Error, Result};
use crate::sys::signal::pidfd_send;

/// The two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// ferry.
    pub ferry: Init,
    /// CRIU, once it is there.
    pub criu: Option<Init>,
    /// Whether they make the container, by restoring it.
    #[serde(default)]
    pub restores: bool,
}

/// How long a worker may take to give up.
const PATIENCE: Duration = Duration::from_secs(10);

impl Worker {
    /// This process, and the CRIU it has started, if it has.
    ///
    /// # Errors
    /// CRIU has ended.
    pub fn own(criu: Option<Pid>) -> Result<Self> {
        Ok(Self { ferry: identity(Pid::this())?, criu: criu.map(identity).transpose()?, restores: false })
    }

    /// The same, at work on a restore.
    ///
    /// # Errors
    /// As [`Worker::own`].
    pub fn restoring(criu: Option<Pid>) -> Result<Self> {
        Ok(Self { restores: true, ..Self::own(criu)? })
    }

    /// Whether a restore is still at work, also one that has lost its ferry: the process that is noted as the container's first is CRIU
    /// then, or one that CRIU has not finished.
    ///
    /// # Errors
    /// What reading `/proc` answers.
    pub fn is_restoring(&self) -> Result<bool> {
        let criu_lives = || self.criu.map_or(Ok(false), |criu| criu.is_alive());
        Ok(self.restores && (self.ferry.is_alive()? || criu_lives()?))
    }

    /// Whether its ferry has ended and left the note behind.
    ///
    /// # Errors
    /// What reading `/proc` answers.
    pub fn is_cut_off(&self) -> Result<bool> {
        Ok(!self.ferry.is_alive()?)
    }

    /// Has ferry give up, and ends both if it does not.
    ///
    /// # Errors
    /// The kernel refuses a signal.
    pub fn interrupt(&self) -> Result<()> {
        if let Some(ferry) = find(&self.ferry)? {
            send(&ferry, Signal::SIGTERM)?;
            if !ended(&ferry)? {
                send(&ferry, Signal::SIGKILL)?;
            }
        }
        self.end_criu()
    }

    /// Ends a CRIU that outlived its ferry: what it holds by ptrace cannot end before.
    ///
    /// # Errors
    /// The kernel refuses the signal.
    pub fn end_criu(&self) -> Result<()> {
        let Some(noted) = &self.criu else { return Ok(()) };
        let Some(criu) = find(noted)? else { return Ok(()) };
        // With what it has started, which is in a group of its number. One that stands still keeps that number.
        send(&criu, Signal::SIGSTOP)?;
        match killpg(Pid::from_raw(noted.pid), Signal::SIGKILL) {
            // It has no group of its own where it shares the terminal.
            Ok(()) | Err(Errno::ESRCH) => (),
            Err(answer) => return Err(Error::kernel("end", "what CRIU has started", answer)),
        }
        send(&criu, Signal::SIGKILL)?;
        match ended(&criu)? {
            true => Ok(()),
            false => Err(Error::said("end", "CRIU", "it does not end after SIGKILL")),
        }
    }
}

fn identity(pid: Pid) -> Result<Init> {
    let stat = crate::procfs::stat(pid).or_cannot("look at process", pid)?;
    Ok(Init { pid: pid.as_raw(), start_time: stat.start_time })
}

/// The process, if it still runs. Held by its descriptor, it cannot become another one.
fn find(process: &Init) -> Result<Option<OwnedFd>> {
    let Some(pid) = rustix::process::Pid::from_raw(process.pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(process.is_alive()?.then_some(pidfd)),
        // EINVAL: it has ended, and its number lives on as that of a session or a group.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
        Err(answer) => Err(answer).or_cannot("find process", process.pid),
    }
}

fn send(process: &OwnedFd, signal: Signal) -> Result<()> {
    match pidfd_send(process.as_fd(), signal as i32) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(answer) => Err(Error::kernel("end", "the checkpoint or restore that is at work", answer)),
    }
}

fn ended(process: &OwnedFd) -> Result<bool> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => (),
            answer => return answer.map(|ready| ready > 0).or_cannot("wait for", "the end of a process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_hangs_is_ended() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let worker = Worker { criu: identity(pid).ok(), ferry: Init { pid: i32::MAX, start_time: 1 }, restores: false };
        worker.interrupt().unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_restore_goes_on_until_both_have_ended() {
        let (own, gone) = (identity(Pid::this()).unwrap(), Init { pid: i32::MAX, start_time: 1 });
        let restoring = |ferry, criu, restores| Worker { ferry, criu, restores }.is_restoring().unwrap();
        assert!(restoring(own, None, true) && restoring(gone, Some(own), true));
        assert!(!restoring(gone, Some(gone), true) && !restoring(gone, None, true));
        assert!(!restoring(own, Some(own), false), "it saves it");
    }

    /// A pid that was used again is somebody else's.
    #[test]
    fn another_process_of_that_number_is_left_alone() {
        let own = Init { start_time: 1, ..identity(Pid::this()).unwrap() };
        Worker { ferry: own, criu: Some(own), restores: false }.interrupt().unwrap();
    }
}
