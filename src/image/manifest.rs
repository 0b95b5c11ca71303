//! The documents of an image: index, manifest and configuration. OCI image-spec; docker's schema 2 differs in names only.
//!
//! They are somebody else's input: sizes are bounded before anything is parsed, digests are checked by their type, and a media
//! type that is not in [`MEDIA_TYPES`] is an error that names it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use crate::error::{Error, Result};

/// The largest document that is read, as containerd's and registries' limit. Bytes.
pub const LARGEST: u64 = 4 << 20;
/// An image with more layers cannot be mounted: fs/overlayfs, OVL_MAX_STACK.
pub const MOST_LAYERS: usize = 500;

/// What content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A list of manifests or of indexes.
    Index,
    /// Configuration and layers of one image.
    Manifest,
    /// How to run it.
    Config,
    /// A tar archive.
    Layer(Compression),
}

/// How a layer's archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// Media types that are understood. The first of each kind is the one that is written.
pub const MEDIA_TYPES: [(&str, Kind); 16] = [
    ("application/vnd.oci.image.index.v1+json", Kind::Index),
    ("application/vnd.oci.image.manifest.v1+json", Kind::Manifest),
    ("application/vnd.oci.image.config.v1+json", Kind::Config),
    ("application/vnd.oci.image.layer.v1.tar", Kind::Layer(Compression::None)),
    ("application/vnd.oci.image.layer.v1.tar+gzip", Kind::Layer(Compression::Gzip)),
    ("application/vnd.oci.image.layer.v1.tar+zstd", Kind::Layer(Compression::Zstd)),
    ("application/vnd.docker.distribution.manifest.list.v2+json", Kind::Index),
    ("application/vnd.docker.distribution.manifest.v2+json", Kind::Manifest),
    ("application/vnd.docker.container.image.v1+json", Kind::Config),
    ("application/vnd.docker.image.rootfs.diff.tar", Kind::Layer(Compression::None)),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", Kind::Layer(Compression::Gzip)),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", Kind::Layer(Compression::Zstd)),
    // Layers that must not be passed on are layers all the same.
    ("application/vnd.oci.image.layer.nondistributable.v1.tar", Kind::Layer(Compression::None)),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Kind::Layer(Compression::Gzip)),
    ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", Kind::Layer(Compression::Zstd)),
    ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Kind::Layer(Compression::Gzip)),
];

/// The media type that is written for content of this kind.
pub fn media_type(kind: Kind) -> String {
    MEDIA_TYPES.iter().find(|(_, known)| *known == kind).map_or_else(String::new, |(name, _)| (*name).to_owned())
}

/// What a media type says.
///
/// # Errors
/// It is none that is understood.
pub fn kind(media_type: &str) -> Result<Kind> {
    let found = MEDIA_TYPES.iter().find(|(name, _)| *name == media_type);
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        let unknown = Error::said("understand media type", format!("{media_type:?}"), "no image has such a part");
        match media_type {
            "application/vnd.docker.distribution.manifest.v1+prettyjws"
            | "application/vnd.docker.distribution.manifest.v1+json" => {
                unknown.hint("docker's schema 1 was given up years ago: push the image anew with a current engine")
            }
            _ => unknown.hint("OCI images and docker's schema 2 are understood; this may be another kind of artifact"),
        }
    })
}

/// A reference to content.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is; see [`kind`].
    #[serde(default)]
    pub media_type: String,
    /// Its name.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What machine it is for; in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// Of a manifest that is known by its digest alone.
    pub fn named(digest: &Digest) -> Self {
        Self {
            media_type: media_type(Kind::Manifest),
            digest: digest.clone(),
            size: 0,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// Describes bytes.
    pub fn of(bytes: &[u8], kind: Kind) -> Self {
        Self {
            media_type: media_type(kind),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }
}

/// What machine an image is for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// As Go names them: amd64, arm64.
    pub architecture: String,
    /// linux.
    pub os: String,
    /// v7, v8.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// A list of manifests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// What it says of itself, where it does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Its entries.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// What it says of itself, where it does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// Layers, the lowest first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// How an image is run, and what it was made of. OCI image-spec, config.md
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// What machine it is for.
    #[serde(flatten)]
    pub platform: Platform,
    /// How it is run.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "or_default")]
    pub config: Option<Execution>,
    /// Its layers.
    pub rootfs: RootFs,
    /// How it was made.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub history: Vec<History>,
}

/// The layers of an image, unpacked.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the archives without compression, the lowest layer first.
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

/// How an image is run. Docker writes `null` where there is nothing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Execution {
    /// A name or number, and after a colon a group's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `80/tcp` and so on.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// `NAME=VALUE`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// What is run.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or what is run where there is no entry point.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Directories whose content belongs to the container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// The working directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that ends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
}

/// One step of an image's making.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// A remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether no layer belongs to it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// `null` as the empty value.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// Parses a document; `named` says which in errors.
///
/// # Errors
/// It is no such document.
pub fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], named: impl std::fmt::Display) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|why| Error::said("read", named.to_string(), why.to_string()))
}

