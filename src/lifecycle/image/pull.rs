//! `image pull`: from a registry into the store.
//!
//! The registry is found as the caller, whose passwords and certificates are asked for; what it sends is unpacked where files of
//! many owners can be made.

use std::path::PathBuf;

use super::{Setting, import};
use crate::error::Result;
use crate::image::erofs::Maker;
use crate::image::manifest::Platform;
use crate::image::progress::Progress;
use crate::image::reference::Reference;
use crate::image::registry::{self, Registry, Wishes};
use crate::image::source;
use crate::image::store::session::Session;

/// What to pull.
#[derive(Debug)]
pub struct Options {
    /// The image.
    pub name: Reference,
    /// What machine it is for.
    pub platform: Option<Platform>,
    /// The most bytes a layer may unpack to.
    pub max_size: Option<u64>,
    /// Makes its layers EROFS images as well.
    pub erofs: Option<Maker>,
    /// Where to ask, and how.
    pub wishes: Wishes,
    /// Who the caller is to registries, in place of the usual files.
    pub auth_file: Option<PathBuf>,
}

/// Asks for the image.
///
/// # Errors
/// No registry gives it out.
pub fn find(options: &Options) -> Result<Registry> {
    registry::find(&options.name, &options.wishes, options.auth_file.as_deref())
}

/// Brings it into the store, under the name that was asked for.
///
/// # Errors
/// What the registry sends is not the image, or cannot be kept; the store is as it was.
pub fn pull(setting: &Setting, found: Registry, options: &Options, progress: &dyn Progress) -> Result<()> {
    // Files get the modes their archive says.
    rustix::process::umask(rustix::fs::Mode::empty());
    let store = super::open(setting)?;
    let session = Session::begin(&store)?;
    let import_options = super::options(options.max_size, options.platform.clone(), options.erofs.clone());
    import::bring(setting, &session, &source::registry(found), Some(&options.name), &import_options, progress)
}
