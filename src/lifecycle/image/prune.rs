//! `image prune`: removes what no name and no container refers to.

use super::Setting;
use crate::error::Result;
use crate::image::store::prune::{self, Removed};

/// `image prune`. With `all`, names that nothing uses go first.
///
/// # Errors
/// Something cannot be removed.
pub fn prune(setting: &Setting, all: bool) -> Result<Removed> {
    match super::existing(setting)? {
        Some(store) => prune::prune(&store, all),
        None => Ok(Removed::default()),
    }
}
