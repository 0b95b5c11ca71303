//! A container's own copy of an image's files, for where the layers cannot be stacked: made below `tmp`, and moved to the
//! container's directory once there is one. Whoever is cut off before that leaves what [`super::prune`] removes.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, mkdirat, openat, renameat};

use super::uses::{User, key};
use super::{Store, session};
use crate::error::{Context, Result};
use crate::image::digest::Digest;
use crate::image::flatten;

/// In a container's directory. It is the caller's own, as the directory in it may not be: only so it can be moved.
const COPY: &str = "copy";
const ROOTFS: &str = "rootfs";

/// Where a copy is made.
#[derive(Debug, Clone)]
pub struct NewCopy(String);

impl NewCopy {
    /// A place where nothing is.
    pub fn anywhere() -> Self {
        Self(format!("tmp/copy-{:016x}", session::random()))
    }
}

impl Store {
    /// Copies what an overlay of these layers would show; `chain` has the lowest first. The caller holds the store shared until
    /// the copy is in its place.
    ///
    /// # Errors
    /// A file cannot be copied.
    pub fn copy(&self, chain: &[Digest], to: &NewCopy) -> Result<()> {
        let root = format!("{}/{ROOTFS}", to.0);
        let named = || self.path(&root).display().to_string();
        mkdirat(&self.dir, to.0.as_str(), Mode::RWXU | Mode::from_raw_mode(0o011))
            .or_cannot("make directory", named())?;
        mkdirat(&self.dir, &root, Mode::RWXU).or_cannot("make directory", named())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&self.dir, &root, flags, Mode::empty()).or_cannot("open directory", named())?;
        flatten::flatten(&self.merged(chain)?, directory.as_fd()).map(drop).map_err(super::full)
    }

    /// Puts a copy in its place, below the directory of a use that has begun.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn place_copy(&self, copy: &NewCopy, user: &User) -> Result<()> {
        let to = format!("containers/{}/{COPY}", key(user));
        renameat(&self.dir, &copy.0, &self.dir, &to).or_cannot("save", self.path(&to).display())
    }

    /// Removes a copy that did not come to its place; nothing where it did.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn discard_copy(&self, copy: &NewCopy) -> Result<()> {
        match self.has(&copy.0)? {
            true => self.remove_now(&copy.0),
            false => Ok(()),
        }
    }

    /// Where a container finds its copy.
    pub fn copied_root(&self, user: &User) -> PathBuf {
        self.use_path(user).join(Path::new(COPY)).join(ROOTFS)
    }

    /// How much there is to be copied at most. Bytes.
    ///
    /// # Errors
    /// A layer's record cannot be read.
    pub fn bytes_of(&self, chain: &[Digest]) -> Result<u64> {
        chain.iter().try_fold(0, |sum, id| Ok(sum + self.layer(id)?.map_or(0, |layer| layer.count.bytes)))
    }
}
