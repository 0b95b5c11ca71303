//! Is the store whole? Everything that names and uses lead to is read and compared with its digest; what can be made anew from
//! what is there is made anew.

use std::collections::BTreeSet;
use std::path::Path;

use super::session::Session;
use super::{Store, prune};
use crate::error::{Context, Error, Result};
use crate::image::Image;
use crate::image::digest::Digest;
use crate::image::erofs::Maker;
use crate::image::import::{self, Options};
use crate::image::manifest::Descriptor;
use crate::image::progress::Silent;
use crate::image::source::{self, Files, Layer};
use crate::image::unpack::Contents;
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

/// What is wrong with an image.
struct Damage {
    name: String,
    image: Image,
    /// Blobs of layers that are not what their digests say, or not there.
    blobs: Vec<Descriptor>,
    /// Layers that are missing or incomplete.
    layers: Vec<Digest>,
    /// Layers whose EROFS images are not what they were.
    erofs: BTreeSet<Digest>,
}

/// Looks at everything; `repair` says how layers are unpacked anew, where that is wanted.
///
/// # Errors
/// The store itself cannot be read.
pub fn check(store: &Store, repair: Option<&Options>) -> Result<Findings> {
    let mut findings = Findings::default();
    {
        let _alone = store.exclude()?;
        findings.unfinished = match repair {
            Some(_) => prune::clear(store)?,
            None => store.names_in("tmp")?.len(),
        };
    }
    let mut damaged = Vec::new();
    {
        // From before the names are read: what they lead to is removed by nobody until it was read.
        let _shared = store.share()?;
        for (name, descriptor) in images(store)? {
            findings.images += 1;
            match look(store, &name, descriptor, repair.is_some(), &mut findings) {
                Ok(damage) => damaged.push(damage),
                Err(error) => findings.damages.push(format!("{name}: {error}")),
            }
        }
    }
    if let Some(options) = repair {
        for damage in &damaged {
            if let Err(error) = mend(store, damage, options, &mut findings) {
                findings.damages.push(format!("{}: {error}", damage.name));
            }
        }
    }
    Ok(findings)
}

/// Each manifest that names and uses lead to, once, with one of its names or who uses it.
fn images(store: &Store) -> Result<Vec<(String, Descriptor)>> {
    let named = store.names()?.into_iter().map(|(name, named)| (name, named.manifest));
    let uses = store.uses()?.into_iter().filter_map(|(_, used)| used);
    let used = uses.map(|used| (used.user.to_string(), Descriptor::named(&used.manifest)));
    let mut seen = BTreeSet::new();
    Ok(named.chain(used).filter(|(_, manifest)| seen.insert(manifest.digest.clone())).collect())
}

/// Looks at an image. What can be made anew is told of only where that is not about to be done.
fn look(store: &Store, name: &str, descriptor: Descriptor, repairs: bool, findings: &mut Findings) -> Result<Damage> {
    let image = store.image_of(Some(name.to_owned()), descriptor)?;
    findings.blobs += 2;
    let (mut blobs, mut layers, mut lost) = (Vec::new(), Vec::new(), BTreeSet::new());
    for layer in &image.manifest.layers {
        findings.blobs += 1;
        if let Err(error) = read(store, layer) {
            let hint = match repairs {
                true => "it is no use and was removed: import or pull the image again",
                false => "check --repair removes it, and the next import or pull of the image brings it anew",
            };
            let error = if is_another(&error) { error.hint(hint) } else { error };
            findings.damages.push(format!("{name}: {error}"));
            blobs.push(layer.clone());
        }
    }
    for chain_id in &image.chain {
        findings.layers += 1;
        if let Err(error) = unpacked(store, chain_id) {
            layers.push(chain_id.clone());
            if !repairs || !blobs.is_empty() {
                findings.damages.push(format!("{name}: {error}"));
            }
        }
        if let Err(error) = erofs(store, chain_id) {
            lost.insert(chain_id.clone());
            if !repairs {
                findings.damages.push(format!("{name}: {error}"));
            }
        }
    }
    Ok(Damage { name: name.to_owned(), image, blobs, layers, erofs: lost })
}

