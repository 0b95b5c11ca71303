//! `image diff` and `image commit`: what a container changed, as a layer.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Setting;
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;
use crate::image::store::Store;
use crate::image::store::session::Session;
use crate::image::store::snapshots;
use crate::image::store::uses::{Use, User};
use crate::image::{commit, import, pack};
use crate::lifecycle::live;

/// Writes what the container `id` changed as a layer's archive.
///
/// # Errors
/// It runs from no image, or something cannot be read or written.
pub fn diff(setting: &Setting, id: &str, out: impl Write) -> Result<()> {
    // Before the store, as who rolls it back does: what is read must not be emptied meanwhile.
    let _locked = live::open_locked(setting, id)?;
    let store = super::with_images(setting)?;
    let _guard = store.share()?;
    let used = find(setting, &store, id)?;
    if let Some(snapshot) = &used.snapshot {
        return Err(Error::plain(format!(
            "container {id:?} was rolled back to snapshot {snapshot:?}, and changed more than one layer"
        ))
        .hint("`ferry image commit` makes an image of all of them"));
    }
    pack::upper(&upper(&store, &used)?, out)
}

/// Makes an image of what the container `id` runs from and what it changed, and names it. `seconds` is the time it says it was
/// made, since 1970; now, if not given.
///
/// # Errors
/// It runs from no image, or something cannot be read or kept; the store is as it was.
pub fn commit(setting: &Setting, id: &str, name: &str, seconds: Option<u64>) -> Result<Digest> {
    rustix::process::umask(rustix::fs::Mode::empty());
    let reference: Reference = name.parse()?;
    if reference.digest.is_some() {
        return Err(Error::plain(format!("{name:?} has a digest, which is no name to give")));
    }
    // As in [`diff`].
    let _locked = live::open_locked(setting, id)?;
    let store = super::with_images(setting)?;
    let session = Session::begin(&store)?;
    let used = find(setting, &store, id)?;
    let parent = store.image_of(Some(used.image.clone()), Descriptor::named(&used.manifest))?;
    let created = match seconds {
        Some(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
        None => Some(SystemTime::now()),
    };
    let created = created.ok_or_else(|| Error::plain("that time is too far away"))?;
    let options = super::options(None, None, None);
    let mut uppers = vec![upper(&store, &used)?];
    if let Some(name) = &used.snapshot {
        for snapshot in snapshots::line(&store.snapshots(&used.user)?, name)? {
            uppers.insert(0, store.open_snapshot(&used.user, &snapshot.name)?);
        }
    }
    let made = commit::commit(&session, &parent, &uppers, created, &options)?;
    import::name(&session, [(&reference.to_string(), &made.manifest)].into_iter())?;
    Ok(made.manifest.digest)
}

fn find(setting: &Setting, store: &Store, id: &str) -> Result<Use> {
    let user = User::Container(setting.root.join(id));
    let found = store.uses()?.into_iter().filter_map(|(_, used)| used).find(|used| used.user == user);
    let found = found.filter(Use::is_live).ok_or_else(|| {
        Error::plain(format!("no container {id:?} runs from an image here"))
            .hint("--root before the verb says where containers are, --store where images are")
    })?;
    found.has_upper().map(|()| found)
}

fn upper(store: &Store, used: &Use) -> Result<OwnedFd> {
    let path = store.use_path(&used.user).join("upper");
    open(&path)
}

fn open(path: &Path) -> Result<OwnedFd> {
    File::open(path).map(OwnedFd::from).or_cannot("open", path.display())
}
