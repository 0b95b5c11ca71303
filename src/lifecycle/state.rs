//! `state`: what a container is doing now.

use super::Setting;
use crate::container::store::Entry;
use crate::container::{Id, State, Store, status};
use crate::error::{Error, Result};
use crate::passwd;

/// `state`.
///
/// # Errors
/// There is no such container, or its record cannot be read.
pub fn state(setting: &Setting, id: &str) -> Result<State> {
    let id = Id::new(id)?;
    let entry = Store::new(&setting.root).open(&id)?;
    of(&entry)?.ok_or_else(|| Error::plain(format!("container {id} is not created yet")))
}

/// The state of a container; `None` while it has no record.
pub(super) fn of(entry: &Entry) -> Result<Option<State>> {
    let Some(record) = entry.record()? else { return Ok(None) };
    let status = status::of(entry, &record)?;
    let annotations = entry.config().map(|config| config.annotations).unwrap_or_default();
    Ok(Some(State::new(&record, status, annotations, user_name(record.owner))))
}

/// A name for a person; the number where nobody has it.
fn user_name(uid: u32) -> String {
    passwd::find(uid).map_or_else(|| format!("#{uid}"), |user| user.name)
}
