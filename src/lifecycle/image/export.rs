//! `image export`.

use std::io::Write;

use super::Setting;
use crate::error::Result;
use crate::image::export;

/// Writes the image as an archive.
///
/// # Errors
/// There is no such image, it is damaged, or `out` takes no more.
pub fn export(setting: &Setting, wanted: &str, out: impl Write) -> Result<()> {
    let store = super::with_images(setting)?;
    let _guard = store.share()?;
    export::archive(&store, &store.image(wanted)?, out)
}
