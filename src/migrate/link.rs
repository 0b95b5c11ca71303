//! A link to the far end: frames over two descriptors, with a bound on silence. Nobody waits for a peer forever: a container
//! may be standing still meanwhile.
//!
//! An end that is at work for long says so now and then ([`Link::alive`]): what it takes to save or restore a large container, or
//! to carry what lies in the buffers of a slow line, is not silence.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::frame::{HEADER, Header, Kind, refused};
use super::message::{self, Message};
use super::pace::Pace;
use crate::checkpoint::criu::interrupts;
use crate::error::{Context, Error, Result};

/// How often an end that is at work says so.
const BEAT: Duration = Duration::from_secs(1);

/// For how long it may say nothing else, as a multiple of the patience with silence.
const AT_WORK: u32 = 60;

/// Both directions.
pub struct Link {
    input: OwnedFd,
    output: OwnedFd,
    patience: Duration,
    interrupts: Option<SignalFd>,
    pace: Option<Pace>,
    /// Whether a frame went in part, after which nothing can be said any more.
    is_torn: bool,
    sequence: Sequence,
    /// When the last frame was sent.
    said: Instant,
    /// Bytes that were sent, with their headers.
    pub sent: u64,
    /// Bytes that were received, with their headers.
    pub received: u64,
    /// Whether the far end has said that it failed, and so that nothing is left there.
    pub failed: bool,
}

#[derive(Default)]
struct Sequence {
    sent: u32,
    received: u32,
}

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// Something is said.
    Message(Message),
    /// A piece of a file.
    Data(Vec<u8>),
}

