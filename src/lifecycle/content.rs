//! An image that a migrated container runs from and that is not here, or not all of it: what of it comes along, and how it gets into the
//! store. The source chooses the bytes, and the digests that they are held to; it gives nothing here a name.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

use rustix::fs::Mode;

use super::{Setting, image};
use crate::checkpoint::root::Image;
use crate::error::{Context, Error, Result};
use crate::host;
use crate::image::digest::{Digest, Verified};
use crate::image::import;
use crate::image::manifest::{self, Descriptor, Kind, LARGEST, Manifest};
use crate::image::progress::Silent;
use crate::image::source::{self, Files, Layer};
use crate::image::store::session::Session;
use crate::image::store::{Guard, Store};
use crate::migrate::content;
use crate::migrate::message::Blob;
use crate::path::Root;
use crate::security::jail;

/// How often whoever waits for it is told that it goes on.
const BEAT: Duration = Duration::from_millis(500);

/// What an image is made of: manifest, configuration, layers. `None`: not all of it is here to be sent.
///
/// # Errors
/// The store cannot be read.
pub fn of(store: &Store, image: &Image) -> Result<Option<Vec<Blob>>> {
    let found = store.image_of(None, Descriptor::named(&image.manifest))?;
    let parts = [&image.manifest, &found.manifest.config.digest].into_iter();
    let parts = parts.chain(found.manifest.layers.iter().map(|layer| &layer.digest));
    let blob = |digest: &Digest| Ok(store.blob_size(digest)?.map(|size| Blob { digest: digest.clone(), size }));
    parts.map(blob).collect()
}

/// What of an image is not here. Nothing also where `content` does not go with it.
///
/// # Errors
/// The store cannot be read.
pub fn lacks(setting: &Setting, image: &Image, content: &[Blob]) -> Result<Vec<Blob>> {
    let Some((documents, layers)) = content.split_at_checked(2) else { return Ok(Vec::new()) };
    if documents[0].digest != image.manifest || layers.len() != image.layers.len() {
        return Ok(Vec::new());
    }
    let Some(store) = Store::existing(&image::location(setting, &host::probe())?)? else {
        return Ok(each_once(content.to_vec()));
    };
    let mut lacks = Vec::new();
    for blob in documents {
        if store.blob_size(&blob.digest)?.is_none() {
            lacks.push(blob.clone());
        }
    }
    for (blob, chain_id) in layers.iter().zip(&image.layers) {
        let is_unpacked = store.layer(chain_id)?.is_some_and(|layer| layer.blob == blob.digest);
        if !is_unpacked || store.blob_size(&blob.digest)?.is_none() {
            lacks.push(blob.clone());
        }
    }
    Ok(each_once(lacks))
}

fn each_once(mut blobs: Vec<Blob>) -> Vec<Blob> {
    let mut seen = std::collections::HashSet::new();
    blobs.retain(|blob| seen.insert(blob.digest.clone()));
    blobs
}

/// Brings what has come to `directory` into the store, where nobody removes it as long as the answer is held. `waiting` is called now
/// and then meanwhile.
///
/// # Errors
/// It is no image, or cannot be kept: the store is as it was. Those of `waiting`.
pub fn keep(
    setting: &Setting,
    image: &Image,
    directory: &Path,
    waiting: &mut dyn FnMut() -> Result<()>,
) -> Result<Guard> {
    let store = image::open(setting)?;
    let guard = store.share()?;
    // Files get the modes their archive says.
    let mask = rustix::process::umask(Mode::empty());
    let kept = std::thread::scope(|scope| {
        let (done, over) = channel::<()>();
        let store = &store;
        let work = move || {
            let kept = bring(store, image, directory);
            drop(done);
            kept
        };
        let thread = Builder::new().spawn_scoped(scope, work);
        let mut waited = Ok(());
        while waited.is_ok() && matches!(over.recv_timeout(BEAT), Err(RecvTimeoutError::Timeout)) {
            waited = waiting();
        }
        jail::joined(thread).and(waited)
    });
    rustix::process::umask(mask);
    kept.map(|()| guard)
}

fn bring(store: &Store, image: &Image, directory: &Path) -> Result<()> {
    let session = Session::begin(store)?;
    let manifest_text = document(store, directory, &image.manifest)?;
    let parsed: Manifest = manifest::parse(&manifest_text, &image.manifest)?;
    let config_text = document(store, directory, &parsed.config.digest)?;
    let layer = |found: &Descriptor| Layer { file: content::name(&found.digest), descriptor: Some(found.clone()) };
    let source = source::Image {
        names: Vec::new(),
        layers: parsed.layers.iter().map(layer).collect(),
        config: Some((parsed.config, config_text)),
        manifest: Some((Descriptor::of(&manifest_text, Kind::Manifest), manifest_text)),
    };
    let files = Files::Directory(Root::open(directory)?);
    let imported = import::import(&session, &files, &source, &super::image::options(None, None, None), &Silent)?;
    match imported.manifest.digest == image.manifest {
        true => Ok(()),
        false => Err(Error::said("keep", image.manifest.to_string(), "its content is another's")),
    }
}

/// A document that is here, or has come.
fn document(store: &Store, directory: &Path, digest: &Digest) -> Result<Vec<u8>> {
    if store.blob_size(digest)?.is_some() {
        return store.document(digest);
    }
    let path = directory.join(content::name(digest));
    let file = File::open(&path).or_cannot("open", path.display())?;
    let (mut text, mut verified) = (Vec::new(), Verified::new(file.take(LARGEST), digest, None));
    verified.read_to_end(&mut text).or_cannot("read", path.display())?;
    verified.finish().map(|_| text)
}
