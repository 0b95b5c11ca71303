//! The handshake between ferry and the child it cloned: one enum, over one pair of SEQPACKET sockets.
//!
//! ```text
//! parent                                child (init)
//!   | clone3 ---------------------------> |
//!   | id maps, scope of systemd           | waits, where there are any
//!   | ---- Root, Source + descriptor ----> | (only in a user namespace, and with id-mapped mounts)
//!   | ---- Placed ----------------------> | (also where it was moved to its cgroup, or was born of another process)
//!   | record, limits, device program      | namespaces, root filesystem
//!   | <--- Map + descriptor -------------- | (only with an id-mapped mount whose source is in the container)
//!   | ---- Mapped ----------------------> |
//!   | <--- HooksDue ---------------------- | (only with createRuntime or prestart hooks, limited bandwidth, or a disk mounted)
//!   | device program of who mounts a disk |
//!   | hooks                               |
//!   | ---- HooksDone -------------------> |
//!   |                                     | createContainer hooks, protection, pivot
//!   | <--- Console + descriptor ---------- | (only with a terminal)
//!   | <--- Listener + descriptor --------- | (only with a seccomp agent; where that is asked about sendmsg(2), ListenerAt)
//!   | ---- Taken -----------------------> | (only after ListenerAt)
//!   | <--- Ready ------------------------- |
//!   | ---- Go --------------------------> | the record is saved: from here on the child may outlive ferry
//!   |                                     | create: waits at the gate; what follows is reported to `start`
//!   | <--- Failed, or end of stream ------ | the stream ends when the program is executed
//! ```
//!
//! At any point the child may answer Failed instead, or send a Warning. A child whose stream ends without Go ends itself.
//! `run` sends Go without waiting for Ready, and the child may find it before Mapped. When the user namespace is joined, a process between the two enters it first
//! and sends Born with the descriptor of the child, which is its sibling. An unknown message is an error.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recv, recvmsg, sendmsg,
    setsockopt, socketpair, sockopt::PassCred,
};
use nix::unistd::{read, write};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::error::{Context, Error, Result};
use crate::path::errno;
use crate::sys::stub;

/// What one side tells the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Parent, with the directory of the root filesystem.
    Root,
    /// Parent, with a detached copy of the source of the mount of this index.
    Source(u32),
    /// Parent: the id maps are written, the child is in its scope, and it has what it was to be handed.
    Placed,
    /// Child, with a detached copy of the source of the mount of this index, which it may not map itself.
    Map(u32),
    /// Parent: the copy has its mapping.
    Mapped,
    /// Child: everything is mounted; the hooks before pivot_root are due.
    HooksDue,
    /// Parent: they have run.
    HooksDone,
    /// Child, with the pty's master.
    Console,
    /// Child, with the seccomp listener.
    Listener,
    /// Child: the seccomp listener is its descriptor of this number. What is received is then a Listener.
    ListenerAt(i32),
    /// Parent: it has taken the listener.
    Taken,
    /// Child: nothing is left to do but to execute.
    Ready,
    /// Parent: go on to execute.
    Go,
    /// The process between: this is the child's pid as the parent counts, with its pidfd.
    Born(i32),
    /// Child: what the log should say.
    Warning(String),
    /// Child: this failed, and it ends.
    Failed(Error),
    /// Child, from the stub: the last call failed.
    NotExecuted(stub::Stage, Errno),
}

/// The longest message in bytes; an error's text is cut to fit.
const LONGEST: usize = 16 * 1024;

