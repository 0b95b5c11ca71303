//! The way a terminal's master comes from the container's process: a socket in the bundle, made for one.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, bind, listen, socket};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::IoSliceMut;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, accept_with, recvmsg};

use crate::error::{Context, Error, Result};
use crate::launch::gate::address;

/// A socket that waits for a terminal.
#[derive(Debug)]
pub struct Console {
    socket: OwnedFd,
    dir: OwnedFd,
    name: String,
    /// Where it is.
    pub path: PathBuf,
}

impl Console {
    /// Makes the socket `name` in a bundle.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn listen(bundle: &Path, name: String) -> Result<Self> {
        let path = bundle.join(&name);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, bundle, flags, Mode::empty()).or_cannot("open", bundle.display())?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).or_cannot("make", "a socket")?;
        // A bundle's path is longer than a socket's may be.
        let address = address(dir.as_fd(), OsStr::new(&name)).or_cannot("name socket", path.display())?;
        bind(socket.as_raw_fd(), &address).or_cannot("make socket", path.display())?;
        let console = Self { socket, dir, name, path };
        listen(&console.socket, Backlog::new(1).unwrap_or(Backlog::MAXCONN))
            .or_cannot("listen on", console.path.display())?;
        Ok(console)
    }

    /// The master, which whoever made the process has sent.
    ///
    /// # Errors
    /// None has come.
    pub fn take(self) -> Result<OwnedFd> {
        let missing = || Error::said("take", "the terminal", "the container's process has sent none");
        let peer = accept_with(&self.socket, SocketFlags::CLOEXEC).or_cannot("take", "the terminal")?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut text = [0; 64];
        recvmsg(&peer, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .or_cannot("take", "the terminal")?;
        let mut received = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        received.find_map(|mut fds| fds.next()).ok_or_else(missing)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // The bundle may have gone, and the socket with it.
        unlinkat(&self.dir, self.name.as_str(), AtFlags::empty()).ok();
    }
}
