//! Has a container stand still before CRIU looks at it, and go on afterwards, whatever becomes of ferry.
//!
//! CRIU freezes the cgroup too, but looks at once whether everything has stopped, and where something has not, sleeps a tenth of a
//! second before it looks again; all that time the container stands still (criu/seize.c, freeze_processes). So ferry freezes it
//! first, and waits for no longer than it takes. What CRIU finds frozen it takes for a paused container, and leaves frozen: it is
//! ferry that lets it go on. As long as that is owed, a process watches that pays it in ferry's stead:
//!
//! ```text
//! ferry            watcher             CRIU
//!   | --- clone ----> |                  |
//!   | <--- ready ---- |                  |
//!   | freezes, or has CRIU do it         |
//!   | ----------------------- dump ----> |
//!   | thaws; or keeps it frozen          |
//!   | --- done -----> |                  |
//!   x killed          | waits for the end of CRIU, thaws
//! ```
//!
//! It holds the container's lock meanwhile, so that nobody has frozen it anew when it thaws.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_name;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, setpgid};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::{read, retry_on_intr, write};

use crate::cgroup::{Cgroup, life};
use crate::error::{Context, Error, Result};
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};
use crate::sys::fd;

/// How long processes may take to stop, or to go on.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the watcher is called in the list of processes.
const NAME: &std::ffi::CStr = c"ferry-thaws";

/// The cgroup of a container that is dumped; one without a cgroup is CRIU's to stop.
#[derive(Debug)]
pub struct Freezer<'a> {
    cgroup: Option<&'a Cgroup>,
    was_frozen: bool,
    watcher: Option<Watcher>,
    kept: bool,
}

impl<'a> Freezer<'a> {
    /// Looks at what is to be left as it is found.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn of(cgroup: Option<&'a Cgroup>) -> Result<Self> {
        let was_frozen = cgroup.map(life::is_frozen).transpose()?.unwrap_or(false);
        Ok(Self { cgroup, was_frozen, watcher: None, kept: false })
    }

    /// Starts the watcher over this CRIU, or over another process that needs the standstill, with the container's lock, before which
    /// nothing is frozen. Where the kernel has no means to rid the watcher of ferry's descriptors (before Linux 5.9) there is none, and
    /// CRIU freezes by itself.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch(&mut self, criu: BorrowedFd<'_>, lock: Option<BorrowedFd<'_>>) -> Result<()> {
        self.watcher = match self.cgroup {
            Some(cgroup) if !self.was_frozen => Watcher::start(cgroup, criu, lock)?,
            _ => None,
        };
        Ok(())
    }

    /// Has everything stand still, as CRIU is about to.
    ///
    /// # Errors
    /// A process does not stop.
    pub fn freeze(&self) -> Result<()> {
        match (self.cgroup, &self.watcher) {
            (Some(cgroup), Some(_)) => life::freeze(cgroup, PATIENCE),
            _ => Ok(()),
        }
    }

    /// From here on it stands still whatever becomes of ferry and of CRIU.
    ///
    /// # Errors
    /// There is no cgroup to do it by; a process does not stop.
    pub fn keep(&mut self) -> Result<()> {
        let cgroup = self.cgroup.ok_or_else(|| Error::plain("without a cgroup it cannot be kept from going on"))?;
        // The watcher first: it is not to thaw what is kept.
        self.dismiss()?;
        life::freeze(cgroup, PATIENCE)?;
        self.kept = true;
        Ok(())
    }

    /// Whether it was asked to [`Freezer::keep`].
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// Leaves it as it was found: a CRIU that was killed, or that found it frozen, leaves it frozen.
    ///
    /// # Errors
    /// It does not go on.
    pub fn go_on(&mut self) -> Result<()> {
        match self.cgroup {
            Some(cgroup) if !self.was_frozen && life::is_frozen(cgroup)? => life::thaw(cgroup, PATIENCE)?,
            _ => (),
        }
        self.dismiss()
    }

    /// Its processes have ended, or are kept: nothing is owed any more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn dismiss(&mut self) -> Result<()> {
        self.watcher.take().map_or(Ok(()), Watcher::dismiss)
    }
}

/// The process that thaws in the place of a ferry that was killed.
#[derive(Debug)]
struct Watcher {
    pid: Pid,
    line: OwnedFd,
}

/// All that is said either way: ready, and done.
const WORD: &[u8] = &[1];

impl Watcher {
    fn start(cgroup: &Cgroup, criu: BorrowedFd<'_>, lock: Option<BorrowedFd<'_>>) -> Result<Option<Self>> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let freeze = match openat(&cgroup.dir, c"cgroup.freeze", flags, Mode::empty()) {
            // Before Linux 5.2, which CRIU will say.
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            opened => opened.or_cannot("open", cgroup.path.join("cgroup.freeze").display())?,
        };
        let (line, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .or_cannot("make", "the socket of the process that thaws")?;
        match clone_either_way(0, Parent::Caller).or_cannot("clone", "the process that thaws")? {
            Cloned::Child => {
                let is_over = watch(theirs.as_fd(), freeze.as_fd(), criu, lock);
                exit_now(i32::from(is_over.is_none()))
            }
            Cloned::Parent { pid, .. } => {
                drop(theirs);
                let watcher = Self { pid, line };
                let mut word = [0];
                match retry_on_intr(|| read(&watcher.line, &mut word)).or_cannot("hear", "the process that thaws")? {
                    0 => watcher.reap().map(|()| None),
                    _ => Ok(Some(watcher)),
                }
            }
        }
    }

    fn dismiss(self) -> Result<()> {
        // One that was killed hears nothing, and owes nothing.
        match retry_on_intr(|| write(&self.line, WORD)) {
            Ok(_) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => self.reap(),
            Err(answer) => Err(answer).or_cannot("dismiss", "the process that thaws"),
        }
    }

    fn reap(self) -> Result<()> {
        loop {
            match waitpid(self.pid, None) {
                Err(nix::errno::Errno::EINTR) => (),
                ended => return ended.map(drop).or_cannot("wait for", "the process that thaws"),
            }
        }
    }
}

/// The watcher. `None`: it cannot be one.
fn watch(
    line: BorrowedFd<'_>,
    freeze: BorrowedFd<'_>,
    criu: BorrowedFd<'_>,
    lock: Option<BorrowedFd<'_>>,
) -> Option<()> {
    // What ends ferry by its group, or from a terminal, is not to end this.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).ok()?;
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).ok()?;
    set_name(NAME).ok()?;
    // Who reads what ferry writes is not to wait for this one's end.
    let kept: Vec<BorrowedFd<'_>> = [line, freeze, criu].into_iter().chain(lock).collect();
    fd::close_from(0, &kept).ok()?;
    write(line, WORD).ok()?;
    let mut word = [0];
    if retry_on_intr(|| read(line, &mut word)) == Ok(WORD.len()) {
        return Some(());
    }
    let ended = || poll(&mut [PollFd::new(criu, PollFlags::POLLIN)], PollTimeout::NONE);
    while ended() == Err(nix::errno::Errno::EINTR) {}
    write(freeze, b"0").ok().map(drop)
}
