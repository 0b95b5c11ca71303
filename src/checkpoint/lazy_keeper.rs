//! Who has a copy of each descriptor by which CRIU's lazy-pages daemon answers a process, for the time after the daemon's death: see
//! [`super::lazy`]. A process of its own, since ferry is at something else while the daemon is at work.
//!
//! The daemon is done with a process when it closes its descriptor, and relies on that being the last one: with the copy, the memory
//! would stay registered, and whoever touches a new page of it would wait for an answer that nobody gives any more; and the daemon,
//! which takes the descriptor from what it polls by closing it, would be told of that page, with a pointer that it has freed. To give
//! the copy up afterwards is too late. So close(2) of the daemon's waits until the keeper has closed its own (seccomp_unotify(2)).
//!
//! What the daemon does not live to close is given up once ferry is done with it, or dead as well.

use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::lazy::DAEMON;
use crate::error::{Context, Error, Result};
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};
use crate::sys::fd::{close_from, received};
use crate::sys::seccomp;

/// Of a descriptor that answers a process, in `/proc/PID/fd`.
const KIND: &str = "anon_inode:[userfaultfd]";

/// The process that has them, as ferry sees it.
#[derive(Debug)]
pub struct Keeper {
    pid: Pid,
    asks: UnixStream,
}

/// Has the daemon that is spawned next ask before it closes anything. Answers where the means to hear it comes.
///
/// # Errors
/// The kernel's answer.
pub fn heed(command: &mut Command) -> Result<UnixStream> {
    let (told, tell) = UnixStream::pair().or_cannot("make", "a socket")?;
    seccomp::hold_up_close(command, tell.into());
    Ok(told)
}

impl Keeper {
    /// Begins for a daemon that has been spawned, with what [`heed`] answered.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn start(told: &UnixStream, daemon: &Child, pidfd: &OwnedFd) -> Result<Self> {
        let listener = listener(told)?;
        let (asks, ferry) = UnixStream::pair().or_cannot("make", "a socket")?;
        match clone_either_way(0, Parent::Caller).or_cannot("start", "a process that keeps descriptors")? {
            Cloned::Child => {
                // The standard streams too: it may outlive ferry, and who reads what ferry says waits for its end.
                let alone = close_from(0, &[listener.as_fd(), ferry.as_fd(), pidfd.as_fd()]);
                let (process, held) = (daemon.id().cast_signed(), BTreeMap::new());
                let done = alone
                    .or_cannot("close", "what ferry has open")
                    .and_then(|()| Kept { process, pidfd, listener, held }.keep(ferry));
                exit_now(i32::from(done.is_err()))
            }
            Cloned::Parent { pid, .. } => Ok(Self { pid, asks }),
        }
    }

    /// Has it copy those that the daemon has by now. Answers how many that makes.
    ///
    /// # Errors
    /// It cannot.
    pub fn hold(&mut self) -> Result<usize> {
        let mut count = [0; size_of::<usize>()];
        let asked = self.asks.write_all(&[0]).and_then(|()| self.asks.read_exact(&mut count));
        asked.or_cannot("copy", "the descriptors of CRIU's lazy-pages daemon")?;
        Ok(usize::from_ne_bytes(count))
    }

    /// Waits for its end, once the daemon has ended.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn end(self) -> Result<()> {
        drop(self.asks);
        waitpid(self.pid, None).map(drop).or_cannot("wait for", "what keeps descriptors")
    }
}

fn listener(told: &UnixStream) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut control = cmsg_space!(i32);
    let mut slices = [IoSliceMut::new(&mut byte)];
    let came = recvmsg::<UnixAddr>(told.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC);
    let came = came.or_cannot("hear from", DAEMON)?;
    let rights = came.cmsgs().or_cannot("hear from", DAEMON)?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied().map(received),
        _ => None,
    });
    rights.ok_or_else(|| Error::plain("the daemon was started without a listener"))
}

/// What it has, in its own process.
struct Kept<'a> {
    process: i32,
    pidfd: &'a OwnedFd,
    listener: OwnedFd,
    /// The copies, by the daemon's numbers.
    held: BTreeMap<i32, OwnedFd>,
}

impl Kept<'_> {
    fn keep(mut self, ferry: UnixStream) -> Result<()> {
        let mut ferry = Some(ferry);
        loop {
            let [closes, asked, has_ended] = self.wait(ferry.as_ref())?;
            if closes {
                self.give_up()?;
            }
            if let Some(asks) = ferry.take_if(|_| asked)
                && self.is_asked(&asks)?
            {
                ferry = Some(asks);
            }
            if has_ended {
                break;
            }
        }
        // Who waited for the daemon waits on, until ferry has ended him.
        while ferry.as_mut().is_some_and(|ferry| matches!(ferry.read(&mut [0]), Ok(1..))) {}
        Ok(())
    }

    fn wait(&self, ferry: Option<&UnixStream>) -> Result<[bool; 3]> {
        let ends = [self.listener.as_fd(), self.pidfd.as_fd()].into_iter().chain(ferry.map(AsFd::as_fd));
        let mut waited: Vec<PollFd<'_>> = ends.map(|end| PollFd::new(end, PollFlags::POLLIN)).collect();
        match poll(&mut waited, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => (),
            Err(answer) => return Err(Error::kernel("wait for", DAEMON, answer)),
        }
        let ready = |at: usize| waited.get(at).is_some_and(|waited| waited.any().unwrap_or(false));
        Ok([waited[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)), ready(2), ready(1)])
    }

    /// The daemon is about to close one.
    fn give_up(&mut self) -> Result<()> {
        let call = match seccomp::waiting(self.listener.as_fd()) {
            Ok(call) => call,
            // It has ended.
            Err(Errno::ENOENT) => return Ok(()),
            Err(answer) => return Err(Error::kernel("hear from", DAEMON, answer)),
        };
        // What it starts itself has descriptors of its own.
        if call.process == self.process {
            self.held.remove(&(call.argument as i32));
        }
        match seccomp::let_go_on(self.listener.as_fd(), call) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(answer) => Err(Error::kernel("answer", DAEMON, answer)),
        }
    }

    /// False: ferry is done with it.
    fn is_asked(&mut self, mut ferry: &UnixStream) -> Result<bool> {
        if !matches!(ferry.read(&mut [0]), Ok(1..)) {
            return Ok(false);
        }
        self.hold()?;
        Ok(ferry.write_all(&self.held.len().to_ne_bytes()).is_ok())
    }

    /// Copies what the daemon has. What it closes meanwhile waits, and is given up next.
    fn hold(&mut self) -> Result<()> {
        let directory = format!("/proc/{}/fd", self.process);
        for entry in std::fs::read_dir(&directory).or_cannot("read", &directory)? {
            let entry = entry.or_cannot("read", &directory)?;
            let is_one = std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == KIND);
            if let (true, Ok(number)) = (is_one, entry.file_name().to_string_lossy().parse::<i32>()) {
                let copied = pidfd_getfd(self.pidfd, number, PidfdGetfdFlags::empty());
                self.held.insert(number, copied.or_cannot("copy", "a descriptor of CRIU's lazy-pages daemon")?);
            }
        }
        Ok(())
    }
}
