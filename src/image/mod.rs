//! Images: from an archive to layers that containers share.
//!
//! ```text
//! source      an OCI layout, a docker archive, a root filesystem      -> documents and layers, verified
//! registry    the same from a server
//! import      layers kept and unpacked, all at once                   -> store
//! store       content by digest, layers by chain id, names, uses
//! bundle      the image's configuration                               -> config.json
//! pack        a directory, or a container's upper layer               -> an archive
//! commit      a container's upper layer                               -> one more layer on its image
//! export      an image of the store                                   -> an archive for every tool
//! flatten     the layers of an image                                  -> one directory for every runtime
//! erofs       a layer of the store                                    -> one file that the kernel mounts
//! ```
//!
//! What a container starts with needs only `store`, `merged` and `bundle`: everything that decompresses or parses archives is
//! called by `ferry-image` alone, and linked into no other program.

use std::path::Path;
use std::rc::Rc;

use crate::error::Result;

pub mod bundle;
pub mod commit;
pub mod compression;
pub mod copy;
pub mod digest;
pub mod erofs;
pub mod export;
pub mod flatten;
pub mod import;
pub mod manifest;
pub mod merged;
pub mod metered;
pub mod pack;
pub mod pax;
mod pieces;
pub mod progress;
pub mod reference;
pub mod registry;
pub mod source;
pub mod store;
mod transfer;
pub mod tree;
pub mod unpack;
mod whiteout;
mod xattr;

use digest::Digest;
use manifest::{Descriptor, ImageConfig, Manifest};
use merged::Merged;
use store::{Store, layers};

/// An image of the store, its documents read.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name it was found by, where it was one.
    pub name: Option<String>,
    /// Its manifest's descriptor.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its configuration.
    pub config: ImageConfig,
    /// Its layers' chain ids, the lowest first.
    pub chain: Vec<Digest>,
}

impl Store {
    /// The image that is called so; see [`Store::find`].
    ///
    /// # Errors
    /// There is none, or its documents are damaged.
    pub fn image(&self, wanted: &str) -> Result<Image> {
        let (name, descriptor) = self.find(wanted)?;
        self.image_of(name, descriptor)
    }

    /// The image with this manifest.
    ///
    /// # Errors
    /// Its documents are damaged.
    pub fn image_of(&self, name: Option<String>, descriptor: Descriptor) -> Result<Image> {
        let manifest: Manifest = manifest::parse(&self.document(&descriptor.digest)?, &descriptor.digest)?;
        let config: ImageConfig = manifest::parse(&self.document(&manifest.config.digest)?, &manifest.config.digest)?;
        let chain = layers::chain(&config.rootfs.diff_ids);
        Ok(Image { name, descriptor, manifest, config, chain })
    }

    /// What an overlay of these layers shows; `chain` has the lowest first.
    ///
    /// # Errors
    /// One of them is not unpacked.
    pub fn merged(&self, chain: &[Digest]) -> Result<Merged> {
        let open = |id| self.open_layer(id).map(Rc::new);
        Ok(Merged::new(chain.iter().rev().map(open).collect::<Result<_>>()?))
    }
}

/// Whether something is mounted there.
fn mounted(point: &Path) -> bool {
    crate::procfs::mountinfo::read().is_ok_and(|rows| rows.iter().any(|row| row.point == point))
}
