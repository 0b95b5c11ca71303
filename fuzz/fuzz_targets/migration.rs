//! What comes to a destination: any stream of frames ends in an answer, everything that was taken is within what was asked for
//! and in the place for it, and nothing runs but what was given by the right token.

#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use ferry::checkpoint::restore::Moment;
use ferry::error::{Error, Result};
use ferry::image::digest::Digest;
use ferry::migrate::destination::serve;
use ferry::migrate::faults::Faults;
use ferry::migrate::host::{Host, Lazily};
use ferry::migrate::journal::{Entry, Journals};
use ferry::migrate::link::Link;
use ferry::migrate::message::{Blob, Choices, Last, Machine, Message, PROTOCOL, Place, Request, Token, Verdict};
use ferry::migrate::pages::PAGE;
use ferry::migrate::pump::Pump;
use ferry::migrate::sum::Sum;
use libfuzzer_sys::fuzz_target;

/// Bytes that the machine has free, and so the most that it takes.
const ROOM: u64 = 1 << 20;

/// How many kinds of frames there are to begin with.
const KINDS: u8 = 25;

/// How a piece begins that is not packed.
const STORED: u8 = 0;

/// A machine on which nothing is restored, but for the counting.
struct Fake {
    root: PathBuf,
    runs: u32,
    /// Where memory is asked for, and what brings it.
    asks: Option<UnixStream>,
    pump: Option<JoinHandle<()>>,
}

