//! Layers as EROFS images, for who asks for them: files that hold a layer whole, in place of its many.
//!
//! ```text
//! layers/HEX/erofs/          made below tmp, and here by one rename
//!     erofs.json             what the image has to be
//!     image                  the layer, marks of overlay's and all
//!     mount/                 where it is mounted, for all containers that run from it
//! ```
//!
//! The layer's own files stay beside it: what is packed, copied and compared is made from those. The image is mounted by the first
//! container that asks for it and unmounted with the last, or by `prune`; after a restart of the host it is mounted anew.

use std::collections::BTreeSet;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno as Answer;
use serde::{Deserialize, Serialize};

use super::uses::Use;
use super::{FORMAT, Guard, Store, layers};
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;
use crate::image::import;
use crate::rootfs::erofs;

/// The record's name in the image's directory.
pub const RECORD: &str = "erofs.json";
/// The image's.
pub const IMAGE: &str = "image";
/// That of the directory it is mounted on.
pub const MOUNT: &str = "mount";

/// What is known of a layer's EROFS image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Erofs {
    /// The store's format.
    pub format: u32,
    /// The image's digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

impl Erofs {
    /// A record of the current format.
    pub fn new(digest: Digest, size: u64) -> Self {
        Self { format: FORMAT, digest, size }
    }
}

/// Where a layer's EROFS image is, from the store's directory on.
pub fn directory(chain_id: &Digest) -> String {
    format!("{}/erofs", layers::directory(chain_id))
}

impl Store {
    /// The record of a layer's EROFS image, where it has one.
    ///
    /// # Errors
    /// It cannot be read, or is none of this format.
    pub fn erofs(&self, chain_id: &Digest) -> Result<Option<Erofs>> {
        let name = format!("{}/{RECORD}", directory(chain_id));
        let Some(bytes) = self.read(&name, 1 << 16)? else { return Ok(None) };
        let damaged = |why: String| {
            Error::said("read", self.path(&name).display().to_string(), why)
                .hint("the image store is damaged: `ferry image check --repair` makes it anew")
        };
        let found: Erofs = serde_json::from_slice(&bytes).map_err(|why| damaged(why.to_string()))?;
        match found.format {
            FORMAT => Ok(Some(found)),
            format => Err(damaged(format!("it is of format {format}"))),
        }
    }

    /// Compares a layer's EROFS image with its record.
    ///
    /// # Errors
    /// It is another, or cannot be read.
    pub fn verify_erofs(&self, chain_id: &Digest, record: &Erofs) -> Result<()> {
        let name = format!("{}/{IMAGE}", directory(chain_id));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, &name, flags, Mode::empty()).or_cannot("open", self.path(&name).display())?;
        import::verify(std::fs::File::from(file), &record.digest, Some(record.size)).map(drop)
    }

    /// Where a layer's EROFS image is mounted.
    pub fn erofs_mount(&self, chain_id: &Digest) -> PathBuf {
        self.path(directory(chain_id)).join(MOUNT)
    }

    /// Sees to it that all of these layers are mounted. The caller holds the store shared until its use of them is noted.
    ///
    /// # Errors
    /// ENOENT where a layer has no EROFS image; what the kernel answers.
    pub fn mount_erofs(&self, chain: &[Digest]) -> Result<()> {
        for chain_id in chain {
            let name = directory(chain_id);
            let at = self.path(&name);
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let dir = openat(&self.dir, &name, flags, Mode::empty()).or_cannot("open", at.display())?;
            let point = at.join(MOUNT);
            if erofs::is_mounted(&point)? {
                continue;
            }
            // Of two that begin at once, one mounts it.
            flock(&dir, FlockOperation::LockExclusive).or_cannot("lock", at.display())?;
            if !erofs::is_mounted(&point)? {
                erofs::mount(&at.join(IMAGE), &point)?;
            }
        }
        Ok(())
    }

    /// Unmounts those of these layers that no container runs from any more. While somebody else is about to use the store it is
    /// left to them, or to `prune`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn release_erofs(&self, chain: &[Digest]) -> Result<()> {
        let Some(_alone) = self.try_exclude()? else { return Ok(()) };
        let used: Vec<Use> = self.uses()?.into_iter().filter_map(|(_, used)| used).filter(Use::is_live).collect();
        self.release_erofs_of(&used, chain.iter())
    }

    /// The same for who has the store alone already, and knows the uses that are live.
    pub(super) fn release_erofs_of<'a>(&self, used: &[Use], layers: impl Iterator<Item = &'a Digest>) -> Result<()> {
        let of_erofs = used.iter().filter(|used| used.erofs);
        let needed: BTreeSet<&Digest> = of_erofs.flat_map(|used| &used.layers).collect();
        let mut others = layers.filter(|chain_id| !needed.contains(chain_id));
        others.try_for_each(|chain_id| erofs::unmount(&self.erofs_mount(chain_id)))
    }

    /// Removes a layer's EROFS image.
    ///
    /// # Errors
    /// What the kernel answers.
    pub(super) fn remove_erofs(&self, chain_id: &Digest) -> Result<()> {
        erofs::unmount(&self.erofs_mount(chain_id))?;
        self.remove(&directory(chain_id))
    }

    /// Has the store alone, if nobody else is using it now.
    fn try_exclude(&self) -> Result<Option<Guard>> {
        match self.lock(FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error.errno() == Some(crate::path::errno(Answer::WOULDBLOCK)) => Ok(None),
            guard => guard.map(Some),
        }
    }
}
