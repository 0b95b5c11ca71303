//! One layer on its way from the source to the store, in one pass: read, verified and kept by one thread, unpacked by another.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::compression::{self, Bounded};
use super::digest::{Algorithm, Digest, Hasher};
use super::import::Options;
use super::manifest::Compression;
use super::pack;
use super::progress::{Event, Progress};
use super::source::{self, Files};
use super::store::session::{NewBlob, NewLayer, Session};
use super::unpack::{self, Count, Rest};
use crate::error::{Context, Error, Result};

/// Data goes from one thread to the other in pieces of this size. Bytes.
const PIECE: usize = 256 << 10;
/// So many pieces may wait.
const WAITING: usize = 8;

/// A layer on its way.
pub(super) struct Job<'a> {
    pub index: usize,
    pub source: &'a source::Layer,
    pub diff_id: Option<Digest>,
}

/// A layer that was read.
pub(super) struct LayerRead {
    pub blob: NewBlob,
    pub compression: Compression,
    pub diff_id: Digest,
    pub layer: NewLayer,
    pub count: Count,
    pub rest: Rest,
}

/// What the thread that decompresses has in the end.
type Packed = (Compression, Digest, u64);

/// Reads a layer. When `stopped` is set, another one has failed, and this one need not go on.
pub(super) fn read_one(
    session: &Session,
    files: &Files,
    job: &Job,
    options: &Options,
    progress: &dyn Progress,
    stopped: &AtomicBool,
) -> Result<LayerRead> {
    let named = match &job.source.descriptor {
        Some(descriptor) => descriptor.digest.to_string(),
        None if job.source.file.is_empty() => "the archive".to_owned(),
        None => job.source.file.clone(),
    };
    let layer = session.layer()?;
    let (kept, blob_name) = session.file()?;
    let (pieces, unpacked) = sync_channel::<io::Result<Vec<u8>>>(WAITING);
    let (returned, spare) = sync_channel::<Vec<u8>>(WAITING * 2);
    let (packed, outcome) = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let told = pieces.clone();
            let answer = decompress(files, job, kept, options, (pieces, &spare), progress, stopped);
            // The other thread is told what it cannot know: that this is not the end of the archive.
            if let Err(error) = &answer {
                told.send(Err(io::Error::other(error.to_string()))).ok();
            }
            answer
        });
        let mut stream =
            Pieces { from: unpacked, to: returned, piece: Vec::new(), at: 0, hasher: Hasher::new(algorithm(job)) };
        let diff = layer.diff.try_clone().or_cannot("open", "the layer");
        let outcome = diff.and_then(|diff| unpack::unpack(&mut stream, diff, &named, &options.how));
        let Pieces { hasher, from, .. } = stream;
        // Closed before the other thread is waited for: it may be waiting for a place to put a piece.
        drop(from);
        let packed = reader.join().unwrap_or_else(|_| Err(Error::plain("a thread ended without an answer")));
        (packed, outcome.map(|outcome| (outcome, hasher.finish())))
    });
    // What cannot be read is why it cannot be unpacked, unless unpacking failed first and closed the channel.
    let ((count, rest), diff_id, (compression, digest, size)) = match (packed, outcome) {
        (Ok(packed), Ok((outcome, diff_id))) => (outcome, diff_id, packed),
        (Err(error), Ok(_)) => return Err(error),
        (Err(error), Err(_)) if error.to_string() != CLOSED => return Err(error),
        (_, Err(error)) => return Err(error),
    };
    if let Some(wanted) = job.diff_id.as_ref().filter(|wanted| **wanted != diff_id) {
        let why = format!("unpacked it is {diff_id}, and the configuration says {wanted}");
        return Err(Error::said("verify layer", named, why));
    }
    progress.event(Event::Layer { index: job.index, digest: digest.clone(), bytes: count.bytes });
    Ok(LayerRead { blob: session.blob(blob_name, digest, size), compression, diff_id, layer, count, rest })
}

fn algorithm(job: &Job) -> Algorithm {
    job.diff_id.as_ref().map_or(Algorithm::Sha256, Digest::algorithm)
}

const CLOSED: &str = "the other side has stopped";

