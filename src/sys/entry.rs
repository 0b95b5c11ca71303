//! Where a program of ferry begins: the C library's `main`, in place of the Rust runtime's.
//!
//! What the runtime does before `main` takes some 60 µs of a container's start, most of it to find the stack's end in
//! `/proc/self/maps`, for a message about overflows that an end by SIGSEGV tells as well. The two deeds of it that ferry
//! needs are done here: descriptors 0 to 2 are open, and a reader that has gone is an error of write(2) and not the end.

use std::os::fd::RawFd;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};

use super::signal::set_action;

/// Makes the program of a function that answers the exit code. It is told whether the program could begin as it should, and
/// finds the arguments in `std::env::args_os`, to which the C library hands them.
#[macro_export]
macro_rules! program {
    ($run:path) => {
        const _: () = {
            #[allow(unsafe_code)]
            #[unsafe(no_mangle)]
            extern "C" fn main() -> std::ffi::c_int {
                let run: fn(Result<(), nix::errno::Errno>) -> u8 = $run;
                run($crate::sys::entry::begin()).into()
            }
        };
    };
}

/// Sees to descriptors and signals. A caller that ignores SIGCHLD would have the kernel reap ferry's children, and their exit
/// status be lost.
///
/// # Errors
/// What the kernel answers. Nothing has been opened by then, so that the error can be printed.
pub fn begin() -> Result<(), Errno> {
    hold_standard_descriptors()?;
    let action = |handler| SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    set_action(Signal::SIGCHLD, &action(SigHandler::SigDfl))?;
    set_action(Signal::SIGPIPE, &action(SigHandler::SigIgn))
}

/// Opens /dev/null in place of each of the descriptors 0 to 2 that the caller has closed: the next file that is opened would
/// else take its number, and be written to by whoever prints.
fn hold_standard_descriptors() -> Result<(), Errno> {
    let ask = |fd: RawFd| libc::pollfd { fd, events: 0, revents: 0 };
    let mut standard = [ask(libc::STDIN_FILENO), ask(libc::STDOUT_FILENO), ask(libc::STDERR_FILENO)];
    loop {
        // SAFETY: the array is ours and its length is told with it; a descriptor that is not open is what is asked about.
        match Errno::result(unsafe { libc::poll(standard.as_mut_ptr(), standard.len() as libc::nfds_t, 0) }) {
            Err(Errno::EINTR) => (),
            answer => break answer.map(drop)?,
        };
    }
    for _ in standard.iter().filter(|slot| slot.revents & libc::POLLNVAL != 0) {
        // The lowest number is taken, which is the one that is missing.
        // SAFETY: a constant path; the descriptor is left open for the program's whole life.
        Errno::result(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) })?;
    }
    Ok(())
}