impl Host for Fake {
    fn place(&mut self) -> Result<Place> {
        let machine = Machine::default();
        Ok(Place { version: PROTOCOL, host: "b".into(), machine, memory_free: ROOM, disk_free: ROOM, lacks: Vec::new() })
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn obstacles(&mut self, request: &Request) -> Result<Vec<String>> {
        Ok(if request.id.is_empty() { vec!["it has no id".to_owned()] } else { Vec::new() })
    }

    fn lacks(&mut self, request: &Request) -> Result<Vec<Blob>> {
        Ok(request.content.clone())
    }

    fn keep(&mut self, request: &Request, directory: &Path, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        for blob in &request.content {
            let path = directory.join(ferry::migrate::content::name(&blob.digest));
            assert_eq!(Digest::of(&std::fs::read(path).expect("what has come")), blob.digest);
        }
        waiting()
    }

    fn restore(&mut self, entry: &Entry, images: &Path, held: &mut dyn FnMut(Moment) -> Result<()>) -> Result<i32> {
        let last = entry.last.clone().ok_or_else(|| Error::plain("nothing to restore from"))?;
        assert!(images.join(last.round.to_string()).is_dir());
        held(Moment::Waiting)?;
        held(Moment::Held)?;
        self.runs += 1;
        Ok(1)
    }

    fn begin_lazily(&mut self, _: &Entry, _: &Path) -> Result<Lazily> {
        let (near, mut far) = UnixStream::pair().expect("a socket");
        // One page, in CRIU's words. What comes of it is not read.
        let word = [&7_u64.to_ne_bytes()[..], &1_u64.to_ne_bytes(), &4096_u64.to_ne_bytes(), &1_u64.to_ne_bytes()];
        far.write_all(&word.concat()).expect("room in a socket");
        self.asks = Some(far);
        Ok(Lazily { asks: near.into(), criu: 40_200, daemon: None })
    }

    fn pump(&mut self, pump: Pump) -> Result<()> {
        self.pump = Some(std::thread::spawn(move || drop(pump.run())));
        Ok(())
    }

    fn whole(&mut self) -> Result<()> {
        Ok(())
    }

    fn lose(&mut self, _: &Entry) -> Result<()> {
        Ok(())
    }

    fn runs(&mut self, _: &Entry) -> Result<Option<i32>> {
        Ok((self.runs > 0).then_some(1))
    }

    fn discard(&mut self, _: &Entry) -> Result<()> {
        assert_eq!(self.runs, 0, "what runs is discarded");
        Ok(())
    }
}

/// What it may lack of an image.
fn layer() -> Blob {
    Blob { digest: Digest::of(b"layer"), size: 5 }
}

fn token() -> Token {
    Token::try_from("0123456789abcdef".repeat(2)).expect("a token")
}

/// What has been sent so far.
#[derive(Default)]
struct Sent {
    /// Of the file that was begun.
    data: Vec<u8>,
    /// Pages, of all files, each by its first bytes: the others are like the last of them.
    pages: Vec<Vec<u8>>,
}

/// A block of pages as a source would send it, each of two bytes: a kind, and what it takes. What it says may still be wrong.
fn block(text: &[u8], sent: &mut Sent) -> Vec<u8> {
    let (mut kinds, mut backs, mut runs, mut literals, mut fresh) = (vec![], vec![], vec![], vec![], vec![]);
    for pair in text.chunks_exact(2).take(24) {
        let (kind, value) = (pair[0] % 4, pair[1]);
        let earlier = sent.pages.len().checked_sub(value.into()).filter(|_| value > 0);
        let mut page = earlier.and_then(|at| sent.pages.get(at)).cloned().unwrap_or_else(|| vec![0; PAGE]);
        kinds.push(kind);
        match kind {
            0 => page.fill(0),
            1 => {
                page.fill(value);
                fresh.extend_from_slice(&page);
            }
            _ => backs.extend_from_slice(&u64::from(value).to_le_bytes()),
        }
        if kind == 3 {
            let at = usize::from(value) * 16 + usize::from(pair[0] / 4);
            runs.extend([1, u16::try_from(at).unwrap_or(0), 1].iter().flat_map(|number: &u16| number.to_le_bytes()));
            literals.push(value);
            if let Some(byte) = page.get_mut(at) {
                *byte = value;
            }
        }
        sent.data.extend_from_slice(&page);
        sent.pages.push(page);
    }
    let (count, length) = (u16::try_from(kinds.len()).unwrap_or(0), u32::try_from(runs.len()).unwrap_or(0));
    let (count, length) = (count.to_le_bytes(), length.to_le_bytes());
    let body = [&count[..], &kinds, &backs, &length, &runs, &literals, &fresh].concat();
    [&[STORED][..], &u32::try_from(body.len()).unwrap_or(0).to_le_bytes(), &body].concat()
}

/// The text as a message of the kind, or as a frame that is none.
fn frame(kind: u8, text: &[u8], sent: &mut Sent) -> (u8, Vec<u8>) {
    let first = u32::from(text.first().copied().unwrap_or(0));
    let name = || String::from_utf8_lossy(text.get(2..).unwrap_or_default()).into_owned();
    let message = match kind {
        0 => return (1, text.to_vec()),
        1 => return (2, text.to_vec()),
        2 => {
            sent.data.extend_from_slice(text);
            return (2, [&[STORED][..], &u32::try_from(text.len()).unwrap_or(0).to_le_bytes(), text].concat());
        }
        3 => Message::Reserve(Box::new(Request {
            version: PROTOCOL,
            token: token(),
            id: "c".into(),
            from: name(),
            bundle: "/b".into(),
            config: "{}".into(),
            machine: Machine::default(),
            memory: 4096,
            files: 4096,
            image: None,
            content: if first % 4 == 3 { vec![layer()] } else { Vec::new() },
            choices: Choices::default(),
            leaves: true,
            dry_run: first == 255,
        })),
        4 => Message::Round(first),
        5 => Message::File {
            name: name(),
            // An odd shift is for pages.
            size: u64::from(first) << (text.get(1).copied().unwrap_or(0) % 40),
            pages: text.get(1).is_some_and(|byte| byte % 2 == 1),
        },
        6 => Message::FileEnd(Sum::of(&std::mem::take(&mut sent.data))),
        7 => Message::RoundEnd {
            round: first,
            files: u32::from(text.get(1).copied().unwrap_or(0)),
            still: text.len() > 2,
        },
        8 => Message::Finish(Box::new(Last {
            round: first,
            left: text.len().saturating_sub(1) as u64,
            streams: [None; 3],
        })),
        9 => Message::Commit(token()),
        10 => Message::Abort(name()),
        11 => Message::Released,
        12 => Message::Settle { version: PROTOCOL, token: token(), verdict: Verdict::Committed },
        13 => Message::Settle { version: PROTOCOL, token: token(), verdict: Verdict::Aborted },
        14 => Message::Alive,
        16 => return (2, block(text, sent)),
        17 => return (1, br#"{"pages":{"image":1,"address":4096,"count":1}}"#.to_vec()),
        18 => Message::Whole(Faults::default()),
        19 => Message::Blob(layer()),
        20 => Message::Content,
        22 => Message::Body {
            number: first.into(),
            size: u64::from(text.get(1).copied().unwrap_or(0)) << (text.get(2).copied().unwrap_or(0) % 56),
        },
        23 => Message::Gone(first.into()),
        24 => {
            // Where it belongs, and what.
            let offset = u64::from(first) << (text.get(1).copied().unwrap_or(0) % 64);
            let piece = [&offset.to_le_bytes()[..], text.get(2..).unwrap_or_default()].concat();
            sent.data.extend_from_slice(&piece);
            return (2, [&[STORED][..], &u32::try_from(piece.len()).unwrap_or(0).to_le_bytes(), &piece].concat());
        }
        21 => return (2, [&[STORED, 5, 0, 0, 0][..], b"layer"].concat()),
        _ => Message::Prepared,
    };
    (1, message.encode().unwrap_or_default())
}

/// The bytes as frames in their order: each has a kind, a length and a text. Answers whether the container was given.
fn stream(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let (mut out, mut sent, mut sequence, mut is_given) = (Vec::new(), Sent::default(), 0_u32, false);
    while let [kind, length, rest @ ..] = bytes {
        let (text, rest) = rest.split_at(rest.len().min((*length).into()));
        let (number, payload) = frame(kind % KINDS, text, &mut sent);
        let shown = String::from_utf8_lossy(&payload);
        is_given |= number == 1 && (shown.contains("commit") || shown.contains("\\u"));
        // One kind is no frame.
        if kind % KINDS == 15 {
            out.extend_from_slice(text);
        } else {
            out.extend_from_slice(&[number, 0, 0, 0]);
            out.extend_from_slice(&sequence.to_le_bytes());
            out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_le_bytes());
            out.extend_from_slice(&payload);
        }
        sequence += 1;
        bytes = rest;
    }
    (out, is_given)
}

/// Bytes in files below a directory, of which none is a link but a round's to the one before.
fn weigh(directory: &Path) -> u64 {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => weigh(&entry.path()),
            Ok(kind) if kind.is_symlink() => {
                assert_eq!(entry.file_name(), "parent");
                0
            }
            // Holes take no room.
            _ => entry.metadata().map_or(0, |found| found.len().min(found.blocks() * 512)),
        })
        .sum()
}

