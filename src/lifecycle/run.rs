//! `run`: create and start in one, without a gate; in the foreground until the program ends.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::create::{self, Begun, Source, announce, begin, console, read};
use super::{Setting, delete};
use crate::container::Status;
use crate::error::{Context, EXIT_FAILURE, Error, Result};
use crate::launch::foreground;
use crate::launch::hooks;
use crate::launch::parent::{Reached, state_of};

/// How to run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// How to create.
    pub create: create::Options,
    /// Does not wait.
    pub detach: bool,
    /// Does not delete.
    pub keep: bool,
    /// Does not reap.
    pub no_subreaper: bool,
}

/// `run`. Answers the program's exit status, or 0 when detached.
///
/// # Errors
/// What could not be done; nothing is left of it then.
pub fn run(setting: &Setting, options: &Options) -> Result<u8> {
    let source = read(&options.create.bundle, options.create.config.as_deref())?;
    run_source(setting, options, source).map_err(|error| error.exit(EXIT_FAILURE))
}

/// Runs what is in hand.
pub(super) fn run_source(setting: &Setting, options: &Options, source: Source) -> Result<u8> {
    let terminal = source.config.process.as_ref().is_some_and(|process| process.terminal);
    if options.detach || options.create.console_socket.is_some() {
        console(terminal, options.create.console_socket.as_deref())?;
    }
    if !options.detach && !options.no_subreaper {
        // What the container leaves behind without a pid namespace becomes ours to reap, and not the host's.
        nix::sys::prctl::set_child_subreaper(true).map_err(|errno| Error::kernel("become", "subreaper", errno))?;
    }
    let mut begun = begin(setting, &options.create, source, false)?;
    let executed = executed(setting, &mut begun).and_then(|()| announce(&begun.child, &begun.plan, &options.create));
    if let Err(error) = executed.and_then(|()| begun.entry.unlock()) {
        return Err(begun.undo(setting, error));
    }
    if options.detach {
        if let Some(notify) = &begun.notify {
            // It runs, whatever becomes of ferry: who waits may give up, as with `start`.
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).or_cannot("unblock", "signals")?;
            notify.wait(begun.child.pidfd.as_fd(), begun.child.pid.as_raw());
        }
        return Ok(0);
    }
    let code = match foreground::attend(&begun.child.attended(), begun.notify.take()) {
        Ok(code) => code,
        // A container that nobody attends any more is not to go on in the dark.
        Err(error) => return Err(begun.undo(setting, error)),
    };
    // Somebody may have deleted it meanwhile; then there is nothing left to do.
    if !options.keep && begun.entry.lock().is_ok() {
        delete::clean_up(setting, &begun.entry, Some(&begun.record))?;
    }
    Ok(code)
}

/// Lets the child go without waiting for it to be ready, and waits until its program is executed.
fn executed(setting: &Setting, begun: &mut Begun) -> Result<()> {
    // A child that has failed already takes no message; what it said is read by serve, which also lets a child go that
    // stops for hooks before.
    let gone = if begun.plan.stops_for_hooks() { Ok(()) } else { begun.child.go() };
    match &gone {
        // It was not told, and waits to be.
        Err(error) if error.errno() != Some(Errno::EPIPE) => return gone,
        _ => (),
    }
    match begun.serve(setting)? {
        Reached::End => gone.map_err(|_| begun.ended())?,
        Reached::Ready => return Err(begun.ended()),
    }
    // What becomes of them is the container's from here on.
    begun.child.moved = None;
    let state = state_of(&begun.record, &begun.plan, Status::Running);
    hooks::run("poststart", &begun.plan.hooks.poststart, &state, &begun.streams)
}
