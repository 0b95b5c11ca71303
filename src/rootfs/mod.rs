//! The root filesystem: planned as data, then made by the child, all by descriptor, before it pivots.
//!
//! Everything is done before pivot_root, relative to a descriptor of the new root: resolution cannot leave it, and what is
//! taken from the host (bind sources, `/dev/null` for masking) is still in reach.

pub mod by_path;
pub mod copy;
pub mod devices;
pub mod erofs;
pub mod idmapped;
pub mod label;
pub mod layers;
pub mod mount;
pub mod on_host;
pub mod options;
pub mod overlay;
pub mod pivot;
pub mod plan;
pub mod protect;
pub mod read_only;

pub use plan::{Base, Layers, Rootfs};
