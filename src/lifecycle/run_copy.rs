//! A container of an image upon a copy of the image's files, where the kernel will not stack its layers: it has no overlayfs, the
//! store's filesystem cannot be an upper layer, or this user may not mount one.
//!
//! The copy is the container's own, made anew for each, and goes with it. It shares data with the layers where the filesystem has
//! reflinks, and never a file: what a container writes stays its own.

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::create::Source;
use super::image::{as_root, with_images};
use super::{Setting, run, run_image};
use crate::error::{Context, Error, Result};
use crate::image::store::copies::NewCopy;
use crate::image::store::uses::User;

/// Runs what is in hand upon a copy; `refused` is why.
///
/// # Errors
/// A file cannot be copied; what [`run::run_source`] answers. Nothing is left of it then.
pub(super) fn run(setting: &Setting, options: &run::Options, mut source: Source, refused: &Error) -> Result<u8> {
    let Some(used) = &mut source.image else { return run::run_source(setting, options, source) };
    let mebibytes = used.store.bytes_of(&used.image.chain)?.div_ceil(1 << 20);
    setting.log.warning(format!(
        "{refused}: the container runs on a copy of its image, up to {mebibytes} MiB that are copied now, or shared where the \
         filesystem has reflinks, and removed with it; there are no snapshots, diffs, commits or checkpoints of it"
    ));
    let root = used.store.copied_root(&User::Container(setting.root.join(&options.create.id)));
    // A copy takes a while, and may be given up: signals were held back for the attempt before it.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).or_cannot("unblock", "signals")?;
    let setting = &Setting { store: Some(used.path.clone()), ..setting.clone() };
    let copy = NewCopy::anywhere();
    let chain = used.image.chain.clone();
    used.copy = Some(copy.clone());
    source.config.root.get_or_insert_default().path = root;
    source.text = run_image::text(&source.config)?;
    let copied = as_root(setting, |inside| with_images(inside)?.copy(&chain, &copy).map(|()| 0));
    let ran = copied.and_then(|_| run::run_source(setting, options, source));
    ran.map_err(|error| error.and_then(discard(setting, &copy)))
}

fn discard(setting: &Setting, copy: &NewCopy) -> Result<()> {
    as_root(setting, |inside| with_images(inside)?.discard_copy(copy).map(|()| 0)).map(drop)
}