impl Link {
    /// A link over two descriptors, which may be the same socket twice. `patience` is how long either end may take for one
    /// read or write to get on.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn new(input: OwnedFd, output: OwnedFd, patience: Duration) -> Result<Self> {
        for end in [&input, &output] {
            let flags = fcntl_getfl(end).or_cannot("look at", "the link")?;
            fcntl_setfl(end, flags | OFlags::NONBLOCK).or_cannot("prepare", "the link")?;
        }
        let sequence = Sequence::default();
        Ok(Self {
            input,
            output,
            patience,
            interrupts: None,
            pace: None,
            is_torn: false,
            sequence,
            said: Instant::now(),
            sent: 0,
            received: 0,
            failed: false,
        })
    }

    /// Two ends of one link, within this machine.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn pair(patience: Duration) -> Result<(Self, Self)> {
        let (one, other) = UnixStream::pair().or_cannot("make", "a socket")?;
        let end = |stream: UnixStream| {
            let copy = stream.try_clone().or_cannot("make", "a socket")?;
            Self::new(copy.into(), stream.into(), patience)
        };
        Ok((end(one)?, end(other)?))
    }

    /// Its descriptors.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.input.as_fd(), self.output.as_fd()]
    }

    /// Sends no more than so many bytes a second.
    pub fn limit(&mut self, bytes_per_second: u64) {
        self.pace = Some(Pace::new(bytes_per_second, Instant::now()));
    }

    /// Has signals with which a user ends a program, which must be blocked, end what is being waited for; or no longer.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn heed_interrupts(&mut self, heed: bool) -> Result<()> {
        self.interrupts = if heed { Some(interrupts()?) } else { None };
        Ok(())
    }

    /// Says something.
    ///
    /// # Errors
    /// The link is cut or stands still; an interrupt.
    pub fn send(&mut self, message: &Message) -> Result<()> {
        self.send_frame(Kind::Message, &message.encode()?)
    }

    /// Says that this end is at work, unless it has said anything a moment ago. It is not waited for: an end that sends a file
    /// does not listen meanwhile, and need not be told.
    ///
    /// # Errors
    /// The link is cut.
    pub fn alive(&mut self) -> Result<()> {
        let has_room = || wait(Some((self.output.as_fd(), PollFlags::POLLOUT)), Duration::ZERO, None);
        if self.said.elapsed() < BEAT || !has_room()? { Ok(()) } else { self.send(&Message::Alive) }
    }

    /// Sends a piece of a file.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub fn send_data(&mut self, data: &[u8]) -> Result<()> {
        self.send_frame(Kind::Data, data)
    }

    fn send_frame(&mut self, kind: Kind, payload: &[u8]) -> Result<()> {
        let header = Header { kind, sequence: self.sequence.sent, length: payload.len() }.encode()?;
        // A header alone would be a packet of its own.
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(payload);
        if self.is_torn {
            return Err(cut());
        }
        // What is held back for long goes piece by piece, so that the far end hears of it every moment.
        for piece in bytes.chunks(self.pace.map_or(usize::MAX, |pace| pace.within(BEAT))) {
            self.pace(piece.len() as u64)?;
            self.is_torn = true;
            self.write_all(piece)?;
        }
        self.is_torn = false;
        self.sequence.sent = self.sequence.sent.wrapping_add(1);
        self.sent += bytes.len() as u64;
        self.said = Instant::now();
        Ok(())
    }

    /// Waits until so many bytes may go.
    fn pace(&mut self, bytes: u64) -> Result<()> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        let until = pace.take(bytes, Instant::now());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            wait(None, left, self.interrupts.as_ref())?;
        }
    }

    /// The next frame.
    ///
    /// # Errors
    /// The link is cut or stands still; what came is no frame; an interrupt.
    pub fn receive(&mut self) -> Result<Frame> {
        self.receive_or_end()?.ok_or_else(cut)
    }

    /// The next frame; `None` where the far end has gone and left none unfinished.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn receive_or_end(&mut self) -> Result<Option<Frame>> {
        let since = Instant::now();
        loop {
            match self.receive_any()? {
                Some(Frame::Message(Message::Alive)) if since.elapsed() < self.patience.saturating_mul(AT_WORK) => (),
                Some(Frame::Message(Message::Alive)) => {
                    let seconds = since.elapsed().as_secs();
                    return Err(refused(format!("it has said for {seconds} s that it is at work, and nothing else")));
                }
                frame => return Ok(frame),
            }
        }
    }

    /// For how long it may be silent.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The next frame, whatever it is; `None` as [`Link::receive_or_end`] has it.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub(super) fn receive_any(&mut self) -> Result<Option<Frame>> {
        let mut header = [0; HEADER];
        if !self.read(&mut header)? {
            return Ok(None);
        }
        let header = Header::decode(&header, self.sequence.received)?;
        self.sequence.received = self.sequence.received.wrapping_add(1);
        let mut payload = vec![0; header.length];
        if !payload.is_empty() && !self.read(&mut payload)? {
            return Err(cut());
        }
        self.received += (HEADER + payload.len()) as u64;
        Ok(Some(match header.kind {
            Kind::Data => Frame::Data(payload),
            Kind::Message => Frame::Message(Message::decode(&payload)?),
        }))
    }

    /// The next message. That the far end has failed or given up is an error with its reason.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn hear(&mut self) -> Result<Message> {
        let frame = self.receive()?;
        self.heard(frame)
    }

    /// As [`Link::hear`], for an end that has nothing to say until it is asked: when the other one says that it is at work, it hears that
    /// this one is there.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub(super) fn hear_and_answer(&mut self) -> Result<Message> {
        let since = Instant::now();
        loop {
            match self.receive_any()?.ok_or_else(cut)? {
                Frame::Message(Message::Alive) if since.elapsed() < self.patience.saturating_mul(AT_WORK) => {
                    self.alive()?
                }
                frame => return self.heard(frame),
            }
        }
    }

    /// The next message, if there is one by now. As [`Link::hear`].
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub(super) fn hear_now(&mut self) -> Result<Option<Message>> {
        loop {
            let mut waited = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
            match poll(&mut waited, PollTimeout::ZERO) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => return Ok(None),
                Ok(_) => (),
                Err(answer) => return Err(Error::kernel("wait for", "the far end", answer)),
            }
            match self.receive_any()?.ok_or_else(cut)? {
                Frame::Message(Message::Alive) => (),
                frame => return self.heard(frame).map(Some),
            }
        }
    }

    fn heard(&mut self, frame: Frame) -> Result<Message> {
        match frame {
            Frame::Message(Message::Failed(why)) => {
                self.failed = true;
                Err(Error::plain(format!("the destination: {}", message::shown(&why))))
            }
            Frame::Message(Message::Abort(why)) => {
                Err(Error::plain(format!("the source gave up: {}", message::shown(&why))))
            }
            Frame::Message(message) => Ok(message),
            Frame::Data(_) => Err(refused("a piece of a file came out of turn")),
        }
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.output, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => self.wait(Direction::Out)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(cut()),
                Err(answer) => return Err(answer).or_cannot("write to", "the far end"),
            }
        }
        Ok(())
    }

    /// Fills the buffer. False: the stream ended before it.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < buffer.len() {
            match rustix::io::read(&self.input, &mut buffer[filled..]) {
                Ok(0) | Err(Errno::CONNRESET) if filled == 0 => return Ok(false),
                Ok(0) | Err(Errno::CONNRESET) => return Err(cut()),
                Ok(count) => filled += count,
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => self.wait(Direction::In)?,
                Err(answer) => return Err(answer).or_cannot("read from", "the far end"),
            }
        }
        Ok(true)
    }

    fn wait(&self, direction: Direction) -> Result<()> {
        let (fd, flags) = match direction {
            Direction::In => (self.input.as_fd(), PollFlags::POLLIN),
            Direction::Out => (self.output.as_fd(), PollFlags::POLLOUT),
        };
        if wait(Some((fd, flags)), self.patience, self.interrupts.as_ref())? {
            return Ok(());
        }
        let seconds = self.patience.as_secs_f64();
        Err(refused(format!("it has been silent for {seconds} s")).hint("--timeout lets it be silent for longer"))
    }
}

