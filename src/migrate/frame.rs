//! Frames: what goes over a link is cut into pieces with a kind, a number and a length, each of which is checked before a
//! byte of the piece is kept.
//!
//! ```text
//! 0       1            4              8             12
//! | kind  | zero (3)   | sequence u32 | length u32  | payload…     little-endian
//! ```
//!
//! The sequence counts frames of one direction from 0: one that is left out, doubled or played again is refused. Whole files
//! are held to their sums beside that, so that a frame needs no sum of its own.

use crate::error::{Error, Result};

/// The length of a header. Bytes.
pub const HEADER: usize = 12;

/// The most a message may be long: a request carries a configuration. Bytes.
pub const LONGEST_MESSAGE: usize = 2 << 20;

/// The most a piece of a file may be long: a mebibyte that does not shrink, and what stands before it. Bytes.
pub const LONGEST_DATA: usize = (1 << 20) + (64 << 10);

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A [`super::message::Message`].
    Message = 1,
    /// A piece of the file that was begun.
    Data = 2,
}

impl Kind {
    /// The most bytes of payload.
    pub fn longest(self) -> usize {
        match self {
            Self::Message => LONGEST_MESSAGE,
            Self::Data => LONGEST_DATA,
        }
    }
}

/// What stands before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Which frame of its direction it is.
    pub sequence: u32,
    /// How long the payload is. Bytes.
    pub length: usize,
}

impl Header {
    /// As it goes over the link.
    ///
    /// # Errors
    /// The payload is longer than the far end would take.
    pub fn encode(self) -> Result<[u8; HEADER]> {
        if self.length > self.kind.longest() {
            return Err(Error::said("send", format!("{:?}", self.kind), format!("it has {} bytes", self.length)));
        }
        let mut bytes = [0; HEADER];
        bytes[0] = self.kind as u8;
        bytes[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..].copy_from_slice(&u32::try_from(self.length).unwrap_or(u32::MAX).to_le_bytes());
        Ok(bytes)
    }

    /// Reads what came, which must be the frame number `expected`.
    ///
    /// # Errors
    /// It is no header, of another frame, or of a payload that is too long.
    pub fn decode(bytes: &[u8; HEADER], expected: u32) -> Result<Self> {
        let kind = match bytes[0] {
            1 => Kind::Message,
            2 => Kind::Data,
            _ => return Err(stranger(bytes)),
        };
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (sequence, length) = (word(4), word(8));
        if bytes[1..4] != [0; 3] {
            return Err(stranger(bytes));
        }
        if sequence != expected {
            return Err(refused(format!("frame {sequence} came where {expected} was due")));
        }
        match usize::try_from(length) {
            Ok(length) if length <= kind.longest() => Ok(Self { kind, sequence, length }),
            _ => Err(refused(format!("a frame of {length} bytes was announced"))),
        }
    }
}

/// What a peer did wrong.
pub fn refused(why: impl Into<String>) -> Error {
    Error::said("follow", "the far end", why)
}

/// The far end is no ferry; what it said instead is often the answer to why.
fn stranger(bytes: &[u8; HEADER]) -> Error {
    let text: String = String::from_utf8_lossy(bytes).chars().filter(|letter| !letter.is_control()).collect();
    refused(format!("it does not speak ferry's protocol: its first words are {text:?}"))
        .hint("what is started there must print nothing of its own: see what its login scripts write")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back() {
        for kind in [Kind::Message, Kind::Data] {
            let header = Header { kind, sequence: 7, length: kind.longest() };
            assert_eq!(Header::decode(&header.encode().unwrap(), 7).unwrap(), header);
            assert!(Header { length: kind.longest() + 1, ..header }.encode().is_err());
        }
    }

    #[test]
    fn what_is_too_long_played_again_or_no_frame_is_refused() {
        let header = Header { kind: Kind::Data, sequence: 3, length: 10 }.encode().unwrap();
        let said = |bytes: &[u8; HEADER], expected| Header::decode(bytes, expected).unwrap_err().to_string();
        assert!(said(&header, 4).contains("frame 3 came where 4 was due"));
        let mut long = header;
        long[8..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(said(&long, 3).contains("a frame of 4294967295 bytes"));
        assert!(said(b"Welcome to h", 0).contains("\"Welcome to h\""));
        let mut padded = header;
        padded[2] = 1;
        assert!(said(&padded, 3).contains("does not speak"));
    }

    /// Any twelve bytes are an answer and no panic, and what is taken is within its limit.
    #[test]
    fn no_header_is_too_strange() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..200_000 {
            let mut bytes = [0; HEADER];
            for byte in &mut bytes {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *byte = (state >> 56) as u8;
            }
            bytes[0] %= 4;
            if state & 1 == 0 {
                bytes[1..8].fill(0);
            }
            if let Ok(header) = Header::decode(&bytes, 0) {
                assert!(header.length <= header.kind.longest());
            }
        }
    }
}
