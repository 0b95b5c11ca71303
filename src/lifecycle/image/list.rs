//! `image list`, `image inspect` and `image history`: what is in the store.

use serde::Serialize;

use super::Setting;
use crate::error::Result;
use crate::image::Image;
use crate::image::manifest::{History, ImageConfig, Manifest};

/// A row of `image list`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its manifest's digest.
    pub digest: String,
    /// `os/architecture`.
    pub platform: String,
    /// RFC 3339; empty where the image does not say.
    pub created: String,
    /// When it got the name.
    pub tagged: String,
    /// How many layers it has.
    pub layers: usize,
    /// Bytes of its blobs.
    pub size: u64,
}

/// What `image inspect` answers.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspected {
    /// Every name of it.
    pub names: Vec<String>,
    /// Its manifest's digest.
    pub digest: String,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its configuration.
    pub config: ImageConfig,
    /// Its layers' chain ids, the lowest first.
    pub chain_ids: Vec<String>,
    /// Where its layers are unpacked, the lowest first.
    pub directories: Vec<std::path::PathBuf>,
}

/// `image list`. An image whose documents are damaged is a row with nothing but its name: `image check` says what is wrong.
///
/// # Errors
/// The store cannot be read.
pub fn list(setting: &Setting) -> Result<Vec<Row>> {
    let Some(store) = super::existing(setting)? else { return Ok(Vec::new()) };
    let row = |(name, named): (String, crate::image::store::names::Named)| {
        let digest = named.manifest.digest.to_string();
        let image = store.image_of(Some(name.clone()), named.manifest).ok();
        Row {
            platform: image.as_ref().map_or_else(|| "damaged".to_owned(), platform),
            created: image.as_ref().and_then(|image| image.config.created.clone()).unwrap_or_default(),
            layers: image.as_ref().map_or(0, |image| image.manifest.layers.len()),
            size: image.as_ref().map_or(0, size),
            tagged: named.tagged,
            name,
            digest,
        }
    };
    Ok(store.names()?.into_iter().map(row).collect())
}

fn platform(image: &Image) -> String {
    let platform = &image.config.platform;
    format!("{}/{}", platform.os, platform.architecture)
}

fn size(image: &Image) -> u64 {
    image.manifest.config.size + image.manifest.layers.iter().map(|layer| layer.size).sum::<u64>()
}

/// `image inspect`.
///
/// # Errors
/// There is no such image.
pub fn inspect(setting: &Setting, wanted: &str) -> Result<Inspected> {
    let store = super::with_images(setting)?;
    let image = store.image(wanted)?;
    let digest = &image.descriptor.digest;
    let names = store.names()?.into_iter().filter(|(_, named)| named.manifest.digest == *digest);
    let directory = |id| store.path(crate::image::store::layers::directory(id)).join("diff");
    Ok(Inspected {
        names: names.map(|(name, _)| name).collect(),
        digest: digest.to_string(),
        chain_ids: image.chain.iter().map(ToString::to_string).collect(),
        directories: image.chain.iter().map(directory).collect(),
        manifest: image.manifest,
        config: image.config,
    })
}

/// A row of `image history`: a step, and the bytes of its layer where it has one. The last step comes first.
///
/// # Errors
/// There is no such image.
pub fn history(setting: &Setting, wanted: &str) -> Result<Vec<(History, Option<u64>)>> {
    let image = super::with_images(setting)?.image(wanted)?;
    let mut layers = image.manifest.layers.iter();
    let mut rows: Vec<(History, Option<u64>)> = Vec::new();
    for step in image.config.history {
        let size = if step.empty_layer { None } else { layers.next().map(|layer| layer.size) };
        rows.push((step, size));
    }
    // Layers that no step tells of.
    rows.extend(layers.map(|layer| (History::default(), Some(layer.size))));
    rows.reverse();
    Ok(rows)
}
