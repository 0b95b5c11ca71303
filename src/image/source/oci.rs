//! An OCI image layout: `index.json` names manifests, or further indexes, and everything else is a blob. OCI image-spec,
//! image-layout.md

use std::collections::BTreeSet;

use super::{Files, Image, Layer, choose, none_serves};
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::{self, Descriptor, ImageConfig, Index, Kind, MOST_LAYERS, Manifest, Platform};
use crate::image::reference::Reference;

/// How deep indexes may be nested. Tools make two levels.
const DEEPEST: usize = 8;
/// How many documents one source may have the reader look at.
const MOST_DOCUMENTS: usize = 1000;
/// The annotation that names an image: a tag, or a whole name.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same by containerd and docker: always a whole name.
const FULL_NAME: &str = "io.containerd.image.name";

struct Reader<'a> {
    files: &'a Files,
    platform: &'a Platform,
    /// Indexes on the way down: one that is met again is a cycle.
    way: Vec<Digest>,
    documents: usize,
    /// Platforms that were passed over, for the error where none serves.
    others: BTreeSet<String>,
    /// Why the first entry that is no image is none, for the error where there is nothing else.
    foreign: Option<Error>,
}

/// The images of a layout that serve `platform`; `stem` names one that has only a tag. `wanted`: only the one of that tag or name.
///
/// # Errors
/// The layout is broken, or nothing in it serves.
pub fn images(files: &Files, platform: &Platform, stem: &str, wanted: Option<&str>) -> Result<Vec<Image>> {
    let mut entries = match files {
        Files::Registry(registry) => vec![registry.root().clone()],
        _ => {
            version(files)?;
            manifest::parse::<Index>(&files.document("index.json")?, "index.json")?.manifests
        }
    };
    choose(&mut entries, wanted, |entry: &Descriptor| {
        let tag = entry.annotations.get(REF_NAME).cloned();
        tag.into_iter().chain(names(entry, stem)).collect()
    })?;
    let mut reader = Reader { files, platform, way: Vec::new(), documents: 0, others: BTreeSet::new(), foreign: None };
    let mut found: Vec<(u8, Image)> = Vec::new();
    for entry in &entries {
        let Some((score, image)) = reader.resolve(entry)? else { continue };
        let image = Image { names: names(entry, stem), ..image };
        // Several of one name are one image for several platforms.
        match found.iter_mut().find(|(_, other)| other.names == image.names) {
            Some((best, other)) if *best < score => (*best, *other) = (score, image),
            Some(_) => (),
            None => found.push((score, image)),
        }
    }
    if found.is_empty() {
        return Err(match reader.foreign {
            _ if !reader.others.is_empty() => none_serves(platform, &reader.others),
            Some(error) => error,
            None => Error::plain("the index lists no image"),
        });
    }
    Ok(found.into_iter().map(|(_, image)| image).collect())
}

fn version(files: &Files) -> Result<()> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        image_layout_version: String,
    }
    let version: Version = manifest::parse(&files.document("oci-layout")?, "oci-layout")?;
    if version.image_layout_version.starts_with("1.") {
        return Ok(());
    }
    let why = format!("its version is {:?}, and 1.0.0 is understood", version.image_layout_version);
    Err(Error::said("read", "oci-layout", why))
}

fn blob(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.directory(), digest.hex())
}

