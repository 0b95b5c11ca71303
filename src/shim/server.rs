//! The server: one loop around poll(2), over clients, workers, streams and signals. Nothing in it blocks.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use prost::Message;

use super::frames::{Connection, Frame, REQUEST, RESPONSE};
use super::messages::{Request, Response};
use super::service::{Answer, Key, Reply, Service};
use super::stdio::Pump;
use crate::error::{Context, Result};
use crate::sys::memory::give_back_code;

/// For how long a daemon may keep a shim that is over from its end, by not confirming what it was told.
const FAREWELL: Duration = Duration::from_secs(2);
/// After how many milliseconds fifos are asked again whether they were read.
const ASK_AGAIN: u16 = 5;
/// After how long a daemon that is away is looked for again, and so are clients that there was no descriptor for.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// After how many milliseconds without anything to do a shim gives back the memory of code that it does not need to wait. Most
/// of a container's life is waiting, and most of the code is for its beginning.
const REST: u16 = 500;

/// A socket that clients come by.
#[derive(Debug)]
pub struct Socket {
    /// Where they are waited for.
    pub listener: UnixListener,
    /// Where they find it.
    pub path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // While it still listens: where nobody answers, the next shim of the name puts its own. It may be gone already.
        fs::remove_file(&self.path).ok();
    }
}

/// A socket, and whoever has come by it.
#[derive(Debug)]
struct Server {
    /// Until it is over.
    socket: Option<Socket>,
    /// There was no descriptor for whoever has come: before something happens there will be none.
    full: bool,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    signals: SignalFd,
    service: Service,
    /// When something is to be done though nothing happens.
    due: Option<Instant>,
}

/// What something has happened to.
#[derive(Debug, Clone)]
enum Token {
    Listener,
    Signals,
    Connection(u64),
    Job(i32),
    Events,
    /// One that is away.
    Daemon,
    Input(Key),
    Output(Key),
    Memory(String),
}

/// Serves until nothing is left to be done.
///
/// # Errors
/// The kernel's answer to what a server cannot be without.
pub fn serve(socket: Socket, service: Service) -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).or_cannot("become", "a subreaper")?;
    socket.listener.set_nonblocking(true).or_cannot("prepare", "the shim's socket")?;
    let mut wanted = SigSet::empty();
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().for_each(|signal| wanted.add(signal));
    wanted.thread_block().or_cannot("block", "signals")?;
    let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .or_cannot("listen for", "signals")?;
    let (socket, connections) = (Some(socket), BTreeMap::new());
    let mut server = Server { socket, full: false, connections, next: 0, signals, service, due: None };
    while !server.is_over() {
        let unread = server.service.drain();
        server.answer();
        let Some(ready) = server.wait(unread)? else { break };
        ready.into_iter().for_each(|token| server.serve(&token));
        // Before it is answered: whoever is told of the end may start another of the name.
        if server.service.over && server.socket.take().is_some() {
            server.due = None;
        }
        server.answer();
    }
    Ok(())
}

impl Server {
    /// Everybody is told everything, as far as they can be.
    fn is_over(&self) -> bool {
        let told = self.service.events.is_idle() || self.service.events.is_cut_off();
        self.service.over && told && self.connections.values().all(|connection| !connection.is_behind())
    }

    /// Waits until something happens; `None`: nothing will any more.
    fn wait(&mut self, unread: bool) -> Result<Option<Vec<Token>>> {
        let after = match (self.service.over, self.full || self.service.events.is_cut_off()) {
            (true, _) => Some(FAREWELL),
            (false, true) => Some(LOOK_AGAIN),
            (false, false) => None,
        };
        // What happens meanwhile does not put it off.
        self.due = after.map(|after| self.due.unwrap_or_else(|| Instant::now() + after));
        let interests = self.interests();
        let mut fds: Vec<_> = interests.iter().map(|(_, fd, flags)| PollFd::new(*fd, *flags)).collect();
        let answer = match self.due {
            _ if unread => poll(&mut fds, PollTimeout::from(ASK_AGAIN)),
            Some(due) => poll(&mut fds, until(due)),
            None => rest(&mut fds),
        };
        match answer {
            Err(Errno::EINTR) => return Ok(Some(Vec::new())),
            answer => answer.or_cannot("wait for", "what happens")?,
        };
        let is_due = self.due.is_some_and(|due| due <= Instant::now());
        if is_due && self.service.over {
            return Ok(None);
        }
        let happened = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let ready = interests.iter().zip(happened).filter(|(_, flags)| !flags.is_empty());
        let mut ready: Vec<_> = ready.map(|((token, ..), _)| token.clone()).collect();
        if is_due {
            self.due = None;
            ready.push(Token::Daemon);
        }
        self.full = false;
        Ok(Some(ready))
    }

