//! What containerd is to a shim: starts it, calls it by ttrpc, and hears its events. Written from the protocols' descriptions
//! (protobuf's encoding, ttrpc's PROTOCOL.md), and not with what the shim has for them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use libtest_mimic::Failed;

use super::case::{Case, MARK};

/// A message: the fields' numbers and values, strings and messages as bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// With a string, or any bytes.
    pub fn text(mut self, field: u8, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.push(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    /// With a message inside.
    pub fn message(self, field: u8, value: &Self) -> Self {
        self.text(field, &value.0)
    }

    /// With a number or a truth.
    pub fn number(mut self, field: u8, value: u64) -> Self {
        self.0.push(field << 3);
        self.varint(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A message that was read: the last value of each field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(BTreeMap<u64, (u64, Vec<u8>)>);

impl Fields {
    fn parse(mut bytes: &[u8]) -> Result<Self, Failed> {
        let mut fields = BTreeMap::new();
        while !bytes.is_empty() {
            let key = take_varint(&mut bytes)?;
            let value = take_varint(&mut bytes)?;
            let content = match key & 7 {
                0 => Vec::new(),
                2 => {
                    let (content, rest) = bytes.split_at_checked(value as usize).ok_or("a field that is cut off")?;
                    bytes = rest;
                    content.to_vec()
                }
                other => return Err(format!("a field of type {other}").into()),
            };
            fields.insert(key >> 3, (value, content));
        }
        Ok(Self(fields))
    }

    /// A number; absent is 0.
    pub fn number(&self, field: u64) -> u64 {
        self.0.get(&field).map_or(0, |(number, _)| *number)
    }

    /// A string; absent is empty.
    pub fn text(&self, field: u64) -> String {
        String::from_utf8_lossy(&self.bytes(field)).into_owned()
    }

    /// A message; absent is an empty one.
    pub fn message(&self, field: u64) -> Result<Self, Failed> {
        Self::parse(&self.bytes(field))
    }

    fn bytes(&self, field: u64) -> Vec<u8> {
        self.0.get(&field).map(|(_, content)| content.clone()).unwrap_or_default()
    }
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, Failed> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or("a number that is cut off")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number without an end".into())
}

/// One connection to a shim.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    stream: u32,
}

/// What a call answers: its message, or the code and the words of its failure.
pub type Answer = Result<Fields, (u64, String)>;

impl Client {
    /// Connects to an address as `start` prints it.
    pub fn connect(case: &Case, address: &str) -> Result<Self, Failed> {
        let socket = UnixStream::connect(address.trim_start_matches("unix://"))?;
        socket.set_read_timeout(Some(case.patience()))?;
        Ok(Self { socket, stream: 1 })
    }

    /// Calls a method of the Task service and does not wait for the answer; the number of the call.
    pub fn begin(&mut self, method: &str, payload: &Message) -> Result<u32, Failed> {
        let request = Message::default().text(1, "containerd.task.v3.Task").text(2, method).text(3, &payload.0);
        let (stream, length) = (self.stream, u32::try_from(request.0.len())?);
        self.stream += 2;
        let header = [&length.to_be_bytes()[..], &stream.to_be_bytes(), &[1, 0]].concat();
        self.socket.write_all(&[header, request.0].concat())?;
        Ok(stream)
    }

    /// The next answer, and the number of its call.
    pub fn answer(&mut self) -> Result<(u32, Answer), Failed> {
        let (stream, payload) = frame(&mut self.socket)?;
        let response = Fields::parse(&payload)?;
        let status = response.message(1)?;
        let failed = status.number(1) != 0;
        let answer = if failed { Err((status.number(1), status.text(2))) } else { Ok(response.message(2)?) };
        Ok((stream, answer))
    }

    /// Calls a method and waits.
    pub fn call(&mut self, method: &str, payload: &Message) -> Result<Answer, Failed> {
        let asked = self.begin(method, payload)?;
        let (answered, answer) = self.answer()?;
        assert_eq!(asked, answered, "an answer to another call");
        Ok(answer)
    }

    /// Calls a method that succeeds.
    pub fn done(&mut self, method: &str, payload: &Message) -> Result<Fields, Failed> {
        self.call(method, payload)?.map_err(|(code, words)| format!("{method}: {code}: {words}").into())
    }

    /// Calls a method that fails; the code and the words of that.
    pub fn refused(&mut self, method: &str, payload: &Message) -> Result<(u64, String), Failed> {
        self.call(method, payload)?.err().ok_or_else(|| format!("{method} succeeds").into())
    }

    /// Sends bytes that are no request; whether the shim has hung up upon them.
    pub fn hangs_up_on(&mut self, bytes: &[u8]) -> Result<bool, Failed> {
        self.socket.write_all(bytes)?;
        // What it has not read by then is a reset, and not an end.
        Ok(matches!(self.socket.read(&mut [0; 16]), Ok(0) | Err(_)))
    }
}

fn frame(socket: &mut UnixStream) -> Result<(u32, Vec<u8>), Failed> {
    let mut header = [0; 10];
    socket.read_exact(&mut header)?;
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let mut payload = vec![0; number(0) as usize];
    socket.read_exact(&mut payload)?;
    Ok((number(4), payload))
}

/// The daemon's side: where it is, and what it has heard.
#[derive(Debug)]
pub struct Daemon {
    path: PathBuf,
    heard: Receiver<Vec<u8>>,
}

impl Daemon {
    /// Listens in the case's directory for one shim, and confirms what that tells.
    pub fn new(case: &Case) -> Result<Self, Failed> {
        let path = case.directory.join("events");
        let (listener, (sender, heard)) = (UnixListener::bind(&path)?, channel());
        std::thread::spawn(move || {
            let Ok((mut shim, _)) = listener.accept() else { return };
            while let Ok((stream, payload)) = frame(&mut shim) {
                let confirmation = [&[0; 4][..], &stream.to_be_bytes(), &[2, 0]].concat();
                if shim.write_all(&confirmation).is_err() || sender.send(payload).is_err() {
                    return;
                }
            }
        });
        Ok(Self { path, heard })
    }

    /// One that is not there.
    pub fn away(case: &Case) -> Self {
        Self { path: case.directory.join("events"), heard: channel().1 }
    }

    /// `start` in a bundle; the address that it prints.
    pub fn start(&self, case: &mut Case, bundle: &Path, id: &str) -> Result<String, Failed> {
        self.start_after(case, bundle, id, "", &Message::default())
    }

    /// The same after words of a shell, such as ulimit(1), and with options.
    pub fn start_after(
        &self,
        case: &mut Case,
        bundle: &Path,
        id: &str,
        words: &str,
        options: &Message,
    ) -> Result<String, Failed> {
        let handed = case.directory.join("options");
        fs::write(&handed, &options.0)?;
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{words}\nexec \"$0\" \"$@\"")])
            .arg(program(case))
            .args([
                "-namespace",
                "test",
                "-address",
                "/run/nowhere",
                "-publish-binary",
                "/bin/true",
                "-id",
                id,
                "start",
            ])
            .current_dir(bundle)
            .stdin(File::open(handed)?)
            .env("TTRPC_ADDRESS", &self.path)
            .env("MAX_SHIM_VERSION", "3")
            .env(MARK, &case.directory);
        let told = case.finish(&mut command)?.success()?.json()?;
        assert_eq!((told["version"].as_u64(), told["protocol"].as_str()), (Some(3), Some("ttrpc")));
        Ok(told["address"].as_str().unwrap_or_default().to_owned())
    }

    /// Whether an event comes in that time.
    pub fn hears(&self, limit: Duration) -> bool {
        self.heard.recv_timeout(limit).is_ok()
    }

    /// The topics of the next events.
    pub fn topics(&self, case: &Case, count: usize) -> Result<Vec<String>, Failed> {
        let topic = |_| {
            let request = Fields::parse(&self.heard.recv_timeout(case.patience())?)?;
            let envelope = request.message(3)?.message(1)?;
            assert_eq!(envelope.text(2), "test");
            Ok(envelope.text(3))
        };
        (0..count).map(topic).collect()
    }
}

/// The shim under test, beside the runtime.
pub fn program(case: &Case) -> PathBuf {
    case.stage.runtime.path.with_file_name("containerd-shim-ferry-v2")
}

/// `delete`, as after a shim that has died; its answer.
pub fn clean_up(case: &Case, bundle: &Path, id: &str) -> Result<Fields, Failed> {
    let mut command = Command::new(program(case));
    command.args(["-namespace", "test", "-address", "/run/nowhere", "-id", id, "-bundle"]).arg(bundle).arg("delete");
    // Bytes, which are no text.
    let end = command.env(MARK, &case.directory).output()?;
    if !end.status.success() {
        return Err(String::from_utf8_lossy(&end.stderr).into_owned().into());
    }
    Fields::parse(&end.stdout)
}
