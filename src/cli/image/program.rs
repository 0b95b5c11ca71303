//! The command line of `ferry-image`: that of `ferry`, of which it carries out the verbs on images and bundles, those that carry
//! containers to other machines, and checkpoint and restore where they are about an archive.

use std::ffi::OsString;

use clap::ArgMatches;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{check, commit, diff, export, history, import, inspect, list, mount, prune, pull, remove, tag};
use crate::cli::bundle;
use crate::cli::globals::{self, Asked, Globals};
use crate::cli::verb::Verb;
use crate::cli::{
    FAMILIES, VERBS, archive, argv, checkpoint, migrate, output, parse, receive, restore, snapshot, usage,
};
use crate::error::{Error, Result};
use crate::log::Log;

/// Carries a verb out.
type Deed = fn(&Globals, &ArgMatches) -> Result<u8>;

/// What each verb does.
const DEEDS: &[(&str, Deed)] = &[
    (import::VERB.name, import::run),
    (pull::VERB.name, pull::run),
    (list::VERB.name, list::run),
    (inspect::VERB.name, inspect::run),
    (history::VERB.name, history::run),
    (tag::VERB.name, tag::run),
    (remove::VERB.name, remove::run),
    (export::VERB.name, export::run),
    (diff::VERB.name, diff::run),
    (commit::VERB.name, commit::run),
    (mount::VERB.name, mount::run),
    (mount::UNMOUNT.name, mount::unmount),
    (prune::VERB.name, prune::run),
    (check::VERB.name, check::run),
    (bundle::CREATE.name, bundle::create),
    (snapshot::CLONE.name, snapshot::clone),
    (checkpoint::VERB.name, archive::checkpoint),
    (restore::VERB.name, archive::restore),
    (migrate::VERB.name, migrate::run),
    (receive::VERB.name, receive::run),
];

/// As [`crate::cli::run`].
///
/// # Errors
/// The command line is not understood, or is none of this program; the verb failed.
pub fn run(mut words: impl Iterator<Item = OsString>, log: &mut Log) -> Result<u8> {
    let (globals, asked) = globals::read(&mut words, log)?;
    let other = || {
        Error::plain("ferry-image carries out what is about images, archives and other machines, and nothing else")
            .hint("call ferry")
    };
    let Asked::Verb(name) = asked else { return Err(other()) };
    let verb = match FAMILIES.iter().find(|family| name == family.name) {
        Some(family) => family.find(&words.next().ok_or_else(other)?)?,
        None => VERBS.iter().find(|verb| name == verb.name && carries_out(verb)).ok_or_else(other)?,
    };
    let Some(words) = argv::normalise(verb, words).map_err(|error| usage(error, Some(verb)))? else {
        return output::print(&verb.help()).map(|()| 0);
    };
    let matches = parse(verb, words)?;
    let deed = DEEDS.iter().find(|(name, _)| *name == verb.name).map(|(_, deed)| deed).ok_or_else(other)?;
    // A container that another verb starts would inherit it.
    if FAMILIES.iter().any(|family| name == family.name) {
        raise_descriptors();
    }
    deed(&globals, &matches)
}

fn carries_out(verb: &Verb) -> bool {
    DEEDS.iter().any(|(name, _)| *name == verb.name)
}

/// An image has up to 500 layers, which are held open, and a directory may be in all of them. What the host does not allow stays
/// forbidden: few images need it.
fn raise_descriptors() {
    const ENOUGH: u64 = 1 << 16;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(ENOUGH)), hard).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::image::delegate;

    #[test]
    fn every_verb_has_a_deed() {
        let delegated = |verb: &&Verb| std::ptr::fn_addr_eq(verb.run, delegate::run as Deed);
        let families = FAMILIES.iter().flat_map(|family| family.verbs).filter(delegated);
        // Some of the others are carried out here only with some flags.
        let all = families.chain(VERBS.iter().filter(|verb| carries_out(verb)));
        let verbs: Vec<&str> = all.map(|verb| verb.name).collect();
        let deeds: Vec<&str> = DEEDS.iter().map(|(name, _)| *name).collect();
        assert_eq!(verbs, deeds);
    }

    #[test]
    fn verbs_of_ferry_are_not_its_own() {
        for line in [&["list"][..], &[], &["--version"], &["image"]] {
            let error = run(line.iter().map(OsString::from), &mut Log::default()).unwrap_err().to_string();
            assert!(error.starts_with("ferry-image carries out"), "{error}");
        }
    }
}
