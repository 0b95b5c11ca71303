//! The machine that a container comes to, as far as a migration has to do with it: [`crate::lifecycle::receive`] is one, and tests have
//! others on which nothing runs.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::journal::Entry;
use super::message::{Blob, Place, Request};
use super::pump::Pump;
use crate::checkpoint::restore::Moment;
use crate::container::record::Init;
use crate::error::Result;

/// The machine that a container comes to.
pub trait Host {
    /// What it is and has.
    ///
    /// # Errors
    /// It cannot be found out.
    fn place(&mut self) -> Result<Place>;

    /// Where it keeps containers.
    fn root(&self) -> &Path;

    /// What is in the way of a container: every reason.
    ///
    /// # Errors
    /// It cannot be found out.
    fn obstacles(&mut self, request: &Request) -> Result<Vec<String>>;

    /// What of the image that it runs from is not here, of what it is made of.
    ///
    /// # Errors
    /// It cannot be found out.
    fn lacks(&mut self, request: &Request) -> Result<Vec<Blob>>;

    /// Keeps what was lacking and has come to this directory, and looks whether the container can be made here. `waiting` is called now
    /// and then.
    ///
    /// # Errors
    /// It is no such image; the container cannot be made of it. Those of `waiting`.
    fn keep(&mut self, request: &Request, directory: &Path, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// Restores a container, and tells `held` of each [`Moment`]. Answers its first process.
    ///
    /// # Errors
    /// It cannot be restored, or `held` has failed: nothing is left of it but the images.
    fn restore(&mut self, entry: &Entry, images: &Path, held: &mut dyn FnMut(Moment) -> Result<()>) -> Result<i32>;

    /// Starts what puts memory in its place that comes after a container has gone on, which is about to be restored.
    ///
    /// # Errors
    /// It does not begin.
    fn begin_lazily(&mut self, entry: &Entry, images: &Path) -> Result<Lazily>;

    /// Has a pump at work beside this one.
    ///
    /// # Errors
    /// The kernel's answer.
    fn pump(&mut self, pump: Pump) -> Result<()>;

    /// All memory is in its place: waits for the end of what has put it there.
    ///
    /// # Errors
    /// It has failed.
    fn whole(&mut self) -> Result<()>;

    /// Ends and removes a container of which memory is missing, and then what puts that in its place: never the other way round.
    ///
    /// # Errors
    /// It cannot be removed.
    fn lose(&mut self, entry: &Entry) -> Result<()>;

    /// The first process of a container that was restored from this and runs.
    ///
    /// # Errors
    /// It cannot be found out.
    fn runs(&mut self, entry: &Entry) -> Result<Option<i32>>;

    /// Ends and removes what a restore from this that was cut off has left: processes that have not run, and never will.
    ///
    /// # Errors
    /// It cannot be removed.
    fn discard(&mut self, entry: &Entry) -> Result<()>;
}

/// What puts memory in its place.
#[derive(Debug)]
pub struct Lazily {
    /// Where it asks for that.
    pub asks: OwnedFd,
    /// In the words of this version of CRIU, as 40101 for 4.1.1.
    pub criu: u32,
    /// Its process.
    pub daemon: Option<Init>,
}
