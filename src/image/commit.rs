//! What a container changed, as one more layer on its image; or as several, where it was rolled back to a snapshot.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::Image;
use super::compression::Packer;
use super::digest::{Algorithm, Digest, Hasher};
use super::import::{self, Imported, Options};
use super::manifest::{self, Compression, Descriptor, Kind, MOST_LAYERS};
use super::pack;
use super::progress::Silent;
use super::source::{self, Files, Layer};
use super::store::Store;
use super::store::session::Session;
use crate::error::{Context, Error, Result};
use crate::path::Root;

/// Makes an image of `parent` and the upper layers `uppers`, the lowest first, without a name. `created` is the time it says it was
/// made.
///
/// # Errors
/// Something cannot be read or kept; the store is as it was.
pub fn commit(
    session: &Session,
    parent: &Image,
    uppers: &[OwnedFd],
    created: SystemTime,
    options: &Options,
) -> Result<Imported> {
    if parent.manifest.layers.len() + uppers.len() > MOST_LAYERS {
        let why = format!("its image has {MOST_LAYERS} layers, and an overlay takes no more");
        return Err(Error::said("commit", "the container", why));
    }
    let store = session.store();
    let created = crate::log::rfc3339(created);
    let mut config = store.document(&parent.manifest.config.digest)?;
    let mut made = parent.manifest.clone();
    let mut added = Vec::new();
    for upper in uppers {
        let (file, diff_id, layer) = packed(session, parent, upper)?;
        config = with_layer(&config, &diff_id, &created)?;
        made.layers.push(layer.clone());
        added.push(Layer { file, descriptor: Some(layer) });
    }
    let described =
        Descriptor { digest: Digest::of(&config), size: config.len() as u64, ..parent.manifest.config.clone() };
    made.config = described.clone();
    // Annotations of the parent tell of the parent.
    made.annotations.clear();
    let text = serde_json::to_vec(&made).map_err(|why| Error::said("write", "the manifest", why.to_string()))?;
    let manifest = Descriptor { media_type: made.media_type.clone(), ..Descriptor::of(&text, Kind::Manifest) };
    let below = parent
        .manifest
        .layers
        .iter()
        .map(|layer| Layer { file: Store::blob_name(&layer.digest), descriptor: Some(layer.clone()) });
    let image = source::Image {
        names: Vec::new(),
        manifest: Some((manifest, text)),
        config: Some((described, config)),
        layers: below.chain(added).collect(),
    };
    let dir = store.dir().try_clone_to_owned().or_cannot("open", "the image store")?;
    // The layer goes the way of every other: read, verified and unpacked beside the others.
    import::import(session, &Files::Directory(Root::from_dir(dir, Path::new(""))), &image, options, &Silent)
}

/// Packs the upper layer into a file of the session: its name from the store's directory on, its digest without compression, and
/// what it is.
fn packed(session: &Session, parent: &Image, upper: &OwnedFd) -> Result<(String, Digest, Descriptor)> {
    let (file, name) = session.file()?;
    let packer = Packer::new(Compression::Gzip, Hashed::new(file)).or_cannot("pack", "the container's changes")?;
    let mut archive = Hashed::new(packer);
    pack::upper(upper, &mut archive)?;
    let diff_id = archive.hasher.finish();
    let Hashed { hasher, size, .. } = archive.inner.finish().or_cannot("pack", "the container's changes")?;
    // An image is all docker's or all OCI's: some tools refuse a mixture.
    let is_dockers = parent.manifest.media_type.contains(".docker.");
    let media_type = match is_dockers {
        true => "application/vnd.docker.image.rootfs.diff.tar.gzip".to_owned(),
        false => manifest::media_type(Kind::Layer(Compression::Gzip)),
    };
    let digest = hasher.finish();
    let layer = Descriptor { media_type, digest, size, annotations: Default::default(), platform: None };
    Ok((session.place(&name), diff_id, layer))
}

/// The parent's configuration with one layer more; fields that are not understood here stay.
fn with_layer(parent: &[u8], diff_id: &Digest, created: &str) -> Result<Vec<u8>> {
    let mut config: Value = manifest::parse(parent, "the image's configuration")?;
    let broken = || Error::said("read", "the image's configuration", "it is no object with rootfs.diff_ids");
    let fields = config.as_object_mut().ok_or_else(broken)?;
    let diff_ids = fields.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids")).ok_or_else(broken)?;
    let diff_ids = diff_ids.as_array_mut().ok_or_else(broken)?;
    let layers = diff_ids.len();
    diff_ids.push(json!(diff_id.to_string()));
    fields.insert("created".to_owned(), json!(created));
    let step = json!({"created": created, "created_by": "ferry image commit"});
    match fields.get_mut("history").and_then(Value::as_array_mut) {
        Some(history) if history.iter().filter(|step| step["empty_layer"] != true).count() >= layers => {
            history.push(step);
        }
        // With steps for some layers only, tools would ascribe this one to the lowest.
        _ => drop(fields.remove("history")),
    }
    serde_json::to_vec(&config).map_err(|why| Error::said("write", "the configuration", why.to_string()))
}

/// A stream whose digest and size are known in the end.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new(Algorithm::Sha256), size: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_keeps_what_is_not_understood() {
        let parent = json!({"os": "linux", "x": {"y": 1}, "rootfs": {"type": "layers", "diff_ids": ["sha256:a"]},
                            "history": [{"created_by": "base"}]});
        let diff_id = Digest::of(b"");
        let made: Value =
            serde_json::from_slice(&with_layer(parent.to_string().as_bytes(), &diff_id, "now").unwrap()).unwrap();
        assert_eq!(made["x"]["y"], 1);
        assert_eq!(made["rootfs"]["diff_ids"], json!(["sha256:a", diff_id.to_string()]));
        assert_eq!(made["history"][1], json!({"created": "now", "created_by": "ferry image commit"}));
        for history in [json!([]), json!([{"created_by": "base", "empty_layer": true}]), json!(null)] {
            let mut parent = parent.clone();
            parent["history"] = history;
            let made = with_layer(parent.to_string().as_bytes(), &diff_id, "now").unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&made).unwrap().get("history"), None, "{parent}");
        }
        assert!(with_layer(b"[]", &diff_id, "now").is_err());
        assert!(with_layer(b"{}", &diff_id, "now").is_err());
    }
}
