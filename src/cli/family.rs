//! Verbs of one noun: `ferry image import`, `ferry image list`. A row of [`super::FAMILIES`] holds the rows of its verbs, which
//! are verbs like all others but for their two words.

use std::ffi::OsStr;

use clap::Command;

use super::verb::Verb;
use super::{suggest, verb};
use crate::error::{Error, Result};

/// A noun and its verbs.
pub struct Family {
    /// The first word on the command line.
    pub name: &'static str,
    /// One line, without a full stop.
    pub about: &'static str,
    /// As in a verb.
    pub details: &'static [(&'static str, &'static str)],
    /// Its verbs; each has both words as its name.
    pub verbs: &'static [Verb],
}

impl Family {
    /// The row of a verb by its second word.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, word: &OsStr) -> Result<&'static Verb> {
        let second = |verb: &'static Verb| verb.name.split(' ').next_back().unwrap_or(verb.name);
        if let Some(verb) = self.verbs.iter().find(|verb| word == second(verb)) {
            return Ok(verb);
        }
        let word = word.to_string_lossy();
        let unknown = Error::plain(format!("unknown command {:?}", format!("{} {word}", self.name)));
        Err(match suggest::nearest(&word, self.verbs.iter().map(second)) {
            Some(near) => unknown.hint(format!("did you mean `ferry {} {near}`?", self.name)),
            None => unknown.hint(format!("`ferry help {}` lists its commands", self.name)),
        })
    }

    /// What shows the list of its verbs.
    pub fn manual(&self) -> Command {
        let usage = format!("ferry {} COMMAND [FLAG...] [ARG...]", self.name);
        let command = Command::new(self.name).about(self.about).override_usage(usage).disable_help_subcommand(true);
        let second = |verb: &'static Verb| verb.name.split(' ').next_back().unwrap_or(verb.name);
        self.verbs.iter().map(|verb| Command::new(second(verb)).about(verb.about)).fold(command, Command::subcommand)
    }

    /// The text of `ferry FAMILY --help`.
    pub fn help(&self) -> String {
        verb::with_details(self.manual().render_help().to_string(), self.details)
    }
}
