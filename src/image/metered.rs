//! Headers of an archive's entries, held to a size. The parser keeps a header in memory whatever size it says it has (a PAX header
//! may say gigabytes), and reads it in the same call that looks for the next entry: so that call gets so many bytes and no more.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};

/// The most bytes of one entry's header, with the attributes and the map of holes in it. Most filesystems take 64 KiB of
/// attributes a file.
pub const LARGEST: u64 = 16 << 20;

/// What a [`Metered`] stream may still give. Bytes.
pub struct Room(Cell<u64>);

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

impl Room {
    /// Without an end.
    pub fn new() -> Self {
        Self(Cell::new(u64::MAX))
    }

    /// As much as a header may have, as long as `step` runs. What is left of the entry before must have been read, or be skipped
    /// by seeking.
    pub fn of_a_header<T>(&self, step: impl FnOnce() -> T) -> T {
        self.0.set(LARGEST);
        let answer = step();
        self.0.set(u64::MAX);
        answer
    }
}

/// A stream that gives what there is room for.
pub struct Metered<'a, S> {
    stream: S,
    room: &'a Room,
}

impl<'a, S> Metered<'a, S> {
    /// A stream that takes its room from `room`.
    pub fn new(stream: S, room: &'a Room) -> Self {
        Self { stream, room }
    }
}

impl<S: Read> Read for Metered<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        let left = self.room.0.get().checked_sub(count as u64);
        let left = left.ok_or_else(|| io::Error::other(format!("a header has more than {LARGEST} bytes")))?;
        self.room.0.set(left);
        Ok(count)
    }
}

impl<S: Seek> Seek for Metered<'_, S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.stream.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_ends_at_its_limit_and_data_does_not() {
        let room = Room::new();
        let mut stream = Metered::new(io::repeat(0), &room);
        let mut read = |bytes: u64| io::copy(&mut stream.by_ref().take(bytes), &mut io::sink());
        assert_eq!(read(LARGEST + 1).ok(), Some(LARGEST + 1));
        assert_eq!(room.of_a_header(|| read(LARGEST)).ok(), Some(LARGEST));
        assert!(room.of_a_header(|| read(LARGEST + 1)).is_err());
        assert!(read(LARGEST + 1).is_ok());
    }
}