    fn interests(&self) -> Vec<(Token, BorrowedFd<'_>, PollFlags)> {
        let reading = PollFlags::POLLIN;
        let mut all = vec![(Token::Signals, self.signals.as_fd(), reading)];
        let listening = self.socket.iter().filter(|_| !self.full);
        all.extend(listening.map(|socket| (Token::Listener, socket.listener.as_fd(), reading)));
        for (number, connection) in &self.connections {
            let writing = if connection.is_behind() { PollFlags::POLLOUT } else { PollFlags::empty() };
            all.push((Token::Connection(*number), connection.as_fd(), reading | writing));
        }
        // Of one that was killed there is nothing to be heard until it is waited for.
        for job in self.service.jobs.iter().filter(|job| !job.abandoned) {
            all.push((Token::Job(job.work.pid.as_raw()), job.work.as_fd(), reading));
        }
        all.extend(self.service.events.interest().map(|(fd, flags)| (Token::Events, fd, flags)));
        for (id, container) in &self.service.containers {
            let memory = container.memory.as_ref();
            all.extend(memory.map(|memory| (Token::Memory(id.clone()), memory.as_fd(), PollFlags::POLLPRI)));
            for (exec, process) in &container.processes {
                let key = || (id.clone(), exec.clone());
                let input = process.input.as_ref().map(Pump::interest);
                all.extend(input.map(|(fd, flags)| (Token::Input(key()), fd, flags)));
                let outputs = process.outputs.iter().map(Pump::interest);
                all.extend(outputs.map(|(fd, flags)| (Token::Output(key()), fd, flags)));
            }
        }
        all
    }

    fn serve(&mut self, token: &Token) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => self.signal(),
            Token::Connection(number) => self.converse(*number),
            Token::Job(pid) => {
                if let Some(at) = self.service.jobs.iter().position(|job| job.work.pid.as_raw() == *pid) {
                    self.service.heard(at);
                }
            }
            Token::Daemon if self.service.events.is_cut_off() => self.service.events.connect(),
            Token::Daemon => (),
            Token::Events => self.service.events.step(),
            Token::Input(key) => self.service.pump_input(key),
            Token::Output(key) => self.service.pump_outputs(key),
            Token::Memory(id) => self.service.out_of_memory(id),
        }
    }

    fn accept(&mut self) {
        while let Some(accepted) = self.socket.as_ref().map(|socket| socket.listener.accept()) {
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    self.full = error.kind() != ErrorKind::WouldBlock;
                    return;
                }
            };
            // Whoever else can reach the socket has no business with other users' containers.
            let same = getsockopt(&socket, PeerCredentials).is_ok_and(|peer| peer.uid() == geteuid().as_raw());
            if let (true, Ok(connection)) = (same, Connection::new(socket)) {
                self.connections.insert(self.next, connection);
                self.next += 1;
            }
        }
    }

    fn signal(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let ends = [Signal::SIGTERM, Signal::SIGINT].iter().any(|end| *end as u32 == signal.ssi_signo);
            // Containers need whoever tells of their end.
            if ends && self.service.containers.is_empty() {
                self.service.over = true;
            }
        }
        self.service.reap();
    }

    fn converse(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let frames = match connection.flush().and_then(|()| connection.receive()) {
            Ok(frames) => frames,
            Err(_) => {
                self.connections.remove(&number);
                return;
            }
        };
        for frame in frames.into_iter().filter(|frame| frame.kind == REQUEST) {
            let reply = Reply { connection: number, stream: frame.stream };
            match Request::decode(&*frame.payload) {
                Ok(request) => self.service.call(reply, &request),
                Err(error) => self.service.answers.push((reply, Err(error.into()))),
            }
        }
    }

    /// Sends the answers that there are; to those who have gone, none.
    fn answer(&mut self) {
        for (reply, answer) in std::mem::take(&mut self.service.answers) {
            let sent =
                self.connections.get_mut(&reply.connection).map(|connection| connection.send(&frame(reply, answer)));
            if matches!(sent, Some(Err(_))) {
                self.connections.remove(&reply.connection);
            }
        }
    }
}

/// The time until then, in the whole milliseconds of poll(2).
fn until(due: Instant) -> PollTimeout {
    let left = due.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// Waits without an end. What comes after the memory is given back is read from the program's file again: so that is only the
/// second call.
fn rest(fds: &mut [PollFd<'_>]) -> nix::Result<i32> {
    match poll(fds, PollTimeout::from(REST)) {
        Ok(0) => {
            // Where it is refused, it is kept.
            give_back_code().ok();
            poll(fds, PollTimeout::NONE)
        }
        answer => answer,
    }
}

fn frame(reply: Reply, answer: Answer) -> Frame {
    let response = match answer {
        Ok(payload) => Response { status: None, payload },
        Err(failure) => Response { status: Some(failure.status()), payload: Vec::new() },
    };
    Frame { stream: reply.stream, kind: RESPONSE, payload: response.encode_to_vec() }
}