/// One end of the handshake.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Both ends.
    ///
    /// # Errors
    /// EMFILE.
    pub fn pair() -> Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .or_cannot("make", "the sockets of the handshake")?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// One end that was accepted or connected elsewhere.
    pub fn from_socket(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Sends a message, with a descriptor where it has one.
    ///
    /// # Errors
    /// EPIPE when the other side has gone.
    pub fn send(&self, message: &Message, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
        let bytes = encode(message);
        let raw = descriptor.map(|fd| [fd.as_raw_fd()]);
        let control: Vec<ControlMessage<'_>> = raw.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        let slices = [IoSlice::new(&bytes)];
        sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &slices, &control, MsgFlags::MSG_NOSIGNAL, None)
            .map(drop)
            .or_cannot("send", "a message of the handshake")
    }

    /// Lets what is sent from here on say which process sent it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn name_sender(&self) -> Result<()> {
        setsockopt(&self.socket, PassCred, &true).or_cannot("name", "the sender of the handshake's messages")
    }

    /// Hands over a listener by its number, after [`Channel::name_sender`] and without sendmsg(2): `write` is the one call that
    /// no profile may have its agent asked about.
    ///
    /// # Errors
    /// The other side has gone.
    pub fn show_listener(&self, listener: BorrowedFd<'_>) -> Result<()> {
        write(&self.socket, &encode(&Message::ListenerAt(listener.as_raw_fd())))
            .and_then(|_| read(&self.socket, &mut [0]))
            .and_then(|length| if length == 0 { Err(Errno::EPIPE) } else { Ok(()) })
            .or_cannot("hand over", "the seccomp listener")
    }

    /// Takes the descriptor that a process has under a number, which it keeps until it is told. From a child that is hidden an ordinary
    /// user may not take any.
    fn take(&self, sender: Option<i32>, number: i32) -> Result<OwnedFd> {
        let sender = sender.and_then(Pid::from_raw).ok_or(Errno::ESRCH);
        let taken = sender.and_then(|sender| {
            let pidfd = pidfd_open(sender, PidfdFlags::empty()).map_err(errno)?;
            pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).map_err(errno)
        });
        let taken = taken.or_cannot("take over", "the seccomp listener").map_err(|error| {
            error.hint("with SCMP_ACT_NOTIFY for sendmsg this needs Linux 5.6, and the right to trace the process")
        })?;
        self.send(&Message::Taken, None)?;
        Ok(taken)
    }

    /// Whether a message, or the end of the stream, is there to be received at once.
    pub fn has_message(&self) -> bool {
        let mut waited = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut waited, PollTimeout::ZERO), Ok(1..))
    }

    /// Waits for the next message; `None` when the stream has ended.
    ///
    /// # Errors
    /// A message that is not one.
    pub fn receive(&self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        // Its length is asked for first: nearly all have one byte, and clearing room for the longest is dearer than the call.
        let mut tag = [0];
        let peeked = self.retried(|socket| recv(socket, &mut tag, MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC))?;
        if tag == [LISTENER_AT] {
            self.name_sender()?;
        }
        let mut bytes = vec![0; peeked.min(LONGEST)];
        let mut control = nix::cmsg_space!([i32; 4]);
        let (length, descriptor, sender) = self.retried(|socket| {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let received = recvmsg::<UnixAddr>(socket, &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
            let (mut descriptor, mut sender) = (None, None);
            for message in received.cmsgs()? {
                match message {
                    ControlMessageOwned::ScmCredentials(credentials) => sender = Some(credentials.pid()),
                    message => descriptor = descriptor.or(rights(message).into_iter().next()),
                }
            }
            Ok((received.bytes, descriptor, sender))
        })?;
        if length == 0 {
            return Ok(None);
        }
        match decode(&bytes[..length]) {
            Some(Message::ListenerAt(number)) => Ok(Some((Message::Listener, Some(self.take(sender, number)?)))),
            Some(message) => Ok(Some((message, descriptor))),
            None => Err(Error::said("understand", "a message of the handshake", "it is none that ferry knows")),
        }
    }

    fn retried<T>(&self, mut call: impl FnMut(i32) -> Result<T, Errno>) -> Result<T> {
        loop {
            match call(self.socket.as_raw_fd()) {
                // A child that ended with something unread resets the stream, once; what it said before is still there.
                Err(Errno::EINTR | Errno::ECONNRESET) => (),
                answer => return answer.or_cannot("receive", "a message of the handshake"),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

fn rights(message: ControlMessageOwned) -> Vec<OwnedFd> {
    match message {
        ControlMessageOwned::ScmRights(fds) => fds.into_iter().map(owned).collect(),
        _ => Vec::new(),
    }
}

fn owned(raw: i32) -> OwnedFd {
    crate::sys::fd::received(raw)
}

/// One byte says which; 1 to 3 are the stub's own reports (`sys::stub`).
const TAGS: [(u8, Message); 10] = [
    (16, Message::Placed),
    (17, Message::HooksDue),
    (18, Message::HooksDone),
    (19, Message::Console),
    (20, Message::Listener),
    (21, Message::Ready),
    (22, Message::Go),
    (23, Message::Root),
    (24, Message::Mapped),
    (25, Message::Taken),
];
const BORN: u8 = 32;
const WARNING: u8 = 33;
const FAILED: u8 = 34;
const SOURCE: u8 = 35;
const MAP: u8 = 36;
const LISTENER_AT: u8 = 37;

fn encode(message: &Message) -> Vec<u8> {
    let tagged = |tag: u8, body: &[u8]| [&[tag], &body[..body.len().min(LONGEST - 1)]].concat();
    match message {
        Message::Born(pid) => tagged(BORN, &pid.to_ne_bytes()),
        Message::Source(index) => tagged(SOURCE, &index.to_ne_bytes()),
        Message::Map(index) => tagged(MAP, &index.to_ne_bytes()),
        Message::ListenerAt(number) => tagged(LISTENER_AT, &number.to_ne_bytes()),
        Message::Warning(text) => tagged(WARNING, text.as_bytes()),
        Message::Failed(error) => {
            let wire = serde_json::to_vec(&error.to_wire()).unwrap_or_default();
            if wire.len() < LONGEST {
                return tagged(FAILED, &wire);
            }
            let cut: String = error.to_string().chars().take(LONGEST / 8).collect();
            tagged(FAILED, &serde_json::to_vec(&Error::plain(cut).to_wire()).unwrap_or_default())
        }
        Message::NotExecuted(..) => Vec::new(),
        plain => TAGS.iter().find(|row| row.1 == *plain).map(|row| vec![row.0]).unwrap_or_default(),
    }
}

fn decode(bytes: &[u8]) -> Option<Message> {
    let (&tag, body) = bytes.split_first()?;
    match tag {
        1..=3 => stub::parse_report(bytes).map(|(stage, errno)| Message::NotExecuted(stage, errno)),
        SOURCE => Some(Message::Source(u32::from_ne_bytes(body.try_into().ok()?))),
        MAP => Some(Message::Map(u32::from_ne_bytes(body.try_into().ok()?))),
        LISTENER_AT => Some(Message::ListenerAt(i32::from_ne_bytes(body.try_into().ok()?))),
        BORN => Some(Message::Born(i32::from_ne_bytes(body.try_into().ok()?))),
        WARNING => Some(Message::Warning(String::from_utf8_lossy(body).into_owned())),
        FAILED => serde_json::from_slice(body).ok().map(|wire| Message::Failed(Error::from_wire(wire))),
        tag => TAGS.iter().find(|row| row.0 == tag && body.is_empty()).map(|row| row.1.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let (one, other) = Channel::pair().unwrap();
        let error = Error::kernel("mount proc on", "/proc", Errno::EPERM).hint("a way out").exit(126);
        for message in [
            Message::Placed,
            Message::Root,
            Message::Go,
            Message::Born(7),
            Message::Source(3),
            Message::Map(4),
            Message::Failed(error),
        ] {
            one.send(&message, None).unwrap();
            assert_eq!(other.receive().unwrap().unwrap().0, message);
        }
        assert!(!other.has_message());
        one.send(&Message::Console, Some(one.as_fd())).unwrap();
        assert!(other.has_message());
        assert!(other.receive().unwrap().unwrap().1.is_some());
        drop(one);
        assert!(other.receive().unwrap().is_none());
    }

    #[test]
    fn a_descriptor_is_taken_by_its_number() {
        let (one, other) = Channel::pair().unwrap();
        let number = one.as_fd().as_raw_fd();
        one.name_sender().unwrap();
        write(&one.socket, &encode(&Message::ListenerAt(number))).unwrap();
        let (message, taken) = other.receive().unwrap().unwrap();
        assert_eq!(message, Message::Listener);
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(taken.unwrap().as_fd()), inode(one.as_fd()));
        assert_eq!(one.receive().unwrap().unwrap().0, Message::Taken);
        write(&one.socket, &encode(&Message::ListenerAt(i32::MAX))).unwrap();
        assert_eq!(other.receive().unwrap_err().errno(), Some(Errno::EBADF));
    }

    #[test]
    fn an_unknown_message_is_an_error() {
        for bytes in [&[99u8][..], &[1, 0], &[16, 0], &[34, b'{'], &[32, 1]] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
        assert_eq!(decode(&[2, 0, 0, 0, 2, 0, 0, 0]), Some(Message::NotExecuted(stub::Stage::Exec, Errno::ENOENT)));
    }

    #[test]
    fn an_endless_error_is_cut() {
        let (one, other) = Channel::pair().unwrap();
        one.send(&Message::Failed(Error::plain("x".repeat(1 << 20))), None).unwrap();
        assert!(matches!(other.receive().unwrap().unwrap().0, Message::Failed(_)));
    }
}
