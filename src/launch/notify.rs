//! A service manager's readiness protocol, passed through: where ferry itself was started with NOTIFY_SOCKET, the container
//! gets a socket of its own under `/run/notify`, and its word that it is ready reaches the manager. sd_notify(3)
//!
//! The manager's own socket stays outside: over it a container could name any process as the main one, or store descriptors.
//! READY alone is passed on, and which process is the main one is ferry's to say.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, recv, sendmsg, socket,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::pipe2;

use super::gate::address;
use crate::container::store::{Entry, NOTIFY_SOCKET};
use crate::error::{Context, Error, Result};
use crate::log::Log;
use crate::spec::config::{Config, Mount};

/// The directory inside; only the directory is bound, so that the socket may come and go.
const INSIDE: &str = "/run/notify";

/// How long the manager may take to say that it has read everything. sd_notify_barrier(3) Milliseconds.
const BARRIER: u16 = 30_000;

/// The container's socket, and the manager's.
#[derive(Debug)]
pub struct Notify {
    socket: OwnedFd,
    manager: UnixAddr,
    log: Log,
}

/// Adds to a configuration what lets the process speak: the directory `dir` of the host, and the variable that names the
/// socket. Whether it did: without a process, or a mount namespace of its own, there is nobody or no place to give it to.
pub fn configure(config: &mut Config, dir: &Path) -> bool {
    let mounts = config.linux.namespaces.iter().any(|namespace| namespace.kind == "mount");
    let Some(process) = config.process.as_mut().filter(|_| mounts) else { return false };
    process.env.push(format!("NOTIFY_SOCKET={INSIDE}/notify.sock"));
    config.mounts.push(Mount {
        destination: INSIDE.into(),
        source: dir.to_owned(),
        kind: "bind".into(),
        options: ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec(),
        ..Mount::default()
    });
    true
}

/// Whether ferry was started by a manager that waits to be told.
pub fn is_awaited() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|name| !name.is_empty())
}

impl Notify {
    /// Makes the socket in the container's directory. `None` where nobody waits, or the container was created for nobody.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn listen(entry: &Entry, log: &Log) -> Result<Option<Self>> {
        let Some(manager) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(None) };
        if !entry.has_notify() {
            return Ok(None);
        }
        let manager = manager_address(&manager).or_cannot("name", "the service manager's socket")?;
        let named = || entry.path().join(NOTIFY_SOCKET).display().to_string();
        let socket = datagrams().or_cannot("make socket", named())?;
        let inside = address(entry.dir(), OsStr::new(NOTIFY_SOCKET)).or_cannot("name socket", named())?;
        bind(socket.as_raw_fd(), &inside).or_cannot("make socket", named())?;
        // Whoever the process is inside, it may speak.
        let everybody = Mode::from_bits_truncate(0o777);
        fchmodat(entry.dir(), NOTIFY_SOCKET, everybody, FchmodatFlags::FollowSymlink)
            .or_cannot("share socket", named())?;
        Ok(Some(Self { socket, manager, log: log.clone() }))
    }

    /// Waits until the process of `pidfd` says that it is ready, and tells the manager that `main` is the main process; or
    /// until it has ended. The manager has read everything when this returns, since ferry is about to be gone.
    pub fn wait(&self, pidfd: BorrowedFd<'_>, main: i32) {
        let waited = self.wait_for(pidfd, main).and_then(|ready| if ready { self.barrier() } else { Ok(()) });
        if let Err(error) = waited {
            self.log.warning(error);
        }
    }

    fn wait_for(&self, pidfd: BorrowedFd<'_>, main: i32) -> Result<bool> {
        loop {
            let mut waited = [self.socket.as_fd(), pidfd].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut waited, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                answer => answer.or_cannot("wait for", "readiness")?,
            };
            let ended = waited[1].any().unwrap_or(false);
            if self.read(main)? {
                return Ok(true);
            }
            if ended {
                return Ok(false);
            }
        }
    }

    /// Takes what was said; true when nothing more is to be waited for.
    pub fn take(&self, main: i32) -> bool {
        self.read(main).unwrap_or_else(|error| {
            self.log.warning(error);
            true
        })
    }

    /// Whether one of the datagrams that have come says READY; that is passed on.
    fn read(&self, main: i32) -> Result<bool> {
        let mut datagram = [0u8; 4096];
        loop {
            match recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR) => (),
                Err(answer) => return Err(answer).or_cannot("read", "the container's word on its readiness"),
                Ok(length) => {
                    if let Some(ready) = ready(&datagram[..length]) {
                        self.tell(ready, &[])?;
                        self.tell(format!("MAINPID={main}").as_bytes(), &[])?;
                        return Ok(true);
                    }
                }
            }
        }
    }

    fn tell(&self, text: &[u8], control: &[ControlMessage<'_>]) -> Result<()> {
        let slices = [IoSlice::new(text)];
        let socket = datagrams().or_cannot("make", "a socket")?;
        sendmsg(socket.as_raw_fd(), &slices, control, MsgFlags::MSG_NOSIGNAL, Some(&self.manager))
            .map(drop)
            .or_cannot("tell", "the service manager that the container is ready")
    }

    /// The manager closes a pipe's end once it has come to this message.
    fn barrier(&self) -> Result<()> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
        self.tell(b"BARRIER=1", &[ControlMessage::ScmRights(&[theirs.as_raw_fd()])])?;
        drop(theirs);
        match poll(&mut [PollFd::new(ours.as_fd(), PollFlags::POLLIN)], PollTimeout::from(BARRIER)) {
            Ok(0) => Err(Error::said("hear from", "the service manager", "it did not answer in 30 s")),
            answer => answer.map(drop).or_cannot("hear from", "the service manager"),
        }
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The line of a datagram that says READY.
fn ready(datagram: &[u8]) -> Option<&[u8]> {
    datagram.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"READY="))
}

fn datagrams() -> std::result::Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
}

/// A path, or with `@` a name in the abstract namespace.
fn manager_address(name: &OsStr) -> std::result::Result<UnixAddr, Errno> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => UnixAddr::new_abstract(name),
        None => UnixAddr::new(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::config::{Namespace, Process};

    #[test]
    fn ready_is_found_among_other_words() {
        assert_eq!(ready(b"READY=1"), Some(&b"READY=1"[..]));
        assert_eq!(ready(b"STATUS=up\nREADY=1\nMAINPID=1"), Some(&b"READY=1"[..]));
        assert_eq!(ready(b"STATUS=READY=1\n"), None);
    }

    #[test]
    fn a_configuration_gets_a_place_to_speak() {
        let mut config = Config { process: Some(Process::default()), ..Config::default() };
        let dir = Path::new("/run/ferry/web/notify");
        assert!(!configure(&mut config, dir) && config.mounts.is_empty());
        config.linux.namespaces.push(Namespace { kind: "mount".into(), ..Namespace::default() });
        assert!(configure(&mut config, dir));
        assert_eq!(config.process.unwrap().env, ["NOTIFY_SOCKET=/run/notify/notify.sock"]);
        assert_eq!(config.mounts[0].source, Path::new("/run/ferry/web/notify"));
        assert!(config.mounts[0].options.contains(&"ro".to_owned()));
    }
}
