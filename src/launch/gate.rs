//! The gate between `create` and `start`: a socket in the container's directory on which the child waits, in the stub where it can
//! ([`Plan::waits_in_stub`](super::plan::Plan::waits_in_stub)).
//!
//! `start` connects, and the connection is what everything after is reported on: it ends when the program is executed, and
//! carries the error when it is not. A pipe could only be opened, and `start` would not learn what became of it.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, socket};

use super::protocol::Channel;
use crate::container::store::Entry;
use crate::error::{Context, Error, Result};
use crate::sys::clone::exit_now;
use crate::sys::fd::received;

/// Makes the gate; the child inherits the descriptor.
///
/// # Errors
/// The kernel's answer.
pub fn make(entry: &Entry) -> Result<OwnedFd> {
    let named = || entry.path().join("gate").display().to_string();
    let listener = unix_socket().or_cannot("make gate", named())?;
    bind(listener.as_raw_fd(), &gate_address(entry)?).or_cannot("make gate", named())?;
    listen(&listener, Backlog::MAXALLOWABLE).or_cannot("make gate", named())?;
    Ok(listener)
}

/// Signals that end a container which has not been started. The first process of a pid namespace is spared what has no
/// handler, so they are taken and answered here.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// Waits at the gate, in the child, with all signals blocked; the connection of whoever opens it is the new end of the
/// handshake. A signal that would end an ordinary process ends this one.
///
/// # Errors
/// The kernel's answer.
pub fn wait(listener: &OwnedFd) -> Result<Channel> {
    let signals = signals()?;
    loop {
        let mut waited = [&listener.as_fd(), &signals.as_fd()].map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
        match poll(&mut waited, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            answer => answer.or_cannot("wait at", "the gate")?,
        };
        if let Some(signal) = signals.read_signal().or_cannot("read", "signals at the gate")? {
            exit_now(128 + signal.ssi_signo.cast_signed());
        }
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Err(Errno::EINTR) => (),
            answer => return answer.map(|raw| Channel::from_socket(received(raw))).or_cannot("wait at", "the gate"),
        }
    }
}

/// Signals that end what waits, to be read.
///
/// # Errors
/// The kernel's answer.
pub fn signals() -> Result<SignalFd> {
    let ending: SigSet = ENDING.into_iter().collect();
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&ending, flags).or_cannot("wait for", "signals at the gate")
}

/// Opens the gate of a created container.
///
/// # Errors
/// ECONNREFUSED where nobody waits any more.
pub fn open(entry: &Entry) -> Result<Channel> {
    let socket = unix_socket().or_cannot("open", "the gate")?;
    match connect(socket.as_raw_fd(), &gate_address(entry)?) {
        Ok(()) => Ok(Channel::from_socket(socket)),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => {
            Err(Error::plain(format!("cannot start container {}: its process has ended", entry.id)))
        }
        Err(answer) => Err(Error::kernel("open", "the gate", answer)),
    }
}

fn unix_socket() -> std::result::Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

/// By way of the directory's descriptor: a socket's path may have 107 bytes, and a state directory's more.
///
/// # Errors
/// ENAMETOOLONG for a name that is too long even so.
pub fn address(dir: BorrowedFd<'_>, name: &OsStr) -> std::result::Result<UnixAddr, Errno> {
    UnixAddr::new(&Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name))
}

fn gate_address(entry: &Entry) -> Result<UnixAddr> {
    address(entry.dir(), OsStr::new("gate")).or_cannot("name", "the gate")
}
