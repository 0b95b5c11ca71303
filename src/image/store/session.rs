//! Adding to the store: everything is made in a directory of its own below `tmp`, synced at once, and then renamed to its place.
//!
//! A session that was cut off leaves its directory, which nobody looks into and [`super::prune`] removes.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use rustix::fs::{Mode, OFlags, mkdirat, openat, renameat, syncfs};
use rustix::io::Errno as Answer;

use super::erofs::{self, Erofs, MOUNT};
use super::layers::{self, Layer};
use super::{Guard, Store};
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;
use crate::path::errno;

/// Things that are being made, in a store that nothing is removed from meanwhile.
#[derive(Debug)]
pub struct Session<'a> {
    store: &'a Store,
    name: String,
    dir: OwnedFd,
    count: AtomicU32,
    _guard: Guard,
}

/// A blob that was written and not yet put in its place.
#[derive(Debug)]
pub struct NewBlob {
    name: String,
    /// What is in it.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// A layer's directory that is being filled.
#[derive(Debug)]
pub struct NewLayer {
    /// Its name for [`Session::commit`].
    pub name: String,
    /// `diff`, open.
    pub diff: OwnedFd,
}

/// A number that no other process has. The standard library seeds its hash maps from the kernel's random numbers.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl<'a> Session<'a> {
    /// Begins.
    ///
    /// # Errors
    /// The store cannot be locked or written.
    pub fn begin(store: &'a Store) -> Result<Self> {
        let guard = store.share()?;
        let name = format!("tmp/{:016x}", random());
        let named = || store.path(&name).display().to_string();
        mkdirat(&store.dir, &name, Mode::RWXU).or_cannot("make directory", named())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(&store.dir, &name, flags, Mode::empty()).or_cannot("open", named())?;
        Ok(Self { store, name, dir, count: AtomicU32::new(0), _guard: guard })
    }

