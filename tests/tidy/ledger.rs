//! The ledger of attacks in `SECURITY.md`: that each test it names is in the sources, and that each trial of an attack has its
//! place there.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::rows::{scenarios, unit_tests};
use super::source::{Source, tree};

/// The ledger's file.
const LEDGER: &str = "SECURITY.md";

/// What a text names as `a::b` between backticks: tests, and nothing else is written so there.
fn named(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|word| word.contains("::") && !word.contains(char::is_whitespace)).map(str::to_owned).collect()
}

#[test]
fn the_ledger_names_tests_that_are_there_and_leaves_no_attack_out() -> io::Result<()> {
    let tree = tree(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    let ledger = tree.iter().find(|source| source.file == LEDGER).ok_or_else(|| io::Error::other("no ledger"))?;
    let known: BTreeSet<String> =
        tree.iter().flat_map(|source| [scenarios(source), unit_tests(source)].concat()).collect();
    let named = named(&ledger.text);
    let missing: Vec<_> = named.difference(&known).collect();
    assert!(missing.is_empty(), "no such tests:\n{missing:#?}");
    let unlisted: Vec<_> =
        known.iter().filter(|name| name.starts_with("attacks::") && !named.contains(*name)).collect();
    assert!(unlisted.is_empty(), "attacks without a row in {LEDGER}:\n{unlisted:#?}");
    Ok(())
}

#[test]
fn finds_what_is_named() {
    let text = "| an attack | `attacks::one`, and `path::tests::two` of `src/path.rs`; `cgroup: x::y` is none |";
    assert_eq!(named(text), BTreeSet::from(["attacks::one".to_owned(), "path::tests::two".to_owned()]));
    assert_eq!(named(&Source::new("a", "a::b").text), BTreeSet::new());
}
