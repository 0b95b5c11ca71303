//! From a source to the store: layers are read, verified, kept and unpacked in one pass, all of them at once.
//!
//! ```text
//! file of the source -> digest and size verified -> kept as a blob
//!                                                \-> decompressed  ==>  digest verified -> unpacked into a directory
//! ```
//!
//! The arrow `==>` is between two threads. When all layers are there, each is completed over those below, everything is synced
//! once and renamed to its place, and the names come last. A failure anywhere leaves the store as it was.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::compression::{self, Bounded};
use super::digest::{Algorithm, Digest, Hasher, Verified};
use super::manifest::{self, Compression, Descriptor, ImageConfig, Kind, MOST_LAYERS, Manifest};
use super::source::{self, Files, Image};
use super::store::layers::{self, Layer};
use super::store::names::Named;
use super::store::session::{NewBlob, NewLayer, Session};
use super::unpack::{self, Count, How, Rest, complete};
use super::{pack, progress};
use crate::error::{Context, Error, Result};
use progress::{Event, Progress};

/// Data goes from one thread to the other in pieces of this size. Bytes.
const PIECE: usize = 256 << 10;
/// So many pieces may wait.
const WAITING: usize = 8;

/// How to import.
#[derive(Debug, Clone)]
pub struct Options {
    /// How layers are unpacked.
    pub how: How,
    /// The most bytes a layer may unpack to.
    pub max_size: u64,
    /// For an image that is made here: what it is for.
    pub platform: manifest::Platform,
}

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Its manifest.
    pub manifest: Descriptor,
    /// What of it was unpacked now, and what was left out there.
    pub count: Count,
}

/// A layer on its way.
struct Job<'a> {
    index: usize,
    source: &'a source::Layer,
    diff_id: Option<Digest>,
}

/// A layer that was read.
struct LayerRead {
    blob: NewBlob,
    compression: Compression,
    diff_id: Digest,
    layer: NewLayer,
    count: Count,
    rest: Rest,
}

/// Brings an image into the store, without a name.
///
/// # Errors
/// It is broken, or cannot be kept. The store is as it was.
pub fn import(
    session: &Session,
    files: &Files,
    image: &Image,
    options: &Options,
    progress: &dyn Progress,
) -> Result<Imported> {
    let store = session.store();
    if image.layers.len() > MOST_LAYERS {
        let why = format!("it has {} layers, and an overlay takes {MOST_LAYERS} at most", image.layers.len());
        return Err(Error::said("import", "the image", why));
    }
    let config: Option<ImageConfig> = match &image.config {
        Some((descriptor, bytes)) => Some(manifest::parse(bytes, &descriptor.digest)?),
        None => None,
    };
    let diff_ids = config.as_ref().map(|config| config.rootfs.diff_ids.clone());
    if let Some(diff_ids) = diff_ids.as_ref().filter(|diff_ids| diff_ids.len() != image.layers.len()) {
        let why =
            format!("its configuration speaks of {} layers, its manifest of {}", diff_ids.len(), image.layers.len());
        return Err(Error::said("import", "the image", why));
    }
    let chain = diff_ids.as_deref().map(layers::chain).unwrap_or_default();
    let mut jobs = Vec::new();
    let mut kept: Vec<Option<Layer>> = Vec::new();
    for (index, source) in image.layers.iter().enumerate() {
        let there = match chain.get(index) {
            Some(chain_id) => present(session, chain_id, source.descriptor.as_ref())?,
            None => None,
        };
        if there.is_none() {
            let diff_id = diff_ids.as_ref().map(|diff_ids| diff_ids[index].clone());
            jobs.push(Job { index, source, diff_id });
        }
        kept.push(there);
    }
    // The longest first, so that none is left alone at the end.
    let size = |job: &Job| files.open(&job.source.file).map_or(0, |(_, size)| size);
    jobs.sort_by_key(|job| std::cmp::Reverse(size(job)));
    progress.event(Event::Begin {
        layers: image.layers.len(),
        present: image.layers.len() - jobs.len(),
        bytes: jobs.iter().map(size).sum(),
    });
    let mut read = read_all(session, files, &jobs, options, progress)?;
    let diff_ids = match diff_ids {
        Some(diff_ids) => diff_ids,
        None => read.iter().flatten().map(|layer| layer.diff_id.clone()).collect(),
    };
    let chain = layers::chain(&diff_ids);

    let mut count = Count::default();
    let mut lowers: Vec<OwnedFd> = Vec::new();
    let mut new_layers = Vec::new();
    let mut blobs = Vec::new();
    let mut descriptors = Vec::new();
    for (index, chain_id) in chain.iter().enumerate() {
        let duplicate = |fd: &OwnedFd| fd.try_clone().or_cannot("open", "a layer");
        if let Some(layer) = &kept[index] {
            lowers.insert(0, store.open_layer(chain_id)?);
            let compression = compression_of(session, &layer.blob)?;
            descriptors.push(descriptor(&layer.blob, store.blob_size(&layer.blob)?.unwrap_or(0), compression));
            continue;
        }
        let Some(LayerRead { blob, compression, diff_id, layer, count: counted, rest }) = read[index].take() else {
            continue;
        };
        complete::complete(rest, duplicate(&layer.diff)?, &lowers)?;
        lowers.insert(0, duplicate(&layer.diff)?);
        count.add(&counted);
        descriptors.push(descriptor(&blob.digest, blob.size, compression));
        let parent = index.checked_sub(1).map(|below| chain[below].clone());
        let record =
            Layer::new(chain_id.clone(), diff_id, parent, blob.digest.clone(), options.how.user_namespace, counted);
        new_layers.push((layer, record));
        blobs.push(blob);
    }
    drop(lowers);
    progress.event(Event::Sync);
    let (config_descriptor, config_bytes) = match &image.config {
        Some(config) => config.clone(),
        None => made_config(&diff_ids, options)?,
    };
    let (manifest, manifest_bytes) = match &image.manifest {
        Some(manifest) => manifest.clone(),
        None => made_manifest(config_descriptor, descriptors)?,
    };
    blobs.push(session.bytes(&config_bytes)?);
    blobs.push(session.bytes(&manifest_bytes)?);
    session.commit(new_layers, blobs)?;
    Ok(Imported { manifest, count })
}

