//! What happens to containers, told to containerd: by ttrpc, to the socket that it names to every shim.
//!
//! A daemon that is being restarted is told when it is back; what it has not confirmed is told once more. Events are kept for
//! it in order, and only so many of them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use prost::Message;

use super::frames::{Connection, Frame, REQUEST};
use super::messages::events::{Envelope, Forward};
use super::messages::{Any, Request};

/// As many events as are kept for a daemon that is away.
const KEPT: usize = 4096;

/// The way to containerd.
#[derive(Debug)]
pub struct Events {
    address: Option<PathBuf>,
    namespace: String,
    connection: Option<Connection>,
    /// Not confirmed, in order, each with the number of its call.
    unconfirmed: VecDeque<(u32, Vec<u8>)>,
    next: u32,
}

impl Events {
    /// To containerd's socket; `None`: nobody is told.
    pub fn new(address: Option<PathBuf>, namespace: &str) -> Self {
        Self { address, namespace: namespace.to_owned(), connection: None, unconfirmed: VecDeque::new(), next: 1 }
    }

    /// Tells of an event, under its topic: `/tasks/` and the last word of that.
    pub fn tell(&mut self, topic: &str, name: &str, event: &impl Message) {
        if self.address.is_none() {
            return;
        }
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: self.namespace.clone(),
            topic: format!("/tasks/{topic}"),
            event: Some(Any::of(&format!("containerd.events.{name}"), event)),
        };
        let request = Request {
            service: "containerd.services.events.ttrpc.v1.Events".into(),
            method: "Forward".into(),
            payload: Forward { envelope: Some(envelope) }.encode_to_vec(),
            timeout_nano: 0,
        };
        if self.unconfirmed.len() == KEPT {
            self.unconfirmed.pop_front();
        }
        let stream = self.next;
        self.next = self.next.wrapping_add(2);
        self.unconfirmed.push_back((stream, request.encode_to_vec()));
        match &mut self.connection {
            Some(connection) => {
                let (stream, payload) = (stream, request.encode_to_vec());
                if connection.send(&Frame { stream, kind: REQUEST, payload }).is_err() {
                    self.connection = None;
                }
            }
            None => self.connect(),
        }
    }

    /// Connects anew, if there is something to tell, and tells it.
    pub fn connect(&mut self) {
        let Some(address) = self.address.as_ref().filter(|_| !self.unconfirmed.is_empty()) else { return };
        // Refused: it is away, and the next event or the next round is another occasion.
        let Ok(mut connection) = connected(address).and_then(Connection::new) else { return };
        for (stream, payload) in &self.unconfirmed {
            let frame = Frame { stream: *stream, kind: REQUEST, payload: payload.clone() };
            if connection.send(&frame).is_err() {
                return;
            }
        }
        self.connection = Some(connection);
    }

    /// Whether there is somebody to be told who is away.
    pub fn is_cut_off(&self) -> bool {
        self.connection.is_none() && !self.unconfirmed.is_empty()
    }

    /// Whether everything is told.
    pub fn is_idle(&self) -> bool {
        self.unconfirmed.is_empty()
    }

    /// What it waits for.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let connection = self.connection.as_ref()?;
        let writing = if connection.is_behind() { PollFlags::POLLOUT } else { PollFlags::empty() };
        Some((connection.as_fd(), PollFlags::POLLIN | writing))
    }

    /// Reads confirmations and sends what there was no room for.
    pub fn step(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        match connection.flush().and_then(|()| connection.receive()) {
            Ok(frames) => {
                for frame in frames {
                    self.unconfirmed.retain(|(stream, _)| *stream != frame.stream);
                }
            }
            Err(_) => {
                self.connection = None;
                self.connect();
            }
        }
    }
}

/// At once or not at all: a daemon that hangs while its queue is full must not hang the shim.
fn connected(address: &Path) -> std::io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(address)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::super::frames::RESPONSE;
    use super::super::messages::events::TaskStart;
    use super::*;

    fn heard(connection: &mut Connection) -> Vec<(u32, String)> {
        let frames = connection.receive().unwrap_or_default();
        let topic = |frame: &Frame| {
            let request = Request::decode(&*frame.payload).unwrap();
            Forward::decode(&*request.payload).unwrap().envelope.unwrap().topic
        };
        frames.iter().map(|frame| (frame.stream, topic(frame))).collect()
    }

    #[test]
    fn a_daemon_that_comes_back_is_told_what_it_has_not_confirmed() {
        let path = std::env::temp_dir().join(format!("ferry-shim-events-{}", std::process::id()));
        let mut events = Events::new(Some(path.clone()), "n");
        events.tell("start", "TaskStart", &TaskStart::default());
        assert!(events.is_cut_off());
        let listener = UnixListener::bind(&path).unwrap();
        events.tell("exit", "TaskExit", &TaskStart::default());
        assert!(!events.is_cut_off() && !events.is_idle());
        let mut daemon = Connection::new(listener.accept().unwrap().0).unwrap();
        assert_eq!(heard(&mut daemon), [(1, "/tasks/start".into()), (3, "/tasks/exit".into())]);
        daemon.send(&Frame { stream: 1, kind: RESPONSE, payload: Vec::new() }).unwrap();
        events.step();
        drop(daemon);
        events.step();
        let mut daemon = Connection::new(listener.accept().unwrap().0).unwrap();
        assert_eq!(heard(&mut daemon), [(3, "/tasks/exit".into())]);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_daemon_that_takes_nobody_is_not_waited_for() {
        use nix::sys::socket::{Backlog, listen};
        let path = std::env::temp_dir().join(format!("ferry-shim-events-full-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let mut queue = Vec::new();
        while let Ok(one) = connected(&path) {
            queue.push(one);
        }
        assert!(!queue.is_empty());
        let mut events = Events::new(Some(path.clone()), "n");
        events.tell("start", "TaskStart", &TaskStart::default());
        assert!(events.is_cut_off());
        std::fs::remove_file(path).unwrap();
    }
}
