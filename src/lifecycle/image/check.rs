//! `image check`: is the store whole, and can what is not be made anew?

use super::Setting;
use crate::error::Result;
use crate::image::store::check::{self, Findings};

/// `image check`.
///
/// # Errors
/// The store itself cannot be read.
pub fn check(setting: &Setting, repair: bool) -> Result<Findings> {
    rustix::process::umask(rustix::fs::Mode::empty());
    let Some(store) = super::existing(setting)? else { return Ok(Findings::default()) };
    let options = super::options(None, None, None);
    check::check(&store, repair.then_some(&options))
}
