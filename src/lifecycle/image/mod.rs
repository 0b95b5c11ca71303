//! The verbs of `ferry image`, each in a file of its own. They run in `ferry-image`; see [`crate::image`].

use std::path::PathBuf;

use super::Setting;
use crate::error::{Error, Result};
use crate::host::{self, Host};
use crate::image::erofs::Maker;
use crate::image::import::Options;
use crate::image::manifest::{self, Platform};
use crate::image::store::{self, Store};
use crate::image::unpack::How;
use crate::namespaces::{id_map, inside};
use crate::procfs;

pub mod bundle;
pub mod check;
pub mod container;
pub mod export;
pub mod import;
pub mod list;
pub mod mount;
pub mod prune;
pub mod pull;
pub mod tag;

/// The most bytes a layer, or a file of one, may unpack to unless told otherwise.
pub const MAX_SIZE: u64 = 64 << 30;

/// Where images are.
///
/// # Errors
/// There is no place for an ordinary user's.
pub fn location(setting: &Setting, host: &Host) -> Result<PathBuf> {
    match &setting.store {
        Some(path) => Ok(path.clone()),
        None => store::default_location(host.privileged),
    }
}

/// The store, made where there is none.
///
/// # Errors
/// It cannot be made.
pub fn open(setting: &Setting) -> Result<Store> {
    Store::open(&location(setting, &host::probe())?)
}

/// The store, if there is one.
///
/// # Errors
/// It cannot be read.
pub fn existing(setting: &Setting) -> Result<Option<Store>> {
    Store::existing(&location(setting, &host::probe())?)
}

/// The store, where an image must be in it.
///
/// # Errors
/// There is none.
pub fn with_images(setting: &Setting) -> Result<Store> {
    existing(setting)?.ok_or_else(|| {
        Error::plain("there are no images")
            .hint("bring one in with `ferry image import`, or name another --store before the verb")
    })
}

/// Does a deed where files of many owners can be made: at once as root, in a user namespace otherwise. The deed gets its setting,
/// in which the store is named: inside, everybody is root.
///
/// # Errors
/// What stands in the way of the namespace; what `deed` answers.
pub fn as_root(setting: &Setting, deed: impl FnOnce(&Setting) -> Result<u8>) -> Result<u8> {
    let host = host::probe();
    let named = Setting { store: Some(location(setting, &host)?), ..setting.clone() };
    if host.privileged {
        return deed(&named);
    }
    let (uids, gids) = id_map::of_caller(&host);
    inside::run(&host, &uids, &gids, || deed(&named))
}

/// How layers are unpacked here.
pub fn options(max_size: Option<u64>, platform: Option<Platform>, erofs: Option<Maker>) -> Options {
    let user_namespace = host::in_user_namespace();
    let max_size = max_size.unwrap_or(MAX_SIZE);
    let other_group = !rustix::process::getegid().is_root();
    let how = How { user_namespace, one_id: user_namespace && ids() == 1, other_group, max_size };
    Options { how, max_size, platform: platform.unwrap_or_else(manifest::host_platform), erofs }
}

/// How many user ids there are here.
fn ids() -> u64 {
    let map = procfs::text("/proc/self/uid_map").unwrap_or_default();
    map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}
