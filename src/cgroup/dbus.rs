//! As much of D-Bus as it takes to ask systemd for a scope: authentication, method calls, and waiting for signals.
//!
//! Own, because the crates cost 800 KB or a C library for what are a few messages of a few types. What comes in is not
//! trusted: sizes are bounded, every offset is checked, and a message that breaks the rules ends the conversation.
//!
//! Source: D-Bus Specification 0.43, "Message Protocol" and "Authentication Protocol".

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// How long an answer may take. systemd answers in milliseconds; a bus that hangs must not hang a container's start.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest header or body that is read: a thousand times what systemd sends.
const MAX_PART: u32 = 1 << 20;

/// Signals kept while a reply is waited for; more than that is no answer to a question of ours.
const MAX_PENDING: usize = 1024;

/// A value that is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
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
pub(super) type Property = (&'static str, Value);

/// A method call's target and arguments.
pub(super) struct Call<'call> {
    pub destination: &'call str,
    pub path: &'call str,
    pub interface: &'call str,
    pub member: &'call str,
    pub signature: &'call str,
    pub body: Body,
}

/// A body as it grows; D-Bus aligns every value to its own size from the body's beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Body(Vec<u8>);

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
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

fn encode(call: &Call<'_>, serial: u32) -> Vec<u8> {
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
pub(super) struct Message {
    kind: u8,
    reply_to: u32,
    member: String,
    sender: String,
    error: String,
    signature: String,
    body: Vec<u8>,
}

impl Message {
    /// The strings and object paths at the head of the body, numbers passed over: all that systemd's answers hold.
    pub fn texts(&self) -> Result<Vec<String>> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        let mut texts = Vec::new();
        for kind in self.signature.bytes() {
            match kind {
                b's' | b'o' => texts.push(reader.text()?),
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

fn malformed() -> Error {
    Error::said("talk to systemd", "", "the bus sent a malformed message")
}

/// Reads one header's fields, after the fixed 16 bytes.
fn decode_fields(kind: u8, fields: &[u8]) -> Result<Message> {
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

/// A conversation with a message bus.
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    /// Signals that came while a reply was waited for.
    pending: VecDeque<Message>,
}

impl Bus {
    /// Connects to the bus at `address` (`unix:path=…` or `unix:abstract=…`) and introduces us.
    ///
    /// # Errors
    ///
    /// There is no bus at the address, or it does not take us for the user we are.
    pub fn connect(address: &str) -> Result<Self> {
        let stream = open(address)?;
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(PATIENCE)).or_cannot("talk to the bus at", address)?;
        }
        let mut bus = Self { stream, serial: 0, pending: VecDeque::new() };
        bus.authenticate(address)?;
        bus.call_bus("Hello", "", Body::default())?;
        Ok(bus)
    }

    fn authenticate(&mut self, address: &str) -> Result<()> {
        // EXTERNAL: the bus asks the kernel who we are, as it sees us; the number says which of our ids we mean.
        let uid: String = crate::host::outer_uid().to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        self.send(format!("\0AUTH EXTERNAL {uid}\r\n").as_bytes())?;
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).or_cannot("talk to the bus at", address)?;
            line.extend(byte);
            if line.len() > 512 {
                return Err(malformed());
            }
        }
        if !line.starts_with(b"OK ") {
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            return Err(Error::said("be let in by the bus at", address, format!("it says {said}")));
        }
        self.send(b"BEGIN\r\n")
    }

    /// Calls a method of the bus itself.
    pub fn call_bus(&mut self, member: &str, signature: &str, body: Body) -> Result<Message> {
        let (destination, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        self.call(&Call { destination, path, interface: destination, member, signature, body })
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    ///
    /// The answer is an error: its name and its words. Or none comes in time.
    pub fn call(&mut self, call: &Call<'_>) -> Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&encode(call, serial))?;
        let until = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(until)?;
            match message.kind {
                METHOD_RETURN if message.reply_to == serial => return Ok(message),
                ERROR if message.reply_to == serial => {
                    let words = message.texts()?.into_iter().next().unwrap_or_default();
                    return Err(Error::said("call systemd's", call.member, format!("{}: {words}", message.error)));
                }
                SIGNAL if self.pending.len() < MAX_PENDING => self.pending.push_back(message),
                SIGNAL => return Err(malformed()),
                _ => {}
            }
        }
    }

    /// Waits for the signal `member` of `sender` for which `wanted` answers with a value.
    ///
    /// # Errors
    ///
    /// It does not come in time.
    pub fn wait_for<T>(&mut self, sender: &str, member: &str, wanted: impl Fn(&[String]) -> Option<T>) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            let message = match self.pending.pop_front() {
                Some(message) => message,
                None => self.receive(until)?,
            };
            // The sender is the bus's word: anybody may send us a signal of that name.
            if message.kind == SIGNAL
                && message.member == member
                && message.sender == sender
                && let Some(value) = wanted(&message.texts()?)
            {
                return Ok(value);
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).or_cannot("talk to", "systemd")
    }

    fn receive(&mut self, until: Instant) -> Result<Message> {
        // Checked apart from the socket's own timeout, which starts anew with every unrelated message.
        if Instant::now() >= until {
            return Err(Error::said("talk to systemd", "", "it does not answer"));
        }
        let mut fixed = [0; 16];
        self.stream.read_exact(&mut fixed).or_cannot("hear from", "systemd")?;
        let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let (body_size, fields_size) = (number(4), number(12));
        if fixed[0] != b'l' || fixed[3] != 1 || body_size > MAX_PART || fields_size > MAX_PART {
            return Err(malformed());
        }
        let mut fields = vec![0; (fields_size as usize).next_multiple_of(8)];
        self.stream.read_exact(&mut fields).or_cannot("hear from", "systemd")?;
        let mut message = decode_fields(fixed[1], &fields[..fields_size as usize])?;
        message.body.resize(body_size as usize, 0);
        self.stream.read_exact(&mut message.body).or_cannot("hear from", "systemd")?;
        Ok(message)
    }
}

fn open(address: &str) -> Result<UnixStream> {
    // Several addresses may stand in a row; each has keys after its transport.
    for one in address.split(';') {
        let keys = one.strip_prefix("unix:").unwrap_or_default().split(',');
        for (key, value) in keys.filter_map(|pair| pair.split_once('=')) {
            let opened = match key {
                "path" => UnixStream::connect(value),
                "abstract" => SocketAddr::from_abstract_name(value).and_then(|name| UnixStream::connect_addr(&name)),
                _ => continue,
            };
            return opened.or_cannot("connect to the bus at", address);
        }
    }
    Err(Error::said("connect to the bus at", address, "only unix:path= and unix:abstract= are understood"))
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
        for fields in [&[3u8] as &[u8], &[3, 1, b'a', 0], &[3, 9, b's'], &[3, 1, b's', 0, 9, 0, 0, 0, 1]] {
            assert!(decode_fields(SIGNAL, fields).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn only_local_buses() {
        for address in ["tcp:host=localhost,port=1", "", "unix:tmpdir=/tmp"] {
            let error = open(address).unwrap_err().to_string();
            assert!(error.contains("only unix:path="), "{error}");
        }
    }
}
