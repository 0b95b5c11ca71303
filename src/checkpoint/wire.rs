//! The wire format of protocol buffers, as far as CRIU's messages use it: numbers as varints, and bytes with their length.
//!
//! A hundred lines in place of a code generator or a derive, since ferry speaks one protocol of a dozen messages; the
//! reader is for what another process says and takes nothing on trust. <https://protobuf.dev/programming-guides/encoding>

/// A message that is being written. Fields stand in it in the order they are written in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// An unsigned number.
    pub fn number(&mut self, field: u32, value: u64) -> &mut Self {
        self.key(field, VARINT);
        self.varint(value);
        self
    }

    /// A signed number, which is written as if it had 64 bits.
    pub fn signed(&mut self, field: u32, value: i32) -> &mut Self {
        self.number(field, i64::from(value).cast_unsigned())
    }

    /// Yes, or, by leaving it out, no.
    pub fn flag(&mut self, field: u32, value: bool) -> &mut Self {
        if value { self.number(field, 1) } else { self }
    }

    /// A text or bytes.
    pub fn bytes(&mut self, field: u32, value: impl AsRef<[u8]>) -> &mut Self {
        let value = value.as_ref();
        self.key(field, BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// A signed number, where there is one.
    pub fn signed_if(&mut self, field: u32, value: Option<i32>) -> &mut Self {
        match value {
            Some(value) => self.signed(field, value),
            None => self,
        }
    }

    /// A text or bytes, where there are some.
    pub fn bytes_if(&mut self, field: u32, value: Option<&(impl AsRef<[u8]> + ?Sized)>) -> &mut Self {
        match value {
            Some(value) => self.bytes(field, value),
            None => self,
        }
    }

    /// A message in the message.
    pub fn message(&mut self, field: u32, value: &Message) -> &mut Self {
        self.bytes(field, &value.0)
    }

    /// What goes over the wire.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn key(&mut self, field: u32, kind: u64) {
        self.varint(u64::from(field) << 3 | kind);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// What stands in a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number; a signed one as the bits of its 64.
    Number(u64),
    /// A text, bytes or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The number; 0 where there is something else.
    pub fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            Self::Bytes(_) => 0,
        }
    }

    /// The number as one of 32 bits; what does not fit is none.
    pub fn signed(self) -> Option<i32> {
        i32::try_from(self.number().cast_signed()).ok()
    }

    /// The bytes; none where there is a number.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Number(_) => &[],
            Self::Bytes(bytes) => bytes,
        }
    }

    /// The bytes as text; what is not UTF-8 is replaced.
    pub fn text(self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// The fields of a message that was received: number and value. `None` in the place of a field that is cut off or of a kind
/// that nobody writes any more; then nothing follows.
pub fn fields(message: &[u8]) -> impl Iterator<Item = Option<(u32, Value<'_>)>> {
    let mut rest = message;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let field = field(&mut rest);
        if field.is_none() {
            rest = &[];
        }
        Some(field)
    })
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u32, Value<'a>)> {
    let key = varint(rest)?;
    let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0)?;
    let value = match key & 7 {
        VARINT => Value::Number(varint(rest)?),
        FIXED64 => Value::Number(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?)),
        BYTES => {
            let length = usize::try_from(varint(rest)?).ok()?;
            Value::Bytes(take(rest, length)?)
        }
        FIXED32 => Value::Number(u64::from(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))),
        _ => return None,
    };
    Some((number, value))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, left) = rest.split_first()?;
        *rest = left;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut inner = Message::default();
        inner.bytes(1, "key").signed(2, -1);
        let mut message = Message::default();
        message.number(1, 300).flag(2, true).flag(3, false).bytes(16, "text").message(50, &inner);
        let bytes = message.into_bytes();
        assert_eq!(bytes[..3], [0x08, 0xac, 0x02], "the specification's own example");
        let read: Vec<_> = fields(&bytes).map(Option::unwrap).collect();
        assert_eq!(read.len(), 4);
        assert_eq!(read[0], (1, Value::Number(300)));
        assert_eq!(read[1], (2, Value::Number(1)));
        assert_eq!(read[2].1.text(), "text");
        let inner: Vec<_> = fields(read[3].1.bytes()).map(Option::unwrap).collect();
        assert_eq!((inner[0].1.text(), inner[1].1.signed()), ("key".to_owned(), Some(-1)));
    }

    #[test]
    fn what_is_cut_off_or_broken_is_told_once_and_ends_it() {
        for broken in [
            &[0x08][..],
            &[0x08, 0x80],
            &[0x0a, 5, b'x'],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x0b],
            &[0x00, 0x00],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0x0d, 1, 2, 3],
        ] {
            assert_eq!(fields(broken).collect::<Vec<_>>(), [None], "{broken:?}");
        }
        assert_eq!(fields(&[0x08, 0x01, 0x08]).count(), 2);
    }

    /// Every short input, and every cut and flip of a real one: nothing panics, and no field is longer than the input.
    #[test]
    fn no_input_is_too_strange() {
        let mut message = Message::default();
        message.number(1, u64::MAX).bytes(2, [7; 200]).signed(3, i32::MIN);
        let whole = message.into_bytes();
        let check = |bytes: &[u8]| {
            for (_, value) in fields(bytes).flatten() {
                assert!(value.bytes().len() <= bytes.len());
            }
        };
        for a in 0..=255 {
            for b in 0..=255 {
                check(&[a, b, a, b, b]);
            }
        }
        for at in 0..whole.len() {
            check(&whole[..at]);
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                check(&flipped);
            }
        }
    }
}
