//! ttrpc's frames: ten bytes of header (length of the payload, number of the stream, type, flags; big-endian), then the payload.
//! PROTOCOL.md of github.com/containerd/ttrpc. Calls are unary here, so a frame is a whole request or response.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// The length of a header.
const HEADER: usize = 10;
/// The longest payload that the protocol allows.
const LONGEST: usize = 4 << 20;

/// The type of a frame that asks.
pub const REQUEST: u8 = 1;
/// The type of a frame that answers.
pub const RESPONSE: u8 = 2;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Of the client's choice, odd; the answer has the same.
    pub stream: u32,
    /// [`REQUEST`], [`RESPONSE`], or another one that means nothing here.
    pub kind: u8,
    /// A message.
    pub payload: Vec<u8>,
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend([self.kind, 0]);
        bytes.extend(&self.payload);
        bytes
    }
}

/// One end of a connection that never blocks.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Takes a socket over.
    ///
    /// # Errors
    /// It cannot be made not to block.
    pub fn new(socket: UnixStream) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, received: Vec::new(), unsent: Vec::new() })
    }

    /// The whole frames that have come.
    ///
    /// # Errors
    /// The other side has gone, or has sent a frame longer than there can be: nothing comes after it.
    pub fn receive(&mut self) -> std::io::Result<Vec<Frame>> {
        let mut chunk = [0; 8192];
        let ended = loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => break Some(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.received.extend(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break None,
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => break Some(error),
            }
            // No more than one frame of the longest kind is kept.
            if self.received.len() > HEADER + LONGEST {
                break None;
            }
        };
        let mut frames = Vec::new();
        while let Some(frame) = self.take()? {
            frames.push(frame);
        }
        match ended {
            // What was asked last is answered to nobody, but done.
            Some(error) if frames.is_empty() => Err(error),
            _ => Ok(frames),
        }
    }

    fn take(&mut self) -> std::io::Result<Option<Frame>> {
        let Some((header, rest)) = self.received.split_first_chunk::<HEADER>() else { return Ok(None) };
        let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (length, stream, kind) = (number(0) as usize, number(4), header[8]);
        if length > LONGEST {
            return Err(std::io::Error::new(ErrorKind::InvalidData, "a frame longer than there can be"));
        }
        let Some(payload) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.received.drain(..HEADER + length);
        if self.received.is_empty() {
            self.received = Vec::new();
        }
        Ok(Some(Frame { stream, kind, payload }))
    }

    /// Sends a frame, now or when there is room.
    ///
    /// # Errors
    /// The other side has gone.
    pub fn send(&mut self, frame: &Frame) -> std::io::Result<()> {
        self.unsent.extend(frame.bytes());
        self.flush()
    }

    /// Sends what there was no room for.
    ///
    /// # Errors
    /// The other side has gone.
    pub fn flush(&mut self) -> std::io::Result<()> {
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
        self.unsent = Vec::new();
        Ok(())
    }

    /// Whether there is something to send.
    pub fn is_behind(&self) -> bool {
        !self.unsent.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(ours).unwrap(), theirs)
    }

    #[test]
    fn a_frame_is_read_in_whatever_pieces_it_comes() {
        let (mut ours, mut theirs) = pair();
        let frames = [1, 3].map(|stream| Frame { stream, kind: REQUEST, payload: vec![7; stream as usize * 100] });
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        let mut got = Vec::new();
        for piece in bytes.chunks(7) {
            theirs.write_all(piece).unwrap();
            got.extend(ours.receive().unwrap());
        }
        assert_eq!(got, frames);
        drop(theirs);
        assert_eq!(ours.receive().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_is_read() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(&[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0]).unwrap();
        assert_eq!(ours.receive().unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn what_there_is_no_room_for_is_sent_later() {
        let (mut ours, mut theirs) = pair();
        let frame = Frame { stream: 1, kind: RESPONSE, payload: vec![1; LONGEST] };
        ours.send(&frame).unwrap();
        assert!(ours.is_behind());
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; HEADER + LONGEST];
            theirs.read_exact(&mut all).map(|()| all)
        });
        while ours.is_behind() {
            ours.flush().unwrap();
        }
        assert_eq!(reader.join().unwrap().unwrap(), frame.bytes());
    }
}
