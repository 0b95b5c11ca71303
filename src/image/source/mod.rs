//! Where images come from: an OCI image layout (a directory or an archive of one), a docker archive, a root filesystem (an
//! archive or a directory).
//!
//! A source is taken apart into [`Image`]s: documents that were read and verified, and layers that are still to be. A registry
//! is one more of them: it has what an image layout has, by digest.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::compression::{self, Bounded};
use super::digest::{Digest, Verified};
use super::manifest::{Compression, Descriptor, LARGEST, MOST_LAYERS, Platform};
use super::metered::{Metered, Room};
use super::reference::Reference;
use super::registry::Registry;
use super::store::session::Session;
use crate::error::{Context, Error, Result};
use crate::path::{Links, Root};

pub mod archive;
mod docker;
mod oci;

use archive::Archive;

/// What a source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An OCI image layout.
    Oci,
    /// What `docker save` writes.
    Docker,
    /// A root filesystem.
    Rootfs,
}

/// The names of the forms, for `--format`.
pub const FORMS: [(&str, Form); 3] = [("oci", Form::Oci), ("docker", Form::Docker), ("rootfs", Form::Rootfs)];

/// The files of a source.
#[derive(Debug)]
pub enum Files {
    /// Of a directory.
    Directory(Root),
    /// Of an archive.
    Archive(Archive),
    /// A single archive that is itself a layer; its size.
    Single(File, u64),
    /// A directory that is itself a layer.
    Tree(OwnedFd),
    /// Of a server.
    Registry(Box<Registry>),
}

/// An image that was found.
#[derive(Debug)]
pub struct Image {
    /// Names that the source gives it.
    pub names: Vec<String>,
    /// Its manifest; `None` where the source has none, and one is made.
    pub manifest: Option<(Descriptor, Vec<u8>)>,
    /// Its configuration; `None` likewise.
    pub config: Option<(Descriptor, Vec<u8>)>,
    /// Its layers, the lowest first.
    pub layers: Vec<Layer>,
}

/// A layer that was found.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The name of its file in the source; empty where the source is the layer.
    pub file: String,
    /// What the manifest says of it, where there is one.
    pub descriptor: Option<Descriptor>,
}

/// A source, opened and understood.
#[derive(Debug)]
pub struct Source {
    /// Its files.
    pub files: Files,
    /// What it is.
    pub form: Form,
    /// What it is called where it gives its image no full name: its file's name, without endings.
    stem: String,
    /// The one image of it that is wanted; `None`: all.
    wanted: Option<String>,
}

/// The largest unpacked archive of an image that came packed or by a pipe, whatever its layers may have. Bytes.
const MOST_SPOOLED: u64 = 256 << 30;
/// What an archive may have beside its layers: documents, and the headers of [`archive::Archive`]'s entries. Bytes.
const BESIDE_LAYERS: u64 = 128 << 20;

/// Opens a source; `-` is standard input, and `PATH:NAME` one of several images. `form` is found out unless given. Of what has to
/// be unpacked or copied first no more is taken than an image can use whose layers have `max_size` each.
///
/// # Errors
/// It is not there, cannot be read, or is none of the forms.
pub fn open(path: &Path, form: Option<Form>, max_size: u64, session: &Session) -> Result<Source> {
    let (path, wanted) = chosen(path);
    let source = whole(path, form, max_size, session)?;
    match (&wanted, source.form) {
        (Some(name), Form::Rootfs) => {
            Err(Error::said("find image", name.clone(), format!("{} is a root filesystem", path.display())))
        }
        _ => Ok(Source { wanted, ..source }),
    }
}

/// A path, and behind a colon an image's name, as other tools write it. What is there under the whole name has no name behind it.
fn chosen(path: &Path) -> (&Path, Option<String>) {
    if path.symlink_metadata().is_ok() {
        return (path, None);
    }
    let bytes = path.as_os_str().as_bytes();
    let colons = (1..bytes.len()).filter(|index| bytes[*index] == b':');
    let cut = |index: usize| (Path::new(OsStr::from_bytes(&bytes[..index])), OsStr::from_bytes(&bytes[index + 1..]));
    let found = colons.map(cut).find(|(before, name)| !name.is_empty() && before.exists());
    found.map_or((path, None), |(before, name)| (before, Some(name.to_string_lossy().into_owned())))
}

/// Copies a stream to a file of the store's. An image may have [`MOST_LAYERS`], and which of the bytes are a layer's is not known
/// before all are there: a bound below that of all layers together would refuse what can be kept.
fn spooled(stream: impl Read, max_size: u64, named: &str, session: &Session) -> Result<File> {
    let most = max_size.saturating_mul(MOST_LAYERS as u64).saturating_add(BESIDE_LAYERS).min(MOST_SPOOLED);
    let (mut file, _) = session.file()?;
    std::io::copy(&mut Bounded::new(stream, most), &mut file).or_cannot("unpack", named)?;
    file.seek(SeekFrom::Start(0)).or_cannot("read", named)?;
    Ok(file)
}

