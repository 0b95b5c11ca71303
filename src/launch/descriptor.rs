//! Descriptors that go to a socket of somebody else's: a terminal or a pidfd to the caller's, a seccomp listener to its agent's.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use nix::sys::stat::Mode;

use super::gate;
use crate::container::State;
use crate::error::{Context, Result};
use crate::security::seccomp::Notify;

/// Passes the seccomp listener of the process `pid` to its agent, with the container's state.
///
/// # Errors
/// The agent cannot be reached.
pub fn tell_agent(notify: &Notify, pid: i32, state: &State, listener: BorrowedFd<'_>) -> Result<()> {
    send(&notify.listener_path, &notify.message(pid, state), listener)
        .map_err(|error| error.hint("failed to connect with seccomp agent, which linux.seccomp.listenerPath names"))
}

/// Sends a descriptor, with a message, to the socket at `path` (`--console-socket`, `--pidfd-socket`, a seccomp agent).
///
/// # Errors
/// Nobody listens there.
pub fn send(path: &Path, message: &[u8], descriptor: BorrowedFd<'_>) -> Result<()> {
    let named = || path.display();
    let socket =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).or_cannot("make", "a socket")?;
    let dir = open(
        path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    let dir = dir.or_cannot("open the directory of socket", named())?;
    let address = gate::address(dir.as_fd(), path.file_name().unwrap_or_default()).or_cannot("name socket", named())?;
    connect(socket.as_raw_fd(), &address).or_cannot("connect to socket", named())?;
    let fds = [descriptor.as_raw_fd()];
    let slices = [std::io::IoSlice::new(message)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &slices, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)
        .map(drop)
        .or_cannot("send a descriptor to", named())
}
