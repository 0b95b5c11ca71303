//! Is the store whole? Everything that names and uses lead to is read and compared with its digest; what can be made anew from
//! what is there is made anew.

use std::collections::BTreeSet;
use std::path::Path;

use super::names::Names;
use super::session::Session;
use super::{Store, prune};
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;
use crate::image::erofs::Maker;
use crate::image::import::{self, Options};
use crate::image::manifest::Descriptor;
use crate::image::progress::Silent;
use crate::image::source::{Files, Image, Layer};
use crate::path::Root;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Images that were looked at.
    pub images: usize,
    /// Blobs that were read.
    pub blobs: usize,
    /// Layers whose directories are there.
    pub layers: usize,
    /// What is wrong, and stays so.
    pub damages: Vec<String>,
    /// What was wrong, and is not any more.
    pub repaired: Vec<String>,
    /// What a maker that was cut off left behind: no damage, and gone with the next prune.
    pub unfinished: usize,
}

/// Looks at everything; `repair` says how layers are unpacked anew, where that is wanted.
///
/// # Errors
/// The store itself cannot be read.
pub fn check(store: &Store, repair: Option<&Options>) -> Result<Findings> {
    let mut findings = Findings::default();
    let names = {
        let _alone = store.exclude()?;
        findings.unfinished = match repair {
            Some(_) => prune::clear(store)?,
            None => store.names_in("tmp")?.len(),
        };
        store.names()?
    };
    for (name, descriptor) in images(&names) {
        findings.images += 1;
        match image(store, &name, &descriptor, repair, &mut findings) {
            Ok(()) => (),
            Err(error) => findings.damages.push(format!("{name}: {error}")),
        }
    }
    Ok(findings)
}

/// Each manifest once, with one of its names.
fn images(names: &Names) -> Vec<(String, Descriptor)> {
    let mut images: Vec<(String, Descriptor)> = Vec::new();
    for (name, named) in names {
        if !images.iter().any(|(_, other)| other.digest == named.manifest.digest) {
            images.push((name.clone(), named.manifest.clone()));
        }
    }
    images
}

fn image(
    store: &Store,
    name: &str,
    descriptor: &Descriptor,
    repair: Option<&Options>,
    findings: &mut Findings,
) -> Result<()> {
    let image = store.image_of(Some(name.to_owned()), descriptor.clone())?;
    findings.blobs += 2;
    let mut whole = true;
    for layer in &image.manifest.layers {
        findings.blobs += 1;
        let read =
            store.open_blob(&layer.digest).and_then(|blob| import::verify(blob, &layer.digest, Some(layer.size)));
        if let Err(error) = read {
            whole = false;
            findings.damages.push(format!("{name}: {error}"));
        }
    }
    let mut broken: Vec<Digest> = Vec::new();
    let mut lost: BTreeSet<Digest> = BTreeSet::new();
    for chain_id in &image.chain {
        findings.layers += 1;
        if let Err(error) = unpacked(store, chain_id) {
            broken.push(chain_id.clone());
            if repair.is_none() || !whole {
                findings.damages.push(format!("{name}: {error}"));
            }
        }
        if let Err(error) = erofs(store, chain_id) {
            lost.insert(chain_id.clone());
            if repair.is_none() {
                findings.damages.push(format!("{name}: {error}"));
            }
        }
    }
    match repair {
        Some(options) if whole && !broken.is_empty() => {
            let _alone = store.exclude()?;
            spare(store, &broken)?;
            for chain_id in &broken {
                if store.erofs(chain_id).is_ok_and(|found| found.is_some()) {
                    lost.insert(chain_id.clone());
                }
                store.remove_erofs(chain_id)?;
                store.remove(&super::layers::directory(chain_id))?;
            }
            drop(_alone);
            rebuild(store, &image, options)?;
            findings.repaired.extend(broken.iter().map(|id| format!("{name}: layer {} was unpacked anew", id.short())));
        }
        _ => (),
    }
    if repair.is_some() && !lost.is_empty() {
        remake(store, &lost)?;
        let told = lost.iter().map(|id| format!("{name}: the EROFS image of layer {} was made anew", id.short()));
        findings.repaired.extend(told);
    }
    Ok(())
}