/// What a document is, by what it says of itself, else by what its descriptor said, else by its fields: docker and OCI leave
/// the first out at times.
///
/// # Errors
/// A media type that is not understood, or two that contradict each other.
pub fn document_kind(bytes: &[u8], described: &str, named: impl std::fmt::Display) -> Result<Kind> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Glance {
        #[serde(default)]
        media_type: String,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        layers: Option<serde::de::IgnoredAny>,
    }
    let glance: Glance = parse(bytes, &named)?;
    let kinds: Vec<Kind> = [glance.media_type.as_str(), described]
        .into_iter()
        .filter(|name| !name.is_empty())
        .map(kind)
        .collect::<Result<_>>()?;
    // One document that reads as an index to one tool and as a manifest to another is how a signature is fooled
    // (CVE-2021-41190).
    let (list, image) = (glance.manifests.is_some(), glance.config.is_some() || glance.layers.is_some());
    let confused = list && image || kinds.windows(2).any(|pair| pair[0] != pair[1]);
    match kinds.first() {
        _ if confused => Err(Error::said("understand", named.to_string(), "it is both an index and a manifest")),
        Some(kind) => Ok(*kind),
        None if list => Ok(Kind::Index),
        None => Ok(Kind::Manifest),
    }
}

/// The platform that images are chosen for.
pub fn host_platform() -> Platform {
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "x86" => ("386", ""),
        "aarch64" => ("arm64", ""),
        "arm" => ("arm", "v7"),
        "powerpc64" => ("ppc64le", ""),
        other => (other, ""),
    };
    Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: variant.to_owned() }
}

/// Reads `OS/ARCHITECTURE[/VARIANT]`.
///
/// # Errors
/// It is not of that form.
pub fn platform(text: &str) -> Result<Platform, String> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [os, architecture] if !os.is_empty() && !architecture.is_empty() => {
            Ok(Platform { architecture: architecture.to_owned(), os: os.to_owned(), variant: String::new() })
        }
        [os, architecture, variant] if !os.is_empty() && !architecture.is_empty() => {
            Ok(Platform { architecture: architecture.to_owned(), os: os.to_owned(), variant: variant.to_owned() })
        }
        _ => Err("it reads OS/ARCHITECTURE[/VARIANT], such as linux/arm64".to_owned()),
    }
}

impl Platform {
    /// How well `self`, of an index, serves who asks for `wanted`: higher is better, `None` not at all. A platform that says
    /// nothing serves everybody, badly.
    pub fn serves(&self, wanted: &Self) -> Option<u8> {
        let same = |mine: &str, theirs: &str| mine.is_empty() || mine == theirs;
        if !same(&self.os, &wanted.os) || !same(&self.architecture, &wanted.architecture) {
            return None;
        }
        match (self.variant.as_str(), wanted.variant.as_str()) {
            (mine, theirs) if mine == theirs => Some(3),
            // 64-bit ARM has one variant, which few write down.
            ("v8", "") | ("", "v8") if wanted.architecture == "arm64" => Some(3),
            ("", _) => Some(2),
            (_, "") => Some(1),
            // Older variants of 32-bit ARM run on newer ones.
            (mine, theirs) if wanted.architecture == "arm" && mine < theirs => Some(1),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_writes_null_where_there_is_nothing() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":null,"Volumes":null,
                       "Entrypoint":null,"Labels":null},"rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config: ImageConfig = parse(text.as_bytes(), "config").unwrap();
        assert_eq!(config.config, Some(Execution::default()));
        assert_eq!(config.platform.architecture, "amd64");
    }

    #[test]
    fn a_document_of_two_meanings_is_refused() {
        let glance = |text: &str, described: &str| document_kind(text.as_bytes(), described, "x");
        let (index, manifest) = (MEDIA_TYPES[0].0, MEDIA_TYPES[1].0);
        assert_eq!(glance("{\"manifests\":[]}", "").unwrap(), Kind::Index);
        assert_eq!(glance("{\"layers\":[]}", "").unwrap(), Kind::Manifest);
        assert_eq!(glance("{\"layers\":[]}", manifest).unwrap(), Kind::Manifest);
        assert!(glance("{\"layers\":[],\"manifests\":[]}", manifest).is_err());
        assert!(glance(&format!("{{\"mediaType\":\"{index}\"}}"), manifest).is_err());
        let error = glance("{\"mediaType\":\"text/html\"}", "").unwrap_err().to_string();
        assert!(error.starts_with("cannot understand media type \"text/html\""), "{error}");
        assert!(glance("[[[[", "").is_err());
    }

    #[test]
    fn the_nearest_platform_is_chosen() {
        let of = |text: &str| platform(text).unwrap();
        assert!(of("linux/arm64/v8").serves(&of("linux/arm64")) > of("linux/arm64/v9").serves(&of("linux/arm64")));
        assert_eq!(of("linux/amd64").serves(&of("linux/arm64")), None);
        assert!(of("linux/arm/v6").serves(&of("linux/arm/v7")).is_some());
        assert_eq!(of("linux/arm/v7").serves(&of("linux/arm/v6")), None);
        assert!(platform("linux").is_err());
    }
}