/// Gives an image a name.
///
/// # Errors
/// The names cannot be changed.
pub fn name(session: &Session, name: &str, manifest: &Descriptor) -> Result<()> {
    let tagged = crate::log::rfc3339(SystemTime::now());
    session.store().change_names(|names| {
        names.insert(name.to_owned(), Named { manifest: manifest.clone(), tagged });
        Ok(())
    })
}

/// A layer that is there already, with the very blob that the image means.
fn present(session: &Session, chain_id: &Digest, wanted: Option<&Descriptor>) -> Result<Option<Layer>> {
    let store = session.store();
    let Some(layer) = store.layer(chain_id)? else { return Ok(None) };
    if wanted.is_some_and(|wanted| wanted.digest != layer.blob) || store.blob_size(&layer.blob)?.is_none() {
        return Ok(None);
    }
    Ok(Some(layer))
}

fn compression_of(session: &Session, digest: &Digest) -> Result<Compression> {
    let mut start = [0; 6];
    let filled = session.store().open_blob(digest)?.read(&mut start).or_cannot("read", digest)?;
    Ok(compression::detect(&start[..filled]))
}

fn descriptor(digest: &Digest, size: u64, compression: Compression) -> Descriptor {
    Descriptor {
        media_type: manifest::media_type(Kind::Layer(compression)),
        digest: digest.clone(),
        size,
        annotations: Default::default(),
        platform: None,
    }
}

/// Reads the layers, several at once. The first failure stops the others.
fn read_all(
    session: &Session,
    files: &Files,
    jobs: &[Job],
    options: &Options,
    progress: &dyn Progress,
) -> Result<Vec<Option<LayerRead>>> {
    let count = jobs.iter().map(|job| job.index + 1).max().unwrap_or(0);
    let results: Mutex<Vec<Option<LayerRead>>> = Mutex::new((0..count).map(|_| None).collect());
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let workers = std::thread::available_parallelism().map_or(2, usize::from).min(jobs.len());
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            match read_one(session, files, job, options, progress, &stopped) {
                Ok(read) => results.lock().unwrap_or_else(PoisonError::into_inner)[job.index] = Some(read),
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        (1..workers).for_each(|_| drop(scope.spawn(work)));
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// What the thread that decompresses has in the end.
type Packed = (Compression, Digest, u64);

fn read_one(
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
    let named = &job.source.file;
    let send = |piece: Vec<u8>| pieces.send(Ok(piece)).map_err(|_| Error::plain(CLOSED));
    if let Files::Tree(dir) = files {
        return packed_tree(dir, kept, options, send);
    }
    let (stream, size) = files.open(named)?;
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

fn made_config(diff_ids: &[Digest], options: &Options) -> Result<(Descriptor, Vec<u8>)> {
    let config = ImageConfig {
        created: Some(crate::log::rfc3339(SystemTime::now())),
        platform: options.platform.clone(),
        config: Some(manifest::Execution {
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
            ..Default::default()
        }),
        rootfs: manifest::RootFs { kind: "layers".to_owned(), diff_ids: diff_ids.to_vec() },
        history: vec![manifest::History { created_by: Some("ferry image import".to_owned()), ..Default::default() }],
        ..ImageConfig::default()
    };
    let bytes =
        serde_json::to_vec(&config).map_err(|why| Error::said("write", "the configuration", why.to_string()))?;
    Ok((Descriptor::of(&bytes, Kind::Config), bytes))
}

/// A manifest of these parts.
///
/// # Errors
/// None in practice.
pub fn made_manifest(config: Descriptor, layers: Vec<Descriptor>) -> Result<(Descriptor, Vec<u8>)> {
    let made = Manifest {
        schema_version: 2,
        media_type: manifest::media_type(Kind::Manifest),
        config,
        layers,
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&made).map_err(|why| Error::said("write", "the manifest", why.to_string()))?;
    Ok((Descriptor::of(&bytes, Kind::Manifest), bytes))
}

/// Verifies what a stream says, to its end.
///
/// # Errors
/// It is another.
pub fn verify(stream: impl Read, digest: &Digest, size: Option<u64>) -> Result<u64> {
    let mut verified = Verified::new(stream, digest, size);
    io::copy(&mut verified, &mut io::sink()).or_cannot("read", digest)?;
    verified.finish().map(|(_, size)| size)
}
