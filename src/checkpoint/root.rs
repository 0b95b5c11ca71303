//! A root filesystem that goes with its container: an overlay, which nobody else has. What it is made of, and what the container
//! changed in it, are kept beside CRIU's images, so that the overlay can be made again.
//!
//! ```text
//! root.json          what the overlay lies upon: an image's layers by digest, or a directory of the host
//! rootfs-diff.tar    what the container changed, as a layer's archive: OCI image-spec, layer.md
//! config.json        its configuration, which nobody wrote a bundle for
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;

/// The name of what it lies upon.
pub const ORIGIN: &str = "root.json";
/// The name of what was changed.
pub const DIFF: &str = "rootfs-diff.tar";
/// The name of the configuration.
pub const CONFIG: &str = "config.json";

/// Longer than this it is none. Bytes.
const LONGEST: u64 = 1 << 20;

/// What an overlay lies upon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Origin {
    /// The layers of an image.
    Image(Image),
    /// A directory of the host.
    Directory(PathBuf),
}

/// An image in a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// As it was asked for: the name under which a person finds it.
    pub name: String,
    /// Its manifest, which is what counts.
    pub manifest: Digest,
    /// Its layers' chain ids, the lowest first.
    pub layers: Vec<Digest>,
}

impl Origin {
    /// Whether there is one among these images.
    pub fn is_in(images: &Path) -> bool {
        images.join(ORIGIN).exists()
    }

    /// Reads what was saved.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(images: &Path) -> Result<Self> {
        let path = images.join(ORIGIN);
        let named = || path.display().to_string();
        let found = std::fs::metadata(&path).or_cannot("read", named())?;
        if found.len() > LONGEST {
            return Err(Error::said("read", named(), "it is too long"));
        }
        let text = std::fs::read(&path).or_cannot("read", named())?;
        serde_json::from_slice(&text).map_err(|why| Error::said("read", named(), why.to_string()))
    }

    /// Saves it.
    ///
    /// # Errors
    /// What the kernel answers; a path that is no text.
    pub fn save(&self, images: &Path) -> Result<()> {
        let path = images.join(ORIGIN);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|why| Error::said("write", path.display().to_string(), why.to_string()))?;
        std::fs::write(&path, text).or_cannot("write", path.display())
    }

    /// The texts in it, which are shown to people.
    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::Image(image) => vec![image.name.clone()],
            Self::Directory(path) => vec![path.to_string_lossy().into_owned()],
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image(image) => write!(out, "image {} ({})", image.name, image.manifest),
            Self::Directory(path) => write!(out, "directory {}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_as_it_was_saved() {
        let directory = std::env::temp_dir().join(format!("ferry-origin-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let image = Image { name: "web:1".into(), manifest: Digest::of(b"x"), layers: vec![Digest::of(b"y")] };
        assert!(!Origin::is_in(&directory));
        for origin in [Origin::Image(image), Origin::Directory("/srv/tree".into())] {
            origin.save(&directory).unwrap();
            assert!(Origin::is_in(&directory));
            assert_eq!(Origin::read(&directory).unwrap(), origin);
        }
        std::fs::write(directory.join(ORIGIN), r#"{"image":{"name":"a","manifest":"b","layers":[]}}"#).unwrap();
        let error = Origin::read(&directory).unwrap_err().to_string();
        std::fs::remove_file(directory.join(ORIGIN)).unwrap();
        std::fs::remove_dir(&directory).unwrap();
        assert!(error.contains("root.json"), "{error}");
    }
}
