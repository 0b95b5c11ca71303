//! Signal dispositions. nix's call is unsafe because a handler could be anything; ferry only ever restores defaults.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::{SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};

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

/// Every disposition the default and no signal blocked, as a program expects to begin.
///
/// # Errors
/// What a filter around ferry answers.
pub fn reset() -> Result<(), Errno> {
    set_defaults()?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Every disposition the default: what ferry's caller ignores, or has it ignore as nohup(1) does, would be ignored after execve(2)
/// too.
///
/// All of them are set, for to ask which are ignored is as many calls, or a file in /proc that takes longer. By number, since the
/// C library keeps a few to itself, which another one's program may ignore.
///
/// # Errors
/// What a filter around ferry answers.
pub fn set_defaults() -> Result<(), Errno> {
    const LAST: i32 = 64;
    // The kernel's `struct sigaction` and the size of its mask: rt_sigaction(2). All zeros is the default without flags.
    let (default, mask) = ([0_u64; 4], size_of::<u64>());
    let no_old = std::ptr::null_mut::<u64>();
    for number in (1..=LAST).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        // SAFETY: the kernel reads one sigaction, which outlives the call and names no handler; the old one is not asked for.
        answer(unsafe { libc::syscall(libc::SYS_rt_sigaction, number, default.as_ptr(), no_old, mask) })?;
    }
    Ok(())
}

/// Has a program begin as after [`reset`].
pub fn reset_in(command: &mut Command) {
    // SAFETY: between fork and exec there are only system calls, and nothing is allocated.
    unsafe { command.pre_exec(|| reset().map_err(io::Error::from)) };
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
