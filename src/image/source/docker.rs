//! What `docker save` and `podman save` write: `manifest.json` names a configuration and layers by their files. No digests are
//! given but in the names, and layers are verified by the configuration, which has their digests.

use serde::Deserialize;

use super::{Files, Image, Layer, choose};
use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::{self, Descriptor, Kind};
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

/// The images of an archive; `wanted`: only the one of that name.
///
/// # Errors
/// It is broken.
pub fn images(files: &Files, wanted: Option<&str>) -> Result<Vec<Image>> {
    let mut rows: Vec<Row> = manifest::parse(&files.document("manifest.json")?, "manifest.json")?;
    if rows.is_empty() {
        return Err(Error::plain("manifest.json lists no image"));
    }
    choose(&mut rows, wanted, |row: &Row| row.repo_tags.clone().unwrap_or_default())?;
    rows.into_iter().map(|row| image(files, row)).collect()
}

fn image(files: &Files, row: Row) -> Result<Image> {
    let bytes = match named_digest(&row.config) {
        Some(digest) => files.verified(&row.config, &digest, None)?,
        None => files.document(&row.config)?,
    };
    let names =
        row.repo_tags.unwrap_or_default().iter().map(|name| name.parse::<Reference>()).collect::<Result<Vec<_>>>()?;
    let layers = row.layers.unwrap_or_default();
    Ok(Image {
        names: names.iter().map(Reference::to_string).collect(),
        manifest: None,
        config: Some((Descriptor::of(&bytes, Kind::Config), bytes)),
        layers: layers.into_iter().map(|file| Layer { file, descriptor: None }).collect(),
    })
}

/// The digest that a configuration's file is named after: `HEX.json` or `blobs/sha256/HEX`.
fn named_digest(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    format!("sha256:{}", last.strip_suffix(".json").unwrap_or(last)).parse().ok()
}
