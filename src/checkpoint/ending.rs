//! Ending CRIU in the middle of a dump, so that the container goes on.
//!
//! CRIU holds the processes by ptrace, and what it learns from inside of them it has code of its own say, which it lets them
//! run for moments. When it ends, the kernel lets the processes go wherever they are. One that waits in CRIU's code for its
//! word goes back by itself; but one that was made to do a single system call runs into the breakpoint behind it, and dies
//! of that. So CRIU is stopped first, and if a process is in such a moment, it goes on for a little. compel/src/lib/infect.c

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::held::{self, Among, Status};
use crate::error::{Error, Result};
use crate::procfs;
use crate::sys::signal::pidfd_send;

/// How long a good moment is waited for.
const SEARCH: Duration = Duration::from_secs(2);

/// Between two looks. Milliseconds.
const STEP: u16 = 3;

/// Ends CRIU, at a moment that harms no process it holds, if one comes soon.
///
/// # Errors
/// The kernel refuses a signal.
pub fn end(criu: Pid, pidfd: BorrowedFd<'_>) -> Result<()> {
    let until = Instant::now() + SEARCH;
    loop {
        send(pidfd, Signal::SIGSTOP)?;
        let ended = wait(pidfd)?;
        let stopped = procfs::stat(criu).is_ok_and(|stat| stat.state == b'T');
        if ended || stopped && !holds_one_in_its_code(criu) || Instant::now() >= until {
            return send(pidfd, Signal::SIGKILL);
        }
        send(pidfd, Signal::SIGCONT)?;
        wait(pidfd)?;
    }
}

fn send(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<()> {
    match pidfd_send(pidfd, signal as i32) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(answer) => Err(Error::kernel("end", "CRIU", answer)),
    }
}

/// Waits a step for its end.
fn wait(pidfd: BorrowedFd<'_>) -> Result<bool> {
    match poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::from(STEP)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(answer) => Err(Error::kernel("wait for the end of", "CRIU", answer)),
    }
}

/// One that cannot be looked at may be in it.
fn holds_one_in_its_code(criu: Pid) -> bool {
    let is_in_it = |thread: Result<Status>| thread.map_or(true, |thread| thread.is_in_foreign_code());
    held::processes(criu, Among::All)
        .any(|process| process.map_or(true, |process| held::threads(&process).any(is_in_it)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_stands_still_is_ended() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        end(Pid::from_raw(pid.as_raw_nonzero().get()), std::os::fd::AsFd::as_fd(&pidfd)).unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL as i32));
    }
}