fn whole(path: &Path, form: Option<Form>, max_size: u64, session: &Session) -> Result<Source> {
    let named = path.display().to_string();
    let stem = stem(path);
    if path == Path::new("-") {
        let file = spooled(std::io::stdin().lock(), max_size, "standard input", session)?;
        return archive(file, "standard input", stem, form, max_size, session);
    }
    let mut file = File::open(path).or_cannot("open", &named)?;
    if !file.metadata().or_cannot("look at", &named)?.is_dir() {
        // A pipe, whatever it is called, is read as standard input is; its name is nobody's choice.
        if file.stream_position().is_err() {
            let file = spooled(file, max_size, &named, session)?;
            return archive(file, &named, String::new(), form, max_size, session);
        }
        return archive(file, &named, stem, form, max_size, session);
    }
    let root = Root::open(path)?;
    let has = |name: &str| root.resolve(Path::new(name), Links::Follow).is_ok();
    let found = if has("oci-layout") || has("index.json") {
        Form::Oci
    } else if has("manifest.json") {
        Form::Docker
    } else {
        Form::Rootfs
    };
    let form = form.unwrap_or(found);
    let files = match form {
        Form::Rootfs => Files::Tree(OwnedFd::from(file)),
        _ => Files::Directory(root),
    };
    Ok(Source { files, form, stem, wanted: None })
}

fn archive(
    mut file: File,
    named: &str,
    stem: String,
    form: Option<Form>,
    max_size: u64,
    session: &Session,
) -> Result<Source> {
    let size = file.metadata().or_cannot("look at", named)?.len();
    let mut start = [0; 6];
    let filled = file.read(&mut start).or_cannot("read", named)?;
    let rewind = |file: &mut File| file.seek(SeekFrom::Start(0)).map(drop).or_cannot("read", named);
    rewind(&mut file)?;
    let packed = compression::detect(&start[..filled]) != Compression::None;
    let form = match form {
        Some(form) => form,
        None => {
            let form = glance(&file, named)?;
            rewind(&mut file)?;
            form
        }
    };
    if form == Form::Rootfs {
        return Ok(Source { files: Files::Single(file, size), form, stem, wanted: None });
    }
    if packed {
        let unpacked = compression::unpack(&file).or_cannot("read", named)?;
        let spool = spooled(unpacked, max_size, named, session)?;
        file = spool;
    }
    let archive = Archive::index(file, named)?;
    Ok(Source { files: Files::Archive(archive), form, stem, wanted: None })
}

/// An image of a registry.
pub fn registry(registry: Registry) -> Source {
    Source { files: Files::Registry(Box::new(registry)), form: Form::Oci, stem: String::new(), wanted: None }
}

/// What an archive is, by the names of its entries. At the top of an image's are files, of any name, and few directories; the first
/// entry that is another directory, or lies in one, tells a root filesystem.
fn glance(file: &File, named: &str) -> Result<Form> {
    let broken = |why: std::io::Error| Error::said("read archive", named.to_owned(), why.to_string());
    let stream = compression::unpack(file).map_err(broken)?;
    let room = Room::new();
    let mut archive = tar::Archive::new(Metered::new(stream, &room));
    let (mut docker, mut any) = (false, false);
    // Files by whose names nobody knows an image.
    let mut others = false;
    let mut entries = archive.entries().map_err(broken)?;
    while let Some(entry) = room.of_a_header(|| entries.next()) {
        let mut entry = entry.map_err(broken)?;
        any = true;
        let name =
            String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").trim_end_matches('/').to_owned();
        match name.as_str() {
            "" | "." => (),
            "oci-layout" => return Ok(Form::Oci),
            "index.json" if !others => return Ok(Form::Oci),
            "manifest.json" => {
                let mut text = Vec::new();
                entry.by_ref().take(LARGEST).read_to_end(&mut text).map_err(broken)?;
                // Whatever its other files are called.
                if docker::is_manifest(&text) {
                    return Ok(Form::Docker);
                }
                docker = true;
            }
            "repositories" => docker = true,
            name if is_an_images(name) => (),
            name if !name.contains('/') && !entry.header().entry_type().is_dir() => others = true,
            _ => return Ok(Form::Rootfs),
        }
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(broken)?;
    }
    match (docker && !others, any) {
        (true, _) => Ok(Form::Docker),
        (false, true) => Ok(Form::Rootfs),
        (false, false) => Err(Error::said("read archive", named.to_owned(), "it is empty")),
    }
}

/// Whether an image's archive has such a name beside its documents: `blobs/…`, or a layer's or configuration's digest.
fn is_an_images(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or(name);
    let digits = first.split('.').next().unwrap_or(first);
    first == "blobs" || (digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn stem(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path));
    let name = absolute.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let endings = [".gz", ".tgz", ".zst", ".zstd", ".tar"];
    endings.iter().fold(name, |name, ending| name.strip_suffix(ending).map_or(name.clone(), str::to_owned))
}

