//! What an import tells while it works. Who listens decides what of it is shown, and how often.

use super::digest::Digest;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It begins.
    Begin {
        /// Layers of the image.
        layers: usize,
        /// How many of them are in the store already.
        present: usize,
        /// Bytes to be read.
        bytes: u64,
    },
    /// Bytes of a layer were read.
    Bytes {
        /// Which layer, from the lowest.
        index: usize,
        /// How many more.
        bytes: u64,
    },
    /// A layer is unpacked.
    Layer {
        /// Which layer, from the lowest.
        index: usize,
        /// Its blob.
        digest: Digest,
        /// Bytes of its files.
        bytes: u64,
    },
    /// Everything is unpacked, and is being made last.
    Sync,
    /// An image is there.
    Done {
        /// Its manifest.
        manifest: Digest,
        /// Its names.
        names: Vec<String>,
    },
}

/// Who listens. Called from several threads.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: Event);
}

/// Nobody.
#[derive(Debug)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) {}
}
