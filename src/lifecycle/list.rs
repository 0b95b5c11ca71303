//! `list`: the state of every container under the root.

use super::{Setting, state};
use crate::container::{State, Store};
use crate::error::Result;

/// `list`. A container that is deleted meanwhile, or whose record is broken, is left out with a line in the log.
///
/// # Errors
/// The root cannot be read.
pub fn list(setting: &Setting) -> Result<Vec<State>> {
    let store = Store::new(&setting.root);
    let mut states = Vec::new();
    for id in store.ids()? {
        match store.open(&id).and_then(|entry| state::of(&entry)) {
            Ok(state) => states.extend(state),
            // Deleted since the names were read.
            Err(_) if !store.has(&id) => (),
            Err(error) => setting.log.warning(error),
        }
    }
    Ok(states)
}
