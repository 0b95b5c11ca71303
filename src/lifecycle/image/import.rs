//! `image import`: from a file or directory into the store.

use std::path::PathBuf;

use super::Setting;
use crate::error::{Error, Result};
use crate::image::erofs::Maker;
use crate::image::import;
use crate::image::manifest::Platform;
use crate::image::progress::{Event, Progress};
use crate::image::reference::Reference;
use crate::image::source::{self, Form, Image, Source};
use crate::image::store::session::Session;
use crate::image::unpack::Count;

/// What to import.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// A file, a directory, or `-`.
    pub source: PathBuf,
    /// What it is called, beside what the source says.
    pub name: Option<String>,
    /// What the source is.
    pub form: Option<Form>,
    /// What machine it is for.
    pub platform: Option<Platform>,
    /// The most bytes a layer may unpack to.
    pub max_size: Option<u64>,
    /// Makes its layers EROFS images as well.
    pub erofs: Option<Maker>,
}

/// `image import`.
///
/// # Errors
/// The source is broken, or cannot be kept; the store is as it was.
pub fn import(setting: &Setting, options: &Options, progress: &dyn Progress) -> Result<()> {
    // Files get the modes their archive says.
    rustix::process::umask(rustix::fs::Mode::empty());
    let given = options.name.as_deref().map(str::parse::<Reference>).transpose()?;
    if let Some(name) = given.as_ref().filter(|name| name.digest.is_some()) {
        return Err(Error::plain(format!("{:?} has a digest, which is no name to give", name.to_string())));
    }
    let store = super::open(setting)?;
    let session = Session::begin(&store)?;
    let import_options = super::options(options.max_size, options.platform.clone(), options.erofs.clone());
    let source = source::open(&options.source, options.form, import_options.max_size, &session)?;
    bring(setting, &session, &source, given.as_ref(), &import_options, progress)
}

/// Brings what a source has for this platform into the store, and names it: `given`, or as the source does.
///
/// # Errors
/// The source is broken, or cannot be kept.
pub fn bring(
    setting: &Setting,
    session: &Session,
    source: &Source,
    given: Option<&Reference>,
    import_options: &import::Options,
    progress: &dyn Progress,
) -> Result<()> {
    let images = source.images(&import_options.platform)?;
    let are_named = images.iter().all(|image| !image.names.is_empty());
    if images.len() > 1 && (given.is_some() || !are_named) {
        let why = match given {
            Some(name) => format!("--name {name} is for one image, and there are {} here", images.len()),
            None => format!("there are {} images here, and not all have a name", images.len()),
        };
        let found = images.iter().flat_map(called).collect::<Vec<_>>().join(", ");
        return Err(Error::plain(why).hint(match are_named {
            true => format!("without --name they keep their names: {found}"),
            false => format!("take one as SOURCE:NAME, with --name where it has none: {found}"),
        }));
    }
    let mut brought = Vec::new();
    for image in &images {
        let names = match given {
            Some(name) => vec![name.to_string()],
            None => image.names.clone(),
        };
        if names.is_empty() {
            return Err(Error::plain("the image has no name").hint("give it one with --name"));
        }
        let imported = import::import(session, &source.files, image, import_options, progress)?;
        brought.push((names, imported));
    }
    // Together and last: where one is broken, none has come.
    import::name(session, brought.iter().flat_map(|(names, image)| names.iter().map(|name| (name, &image.manifest))))?;
    for (names, imported) in brought {
        warn(setting, &imported.count);
        progress.event(Event::Done { manifest: imported.manifest.digest, names });
    }
    Ok(())
}

/// What SOURCE:NAME takes this image by: its names, and without any in a docker archive its id there.
fn called(image: &Image) -> Vec<String> {
    let id = image.config.as_ref().filter(|_| image.names.is_empty() && image.manifest.is_none());
    image.names.iter().cloned().chain(id.map(|(config, _)| config.digest.short().to_owned())).collect()
}

/// Tells of what was left out.
fn warn(setting: &Setting, count: &Count) {
    let rows = [
        (count.devices, "device nodes were left out: only root can make them"),
        (
            count.attributes,
            "extended attributes were left out: they are not an image's to have, or this filesystem has none",
        ),
        (
            count.owners,
            "files of other owners belong to you now: give yourself ids in /etc/subuid and /etc/subgid to keep them",
        ),
    ];
    for (count, what) in rows.into_iter().filter(|(count, _)| *count > 0) {
        setting.log.warning(format!("{count} {what}"));
    }
}
