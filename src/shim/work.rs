//! What may take its time is done by a fork of the server, a worker: it calls the library as the command line does, tells how
//! that went in one message, and ends. What it changed about its process ends with it.
//!
//! A server is the only thread of its process, so its fork is whole and can do all that it could itself.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::{Pid, getpid, getppid};
use serde::{Deserialize, Serialize};

use super::limit;
use crate::error::{Context, Error, Result, Wire};
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};
use crate::sys::fd;

/// A worker that has not told yet how it went.
#[derive(Debug)]
pub struct Work {
    /// Its process.
    pub pid: Pid,
    channel: OwnedFd,
}

impl AsFd for Work {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// How it went, on the wire. The process that is made, where one is; 0 otherwise.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Done(i32),
    Failed(Wire),
}

/// The longest message, as long as errors can be.
const LONGEST: usize = 64 << 10;

/// Begins a deed that makes a process, or none (0). It finds descriptors 0 to 2 as the server has them, and of the others
/// `kept` alone: whatever a container's process inherits, it is not the server's connections.
///
/// # Errors
/// The fork.
pub fn begin(kept: &[BorrowedFd<'_>], deed: impl FnOnce() -> Result<i32>) -> Result<Work> {
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
    let (channel, theirs) = pair.or_cannot("make", "a socket pair")?;
    let server = getpid();
    match clone_either_way(0, Parent::Caller).or_cannot("fork", "the shim")? {
        Cloned::Child => {
            let kept: Vec<_> = kept.iter().copied().chain([theirs.as_fd()]).collect();
            let done = live_no_longer_than(server)
                .and_then(|()| fd::close_from(3, &kept).or_cannot("close", "the shim's descriptors"))
                .and_then(|()| limit::give_back())
                .and_then(|()| deed());
            let told = match done {
                Ok(pid) => Told::Done(pid),
                Err(error) => Told::Failed(error.to_wire()),
            };
            let message = serde_json::to_vec(&told).unwrap_or_default();
            // Who does not hear of it sees the end of it.
            let sent = send(theirs.as_raw_fd(), &message, MsgFlags::MSG_NOSIGNAL);
            // Streams that it has opened stay open until the server has hold of them, too: a fifo's reader would see an end.
            let gone = recv(theirs.as_raw_fd(), &mut [0], MsgFlags::empty());
            exit_now(i32::from(sent.is_err() || gone.is_err()))
        }
        Cloned::Parent { pid, .. } => Ok(Work { pid, channel }),
    }
}

/// Of what a worker made after its server was killed, nobody would know: whoever cleans up after that one might have done so
/// already. A server is one thread, whose end the kernel means; what the worker itself clones is not bound to anybody.
fn live_no_longer_than(server: Pid) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).or_cannot("bind", "the worker's life to the shim's")?;
    // It may have ended before that.
    if getppid() == server { Ok(()) } else { exit_now(1) }
}

impl Work {
    /// How it went, once there is something to read; `None`: nothing has come yet.
    pub fn result(&self) -> Option<Result<i32>> {
        let mut message = vec![0; LONGEST];
        let told = match recv(self.channel.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Ok(count) if count > 0 => serde_json::from_slice(&message[..count]).ok(),
            _ => None,
        };
        Some(match told {
            Some(Told::Done(pid)) => Ok(pid),
            Some(Told::Failed(wire)) => Err(Error::from_wire(wire)),
            None => Err(died()),
        })
    }
}

#[cfg(test)]
impl Work {
    /// One of a number, which says nothing as long as its end is held.
    pub fn silent(pid: Pid) -> (Self, OwnedFd) {
        let (channel, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (Self { pid, channel }, theirs)
    }
}

/// What is said of a worker that ended without a word.
pub fn died() -> Error {
    Error::plain("the worker that does it has died: see the kernel's log")
}
