//! Signal dispositions. nix's call is unsafe because a handler could be anything; ferry only ever restores defaults.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigAction, SigHandler, Signal, sigaction};

use super::answer;

/// Sets the disposition of a signal to the default or to be ignored.
///
/// # Errors
/// EINVAL for a signal that cannot be changed or a disposition that is a handler.
pub fn set_action(signal: Signal, action: &SigAction) -> Result<(), Errno> {
    if !matches!(action.handler(), SigHandler::SigDfl | SigHandler::SigIgn) {
        return Err(Errno::EINVAL);
    }
    // SAFETY: no handler is installed, so no code of ours runs asynchronously.
    unsafe { sigaction(signal, action) }.map(drop)
}

/// Sends a signal, by number (real-time ones too), to the process behind a pidfd. pidfd_send_signal(2)
///
/// # Errors
/// ESRCH when it has ended, EINVAL for a number that is no signal, EPERM.
pub fn pidfd_send(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: plain integers and a null pointer, which the call allows; the descriptor is borrowed for the call.
    answer(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) }).map(drop)
}
