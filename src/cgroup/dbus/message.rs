//! A D-Bus message as bytes: what is sent, put together with its alignment, and what came in, taken apart without trust.
//!
//! Source: D-Bus Specification 0.43, "Type System" and "Message Protocol".

use crate::error::{Error, Result};

/// A value that is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cgroup) enum Value {
    /// `s`
    Text(String),
    /// `b`
    Flag(bool),
    /// `t`
    Number(u64),
    /// `u`
    Small(u32),
    /// `i`
    Signed(i32),
    /// `au`
    Ids(Vec<u32>),
    /// `ay`
    Bytes(Vec<u8>),
}

/// A property's name and value: `(sv)`.
pub(in crate::cgroup) type Property = (&'static str, Value);

/// A method call's target and arguments.
pub(in crate::cgroup) struct Call<'call> {
    pub destination: &'call str,
    pub path: &'call str,
    pub interface: &'call str,
    pub member: &'call str,
    pub signature: &'call str,
    pub body: Body,
}

/// A body as it grows; D-Bus aligns every value to its own size from the body's beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::cgroup) struct Body(Vec<u8>);

impl Body {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    /// `s` or `o`.
    pub fn text(mut self, text: &str) -> Self {
        self.put_text(text);
        self
    }

    /// `b`
    pub fn flag(mut self, flag: bool) -> Self {
        self.u32(u32::from(flag));
        self
    }

    /// `a(sv)`
    pub fn properties(mut self, properties: &[Property]) -> Self {
        self.array(8, |body| {
            for (name, value) in properties {
                body.align(8);
                body.put_text(name);
                body.variant(value);
            }
        });
        self
    }

    /// An empty array of structures.
    pub fn nothing(mut self) -> Self {
        self.array(8, |_| {});
        self
    }

    fn put_text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(signature.len() as u8);
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// The length counts from the first element, so not the padding before it.
    fn array(&mut self, align: usize, elements: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length = self.0.len() - 4;
        self.align(align);
        let first = self.0.len();
        elements(self);
        let size = (self.0.len() - first) as u32;
        self.0[length..length + 4].copy_from_slice(&size.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        match value {
            Value::Text(text) => {
                self.signature("s");
                self.put_text(text);
            }
            Value::Flag(flag) => {
                self.signature("b");
                self.u32(u32::from(*flag));
            }
            Value::Number(number) => {
                self.signature("t");
                self.align(8);
                self.0.extend(number.to_le_bytes());
            }
            Value::Small(number) => {
                self.signature("u");
                self.u32(*number);
            }
            Value::Signed(number) => {
                self.signature("i");
                self.align(4);
                self.0.extend(number.to_le_bytes());
            }
            Value::Ids(ids) => {
                self.signature("au");
                self.array(4, |body| ids.iter().for_each(|id| body.u32(*id)));
            }
            Value::Bytes(bytes) => {
                self.signature("ay");
                self.array(1, |body| body.0.extend(bytes));
            }
        }
    }
}

const METHOD_CALL: u8 = 1;
pub(super) const METHOD_RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

pub(super) fn encode(call: &Call<'_>, serial: u32) -> Vec<u8> {
    let mut message = Body(vec![b'l', METHOD_CALL, 0, 1]);
    message.u32(call.body.0.len() as u32);
    message.u32(serial);
    let fields = [(1, "o", call.path), (2, "s", call.interface), (3, "s", call.member), (6, "s", call.destination)];
    message.array(8, |header| {
        for (code, kind, value) in fields {
            header.align(8);
            header.0.push(code);
            header.signature(kind);
            header.put_text(value);
        }
        if !call.signature.is_empty() {
            header.align(8);
            header.0.push(8);
            header.signature("g");
            header.signature(call.signature);
        }
    });
    message.align(8);
    message.0.extend(&call.body.0);
    message.0
}

/// A message that came in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::cgroup) struct Message {
    pub(super) kind: u8,
    pub(super) reply_to: u32,
    pub(super) member: String,
    pub(super) sender: String,
    pub(super) error: String,
    signature: String,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// The strings and object paths at the head of the body, also those in a variant, numbers passed over: all that
    /// systemd's answers hold.
    pub fn texts(&self) -> Result<Vec<String>> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut texts = Vec::new();
        for kind in self.signature.bytes() {
            match kind {
                b's' | b'o' => texts.push(reader.text()?),
                b'v' if reader.signature()? == "s" => texts.push(reader.text()?),
                b'u' | b'i' | b'b' => drop(reader.u32()?),
                _ => break,
            }
        }
        Ok(texts)
    }
}