/// Nobody runs from any of these layers: one that is made anew has another directory, and who has the old one mounted would find
/// nothing there any more.
fn spare(store: &Store, layers: &[Digest]) -> Result<()> {
    for used in store.uses()?.into_iter().filter_map(|(_, used)| used).filter(|used| !used.copied && used.is_live()) {
        if let Some(chain_id) = layers.iter().find(|chain_id| used.layers.contains(chain_id)) {
            let at = prune::layer_path(store, chain_id);
            return Err(Error::said("repair layer", at, format!("{} uses it", used.user))
                .hint("end that first, or repair it later: nothing of the image was changed"));
        }
    }
    Ok(())
}

/// Whether a layer's EROFS image is what it has to be, where there is one.
fn erofs(store: &Store, chain_id: &Digest) -> Result<()> {
    match store.erofs(chain_id)? {
        Some(record) => store.verify_erofs(chain_id, &record),
        None => Ok(()),
    }
}

/// Makes the EROFS images of these layers anew.
fn remake(store: &Store, layers: &BTreeSet<Digest>) -> Result<()> {
    let maker = Maker::find()?;
    {
        let _alone = store.exclude()?;
        layers.iter().try_for_each(|chain_id| store.remove_erofs(chain_id))?;
    }
    let layers: Vec<Digest> = layers.iter().cloned().collect();
    maker.make(&Session::begin(store)?, &layers).map(drop)
}

/// Whether a layer's directory is there with as many entries as it was made with.
fn unpacked(store: &Store, chain_id: &Digest) -> Result<()> {
    let at = prune::layer_path(store, chain_id);
    let Some(layer) = store.layer(chain_id)? else {
        return Err(Error::said("find layer", at, "it is not unpacked"));
    };
    let diff = store.open_layer(chain_id)?;
    let bytes = bytes_in(diff).or_cannot("read layer", &at)?;
    // Hard links to files of the layers below were copied up, so there may be more, but less only where entries came twice.
    if bytes < layer.count.bytes && layer.count.replaced == 0 {
        return Err(Error::said(
            "verify layer",
            at,
            format!("its files have {bytes} bytes, and {} were unpacked", layer.count.bytes),
        ));
    }
    Ok(())
}

/// The sizes of all files, each inode once. A descriptor is held for every level.
fn bytes_in(top: std::os::fd::OwnedFd) -> Result<u64, nix::errno::Errno> {
    use rustix::fs::{AtFlags, Dir, FileType, OFlags, statat};
    use std::os::fd::AsFd;
    let mut seen = std::collections::HashSet::new();
    let mut sum = 0;
    let mut levels = vec![(top, Vec::new(), false)];
    while let Some((dir, below, read)) = levels.last_mut() {
        if !*read {
            *read = true;
            for entry in Dir::read_from(&*dir).map_err(crate::path::errno)? {
                let name = entry.map_err(crate::path::errno)?.file_name().to_owned();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                let stat = statat(&*dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(crate::path::errno)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => below.push(name),
                    FileType::RegularFile if stat.st_nlink == 1 || seen.insert(stat.st_ino) => {
                        sum += stat.st_size.unsigned_abs();
                    }
                    _ => (),
                }
            }
        }
        match below.pop() {
            Some(name) => {
                let next = crate::image::copy::opened(dir.as_fd(), &name, OFlags::RDONLY | OFlags::DIRECTORY)?;
                levels.push((next, Vec::new(), false));
            }
            None => drop(levels.pop()),
        }
    }
    Ok(sum)
}

/// Unpacks what is missing of an image, from its own blobs.
fn rebuild(store: &Store, image: &crate::image::Image, options: &Options) -> Result<()> {
    let session = Session::begin(store)?;
    let layers = image.manifest.layers.iter();
    let layer = |descriptor: &Descriptor| Layer {
        file: Store::blob_name(&descriptor.digest),
        descriptor: Some(descriptor.clone()),
    };
    let source = Image {
        names: Vec::new(),
        manifest: Some((image.descriptor.clone(), store.document(&image.descriptor.digest)?)),
        config: Some((image.manifest.config.clone(), store.document(&image.manifest.config.digest)?)),
        layers: layers.map(layer).collect(),
    };
    let dir = store.dir().try_clone_to_owned().or_cannot("open", "the image store")?;
    let files = Files::Directory(Root::from_dir(dir, Path::new("")));
    import::import(&session, &files, &source, options, &Silent).map(drop)
}