// As the program begins: whoever hangs up is an error, and not the end of the fuzzer by SIGPIPE.
fuzz_target!(init: ferry::sys::entry::begin().expect("signals can be ignored"), |bytes: &[u8]| {
    if let Ok(message) = Message::decode(bytes) {
        let written = message.encode().expect("it was read");
        assert_eq!(Message::decode(&written).ok(), Some(message));
    }
    let directory = std::env::temp_dir().join(format!("ferry-fuzz-migration.{}", std::process::id()));
    drop(std::fs::remove_dir_all(&directory));
    std::fs::create_dir_all(directory.join("store")).expect("a directory");
    let (stream, is_given) = stream(bytes);
    if stream.len() > 100 << 10 {
        return;
    }
    let (mut ours, theirs) = UnixStream::pair().expect("a socket");
    ours.write_all(&stream).and_then(|()| ours.shutdown(Shutdown::Write)).expect("room in a socket");
    let copy = theirs.try_clone().expect("a descriptor");
    let mut link = Link::new(copy.into(), theirs.into(), Duration::from_secs(5)).expect("a link");
    let mut host = Fake { root: "/run/ferry".into(), runs: 0, asks: None, pump: None };
    let served = serve(&mut link, &Journals::new(&directory.join("store")), &mut host);
    drop(link);
    if let Some(pump) = host.pump.take() {
        pump.join().expect("a pump that ends");
    }
    // What it did not read before it gave up resets the link; that it answers nothing endless is seen all the same.
    drop(ours.read_to_end(&mut Vec::new()));
    if let Err(error) = &served {
        assert!(!error.to_string().contains("silent"), "it waits for more than there is: {error}");
    }
    assert!(host.runs == 0 || is_given, "it runs, and was not given");
    assert!(weigh(&directory) < ROOM + (64 << 10), "more is kept than there is room for");
    let beside = std::fs::read_dir(&directory).expect("a directory").flatten().count();
    assert_eq!(beside, 1, "something came to lie outside");
    drop(std::fs::remove_dir_all(&directory));
});
