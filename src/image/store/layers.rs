//! Unpacked layers, by chain id: the digest of a layer and of all below it, since what a layer's directory holds depends on those.
//! OCI image-spec, config.md#layer-chainid

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use super::{FORMAT, Store};
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;
use crate::image::unpack::{Contents, Count};

/// The record's name in a layer's directory.
pub const RECORD: &str = "layer.json";

/// What is known of an unpacked layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// The store's format.
    pub format: u32,
    /// Its name here.
    pub chain_id: Digest,
    /// The digest of its archive.
    pub diff_id: Digest,
    /// The layer below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// The blob it was unpacked from.
    pub blob: Digest,
    /// Whether overlay's marks are those of a user namespace.
    pub user_namespace: bool,
    /// What was unpacked.
    pub count: Count,
    /// What was in its directory once it was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Contents>,
}

impl Layer {
    /// A record of the current format.
    pub fn new(
        chain_id: Digest,
        diff_id: Digest,
        parent: Option<Digest>,
        blob: Digest,
        user: bool,
        count: Count,
        contents: Contents,
    ) -> Self {
        let contents = Some(contents);
        Self { format: FORMAT, chain_id, diff_id, parent, blob, user_namespace: user, count, contents }
    }
}

/// Where a layer is, from the store's directory on.
pub fn directory(chain_id: &Digest) -> String {
    format!("layers/{}", chain_id.hex())
}

/// The chain id of every layer, the lowest first.
pub fn chain(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

impl Store {
    /// The record of a layer that is unpacked.
    ///
    /// # Errors
    /// It cannot be read, or is none of this format.
    pub fn layer(&self, chain_id: &Digest) -> Result<Option<Layer>> {
        let name = format!("{}/{RECORD}", directory(chain_id));
        let Some(bytes) = self.read(&name, 1 << 20)? else { return Ok(None) };
        let damaged = |why: String| {
            Error::said("read", self.path(&name).display().to_string(), why)
                .hint("the image store is damaged: `ferry image check` says what can be repaired")
        };
        let layer: Layer = serde_json::from_slice(&bytes).map_err(|why| damaged(why.to_string()))?;
        if layer.format != FORMAT || layer.chain_id != *chain_id {
            return Err(damaged(format!("it is of format {} for layer {}", layer.format, layer.chain_id)));
        }
        Ok(Some(layer))
    }

    /// The files of a layer.
    ///
    /// # Errors
    /// It is not unpacked.
    pub fn open_layer(&self, chain_id: &Digest) -> Result<OwnedFd> {
        let name = format!("{}/diff", directory(chain_id));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.dir, &name, flags, Mode::empty()).or_cannot("open layer", self.path(&name).display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let (a, b, c) = (Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c"));
        let chain = chain(&[a.clone(), b.clone(), c.clone()]);
        let ab = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(chain, [a, ab.clone(), Digest::of(format!("{ab} {c}").as_bytes())]);
    }
}
