//! One layer on its way from the source to the store, in one pass, by threads that may do no more than their work takes:
//!
//! ```text
//! server -> fetched, by any means -> verified, kept, decompressed: nothing by path -> unpacked: one directory
//! file   ---------------------------^
//! ```

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, Scope};

use super::compression::{self, Bounded};
use super::digest::{Algorithm, Digest, Hasher};
use super::import::Options;
use super::manifest::Compression;
use super::pack;
use super::pieces::{self, Filler};
use super::progress::{Event, Progress};
use super::source::{self, Files};
use super::store::session::{NewBlob, NewLayer, Session};
use super::unpack::{self, Count, Rest};
use crate::error::{Context, Error, Result};
use crate::security::jail;

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
    let source = match files {
        Files::Tree(directory) => Origin::Tree(directory),
        _ => Origin::Stream(opened(files, job, options.max_size)?),
    };
    let (filler, mut pieces) = pieces::stream(Some(Hasher::new(algorithm(job))));
    let directory = layer.diff.try_clone().or_cannot("open", "the layer")?;
    let (packed, outcome) = std::thread::scope(|scope| {
        let source = match (source, files) {
            (Origin::Stream(stream), Files::Registry(_)) => Origin::Stream(fetched(scope, stream)?),
            (source, _) => source,
        };
        let reader = Builder::new().spawn_scoped(scope, move || {
            let answer = decompress(source, job, kept, options, &filler, progress, stopped);
            if let Err(error) = &answer {
                filler.fail(io::Error::other(error.to_string()));
            }
            answer
        });
        let named = &named;
        let unpacker = Builder::new().spawn_scoped(scope, move || {
            jail::only_below(directory.as_fd())?;
            let outcome = unpack::unpack(&mut pieces, directory, named, &options.how)?;
            let hasher = pieces.into_hasher().ok_or_else(|| Error::plain("a layer was not hashed"))?;
            Ok((outcome, hasher.finish()))
        });
        // Each ends by itself when the other one does, or was never there: its end of the stream is closed.
        Ok((jail::joined(reader), jail::joined(unpacker)))
    })?;
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

/// Where a layer comes from.
enum Origin<'a> {
    /// A file, or a server.
    Stream(Box<dyn Read + Send + 'a>),
    /// A directory, of which it is to be made.
    Tree(&'a OwnedFd),
}

/// The most that packing adds to a layer is far below this: an eighth, and this many bytes.
const PACKING: u64 = 1 << 20;

/// Opens the layer, which must have the size that its descriptor tells.
fn opened<'a>(files: &'a Files, job: &Job, max_size: u64) -> Result<Box<dyn Read + Send + 'a>> {
    let (stream, size) = files.layer(job.source)?;
    // A packed stream may go on without end and unpack to nothing, so what comes out of it does not bound what is kept of it.
    if size > max_size.saturating_add(max_size / 8).saturating_add(PACKING) {
        let why = format!("it has {size} bytes and could not unpack to {max_size}, the limit; --max-size raises it");
        return Err(Error::said("read layer", layer_name(job), why));
    }
    if let Some(wanted) = job.source.descriptor.as_ref().filter(|descriptor| descriptor.size != size) {
        let why = format!("it has {size} bytes and not {}", wanted.size);
        return Err(Error::said("verify", wanted.digest.to_string(), why));
    }
    Ok(stream)
}

/// A download, by a thread of its own: it asks for names by starting a program, which nobody may who decompresses.
fn fetched<'scope, 'a: 'scope>(
    scope: &'scope Scope<'scope, '_>,
    mut stream: Box<dyn Read + Send + 'a>,
) -> Result<Box<dyn Read + Send + 'scope>> {
    let (filler, pieces) = pieces::stream(None);
    let thread = Builder::new().spawn_scoped(scope, move || {
        if let Err(why) = filler.copy(&mut stream) {
            filler.fail(why);
        }
    });
    thread.or_cannot("start", "a thread")?;
    Ok(Box::new(pieces))
}

/// Reads, verifies, keeps and decompresses, into pieces for the other thread.
fn decompress(
    origin: Origin<'_>,
    job: &Job,
    kept: std::fs::File,
    options: &Options,
    filler: &Filler,
    progress: &dyn Progress,
    stopped: &AtomicBool,
) -> Result<Packed> {
    let stream = match origin {
        // Nobody else's bytes are read here, and threads are started, which pack.
        Origin::Tree(directory) => return packed_tree(directory, kept, options, filler),
        Origin::Stream(stream) => stream,
    };
    jail::read_only()?;
    let descriptor = job.source.descriptor.as_ref();
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
        let unpacked = Bounded::new(compression::unpack(whole).map_err(failed)?, options.max_size);
        let mut unpacked = Stoppable { stream: unpacked, stopped };
        if !filler.copy(&mut unpacked).map_err(failed)? {
            return Err(Error::plain(CLOSED));
        }
    }
    // What stands behind the end of the packed stream belongs to the blob all the same.
    io::copy(&mut source, &mut io::sink()).map_err(failed)?;
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

/// A directory as a layer: its archive is made here, kept packed, and unpacked like any other.
fn packed_tree(dir: &OwnedFd, kept: std::fs::File, options: &Options, filler: &Filler) -> Result<Packed> {
    let hashed = Hashed { file: kept, hasher: Hasher::new(Algorithm::Sha256), size: 0 };
    let packer = compression::Packer::new(Compression::Gzip, hashed).or_cannot("pack", "the directory")?;
    let mut out = Split { packer, filler, piece: Vec::new(), left: options.max_size };
    pack::directory(dir, &mut out)?;
    let Split { packer, piece, .. } = out;
    if !piece.is_empty() && !filler.send(piece) {
        return Err(Error::plain(CLOSED));
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
struct Split<'a> {
    packer: compression::Packer<Hashed>,
    filler: &'a Filler,
    piece: Vec<u8>,
    left: u64,
}

impl Write for Split<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.left = self
            .left
            .checked_sub(buffer.len() as u64)
            .ok_or_else(|| io::Error::other("it has more bytes than the limit; --max-size raises it"))?;
        self.packer.write_all(buffer)?;
        self.piece.extend_from_slice(buffer);
        if self.piece.len() >= pieces::PIECE {
            let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(pieces::PIECE));
            if !self.filler.send(piece) {
                return Err(io::Error::other(CLOSED));
            }
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that ends in an error once another layer has failed.
struct Stoppable<'a, S> {
    stream: S,
    stopped: &'a AtomicBool,
}

impl<S: Read> Read for Stoppable<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stopped.load(Ordering::Acquire) {
            return Err(io::Error::other("another layer failed"));
        }
        self.stream.read(buffer)
    }
}