enum Direction {
    In,
    Out,
}

/// The end of the stream.
fn cut() -> Error {
    refused("the connection is cut")
}

/// Waits for a descriptor. False: it is not ready when the time is over.
fn wait(fd: Option<(BorrowedFd<'_>, PollFlags)>, time: Duration, interrupts: Option<&SignalFd>) -> Result<bool> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, else the last millisecond would be spent in a busy loop.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let signals = interrupts.map(|signals| PollFd::new(signals.as_fd(), PollFlags::POLLIN));
        let mut waited: Vec<PollFd<'_>> =
            signals.into_iter().chain(fd.map(|(fd, flags)| PollFd::new(fd, flags))).collect();
        match poll(&mut waited, left) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(nix::errno::Errno::EINTR) => (),
            Err(answer) => return Err(Error::kernel("wait for", "the far end", answer)),
        }
        if let Some(signals) = interrupts
            && let Some(info) = signals.read_signal().or_cannot("read", "signals")?
        {
            let name = Signal::try_from(info.ssi_signo as i32).map_or("a signal", Signal::as_str);
            return Err(Error::plain(format!("interrupted by {name}")));
        }
        let ready = |waited: &PollFd<'_>| waited.any().unwrap_or(false);
        if fd.is_some() && waited.last().is_some_and(ready) {
            return Ok(true);
        }
    }
}