impl Source {
    /// The images in it that serve `platform`.
    ///
    /// # Errors
    /// It is broken, or none serves.
    pub fn images(&self, platform: &Platform) -> Result<Vec<Image>> {
        match self.form {
            Form::Oci => oci::images(&self.files, platform, &self.stem, self.wanted.as_deref()),
            Form::Docker => docker::images(&self.files, platform, self.wanted.as_deref()),
            Form::Rootfs => Ok(vec![Image {
                names: Vec::new(),
                manifest: None,
                config: None,
                layers: vec![Layer { file: String::new(), descriptor: None }],
            }]),
        }
    }
}

impl Files {
    /// Opens a file: its bytes, and how many there are.
    ///
    /// # Errors
    /// It is not there.
    pub fn open(&self, name: &str) -> Result<(Box<dyn Read + Send + '_>, u64)> {
        match self {
            Self::Archive(archive) => match archive.open(name) {
                Some((part, size)) => Ok((Box::new(part), size)),
                None => Err(Error::said("open", name.to_owned(), "the archive has no such file")),
            },
            Self::Directory(root) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK;
                let file = File::from(
                    root.open_inside(Path::new(name), flags, Links::Follow)
                        .or_cannot("open", root.name(name.as_ref()))?,
                );
                let metadata = file.metadata().or_cannot("look at", name)?;
                if !metadata.is_file() {
                    return Err(Error::said("open", root.name(name.as_ref()), "it is no file"));
                }
                Ok((Box::new(file), metadata.len()))
            }
            Self::Single(file, size) => {
                let mut file = file.try_clone().or_cannot("open", "the archive")?;
                file.seek(SeekFrom::Start(0)).or_cannot("read", "the archive")?;
                Ok((Box::new(file), *size))
            }
            Self::Tree(_) => Err(Error::said("open", name.to_owned(), "the source is a directory")),
            Self::Registry(_) => Err(Error::said("open", name.to_owned(), "a registry gives out by digest")),
        }
    }

    /// Opens a layer: its bytes, and how many there are.
    ///
    /// # Errors
    /// It is not there.
    pub fn layer(&self, layer: &Layer) -> Result<(Box<dyn Read + Send + '_>, u64)> {
        match (self, &layer.descriptor) {
            (Self::Registry(registry), Some(wanted)) => {
                Ok((Box::new(registry.blob(&wanted.digest, wanted.size)), wanted.size))
            }
            _ => self.open(&layer.file),
        }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// It is not there, or too large.
    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let (stream, size) = self.open(name)?;
        if size > LARGEST {
            return Err(Error::said("read", name.to_owned(), format!("it is larger than {LARGEST} bytes")));
        }
        let mut bytes = Vec::new();
        stream.take(LARGEST).read_to_end(&mut bytes).or_cannot("read", name)?;
        Ok(bytes)
    }

    /// Reads a document, which must be what its descriptor says.
    ///
    /// # Errors
    /// It is not there, too large, or another.
    fn described(&self, name: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if let Self::Registry(registry) = self {
            return verify(
                registry.document(descriptor)?,
                &descriptor.digest,
                Some(descriptor.size),
                &descriptor.digest,
            );
        }
        self.verified(name, &descriptor.digest, Some(descriptor.size))
    }

    fn verified(&self, name: &str, digest: &Digest, size: Option<u64>) -> Result<Vec<u8>> {
        verify(self.document(name)?, digest, size, name)
    }
}

/// Leaves only what is called `wanted`, where something is: by its whole name, or by what its source calls it.
///
/// # Errors
/// Nothing is called so.
fn choose<T>(all: &mut Vec<T>, wanted: Option<&str>, names: impl Fn(&T) -> Vec<String>) -> Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    let whole = wanted.parse::<Reference>().map(|name| name.to_string()).ok();
    let known: Vec<String> = all.iter().filter_map(|one| names(one).pop()).collect();
    all.retain(|one| names(one).iter().any(|name| name == wanted || Some(name) == whole.as_ref()));
    if !all.is_empty() {
        return Ok(());
    }
    let error = Error::plain(format!("there is no image {wanted:?} in the source"));
    Err(if known.is_empty() { error } else { error.hint(format!("there is {}", known.join(", "))) })
}

/// The error for a source whose images are all for other platforms.
fn none_serves(platform: &Platform, others: &BTreeSet<String>) -> Error {
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    Error::plain(format!("there is no image for {}/{}", platform.os, platform.architecture))
        .hint(format!("there is one for {}: choose it with --platform", others.join(", ")))
}

fn verify(bytes: Vec<u8>, digest: &Digest, size: Option<u64>, named: impl std::fmt::Display) -> Result<Vec<u8>> {
    let mut verified = Verified::new(bytes.as_slice(), digest, size);
    std::io::copy(&mut verified, &mut std::io::sink()).or_cannot("verify", named)?;
    verified.finish()?;
    Ok(bytes)
}
