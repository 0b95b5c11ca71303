//! Images to an archive. They are read twice: once for their digests, by all cores, and once, out of the page cache mostly,
//! into the stream; so that the manifest can stand first and a reader can refuse before it has taken anything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tar::{EntryType, Header};

use super::encryption::Recipients;
use super::manifest::{Manifest, Part, is_part};
use super::{CONFIG, IMAGES, MANIFEST, SPEC};
use crate::checkpoint::progress::{Event, Progress, Step};
use crate::checkpoint::root;
use crate::error::{Context, Error, Result};
use crate::image::digest::{Algorithm, Digest, Hasher};
use crate::image::export::Filled;

/// zstd's own default, which compresses memory at the pace of a disk.
const LEVEL: i32 = 3;

/// Between two looks at whether to go on. Bytes.
const PIECE: usize = 1 << 20;

/// What goes into an archive.
pub struct Contents<'a> {
    /// The directory of images.
    pub images: &'a Path,
    /// The configuration.
    pub spec: &'a [u8],
    /// Who the container was.
    pub config: &'a [u8],
}

/// Who has a word in it while it is made.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Is asked now and then, and ends everything by an error.
    pub go_on: &'a (dyn Fn() -> Result<()> + Sync),
    /// Hears of it all.
    pub progress: &'a dyn Progress,
}

/// Writes an archive, encrypted to `recipients` where there are some. `manifest` has no parts yet.
///
/// # Errors
/// The images cannot be read, `out` not written, or those of `watch`.
pub fn pack(
    mut manifest: Manifest,
    contents: &Contents<'_>,
    recipients: &Recipients,
    out: impl Write,
    watch: Watch<'_>,
) -> Result<()> {
    manifest.parts = parts(contents, watch)?;
    watch.progress.event(Event::Step(Step::Pack, Some(manifest.size()?)));
    let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    let cannot = "write";
    let out = recipients.encrypt(out)?;
    let mut encoder = zstd::stream::write::Encoder::new(out, LEVEL).or_cannot(cannot, "the archive")?;
    encoder.include_checksum(true).or_cannot(cannot, "the archive")?;
    encoder.multithread(cores() as u32).or_cannot(cannot, "the archive")?;
    let mut builder = tar::Builder::new(encoder);
    append(&mut builder, MANIFEST, text.len() as u64, text.as_slice())?;
    for (name, text) in [(SPEC, contents.spec), (CONFIG, contents.config)] {
        append(&mut builder, name, text.len() as u64, text)?;
    }
    for (name, part) in &manifest.parts {
        let Some(file) = file_of(name) else { continue };
        let file = open(&contents.images.join(file))?;
        append(&mut builder, name, part.size, Watched { file, watch })?;
        watch.progress.event(Event::File);
    }
    let encoder = builder.into_inner().or_cannot(cannot, "the archive")?;
    let out = encoder.finish().or_cannot(cannot, "the archive")?;
    out.finish().or_cannot(cannot, "the archive")
}

/// The file of a part among the images.
fn file_of(part: &str) -> Option<&str> {
    match part {
        root::DIFF => Some(part),
        image => image.strip_prefix(IMAGES)?.strip_prefix('/'),
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn append<W: Write>(builder: &mut tar::Builder<W>, name: &str, size: u64, mut data: impl Read) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    // Sizes beyond eight octal-digit gigabytes go into the binary form that GNU tar began.
    header.set_size(size);
    builder.append_data(&mut header, name, Filled { stream: &mut data, left: size }).or_cannot("pack", name)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).or_cannot("open", path.display())
}

/// The parts, with their sizes and digests.
fn parts(contents: &Contents<'_>, watch: Watch<'_>) -> Result<BTreeMap<String, Part>> {
    let mut files = Vec::new();
    let directory = contents.images;
    for entry in std::fs::read_dir(directory).or_cannot("read", directory.display())? {
        let entry = entry.or_cannot("read", directory.display())?;
        let kind = entry.file_type().or_cannot("look at", entry.path().display())?;
        let file = entry.file_name();
        let name = match file.to_string_lossy() {
            // The manifest and another part say the same.
            told if told == root::ORIGIN || told == root::CONFIG => continue,
            diff if diff == root::DIFF => diff.into_owned(),
            image => format!("{IMAGES}/{image}"),
        };
        if !kind.is_file() || !is_part(&name) {
            let why = "an archive has only images of its own, and that is none";
            return Err(Error::said("pack", entry.path().display().to_string(), why));
        }
        let size = entry.metadata().or_cannot("look at", entry.path().display())?.len();
        files.push((size, name, entry.path()));
    }
    // The largest first, so that none is left for the end alone.
    files.sort_by(|one, other| other.cmp(one));
    watch.progress.event(Event::Step(Step::Digest, Some(files.iter().map(|(size, ..)| size).sum())));
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(String, Part)>> {
        let mut done = Vec::new();
        while let Some((_, name, path)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((name.clone(), part(Watched { file: open(path)?, watch }, path)?));
            watch.progress.event(Event::File);
        }
        Ok(done)
    };
    let mut parts = BTreeMap::new();
    for (name, text) in [(SPEC, contents.spec), (CONFIG, contents.config)] {
        parts.insert(name.to_owned(), Part { size: text.len() as u64, digest: Digest::of(text) });
    }
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cores()).map(|_| thread::Builder::new().spawn_scoped(scope, work)).collect();
        for worker in workers {
            let worker = worker.or_cannot("start", "a thread that computes digests")?;
            let done = worker.join().map_err(|_| Error::plain("a thread that computes digests has failed"))??;
            parts.extend(done);
        }
        Ok(parts)
    })
}

fn part(mut file: impl Read, path: &Path) -> Result<Part> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let (mut buffer, mut size) = (vec![0; PIECE], 0);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Part { size, digest: hasher.finish() }),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error).or_cannot("read", path.display()),
        }
    }
}

/// A file that is read for as long as one may go on.
struct Watched<'a> {
    file: File,
    watch: Watch<'a>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.watch.go_on)().map_err(|error| io::Error::other(error.to_string()))?;
        let count = self.file.read(buffer)?;
        self.watch.progress.event(Event::More(count as u64));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_cut_short_meanwhile_is_an_error() {
        let mut builder = tar::Builder::new(Vec::new());
        append(&mut builder, "whole", 2, &b"ab"[..]).unwrap();
        let error = append(&mut builder, "short", 3, &b"ab"[..]).unwrap_err().to_string();
        assert!(error.contains("pack short"), "{error}");
    }
}