/// Reads, verifies, keeps and decompresses, into pieces for the other thread.
fn decompress(
    files: &Files,
    job: &Job,
    kept: std::fs::File,
    options: &Options,
    (pieces, spare): (SyncSender<io::Result<Vec<u8>>>, &Receiver<Vec<u8>>),
    progress: &dyn Progress,
    stopped: &AtomicBool,
) -> Result<Packed> {
    let send = |piece: Vec<u8>| pieces.send(Ok(piece)).map_err(|_| Error::plain(CLOSED));
    if let Files::Tree(dir) = files {
        return packed_tree(dir, kept, options, send);
    }
    let (stream, size) = files.layer(job.source)?;
    let descriptor = job.source.descriptor.as_ref();
    if let Some(wanted) = descriptor.filter(|descriptor| descriptor.size != size) {
        let why = format!("it has {size} bytes and not {}", wanted.size);
        return Err(Error::said("verify", wanted.digest.to_string(), why));
    }
    let mut source = Kept {
        stream,
        file: kept,
        hasher: Hasher::new(descriptor.map_or(Algorithm::Sha256, |d| d.digest.algorithm())),
        size: 0,
        index: job.index,
        progress,
    };
    let failed = |why: io::Error| match why.raw_os_error() {
        Some(raw) => Error::kernel("read layer", layer_name(job), nix::errno::Errno::from_raw(raw)),
        None => Error::said("read layer", layer_name(job), why.to_string()),
    };
    let mut start = Vec::new();
    (&mut source).take(6).read_to_end(&mut start).map_err(failed)?;
    let compression = compression::detect(&start);
    {
        let whole = io::Cursor::new(&start).chain(&mut source);
        let mut unpacked = Bounded::new(compression::unpack(whole).map_err(failed)?, options.max_size);
        loop {
            let mut piece = spare.try_recv().unwrap_or_default();
            piece.resize(PIECE, 0);
            let filled = fill(&mut unpacked, &mut piece).map_err(failed)?;
            piece.truncate(filled);
            if stopped.load(Ordering::Relaxed) {
                return Err(Error::plain("another layer failed"));
            }
            if filled == 0 {
                break;
            }
            send(piece)?;
        }
    }
    // What stands behind the end of the packed stream belongs to the blob all the same.
    io::copy(&mut source, &mut io::sink()).map_err(failed)?;
    drop(pieces);
    let (size, digest) = (source.size, source.hasher.finish());
    if let Some(wanted) = descriptor.filter(|wanted| wanted.size != size || wanted.digest != digest) {
        let why = format!("its content has {size} bytes and is that of {digest}");
        return Err(Error::said("verify", wanted.digest.to_string(), why));
    }
    Ok((compression, digest, size))
}

fn layer_name(job: &Job) -> String {
    job.source.descriptor.as_ref().map_or_else(|| job.source.file.clone(), |descriptor| descriptor.digest.to_string())
}

fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A directory as a layer: its archive is made here, kept packed, and unpacked like any other.
fn packed_tree(
    dir: &OwnedFd,
    kept: std::fs::File,
    options: &Options,
    send: impl Fn(Vec<u8>) -> Result<()>,
) -> Result<Packed> {
    let hashed = Hashed { file: kept, hasher: Hasher::new(Algorithm::Sha256), size: 0 };
    let packer = compression::Packer::new(Compression::Gzip, hashed).or_cannot("pack", "the directory")?;
    let mut out = Split { packer, send, piece: Vec::with_capacity(PIECE), left: options.max_size };
    pack::directory(dir, &mut out)?;
    let Split { packer, send, piece, .. } = out;
    if !piece.is_empty() {
        send(piece)?;
    }
    let Hashed { hasher, size, .. } = packer.finish().or_cannot("pack", "the directory")?;
    Ok((Compression::Gzip, hasher.finish(), size))
}

/// A stream that is kept while it is read.
struct Kept<'a> {
    stream: Box<dyn Read + Send + 'a>,
    file: std::fs::File,
    hasher: Hasher,
    size: u64,
    index: usize,
    progress: &'a dyn Progress,
}

impl Read for Kept<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.file.write_all(&buffer[..count])?;
        self.size += count as u64;
        self.progress.event(Event::Bytes { index: self.index, bytes: count as u64 });
        Ok(count)
    }
}

/// A file whose digest is known in the end.
struct Hashed {
    file: std::fs::File,
    hasher: Hasher,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// An archive that goes two ways: packed into its file, and in pieces to be unpacked.
struct Split<F> {
    packer: compression::Packer<Hashed>,
    send: F,
    piece: Vec<u8>,
    left: u64,
}

impl<F: Fn(Vec<u8>) -> Result<()>> Write for Split<F> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(buffer.len() as u64)
            .ok_or_else(|| io::Error::other("it has more bytes than the limit; --max-size raises it"))?;
        self.packer.write_all(buffer)?;
        self.piece.extend_from_slice(buffer);
        if self.piece.len() >= PIECE {
            let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
            (self.send)(piece).map_err(|error| io::Error::other(error.to_string()))?;
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The pieces as a stream again, hashed on the way.
struct Pieces {
    from: Receiver<io::Result<Vec<u8>>>,
    to: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    hasher: Hasher,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Ok(next) = self.from.recv() else { return Ok(0) };
            let next = next?;
            self.hasher.update(&next);
            // One that is not taken back is freed.
            self.to.try_send(std::mem::replace(&mut self.piece, next)).ok();
            self.at = 0;
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