impl Reader<'_> {
    /// The image that an entry of an index leads to, without a name, and how well it serves.
    fn resolve(&mut self, entry: &Descriptor) -> Result<Option<(u8, Image)>> {
        let mut score = None;
        if let Some(platform) = &entry.platform {
            score = self.score(platform);
            if score.is_none() {
                return Ok(None);
            }
        }
        if let Err(error) = known(&entry.media_type) {
            return Ok(self.pass_over(error));
        }
        self.documents += 1;
        if self.way.contains(&entry.digest) {
            return Err(Error::said("read index", entry.digest.to_string(), "it contains itself"));
        }
        if self.way.len() >= DEEPEST || self.documents > MOST_DOCUMENTS {
            return Err(Error::said("read index", entry.digest.to_string(), "indexes are nested too deeply"));
        }
        let bytes = self.files.described(&blob(&entry.digest), entry)?;
        match manifest::document_kind(&bytes, &entry.media_type, &entry.digest)? {
            Kind::Manifest => self.image(entry, bytes, score),
            Kind::Index => {
                let index: Index = manifest::parse(&bytes, &entry.digest)?;
                self.way.push(entry.digest.clone());
                let mut best: Option<(u8, Image)> = None;
                for child in &index.manifests {
                    let found = self.resolve(child)?;
                    if found.as_ref().map(|found| found.0) > best.as_ref().map(|best| best.0) {
                        best = found;
                    }
                }
                self.way.pop();
                Ok(best)
            }
            Kind::Config | Kind::Layer(_) => {
                Err(Error::said("read", entry.digest.to_string(), "it is no manifest, and an index lists it as one"))
            }
        }
    }
    /// How well a platform serves. One that does not is noted.
    fn score(&mut self, platform: &Platform) -> Option<u8> {
        let score = platform.serves(self.platform);
        // Attestations have the platform unknown/unknown: nobody could choose them.
        if score.is_none() && platform.os != "unknown" {
            self.others.insert(format!("{}/{}", platform.os, platform.architecture));
        }
        score
    }

    /// Signatures and other artifacts stand beside images, and what is not known among them is no error. OCI image-spec,
    /// image-index.md
    fn pass_over<T>(&mut self, why: Error) -> Option<T> {
        self.foreign.get_or_insert(why);
        None
    }

    /// Reads what a manifest refers to. Without a score of its entry its configuration tells what it serves.
    fn image(&mut self, entry: &Descriptor, bytes: Vec<u8>, score: Option<u8>) -> Result<Option<(u8, Image)>> {
        let found: Manifest = manifest::parse(&bytes, &entry.digest)?;
        if let Err(error) = understood(&found, &entry.digest) {
            return Ok(self.pass_over(error));
        }
        if found.layers.len() > MOST_LAYERS {
            let why = format!("it has {} layers, and an overlay takes {MOST_LAYERS} at most", found.layers.len());
            return Err(Error::said("read manifest", entry.digest.to_string(), why));
        }
        let config = self.files.described(&blob(&found.config.digest), &found.config)?;
        let score = match score {
            None => self.score(&manifest::parse::<ImageConfig>(&config, &found.config.digest)?.platform),
            score => score,
        };
        let layer = |layer: &Descriptor| Layer { file: blob(&layer.digest), descriptor: Some(layer.clone()) };
        let image = Image {
            names: Vec::new(),
            manifest: Some((Descriptor { annotations: Default::default(), ..entry.clone() }, bytes)),
            layers: found.layers.iter().map(layer).collect(),
            config: Some((found.config, config)),
        };
        Ok(score.map(|score| (score, image)))
    }
}

/// Whether a media type is understood, where one is given.
fn known(media_type: &str) -> Result<()> {
    if media_type.is_empty() { Ok(()) } else { manifest::kind(media_type).map(drop) }
}

/// Whether a manifest is an image's.
fn understood(found: &Manifest, digest: &Digest) -> Result<()> {
    let other = |why: String| Err(Error::said("read manifest", digest.to_string(), why));
    if !matches!(manifest::kind(&found.config.media_type)?, Kind::Config) {
        return other(format!("its configuration has the media type {:?}", found.config.media_type));
    }
    for layer in &found.layers {
        if !matches!(manifest::kind(&layer.media_type)?, Kind::Layer(_)) {
            return other(format!("a layer of it has the media type {:?}", layer.media_type));
        }
    }
    Ok(())
}

/// The names an entry gives its image. A digest in one is a promise, and only the entry's own is kept.
fn names(entry: &Descriptor, stem: &str) -> Vec<String> {
    let kept = |name: &Reference| name.digest.as_ref().is_none_or(|digest| *digest == entry.digest);
    let parsed = |name: &str| name.parse::<Reference>().ok().filter(kept);
    if let Some(name) = entry.annotations.get(FULL_NAME).and_then(|name| parsed(name)) {
        return vec![name.to_string()];
    }
    let Some(name) = entry.annotations.get(REF_NAME) else { return Vec::new() };
    let whole = if name.contains(['/', ':']) { name.clone() } else { format!("{stem}:{name}") };
    parsed(&whole).map(|name| name.to_string()).into_iter().collect()
}
