//! The container that goes, as far as a migration has to do with it: [`crate::lifecycle::migrate`] has one, and tests have others in
//! which nothing runs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use super::message::Stream;
use crate::checkpoint::dump::Afterwards;
use crate::error::Result;
use crate::image::digest::Digest;
use crate::image::pack::Elsewhere;

/// The container, as far as a migration has to do with it.
pub trait Container {
    /// Some content of the image that it runs from.
    ///
    /// # Errors
    /// It is not in the store.
    fn content(&mut self, digest: &Digest) -> Result<File>;

    /// Saves its memory to `images` while it goes on: what was written to since `parent`, relative to it. `waiting` is called now
    /// and then for as long as that takes.
    ///
    /// # Errors
    /// It cannot be saved, or `waiting` has failed; it goes on.
    fn pre_dump(&mut self, images: &Path, parent: Option<&Path>, waiting: &mut dyn FnMut() -> Result<()>)
    -> Result<()>;

    /// Saves all of it, and asks `held` what is to become of it, while it stands still.
    ///
    /// # Errors
    /// It cannot be saved, or `held` has failed before it decided; it goes on.
    fn dump(&mut self, images: &Path, parent: Option<&Path>, held: &mut Held<'_>) -> Result<Afterwards>;

    /// The directory of what it has changed in the files of its image, where it runs from one.
    ///
    /// # Errors
    /// It is not to be had.
    fn upper(&mut self) -> Result<Option<OwnedFd>>;

    /// Whether one of its processes can write to a file by memory alone.
    ///
    /// # Errors
    /// It cannot be found out.
    fn maps_files(&mut self) -> Result<bool>;

    /// Lets it go on, if it stands still. Answers whether there is such a container: it may have been removed meanwhile, or the
    /// machine have gone down.
    ///
    /// # Errors
    /// The kernel's answer.
    fn go_on(&mut self) -> Result<bool>;

    /// It is not the destination's any more, and stays as it stands: what becomes of it is for a person to say.
    ///
    /// # Errors
    /// The kernel's answer.
    fn take_back(&mut self) -> Result<()>;

    /// Removes what there is of it. It runs elsewhere.
    ///
    /// # Errors
    /// What cannot be removed.
    fn release(&mut self) -> Result<()>;
}

/// What decides over a container that stands still.
pub type Held<'a> = dyn FnMut(Dumped<'_>) -> Result<Afterwards> + 'a;

/// How far a dump is.
pub enum Dumped<'a> {
    /// It is at work, as it was a second ago. What is answered is not heeded, but for an error.
    NotYet,
    /// Everything is in the images.
    All(&'a mut dyn Still),
}

/// A container that stands still, by CRIU's hand.
pub trait Still {
    /// When it was stopped.
    fn since(&self) -> Instant;

    /// The regular files that its standard streams lead to.
    ///
    /// # Errors
    /// Its first process is gone.
    fn streams(&self) -> Result<[Option<Stream>; 3]>;

    /// Saves to its images what it has changed in the files of its image, where it runs from one, but for content that is there already.
    /// `waiting` is called now and then for as long as that takes.
    ///
    /// # Errors
    /// It cannot be saved, or `waiting` has failed.
    fn keep_root(&self, is_there: Elsewhere<'_>, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// Keeps it still by its cgroup too, whatever becomes of CRIU and of ferry, and from whoever would let it go on or end it.
    ///
    /// # Errors
    /// The kernel's answer.
    fn freeze(&mut self) -> Result<()>;

    /// Whether its first process has been killed since it was stopped.
    ///
    /// # Errors
    /// It cannot be found out.
    fn is_ending(&self) -> Result<bool>;
}