/// Lets time pass, where there is nothing that would tell that it is time.
///
/// # Errors
/// The kernel's answer.
pub fn pause(time: Duration) -> Result<()> {
    wait(None, time, None).map(drop)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two ends of one link.
    pub fn pair(patience: Duration) -> (Link, Link) {
        Link::pair(patience).unwrap()
    }

    /// A link over a socket.
    pub fn of(stream: UnixStream, patience: Duration) -> Link {
        let copy = stream.try_clone().unwrap();
        Link::new(copy.into(), stream.into(), patience).unwrap()
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn messages_and_data_come_in_their_order() {
        let (mut one, mut other) = pair(LONG);
        one.send(&Message::Round(1)).unwrap();
        one.send_data(b"pages").unwrap();
        assert_eq!(other.receive().unwrap(), Frame::Message(Message::Round(1)));
        assert_eq!(other.receive().unwrap(), Frame::Data(b"pages".to_vec()));
        assert_eq!(one.sent, other.received);
        other.send(&Message::Failed("no\u{7}".into())).unwrap();
        assert_eq!(one.hear().unwrap_err().to_string(), "the destination: no");
    }

    /// Who is at work is not silent; who says nothing else for very long is given up all the same.
    #[test]
    fn an_end_that_is_at_work_is_borne_with() {
        let (mut one, mut other) = pair(LONG);
        one.said -= BEAT;
        one.alive().unwrap();
        one.alive().unwrap();
        one.send(&Message::Prepared).unwrap();
        assert_eq!(one.sequence.sent, 2, "once a beat");
        assert_eq!(other.receive().unwrap(), Frame::Message(Message::Prepared));
        let (mut one, mut other) = pair(Duration::ZERO);
        one.send(&Message::Alive).unwrap();
        assert!(other.receive().unwrap_err().to_string().contains("that it is at work, and nothing else"));
        // Where there is no room it is left out, and nobody waits.
        let (mut one, _other) = pair(Duration::from_millis(5));
        while one.send_data(&[0; 1 << 10]).is_ok() {}
        one.said -= BEAT;
        one.alive().unwrap();
    }

    #[test]
    fn an_end_that_waits_to_be_asked_says_that_it_is_there() {
        let (mut one, mut other) = pair(LONG);
        one.said -= BEAT;
        other.send(&Message::Alive).unwrap();
        other.send(&Message::Prepared).unwrap();
        assert_eq!(one.hear_and_answer().unwrap(), Message::Prepared);
        assert_eq!(other.receive_any().unwrap(), Some(Frame::Message(Message::Alive)));
    }

    /// A frame that takes longer to send than the far end waits is no silence.
    #[test]
    fn a_rate_is_held_without_silence() {
        let (mut one, mut other) = pair(2 * BEAT);
        one.limit(1000);
        let sending = std::thread::spawn(move || {
            one.send_data(&[7; 3000]).unwrap();
            one.send(&Message::Prepared).unwrap();
        });
        assert_eq!(other.receive().unwrap(), Frame::Data(vec![7; 3000]));
        assert_eq!(other.receive().unwrap(), Frame::Message(Message::Prepared));
        sending.join().unwrap();
    }

    #[test]
    fn an_end_and_silence_are_told() {
        let (mut one, other) = pair(LONG);
        drop(other);
        assert!(one.receive().unwrap_err().to_string().contains("the connection is cut"));
        assert!(one.send(&Message::Prepared).unwrap_err().to_string().contains("the connection is cut"));
        let (mut one, _other) = pair(Duration::from_millis(5));
        assert!(one.receive().unwrap_err().to_string().contains("silent for 0.005 s"));
        let full = (0..100).find_map(|_| one.send_data(&[0; 1 << 20]).err());
        assert!(full.unwrap().to_string().contains("silent"));
    }

    /// Whatever comes, the receiver answers, and takes no more memory than a frame may have.
    #[test]
    fn no_stream_is_too_strange() {
        use std::io::Write;
        let mut state = 1_u64;
        for _ in 0..2000 {
            let (mut raw, end) = UnixStream::pair().unwrap();
            let mut link = of(end, LONG);
            let bytes: Vec<u8> = (0..64)
                .map(|at| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let byte = (state >> 40) as u8;
                    // Mostly headers that begin well.
                    if !state.is_multiple_of(3) && at < 12 { [2, 0, 0, 0, 0, 0, 0, 0, byte, 0, 0, 0][at] } else { byte }
                })
                .collect();
            raw.write_all(&bytes).unwrap();
            drop(raw);
            while link.receive().is_ok() {}
        }
    }
}
