//! Removing what nobody refers to: documents and layers of images without a name, uses whose user has gone, what was cut off.
//!
//! It has the store to itself, so that nothing becomes used in the middle. Names are roots, and so is what a container or a mount
//! uses: an image that lost its name stays as long as something runs from it.

use std::collections::BTreeSet;

use super::{Store, layers};
use crate::error::{Error, Result};
use crate::image::digest::Digest;

/// What went.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// Layers' chain ids.
    pub layers: Vec<Digest>,
    /// Blobs.
    pub blobs: Vec<Digest>,
    /// Bytes of those blobs.
    pub bytes: u64,
    /// Directories of containers and mounts that have gone.
    pub uses: Vec<String>,
    /// Things that were being made when their maker was cut off.
    pub unfinished: usize,
}

/// What is referred to.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) blobs: BTreeSet<Digest>,
    pub(super) layers: BTreeSet<Digest>,
}

/// Removes it. With `all`, names that nothing uses go first, and their images with them.
///
/// # Errors
/// Something cannot be read or removed; what was removed until then is gone.
pub fn prune(store: &Store, all: bool) -> Result<Removed> {
    let _alone = store.exclude()?;
    let mut removed = Removed::default();
    let mut used = Vec::new();
    for (name, found) in store.uses()? {
        match found {
            Some(found) if found.is_live() => used.push(found),
            _ => {
                store.remove(&format!("containers/{name}"))?;
                removed.uses.push(name);
            }
        }
    }
    let keys: Vec<String> = used.iter().map(|used| super::uses::key(&used.user)).collect();
    store.remove_other_snapshots(&keys)?;
    if all {
        store.change_names(|names| {
            names.retain(|_, named| used.iter().any(|used| used.manifest == named.manifest.digest));
            Ok(())
        })?;
    }
    let live = live(store)?;
    store.release_erofs_of(&used, live.layers.iter())?;
    // Layers first: a blob without its layer is only a waste, a layer whose blob is gone could not be repaired.
    for name in store.names_in("layers")? {
        let name = name.to_string_lossy().into_owned();
        let chain_id = format!("sha256:{name}").parse::<Digest>().or_else(|_| format!("sha512:{name}").parse());
        if chain_id.as_ref().is_ok_and(|chain_id| live.layers.contains(chain_id)) {
            continue;
        }
        if let Ok(chain_id) = chain_id {
            store.remove_erofs(&chain_id)?;
            removed.layers.push(chain_id);
        }
        store.remove(&format!("layers/{name}"))?;
    }
    for algorithm in ["sha256", "sha512"] {
        for name in store.names_in(&format!("blobs/{algorithm}"))? {
            let name = name.to_string_lossy().into_owned();
            let digest = format!("{algorithm}:{name}").parse::<Digest>();
            if digest.as_ref().is_ok_and(|digest| live.blobs.contains(digest)) {
                continue;
            }
            if let Ok(digest) = digest {
                removed.bytes += store.blob_size(&digest)?.unwrap_or(0);
                removed.blobs.push(digest);
            }
            store.remove(&format!("blobs/{algorithm}/{name}"))?;
        }
    }
    removed.unfinished = clear(store)?;
    Ok(removed)
}

/// Empties `tmp`. Only with the store alone: then everything in it is left over.
pub(super) fn clear(store: &Store) -> Result<usize> {
    let names = store.names_in("tmp")?;
    names.iter().try_for_each(|name| store.remove_now(&format!("tmp/{}", name.to_string_lossy())))?;
    Ok(names.len())
}

/// Everything that names and uses lead to.
///
/// # Errors
/// Something cannot be read, or is damaged: it might lead to all that is left of an image.
pub(super) fn live(store: &Store) -> Result<Live> {
    let mut live = Live::default();
    let mut manifests: BTreeSet<Digest> = store.names()?.into_values().map(|named| named.manifest.digest).collect();
    for (_, used) in store.uses()? {
        if let Some(used) = used {
            manifests.insert(used.manifest);
            live.layers.extend(used.layers);
        }
    }
    for digest in manifests {
        live.blobs.insert(digest.clone());
        let descriptor = crate::image::manifest::Descriptor::named(&digest);
        let image = store.image_of(None, descriptor).map_err(unknown)?;
        live.blobs.insert(image.manifest.config.digest.clone());
        live.blobs.extend(image.manifest.layers.iter().map(|layer| layer.digest.clone()));
        live.layers.extend(image.chain);
    }
    // A layer's own blob, and the layers below it.
    let mut waiting: Vec<Digest> = live.layers.iter().cloned().collect();
    while let Some(chain_id) = waiting.pop() {
        if let Some(layer) = store.layer(&chain_id).map_err(unknown)? {
            live.blobs.insert(layer.blob);
            waiting.extend(layer.parent.filter(|parent| live.layers.insert(parent.clone())));
        }
    }
    Ok(live)
}

fn unknown(error: Error) -> Error {
    error.hint("what it refers to is not known, so no layer is removed; `ferry image check` says what can be repaired")
}

/// Where a layer is, for messages.
pub(super) fn layer_path(store: &Store, chain_id: &Digest) -> String {
    store.path(layers::directory(chain_id)).display().to_string()
}