    /// The store.
    pub fn store(&self) -> &'a Store {
        self.store
    }

    fn next(&self, kind: &str) -> String {
        format!("{kind}-{}", self.count.fetch_add(1, Ordering::Relaxed))
    }

    fn path(&self, name: &str) -> String {
        self.store.path(&self.name).join(name).display().to_string()
    }

    /// A new file, and its name for [`Session::blob`].
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn file(&self) -> Result<(File, String)> {
        let name = self.next("blob");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, &name, flags, Mode::from_raw_mode(0o600)).or_cannot("write", self.path(&name))?;
        Ok((File::from(file), name))
    }

    /// Where a file of the session's is, from the store's directory on.
    pub fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    /// A file that was filled with what `digest` says. The caller has verified it.
    pub fn blob(&self, name: String, digest: Digest, size: u64) -> NewBlob {
        NewBlob { name, digest, size }
    }

    /// A blob of these bytes, under the digest that what refers to it has. The caller has verified it.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn bytes(&self, bytes: &[u8], digest: &Digest) -> Result<NewBlob> {
        let (mut file, name) = self.file()?;
        file.write_all(bytes).or_cannot("write", self.path(&name))?;
        Ok(self.blob(name, digest.clone(), bytes.len() as u64))
    }

    /// A directory for a layer's EROFS image, with one to mount it on.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn erofs(&self) -> Result<String> {
        let name = self.next("erofs");
        for (directory, mode) in [(name.clone(), 0o711), (format!("{name}/{MOUNT}"), 0o755)] {
            mkdirat(&self.dir, &directory, Mode::from_raw_mode(mode))
                .or_cannot("make directory", self.path(&directory))?;
        }
        Ok(name)
    }

    /// An empty layer.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn layer(&self) -> Result<NewLayer> {
        let name = self.next("layer");
        let diff = format!("{name}/diff");
        mkdirat(&self.dir, &name, Mode::from_raw_mode(0o711)).or_cannot("make directory", self.path(&name))?;
        mkdirat(&self.dir, &diff, Mode::from_raw_mode(0o755)).or_cannot("make directory", self.path(&diff))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let diff = openat(&self.dir, &diff, flags, Mode::empty()).or_cannot("open", self.path(&diff))?;
        Ok(NewLayer { name, diff })
    }

    /// Puts everything in its place: synced together first, then the layers, then the blobs, documents last. What is there
    /// already stays.
    ///
    /// # Errors
    /// What the kernel answers; then nothing refers to what came in its place until then.
    pub fn commit(&self, layers: Vec<(String, Layer)>, blobs: Vec<NewBlob>) -> Result<()> {
        if layers.is_empty() && blobs.is_empty() {
            return Ok(());
        }
        for (new, layer) in &layers {
            let text = serde_json::to_vec(layer).map_err(|why| Error::said("save", "the layer", why.to_string()))?;
            self.record(new, layers::RECORD, &text)?;
        }
        syncfs(self.dir.as_fd()).or_cannot("sync", self.store.path(&self.name).display())?;
        for (new, layer) in &layers {
            self.put(new, &layers::directory(&layer.chain_id))?;
        }
        if !layers.is_empty() {
            self.store.sync_directory("layers".as_ref())?;
        }
        for blob in &blobs {
            self.put(&blob.name, &Store::blob_name(&blob.digest))?;
        }
        for directory in ["sha256", "sha512"] {
            if blobs.iter().any(|blob| blob.digest.directory() == directory) {
                self.store.sync_directory(format!("blobs/{directory}").as_ref())?;
            }
        }
        Ok(())
    }

    /// Puts EROFS images beside the layers they are of, each made in a directory of [`Session::erofs`]. What is there already
    /// stays.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn place_erofs(&self, images: Vec<(String, Digest, Erofs)>) -> Result<()> {
        if images.is_empty() {
            return Ok(());
        }
        for (new, _, image) in &images {
            let text = serde_json::to_vec(image).map_err(|why| Error::said("save", "the image", why.to_string()))?;
            self.record(new, erofs::RECORD, &text)?;
        }
        syncfs(self.dir.as_fd()).or_cannot("sync", self.store.path(&self.name).display())?;
        for (new, chain_id, _) in &images {
            self.put(new, &erofs::directory(chain_id))?;
            self.store.sync_directory(layers::directory(chain_id).as_ref())?;
        }
        Ok(())
    }

    /// Writes what is known of something beside it.
    fn record(&self, new: &str, record: &str, text: &[u8]) -> Result<()> {
        let name = format!("{new}/{record}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.dir, &name, flags, Mode::from_raw_mode(0o644)).or_cannot("write", self.path(&name))?;
        File::from(file).write_all(text).or_cannot("write", self.path(&name))
    }

    /// Puts a layer's directory in its place by itself, with a record beside its files.
    ///
    /// # Errors
    /// What the kernel answers; ENOTEMPTY where something is.
    pub fn place_layer(&self, layer: &NewLayer, record: &str, text: &[u8], to: &str) -> Result<()> {
        self.record(&layer.name, record, text)?;
        syncfs(self.dir.as_fd()).or_cannot("sync", self.store.path(&self.name).display())?;
        renameat(&self.dir, layer.name.as_str(), &self.store.dir, to)
            .or_cannot("save", self.store.path(to).display())?;
        self.store.sync_directory(std::path::Path::new(to).parent().unwrap_or(std::path::Path::new("")))
    }

    fn put(&self, from: &str, to: &str) -> Result<()> {
        match renameat(&self.dir, from, &self.store.dir, to) {
            // Another process was first. A layer's directory is never empty; a blob is replaced by its equal.
            Ok(()) | Err(Answer::NOTEMPTY | Answer::EXIST) => Ok(()),
            Err(answer) => Err(Error::kernel("save", self.store.path(to).display().to_string(), errno(answer))),
        }
    }
}

impl Drop for Session<'_> {
    /// What was not put in its place goes. A failure here is no error of what was done: prune tries again.
    fn drop(&mut self) {
        let _left: Result<(), Errno> = std::ffi::CString::new(self.name.as_str())
            .map_err(|_| Errno::EINVAL)
            .and_then(|name| crate::image::tree::remove(self.store.dir(), &name));
    }
}
