//! A container's name: what a directory, a cgroup and a unit can be called without quoting.

use std::fmt;

use serde::Serialize;

use crate::error::{Error, Result};

/// The longest name: what a directory's name may be, less the suffixes that a unit's name gets.
const LONGEST: usize = 200;

/// A checked id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Id(String);

impl Id {
    /// Checks an id: letters, digits, `_`, `+`, `-` and `.`, but not `.` or `..`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(id: &str) -> Result<Self> {
        let refuse = |why: &str| Err(Error::plain(format!("invalid container id {:?}: {why}", shortened(id))));
        if id.is_empty() {
            return refuse("it is empty");
        }
        if id.len() > LONGEST {
            return refuse(&format!("it is longer than {LONGEST} characters"));
        }
        if id == "." || id == ".." || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte)) {
            return refuse("it may hold letters, digits, '_', '+', '-' and '.'");
        }
        Ok(Self(id.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn shortened(id: &str) -> String {
    id.chars().take(64).collect()
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_may_be() {
        for good in ["a", "A-1_b+c.d", "...", &"x".repeat(200)] {
            assert!(Id::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a\0", "a b", "ä", &"x".repeat(1024)] {
            assert!(Id::new(bad).is_err(), "{bad}");
        }
    }
}
