//! `image tag` and `image remove`: names come and go; what they named goes with `image prune`.

use std::time::SystemTime;

use super::Setting;
use crate::error::{Error, Result};
use crate::image::reference::Reference;
use crate::image::store::names::Named;

/// `image tag`: another name for an image.
///
/// # Errors
/// There is no such image; the name is none.
pub fn tag(setting: &Setting, wanted: &str, name: &str) -> Result<()> {
    let reference: Reference = name.parse()?;
    if reference.digest.is_some() {
        return Err(Error::plain(format!("{name:?} has a digest, which is no name to give")));
    }
    let store = super::with_images(setting)?;
    let _guard = store.share()?;
    let (_, manifest) = store.find(wanted)?;
    let tagged = crate::log::rfc3339(SystemTime::now());
    store.change_names(|names| {
        names.insert(reference.to_string(), Named { manifest, tagged });
        Ok(())
    })
}

/// `image remove`: takes names away. One that is found by its digest loses every name it has.
///
/// # Errors
/// There is no such image; then all names stay.
pub fn remove(setting: &Setting, wanted: &[String]) -> Result<Vec<String>> {
    let store = super::with_images(setting)?;
    let _guard = store.share()?;
    let mut gone = Vec::new();
    for one in wanted {
        match store.find(one)? {
            (Some(name), _) => gone.push(name),
            (None, manifest) => {
                let names = store.names()?.into_iter().filter(|(_, named)| named.manifest.digest == manifest.digest);
                gone.extend(names.map(|(name, _)| name));
            }
        }
    }
    gone.dedup();
    store.change_names(|names| {
        names.retain(|name, _| !gone.contains(name));
        Ok(())
    })?;
    Ok(gone)
}
