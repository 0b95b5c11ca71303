//! An image of the store as one archive that every tool reads: an OCI image layout with docker's `manifest.json` beside its
//! index, as docker itself writes since version 25. Blobs stand as they came, so the image keeps its digest.
//!
//! The archive is the same bytes every time: entries in a fixed order, without times and owners.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use serde_json::json;
use tar::{EntryType, Header};

use super::Image;
use super::digest::{Digest, Verified};
use super::manifest::{Descriptor, Kind, media_type};
use super::store::Store;
use crate::error::{Context, Result};

/// What tools find the image's name by: the specification's own, and containerd's.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// Writes the image as an archive. Every blob is verified on its way; after an error what was written is no image.
///
/// # Errors
/// A blob is damaged, or `out` takes no more.
pub fn archive(store: &Store, image: &Image, out: impl Write) -> Result<()> {
    let mut builder = tar::Builder::new(out);
    let blobs = [&image.descriptor, &image.manifest.config].into_iter().chain(&image.manifest.layers);
    let mut written = BTreeSet::new();
    let blobs: Vec<_> = blobs.filter(|descriptor| written.insert(descriptor.digest.clone())).collect();
    // Directories are mentioned: who unpacks without being root may not make those that are not (containers/storage gives them to
    // root).
    let directories = written.iter().map(|digest| format!("blobs/{}/", digest.directory()));
    let directories: BTreeSet<String> = directories.chain(["blobs/".to_owned()]).collect();
    for name in &directories {
        append(&mut builder, EntryType::Directory, name, 0, io::empty())?;
    }
    for descriptor in blobs {
        blob(store, descriptor, &mut builder)?;
    }
    let mut entry = image.descriptor.clone();
    if entry.media_type.is_empty() {
        entry.media_type = media_type(Kind::Manifest);
    }
    // What was pulled by digest is called so here, and tools take no such name for a tag.
    let name = image.name.as_ref().filter(|name| !name.contains('@'));
    if let Some(name) = name {
        entry.annotations.extend(NAMES.map(|key| (key.to_owned(), name.clone())));
    }
    let index = json!({"schemaVersion": 2, "mediaType": media_type(Kind::Index), "manifests": [entry]});
    let layers: Vec<String> = image.manifest.layers.iter().map(|layer| path(&layer.digest)).collect();
    let tags: Vec<&String> = name.into_iter().collect();
    let docker = json!([{"Config": path(&image.manifest.config.digest), "RepoTags": tags, "Layers": layers}]);
    for (name, text) in [
        ("index.json", index.to_string()),
        ("manifest.json", docker.to_string()),
        ("oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string()),
    ] {
        append(&mut builder, EntryType::Regular, name, text.len() as u64, text.as_bytes())?;
    }
    let mut out = builder.into_inner().or_cannot("write", "the archive")?;
    out.flush().or_cannot("write", "the archive")
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.directory(), digest.hex())
}

fn blob(store: &Store, descriptor: &Descriptor, builder: &mut tar::Builder<impl Write>) -> Result<()> {
    let digest = &descriptor.digest;
    // The manifest's own descriptor may come from a name that knows no size.
    let size = store.blob_size(digest)?.unwrap_or(descriptor.size);
    let mut verified = Verified::new(store.open_blob(digest)?, digest, Some(size));
    append(builder, EntryType::Regular, &path(digest), size, Filled { stream: &mut verified, left: size })?;
    verified
        .finish()
        .map(drop)
        .map_err(|error| error.hint("the image store is damaged: `ferry image check` says what can be repaired"))
}

fn append(
    builder: &mut tar::Builder<impl Write>,
    kind: EntryType,
    name: &str,
    size: u64,
    data: impl Read,
) -> Result<()> {
    // A blob's name by sha512 is too long for the older form.
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    builder.append_data(&mut header, name, data).or_cannot("write", name)
}

/// So many bytes or an error: an archive in which a file is cut short would be read as another one.
pub struct Filled<'a, S> {
    /// The file.
    pub stream: &'a mut S,
    /// What is still to come. Bytes.
    pub left: u64,
}

impl<S: Read> Read for Filled<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.stream.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_of_a_blob_reads_back() {
        let mut builder = tar::Builder::new(Vec::new());
        let name = format!("blobs/sha512/{}", "f".repeat(128));
        append(&mut builder, EntryType::Regular, &name, 2, &b"ab"[..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!((entry.path_bytes().as_ref(), entry.size()), (name.as_bytes(), 2));
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut short = &b"ab"[..];
        assert!(append(&mut builder, EntryType::Regular, "a", 3, Filled { stream: &mut short, left: 3 }).is_err());
    }
}