struct Reader<'bytes> {
    bytes: &'bytes [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or_else(malformed)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<()> {
        self.take(self.at.next_multiple_of(to) - self.at).map(drop)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        self.align(4)?;
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        self.terminated(length)
    }

    fn signature(&mut self) -> Result<String> {
        let length = usize::from(self.u8()?);
        self.terminated(length)
    }

    fn terminated(&mut self, length: usize) -> Result<String> {
        let text = self.take(length)?.to_vec();
        if self.u8()? != 0 {
            return Err(malformed());
        }
        String::from_utf8(text).map_err(|_| malformed())
    }
}

pub(super) fn malformed() -> Error {
    Error::said("talk to systemd", "", "the bus sent a malformed message")
}

/// Reads one header's fields, after the fixed 16 bytes.
pub(super) fn decode_fields(kind: u8, fields: &[u8]) -> Result<Message> {
    let mut message = Message { kind, ..Message::default() };
    let mut reader = Reader { bytes: fields, at: 0 };
    while reader.at < fields.len() {
        reader.align(8)?;
        let code = reader.u8()?;
        match reader.signature()?.as_str() {
            "s" | "o" => {
                let text = reader.text()?;
                match code {
                    3 => message.member = text,
                    4 => message.error = text,
                    7 => message.sender = text,
                    _ => {}
                }
            }
            "u" => {
                let number = reader.u32()?;
                if code == 5 {
                    message.reply_to = number;
                }
            }
            "g" => {
                let signature = reader.signature()?;
                if code == 8 {
                    message.signature = signature;
                }
            }
            _ => return Err(malformed()),
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_on_the_wire() {
        let call = Call {
            destination: "a.b",
            path: "/c",
            interface: "d.e",
            member: "F",
            signature: "sb",
            body: Body::default().text("hi").flag(true),
        };
        let bytes = encode(&call, 7);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes[..4], [b'l', METHOD_CALL, 0, 1]);
        assert_eq!(bytes[4..12], [12, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes[bytes.len() - 12..], [2, 0, 0, 0, b'h', b'i', 0, 0, 1, 0, 0, 0]);
        let fields = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
        let message = decode_fields(bytes[1], &bytes[16..16 + fields]).unwrap();
        assert_eq!((message.member.as_str(), message.signature.as_str()), ("F", "sb"));
    }

    #[test]
    fn properties_are_aligned_and_counted() {
        let body = Body::default().properties(&[("N", Value::Number(5)), ("P", Value::Ids(vec![9]))]).0;
        let expected: &[u8] = &[
            56, 0, 0, 0, 0, 0, 0, 0, // length, padding
            1, 0, 0, 0, b'N', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0, // name, signature, padding
            5, 0, 0, 0, 0, 0, 0, 0, // value
            1, 0, 0, 0, b'P', 0, 2, b'a', b'u', 0, 0, 0, // name, signature, padding
            4, 0, 0, 0, 9, 0, 0, 0, // array
        ];
        let mut expected = expected.to_vec();
        expected[0] = (expected.len() - 8) as u8;
        assert_eq!(body, expected);
    }

    #[test]
    fn hostile_messages_are_errors() {
        let body = |signature: &str, bytes: &[u8]| Message {
            signature: signature.into(),
            body: bytes.to_vec(),
            ..Message::default()
        };
        assert!(body("s", &[255, 255, 255, 255, b'x']).texts().is_err());
        assert!(body("s", &[1, 0, 0, 0, b'x', 1]).texts().is_err());
        assert!(body("s", &[1, 0, 0, 0, 0xff, 0]).texts().is_err());
        assert!(body("us", &[1, 0]).texts().is_err());
        assert_eq!(body("us", &[1, 0, 0, 0, 1, 0, 0, 0, b'x', 0]).texts().unwrap(), ["x"]);
        assert_eq!(body("v", &[1, b's', 0, 0, 1, 0, 0, 0, b'x', 0]).texts().unwrap(), ["x"]);
        assert_eq!(body("vs", &[1, b't', 0, 0, 1, 0, 0, 0, b'x', 0]).texts().unwrap(), [""; 0]);
        assert!(body("v", &[1, b's', 0, 0, 9, 0, 0, 0, b'x', 0]).texts().is_err());
        for fields in [&[3u8] as &[u8], &[3, 1, b'a', 0], &[3, 9, b's'], &[3, 1, b's', 0, 9, 0, 0, 0, 1]] {
            assert!(decode_fields(SIGNAL, fields).is_err(), "{fields:?}");
        }
    }
}
