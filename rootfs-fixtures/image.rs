//! Images made from nothing: layers as tar archives byte by byte, and the documents that make an OCI layout or a docker archive
//! of them.

use std::fs;
use std::io::{Result, Write};
use std::path::Path;

use ferry::image::digest::Digest;
use serde_json::{Value, json};

/// A layer's archive in the making.
pub struct Layer {
    builder: tar::Builder<Vec<u8>>,
}

impl Layer {
    /// An archive with the root directory alone.
    pub fn new() -> Self {
        Self { builder: tar::Builder::new(Vec::new()) }
    }

    /// Adds an entry whose name is taken as it stands.
    pub fn entry(mut self, kind: tar::EntryType, name: &str, mode: u32, link: &str, data: &[u8]) -> Result<Self> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            // /dev/null
            header.set_device_major(1)?;
            header.set_device_minor(3)?;
        }
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.builder.append(&header, data)?;
        Ok(self)
    }

    /// Adds a file.
    pub fn file(self, name: &str, mode: u32, data: &[u8]) -> Result<Self> {
        self.entry(tar::EntryType::Regular, name, mode, "", data)
    }

    /// Adds a directory.
    pub fn directory(self, name: &str) -> Result<Self> {
        self.entry(tar::EntryType::Directory, name, 0o755, "", b"")
    }

    /// Adds a symbolic link.
    pub fn link(self, name: &str, target: &str) -> Result<Self> {
        self.entry(tar::EntryType::Symlink, name, 0o777, target, b"")
    }

    /// Adds a hard link.
    pub fn hard_link(self, name: &str, target: &str) -> Result<Self> {
        self.entry(tar::EntryType::Link, name, 0o644, target, b"")
    }

    /// Adds PAX records for the entry that comes next.
    pub fn records(mut self, records: &[(&str, &[u8])]) -> Result<Self> {
        self.builder.append_pax_extensions(records.iter().copied())?;
        Ok(self)
    }

    /// The archive.
    pub fn finish(self) -> Result<Vec<u8>> {
        self.builder.into_inner()
    }
}

/// The lowest layer that a container can run from: the probe, and directories to mount upon.
pub fn base(probe: &Path) -> Result<Layer> {
    let mut layer = Layer::new();
    for name in ["dev/", "etc/", "proc/", "sys/", "tmp/", "home/"] {
        layer = layer.directory(name)?;
    }
    let passwd = "root:x:0:0:root:/root:/probe\nship:x:1000:1001::/home:/probe\n1234:x:0:0::/:/probe\n";
    layer =
        layer.file("etc/passwd", 0o644, passwd.as_bytes())?.file("etc/group", 0o644, b"root:x:0:\ncrew:x:50:ship\n")?;
    layer.file("probe", 0o755, &fs::read(probe)?)
}

/// The same bytes in gzip.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// The configuration of an image of these layers.
pub fn config(layers: &[Vec<u8>], execution: &Value) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    json!({"architecture": ferry::image::manifest::host_platform().architecture, "os": "linux", "config": execution,
           "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

/// Puts a blob into a layout and describes it.
pub fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> Result<Value> {
    let digest = Digest::of(bytes);
    let directory = layout.join("blobs/sha256");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join(digest.hex()), bytes)?;
    Ok(json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()}))
}

/// Writes the documents at a layout's top: `entries` are those of the index.
pub fn index(layout: &Path, entries: &[Value]) -> Result<()> {
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": entries}).to_string())
}

/// Writes a manifest of layers into a layout, each in gzip; answers its entry.
pub fn manifest(layout: &Path, layers: &[Vec<u8>], execution: &Value) -> Result<Value> {
    let config =
        blob(layout, "application/vnd.oci.image.config.v1+json", config(layers, execution).to_string().as_bytes())?;
    let layer = |layer: &Vec<u8>| blob(layout, "application/vnd.oci.image.layer.v1.tar+gzip", &gzip(layer)?);
    let layers = layers.iter().map(layer).collect::<Result<Vec<_>>>()?;
    let text = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    blob(layout, "application/vnd.oci.image.manifest.v1+json", text.as_bytes())
}

/// Makes a layout with one image in it, called `NAME`.
pub fn layout(path: &Path, name: &str, layers: &[Vec<u8>], execution: &Value) -> Result<()> {
    let mut entry = manifest(path, layers, execution)?;
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    index(path, &[entry])
}

/// Packs a directory's files into an archive.
pub fn archive(directory: &Path, to: &Path) -> Result<()> {
    let mut builder = tar::Builder::new(fs::File::create(to)?);
    builder.append_dir_all("", directory)?;
    builder.into_inner().map(drop)
}

/// What `docker save` writes.
pub fn docker(path: &Path, name: &str, layers: &[Vec<u8>], execution: &Value) -> Result<()> {
    let config = config(layers, execution).to_string();
    let digest = Digest::of(config.as_bytes());
    let mut archive = Layer::new();
    let mut files = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let directory = Digest::of(format!("{index}").as_bytes()).hex()[..60].to_owned() + "beef";
        files.push(format!("{directory}/layer.tar"));
        archive = archive.file(&files[index], 0o644, layer)?;
    }
    let rows = json!([{"Config": format!("{}.json", digest.hex()), "RepoTags": [name], "Layers": files}]);
    archive = archive.file(&format!("{}.json", digest.hex()), 0o644, config.as_bytes())?;
    fs::write(path, archive.file("manifest.json", 0o644, rows.to_string().as_bytes())?.finish()?)
}
