//! A checkpoint in one file: a tar archive, packed with zstd, with a list of everything that is in it at its beginning.
//!
//! ```text
//! ferry.json                  the manifest: what the host was, and each part with its size and digest
//! config.dump  spec.dump      who the container was; its config.json. To be read by people: nothing is restored from them
//! checkpoint/…                CRIU's images, and descriptors.json
//! rootfs-diff.tar             what the container changed in its root, where that is a layer of its own
//! ```
//!
//! The names are those of podman's archives, the manifest apart. A reader knows from the manifest whether this host can run
//! what follows, and whether there is room for it, before it takes anything; and takes nothing that is not listed, of another
//! size or of another digest. The file is read once, from its beginning to its end, so that it may come from a pipe.
//!
//! Where recipients are named, all of it is encrypted to them: see [`encryption`].
//!
//! An archive is hostile input: see [`super::audit`] for what becomes of the images in it. All of this is called by
//! `ferry-image` alone, and linked into no other program.

pub mod encryption;
pub mod inspect;
pub mod manifest;
pub mod pack;
pub mod unpack;

/// The manifest's name.
pub const MANIFEST: &str = "ferry.json";
/// The configuration's name.
pub const SPEC: &str = "spec.dump";
/// The name of what tells who the container was.
pub const CONFIG: &str = "config.dump";
/// The directory of CRIU's images.
pub const IMAGES: &str = "checkpoint";
