//! A verb for every container whose id a regular expression is found in: `delete --regex`, `kill --regex`.

use regex_lite::Regex;

use super::Setting;
use crate::container::Store;
use crate::error::{Error, Result};

/// Does `deed` to every container that `pattern` is found in, in the order of their ids; one that fails keeps none of the
/// others from it. No container at all is no failure.
///
/// # Errors
/// No regular expression; the root cannot be read; what `deed` answered, for each container that it failed for.
pub fn each(setting: &Setting, pattern: &str, deed: impl Fn(&str) -> Result<()>) -> Result<()> {
    let meant =
        Regex::new(pattern).map_err(|why| Error::plain(format!("invalid regular expression {pattern:?}: {why}")))?;
    let ids = Store::new(&setting.root).ids()?;
    let failed = |id: &str| deed(id).err();
    let mut errors: Vec<Error> =
        ids.iter().map(|id| id.as_str()).filter(|id| meant.is_match(id)).filter_map(failed).collect();
    match errors.len() {
        0 | 1 => errors.pop().map_or(Ok(()), Err),
        _ => Err(Error::plain(errors.iter().map(Error::to_string).collect::<Vec<_>>().join("; "))),
    }
}
