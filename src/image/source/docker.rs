//! What `docker save` and `podman save` write: `manifest.json` names a configuration and layers by their files. No digests are
//! given but in the names, and layers are verified by the configuration, which has their digests.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Files, Image, Layer, choose, none_serves};
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::{self, Descriptor, ImageConfig, Kind, Platform};
use crate::image::reference::Reference;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Whether a text is the `manifest.json` of such an archive.
pub fn is_manifest(text: &[u8]) -> bool {
    serde_json::from_slice::<Vec<Row>>(text).is_ok_and(|rows| !rows.is_empty())
}

/// The images of an archive that serve `platform`; `wanted`: only the one of that name.
///
/// # Errors
/// It is broken, or none serves.
pub fn images(files: &Files, platform: &Platform, wanted: Option<&str>) -> Result<Vec<Image>> {
    let mut rows: Vec<Row> = manifest::parse(&files.document("manifest.json")?, "manifest.json")?;
    if rows.is_empty() {
        return Err(Error::plain("manifest.json lists no image"));
    }
    choose(&mut rows, wanted, |row: &Row| {
        ids(files, row).into_iter().chain(row.repo_tags.clone().unwrap_or_default()).collect()
    })?;
    let (mut found, mut others) = (Vec::new(), BTreeSet::new());
    for row in rows {
        let (image, own) = image(files, row)?;
        match own.serves(platform) {
            Some(_) => found.push(image),
            None => drop(others.insert(format!("{}/{}", own.os, own.architecture))),
        }
    }
    if found.is_empty() { Err(none_serves(platform, &others)) } else { Ok(found) }
}

/// An image, and what machine it is for.
fn image(files: &Files, row: Row) -> Result<(Image, Platform)> {
    let bytes = match named_digest(&row.config) {
        Some(digest) => files.verified(&row.config, &digest, None)?,
        None => files.document(&row.config)?,
    };
    let names =
        row.repo_tags.unwrap_or_default().iter().map(|name| name.parse::<Reference>()).collect::<Result<Vec<_>>>()?;
    let layers = row.layers.unwrap_or_default();
    let platform = manifest::parse::<ImageConfig>(&bytes, &row.config)?.platform;
    let image = Image {
        // There is no manifest whose digest could be the one in a name.
        names: names.iter().filter(|name| name.digest.is_none()).map(Reference::to_string).collect(),
        manifest: None,
        config: Some((Descriptor::of(&bytes, Kind::Config), bytes)),
        layers: layers.into_iter().map(|file| Layer { file, descriptor: None }).collect(),
    };
    Ok((image, platform))
}

/// The id by which docker knows an image, that has a name or not: its configuration's digest, whole and as it is shown.
fn ids(files: &Files, row: &Row) -> Vec<String> {
    let hashed = || files.document(&row.config).ok().map(|bytes| Digest::of(&bytes));
    let id = named_digest(&row.config).or_else(hashed);
    id.map(|id| vec![id.to_string(), id.hex().to_owned(), id.short().to_owned()]).unwrap_or_default()
}

/// The digest that a configuration's file is named after: `HEX.json` or `blobs/sha256/HEX`.
fn named_digest(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    format!("sha256:{}", last.strip_suffix(".json").unwrap_or(last)).parse().ok()
}
