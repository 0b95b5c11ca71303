//! The table `tests/flags.tsv`: for every flag of every verb the tests that use it. That a test asserts what the flag does is
//! for people to see; here it is held that the table has every flag, that the tests are there, and that they give the flag.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use ferry::cli::globals;
use ferry::cli::verb::Flag;

use super::source::{Source, tree, words};

const TABLE: &str = "tests/flags.tsv";
const HEADING: &str = "verb\tflag\ttests";

/// The name under which the flags before the verb stand.
const GLOBAL: &str = "ferry";

/// One row.
#[derive(Debug, PartialEq, Eq)]
struct Row<'a> {
    verb: &'a str,
    flag: &'a str,
    tests: Vec<&'a str>,
}

fn rows<'a>(text: &'a str) -> Result<Vec<Row<'a>>, String> {
    let mut lines = text.lines().enumerate();
    if lines.next().map(|(_, line)| line) != Some(HEADING) {
        return Err(format!("{TABLE}:1: the heading is not {HEADING:?}"));
    }
    let row = |(at, line): (usize, &'a str)| {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            [verb, flag, tests] if !tests.is_empty() => Ok(Row { verb, flag, tests: tests.split(' ').collect() }),
            _ => Err(format!("{TABLE}:{}: it has not three fields", at + 1)),
        }
    };
    lines.map(row).collect()
}

/// Every flag there is, with its verb.
fn known() -> Vec<(&'static str, &'static Flag)> {
    let verbs = ferry::cli::rows().flat_map(|verb| verb.flags.iter().map(|flag| (verb.name, flag)));
    globals::FLAGS.iter().map(|flag| (GLOBAL, flag)).chain(verbs).collect()
}

/// Whether a test's file gives the flag on a command line.
fn gives(text: &str, flag: &Flag) -> bool {
    let long = format!("-{}", flag.long);
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
    let spelled = text
        .match_indices(&long)
        .any(|(at, _)| ends(&text[at + long.len()..]) && (text[..at].ends_with('"') || text[..at].ends_with("\"-")));
    spelled || flag.short.is_some_and(|short| text.contains(&format!("\"-{short}\"")))
}

/// The tests of a file, as the table names them.
fn tests_of(source: &Source) -> Vec<String> {
    let Some(name) = source.file.strip_prefix("tests/cli/").and_then(|file| file.strip_suffix(".rs")) else {
        return scenarios(source);
    };
    let after = source.code.split("#[test]").skip(1);
    after.filter_map(|rest| Some(format!("{name}::{}", rest.split("fn ").nth(1)?.split('(').next()?))).collect()
}

/// The scenarios of a file in `tests/suite`, as `noun::name`.
fn scenarios(source: &Source) -> Vec<String> {
    let Some(path) = source.file.strip_prefix("tests/suite/") else { return Vec::new() };
    let noun = path.split(['/', '.']).next().unwrap_or_default();
    let calls = words(&source.code, "scenario").filter_map(|at| source.text[at..].strip_prefix("scenario("));
    let names = calls.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    names.map(|name| format!("{noun}::{name}")).collect()
}

/// What is wrong with the table.
fn findings(table: &str, sources: &[Source]) -> Result<Vec<String>, String> {
    let rows = rows(table)?;
    let known = known();
    let mut found = Vec::new();
    for (verb, flag) in &known {
        if !rows.iter().any(|row| (row.verb, row.flag) == (verb, flag.long)) {
            found.push(format!("{verb} --{}: no test is named for it", flag.long));
        }
    }
    for Row { verb, flag, tests } in &rows {
        let Some((_, known)) = known.iter().find(|(name, known)| (*name, known.long) == (*verb, *flag)) else {
            found.push(format!("{verb} --{flag}: there is no such flag"));
            continue;
        };
        for test in tests {
            match sources.iter().find(|source| tests_of(source).iter().any(|name| name == test)) {
                None => found.push(format!("{verb} --{flag}: there is no test {test}")),
                Some(source) if !gives(&source.text, known) => {
                    found.push(format!("{verb} --{flag}: {} does not give it", source.file));
                }
                Some(_) => (),
            }
        }
    }
    Ok(found)
}

#[test]
fn every_flag_has_a_test_that_gives_it() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources: Vec<Source> = tree(root)?.into_iter().filter(|source| source.file.starts_with("tests/")).collect();
    let table = std::fs::read_to_string(root.join(TABLE))?;
    let found = findings(&table, &sources).map_err(io::Error::other)?;
    assert!(found.is_empty(), "{TABLE}:\n{}", found.join("\n"));
    Ok(())
}

#[test]
fn finds_flags_without_a_test_and_tests_that_are_not_there() {
    let suite = "scenario(\"of_force\", &[], f), fn f() { [\"delete\", \"--force\"] }";
    let sources = [Source::new("tests/suite/life.rs", suite)];
    let table = format!(
        "{HEADING}\ndelete\tforce\tlife::of_force life::gone\ndelete\tregex\tlife::of_force\nfly\tup\tlife::of_force"
    );
    let found: BTreeSet<String> = findings(&table, &sources).unwrap_or_default().into_iter().collect();
    for said in [
        "delete --force: there is no test life::gone",
        "delete --regex: tests/suite/life.rs does not give it",
        "fly --up: there is no such flag",
        "kill --all: no test is named for it",
    ] {
        assert!(found.contains(said), "{said}: {found:?}");
    }
    assert!(!found.contains("delete --force: no test is named for it"));
}