/// Makes anew what can be, and removes blobs that an import would take for whole by their sizes.
fn mend(store: &Store, damage: &Damage, options: &Options, findings: &mut Findings) -> Result<()> {
    let Damage { name, image, blobs, .. } = damage;
    if !blobs.is_empty() {
        let _alone = store.exclude()?;
        // Read again: another process may have brought it meanwhile.
        for layer in blobs.iter().filter(|layer| read(store, layer).is_err_and(|error| is_another(&error))) {
            store.remove(&Store::blob_name(&layer.digest))?;
        }
    }
    // These too: another image may have the same layers, and have been first.
    let broken: Vec<Digest> = damage.layers.iter().filter(|id| unpacked(store, id).is_err()).cloned().collect();
    let mut lost: BTreeSet<Digest> = damage.erofs.iter().filter(|id| erofs(store, id).is_err()).cloned().collect();
    if blobs.is_empty() && !broken.is_empty() {
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
        rebuild(store, image, options)?;
        findings.repaired.extend(broken.iter().map(|id| format!("{name}: layer {} was unpacked anew", id.short())));
    }
    if !lost.is_empty() {
        remake(store, &lost)?;
        let told = lost.iter().map(|id| format!("{name}: the EROFS image of layer {} was made anew", id.short()));
        findings.repaired.extend(told);
    }
    Ok(())
}

/// Whether a layer's blob is what its digest says.
fn read(store: &Store, layer: &Descriptor) -> Result<()> {
    import::verify(store.open_blob(&layer.digest)?, &layer.digest, Some(layer.size)).map(drop)
}

/// Whether a blob was read to its end and is another's, and not only out of reach.
fn is_another(error: &Error) -> bool {
    error.errno().is_none()
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

/// Whether a layer's directory is there with as many entries and bytes as it had when it was complete.
fn unpacked(store: &Store, chain_id: &Digest) -> Result<()> {
    let at = prune::layer_path(store, chain_id);
    let Some(layer) = store.layer(chain_id)? else {
        return Err(Error::said("find layer", at, "it is not unpacked"));
    };
    let Contents { entries, bytes } = Contents::of(&store.open_layer(chain_id)?).or_cannot("read layer", &at)?;
    let why = match layer.contents {
        Some(had) if had == (Contents { entries, bytes }) => return Ok(()),
        Some(had) => format!("it has {entries} entries and {bytes} bytes, and had {} and {}", had.entries, had.bytes),
        // Of an older ferry: hard links to files of the layers below were copied up, so there may be more bytes, but less only
        // where entries came twice.
        None if bytes >= layer.count.bytes || layer.count.replaced > 0 => return Ok(()),
        None => format!("its files have {bytes} bytes, and {} were unpacked", layer.count.bytes),
    };
    Err(Error::said("verify layer", at, why))
}

/// Unpacks what is missing of an image, from its own blobs.
fn rebuild(store: &Store, image: &Image, options: &Options) -> Result<()> {
    let session = Session::begin(store)?;
    let layers = image.manifest.layers.iter();
    let layer = |descriptor: &Descriptor| Layer {
        file: Store::blob_name(&descriptor.digest),
        descriptor: Some(descriptor.clone()),
    };
    let source = source::Image {
        names: Vec::new(),
        manifest: Some((image.descriptor.clone(), store.document(&image.descriptor.digest)?)),
        config: Some((image.manifest.config.clone(), store.document(&image.manifest.config.digest)?)),
        layers: layers.map(layer).collect(),
    };
    let dir = store.dir().try_clone_to_owned().or_cannot("open", "the image store")?;
    let files = Files::Directory(Root::from_dir(dir, Path::new("")));
    import::import(&session, &files, &source, options, &Silent).map(drop)
}
