//! As much of D-Bus as it takes to ask systemd for a scope: authentication, method calls, and waiting for signals.
//!
//! Own, because the crates cost 800 KB or a C library for what are a few messages of a few types. What comes in is not
//! trusted: sizes are bounded, every offset is checked, and a message that breaks the rules ends the conversation.
//!
//! Source: D-Bus Specification 0.43, "Authentication Protocol"; [`message`] has what a message is.

mod message;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use message::{ERROR, METHOD_RETURN, Message, SIGNAL, decode_fields, encode, malformed};

pub(super) use message::{Body, Call, Property, Value};

use crate::error::{Context, Error, Result};

/// How long an answer may take. systemd answers in milliseconds; a bus that hangs must not hang a container's start.
const PATIENCE: Duration = Duration::from_secs(30);

/// The largest header or body that is read: a thousand times what systemd sends.
const MAX_PART: u32 = 1 << 20;

/// Signals kept while a reply is waited for; more than that is no answer to a question of ours.
const MAX_PENDING: usize = 1024;

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
        let stream = open(address, PATIENCE)?;
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

/// Neither this nor what is done with the stream takes longer than `patience`.
fn open(address: &str, patience: Duration) -> Result<UnixStream> {
    // Several addresses may stand in a row; each has keys after its transport.
    for one in address.split(';') {
        let keys = one.strip_prefix("unix:").unwrap_or_default().split(',');
        for (key, value) in keys.filter_map(|pair| pair.split_once('=')) {
            let name = match key {
                "path" => UnixAddr::new(value),
                "abstract" => UnixAddr::new_abstract(value.as_bytes()),
                _ => continue,
            };
            let name = name.or_cannot("connect to the bus at", address)?;
            let made = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
            let stream = UnixStream::from(made.or_cannot("connect to the bus at", address)?);
            // Before it connects, which waits as a write does: for as long as the queue of a bus that hangs is full. unix(7)
            for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
                set(&stream, Some(patience)).or_cannot("talk to the bus at", address)?;
            }
            connect(stream.as_raw_fd(), &name)
                .or_cannot("connect to the bus at", address)
                .map_err(|error| error.hint("where systemd does not run, leave out --systemd-cgroup"))?;
            return Ok(stream);
        }
    }
    Err(Error::said("connect to the bus at", address, "only unix:path= and unix:abstract= are understood"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_buses() {
        for address in ["tcp:host=localhost,port=1", "", "unix:tmpdir=/tmp"] {
            let error = open(address, PATIENCE).unwrap_err().to_string();
            assert!(error.contains("only unix:path="), "{error}");
        }
    }

    #[test]
    fn a_bus_that_takes_nobody_is_not_waited_for_without_end() {
        use nix::errno::Errno;
        use nix::sys::socket::{Backlog, bind, listen};
        let name = format!("ferry-dbus-{}", std::process::id());
        let address = UnixAddr::new_abstract(name.as_bytes()).unwrap();
        let make = |flags| socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        let bus = make(SockFlag::empty());
        bind(bus.as_raw_fd(), &address).unwrap();
        listen(&bus, Backlog::new(0).unwrap()).unwrap();
        let mut queue = Vec::new();
        loop {
            queue.push(make(SockFlag::SOCK_NONBLOCK));
            if connect(queue.last().unwrap().as_raw_fd(), &address).is_err() {
                break;
            }
        }
        let error = open(&format!("unix:abstract={name}"), Duration::from_millis(10)).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EAGAIN), "{error}");
    }
}
