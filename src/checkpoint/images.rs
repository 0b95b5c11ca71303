//! CRIU's image files, as far as ferry reads them: two magic numbers, then messages, each behind its length.
//! criu/include/magic.h, criu/protobuf.c
//!
//! They may come from anywhere; a file that is not of this form is an error.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::wire::{self, Value};
use crate::error::{Context, Error, Result};

/// The first number of all that are no service files, and that of those.
const COMMON: u32 = 0x5456_4319;
const SERVICE: u32 = 0x5510_5940;

/// The second number: what kind of file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `pstree.img`: the processes.
    Processes = 0x5027_3030,
    /// `core-PID.img`: a thread.
    Core = 0x5505_3847,
    /// `pagemap-PID.img`: where memory is.
    Pages = 0x5608_4025,
    /// `seccomp.img`: system call filters.
    Filters = 0x6441_3049,
    /// `mountpoints-N.img`: mounts.
    Mounts = 0x5556_3928,
    /// `files.img`: open files.
    Files = 0x5630_3138,
    /// `stats-dump`: what a dump came to.
    Statistics = 0x5709_3306,
}

impl Kind {
    fn first(self) -> u32 {
        if self == Self::Statistics { SERVICE } else { COMMON }
    }
}

/// A file larger than this is not read: memory is in others.
const LARGEST: u64 = 64 << 20;

/// The messages of a file.
///
/// # Errors
/// It cannot be read, or is none of that kind.
pub fn read(path: &Path, kind: Kind) -> Result<Vec<Vec<u8>>> {
    let mut bytes = Vec::new();
    let file = File::open(path).or_cannot("open", path.display())?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).or_cannot("read", path.display())?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::said("read", path.display().to_string(), "it is too large"));
    }
    messages(&bytes, kind).ok_or_else(|| Error::said("read", path.display().to_string(), "it is no image of its kind"))
}

/// The messages in the bytes of a file. `None`: it is none of that kind.
pub fn messages(bytes: &[u8], kind: Kind) -> Option<Vec<Vec<u8>>> {
    let mut rest = bytes;
    let number = |rest: &mut &[u8]| {
        let (first, others) = rest.split_first_chunk::<4>()?;
        *rest = others;
        Some(u32::from_le_bytes(*first))
    };
    if number(&mut rest)? != kind.first() || number(&mut rest)? != kind as u32 {
        return None;
    }
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = usize::try_from(number(&mut rest)?).ok()?;
        let (message, others) = rest.split_at_checked(length)?;
        rest = others;
        // Whole, or it would be read otherwise elsewhere.
        wire::fields(message).collect::<Option<Vec<_>>>()?;
        found.push(message.to_vec());
    }
    Some(found)
}

/// The bytes of a file of these messages.
pub fn written(kind: Kind, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = [kind.first().to_le_bytes(), (kind as u32).to_le_bytes()].concat();
    for message in messages {
        // None is longer than the file that it came from.
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(message);
    }
    bytes
}

/// A field's values.
pub fn all(message: &[u8], number: u32) -> impl Iterator<Item = Value<'_>> {
    wire::fields(message).flatten().filter(move |(other, _)| *other == number).map(|(_, value)| value)
}

/// A field's value; of several the last, as everybody reads them.
pub fn one(message: &[u8], number: u32) -> Option<Value<'_>> {
    all(message, number).last()
}

#[cfg(test)]
pub mod tests {
    use super::super::wire::Message;
    use super::*;

    /// A file of messages.
    pub fn image(kind: Kind, messages: &[Message]) -> Vec<u8> {
        written(kind, &messages.iter().map(|message| message.clone().into_bytes()).collect::<Vec<_>>())
    }

    #[test]
    fn messages_of_a_file() {
        let mut message = Message::default();
        message.number(1, 7).number(5, 8).number(5, 9);
        let bytes = image(Kind::Processes, &[message.clone(), message]);
        let found = messages(&bytes, Kind::Processes).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(all(&found[1], 5).map(Value::number).collect::<Vec<_>>(), [8, 9]);
        assert_eq!((one(&found[0], 5).map(Value::number), one(&found[0], 2)), (Some(9), None));
    }

    #[test]
    fn what_is_cut_off_or_of_another_kind_is_none() {
        let mut message = Message::default();
        message.bytes(1, "text");
        let bytes = image(Kind::Processes, &[message]);
        for length in 0..bytes.len() {
            let found = messages(&bytes[..length], Kind::Processes);
            assert!(found.is_none_or(|found| length == 8 && found.is_empty()), "{length}");
        }
        assert_eq!(messages(&bytes, Kind::Core), None);
        let mut huge = bytes[..8].to_vec();
        huge.extend(u32::MAX.to_le_bytes());
        assert_eq!(messages(&huge, Kind::Processes), None);
    }
}
