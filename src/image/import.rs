//! From a source to the store: layers are read, verified, kept and unpacked in one pass, all of them at once.
//!
//! ```text
//! file of the source -> digest and size verified -> kept as a blob
//!                                                \-> decompressed  ==>  digest verified -> unpacked into a directory
//! ```
//!
//! The arrow `==>` is between two threads. When all layers are there, each is completed over those below, everything is synced
//! once and renamed to its place, and the names come last. A failure anywhere leaves the store as it was.

use std::io::{self, Read};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::digest::{Digest, Verified};
use super::manifest::{self, Compression, Descriptor, ImageConfig, Kind, MOST_LAYERS, Manifest};
use super::merged::Parts;
use super::progress::{Event, Progress};
use super::source::{Files, Image};
use super::store;
use super::store::layers::{self, Layer};
use super::store::names::Named;
use super::store::session::{NewLayer, Session};
use super::transfer::{Job, LayerRead, read_one};
use super::unpack::{Contents, Count, How, complete};
use super::{compression, erofs};
use crate::error::{Context, Error, Result};

/// How to import.
#[derive(Debug, Clone)]
pub struct Options {
    /// How layers are unpacked.
    pub how: How,
    /// The most bytes a layer may unpack to.
    pub max_size: u64,
    /// For an image that is made here: what it is for.
    pub platform: manifest::Platform,
    /// Makes its layers EROFS images as well.
    pub erofs: Option<erofs::Maker>,
}

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Its manifest.
    pub manifest: Descriptor,
    /// What of it was unpacked now, and what was left out there.
    pub count: Count,
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
    let size = |job: &Job| files.layer(job.source).map_or(0, |(_, size)| size);
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
    let mut lowers = Parts::new();
    let mut new_layers = Vec::new();
    let mut blobs = Vec::new();
    let mut descriptors = Vec::new();
    for (index, chain_id) in chain.iter().enumerate() {
        if let Some(layer) = &kept[index] {
            lowers.insert(0, Rc::new(store.open_layer(chain_id)?));
            let compression = compression_of(session, &layer.blob)?;
            descriptors.push(descriptor(&layer.blob, store.blob_size(&layer.blob)?.unwrap_or(0), compression));
            continue;
        }
        let Some(LayerRead { blob, compression, diff_id, layer, count: mut counted, rest }) = read[index].take() else {
            continue;
        };
        let NewLayer { name, diff } = layer;
        let diff = Rc::new(diff);
        counted.replaced += complete::complete(rest, &diff, &lowers)?;
        let contents = Contents::of(&diff).or_cannot("read", "the layer")?;
        lowers.insert(0, diff);
        count.add(&counted);
        descriptors.push(descriptor(&blob.digest, blob.size, compression));
        let parent = index.checked_sub(1).map(|below| chain[below].clone());
        let (of, user) = (blob.digest.clone(), options.how.user_namespace);
        new_layers.push((name, Layer::new(chain_id.clone(), diff_id, parent, of, user, counted, contents)));
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
        None => made_manifest(config_descriptor.clone(), descriptors)?,
    };
    blobs.push(session.bytes(&config_bytes, &config_descriptor.digest)?);
    blobs.push(session.bytes(&manifest_bytes, &manifest.digest)?);
    session.commit(new_layers, blobs).map_err(store::full)?;
    if let Some(maker) = &options.erofs {
        maker.make(session, &chain)?;
    }
    Ok(Imported { manifest, count })
}

/// Gives images names, all of them or none.
///
/// # Errors
/// The names cannot be changed.
pub fn name<'a>(session: &Session, named: impl Iterator<Item = (&'a String, &'a Descriptor)>) -> Result<()> {
    let tagged = crate::log::rfc3339(SystemTime::now());
    session.store().change_names(|names| {
        names.extend(
            named.map(|(name, manifest)| (name.clone(), Named { manifest: manifest.clone(), tagged: tagged.clone() })),
        );
        Ok(())
    })
}

/// A layer that is there already, with the very blob that the image means.
fn present(session: &Session, chain_id: &Digest, wanted: Option<&Descriptor>) -> Result<Option<Layer>> {
    let store = session.store();
    let Some(layer) = store.layer(chain_id)? else { return Ok(None) };
    let size = store.blob_size(&layer.blob)?;
    let another =
        wanted.is_some_and(|wanted| wanted.digest != layer.blob || size.is_some_and(|size| size != wanted.size));
    if another || size.is_none() {
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
            if stopped.load(Ordering::Acquire) {
                return;
            }
            match read_one(session, files, job, options, progress, &stopped) {
                Ok(read) => results.lock().unwrap_or_else(PoisonError::into_inner)[job.index] = Some(read),
                Err(error) => {
                    // First what happened, then that it did: the others fail for no other reason.
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(store::full(error));
                    stopped.store(true, Ordering::Release);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..workers {
            // Where no more threads are to be had, fewer do it.
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner)),
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
