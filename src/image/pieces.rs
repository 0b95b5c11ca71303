//! A stream of bytes from one thread to another, in pieces that go back to be filled again. A layer passes through one or two of
//! them, since what its threads may do differs: see [`crate::security::jail`].

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::digest::Hasher;

/// What a piece holds. Bytes.
pub const PIECE: usize = 256 << 10;
/// So many pieces may wait.
const WAITING: usize = 8;

/// The end that is written to. The stream ends when it is dropped.
pub struct Filler {
    pieces: SyncSender<io::Result<Vec<u8>>>,
    spare: Receiver<Vec<u8>>,
}

/// The end that is read from.
pub struct Pieces {
    pieces: Receiver<io::Result<Vec<u8>>>,
    spare: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    hasher: Option<Hasher>,
}

/// A stream. What is read is put through `hasher`, where there is one.
pub fn stream(hasher: Option<Hasher>) -> (Filler, Pieces) {
    let (to, from) = sync_channel(WAITING);
    // As many as may wait, and one at each end.
    let (back, spare) = sync_channel(WAITING + 2);
    (Filler { pieces: to, spare }, Pieces { pieces: from, spare: back, piece: Vec::new(), at: 0, hasher })
}

impl Filler {
    /// Copies all of `source`; whether the other end took it.
    ///
    /// # Errors
    /// What reading answers.
    pub fn copy(&self, source: &mut impl Read) -> io::Result<bool> {
        loop {
            let mut piece = self.spare.try_recv().unwrap_or_default();
            piece.resize(PIECE, 0);
            let filled = fill(source, &mut piece)?;
            piece.truncate(filled);
            if filled == 0 {
                return Ok(true);
            }
            if !self.send(piece) {
                return Ok(false);
            }
        }
    }

    /// Whether the other end is there to take it.
    #[must_use]
    pub fn send(&self, piece: Vec<u8>) -> bool {
        self.pieces.send(Ok(piece)).is_ok()
    }

    /// Tells the other end what it cannot know: that this is not the end, but a failure.
    pub fn fail(&self, why: io::Error) {
        // One that has gone need not know.
        self.pieces.send(Err(why)).ok();
    }
}

impl Pieces {
    /// The hasher, with all that was read.
    pub fn into_hasher(self) -> Option<Hasher> {
        self.hasher
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Ok(next) = self.pieces.recv() else { return Ok(0) };
            let next = next?;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&next);
            }
            // One that is not taken back is freed.
            self.spare.try_send(std::mem::replace(&mut self.piece, next)).ok();
            self.at = 0;
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Algorithm;

    #[test]
    fn what_goes_in_comes_out() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|number| number.to_le_bytes()[0]).collect();
        let (filler, mut pieces) = stream(Some(Hasher::new(Algorithm::Sha256)));
        std::thread::scope(|scope| {
            scope.spawn(move || assert!(filler.copy(&mut bytes.as_slice()).unwrap()));
            let mut read = Vec::new();
            pieces.read_to_end(&mut read).unwrap();
            assert_eq!(read.len(), 3_000_000);
            assert!(read.iter().zip(0u32..).all(|(byte, number)| *byte == number.to_le_bytes()[0]));
            let mut hasher = Hasher::new(Algorithm::Sha256);
            hasher.update(&read);
            assert_eq!(pieces.into_hasher().unwrap().finish(), hasher.finish());
        });
    }

    #[test]
    fn either_end_may_go_first() {
        let (filler, pieces) = stream(None);
        drop(pieces);
        assert!(!filler.copy(&mut io::repeat(1)).unwrap());
        let (filler, mut pieces) = stream(None);
        assert!(filler.send(vec![1, 2]));
        filler.fail(io::Error::other("broken"));
        drop(filler);
        let mut bytes = [0; 4];
        assert_eq!(pieces.read(&mut bytes).unwrap(), 2);
        assert_eq!(pieces.read(&mut bytes).unwrap_err().to_string(), "broken");
        assert_eq!(pieces.read(&mut bytes).unwrap(), 0);
    }
}
