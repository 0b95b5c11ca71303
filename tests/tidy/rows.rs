//! The tables in `runtime-spec/`: that each row is well formed, that every test it names is in the sources, and how many rows have
//! one. That a test asserts what its row says is for people to see; `runtime-spec/README.md` asks it of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

use super::source::{Source, tree, words};

/// The documents of the specification that concern ferry: a table for each.
const DOCUMENTS: [&str; 7] =
    ["bundle", "config", "config-linux", "features", "features-linux", "runtime", "runtime-linux"];

const KINDS: [&str; 6] = ["MUST", "MUST-NOT", "REQUIRED", "SHOULD", "SHOULD-NOT", "MAY"];

const HEADING: &str = "id\tkind\tsection\trule\ttests";

/// One rule, and the names of the tests that show it.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    id: String,
    kind: &'static str,
    tests: Vec<String>,
}

/// The rows of a document's table, or what is wrong with it, by line.
fn rows(document: &str, text: &str) -> Result<Vec<Row>, String> {
    let mut lines = text.lines().enumerate();
    if lines.next().map(|(_, line)| line) != Some(HEADING) {
        return Err(format!("{document}.tsv:1: the heading is not {HEADING:?}"));
    }
    lines.map(|(at, line)| row(document, line).map_err(|why| format!("{document}.tsv:{}: {why}", at + 1))).collect()
}

fn row(document: &str, line: &str) -> Result<Row, String> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [id, kind, section, rule, tests] = fields[..] else { return Err(format!("{} fields, not 5", fields.len())) };
    if id.strip_prefix(document).and_then(|rest| rest.strip_prefix('/')).is_none_or(str::is_empty) {
        return Err(format!("the id {id:?} does not begin with {document}/"));
    }
    let Some(kind) = KINDS.into_iter().find(|known| *known == kind) else { return Err(format!("no kind {kind:?}")) };
    if [section, rule, tests].iter().any(|field| field.is_empty() || field.trim() != *field) {
        return Err("a field is empty, or begins or ends with a space".into());
    }
    let tests = if tests == "-" { Vec::new() } else { tests.split(' ').map(str::to_owned).collect() };
    Ok(Row { id: id.to_owned(), kind, tests })
}

/// The scenarios of a file in `tests/suite`, as `noun::name`: the first argument of each `scenario(`. Files of a folder share
/// its noun.
pub fn scenarios(source: &Source) -> Vec<String> {
    let Some(noun) = source.file.strip_prefix("tests/suite/").and_then(|file| file.strip_suffix(".rs")) else {
        return Vec::new();
    };
    let noun = noun.split('/').next().unwrap_or(noun);
    let calls = words(&source.code, "scenario").filter_map(|at| source.text[at..].strip_prefix("scenario("));
    let names = calls.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    names.map(|name| format!("{noun}::{name}")).collect()
}

/// The unit tests of a file of `src`, by their path without the crate.
pub fn unit_tests(source: &Source) -> Vec<String> {
    if !source.in_src() {
        return Vec::new();
    }
    let attributes = source.code.match_indices("#[test]").map(|(at, _)| at);
    attributes
        .filter_map(|at| {
            let rest = &source.code[at..];
            let name = &rest[rest.find("fn ")? + "fn ".len()..];
            Some(format!("{}::{}", module(source, at), name.split('(').next()?))
        })
        .collect()
}

/// The module that the byte `at` of a file is in. `a_tests.rs` is the `tests` of `a.rs`, beside it.
fn module(source: &Source, at: usize) -> String {
    let path = source.file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    let path = path.strip_suffix("_tests").map_or_else(|| path.to_owned(), |of| format!("{of}/tests"));
    let inline = if words(&source.code[..at], "mod tests {").next().is_some() { "::tests" } else { "" };
    path.replace('/', "::") + inline
}

/// `MUST 3 of 5` for each kind there is: rows with a test, and all.
fn summary(rows: &[Row]) -> String {
    let mut counts = BTreeMap::new();
    for row in rows {
        let (with, all) = counts.entry(KINDS.iter().position(|kind| *kind == row.kind)).or_insert((0, 0));
        (*with, *all) = (*with + usize::from(!row.tests.is_empty()), *all + 1);
    }
    let told = counts.iter().filter_map(|(kind, (with, all))| Some(format!("{} {with} of {all}", KINDS[(*kind)?])));
    told.collect::<Vec<_>>().join(", ")
}

fn document(tree: &[Source], name: &str) -> Result<Vec<Row>, String> {
    let file = format!("runtime-spec/{name}.tsv");
    let table = tree.iter().find(|source| source.file == file).ok_or_else(|| format!("there is no {file}"))?;
    rows(name, &table.text)
}

#[test]
fn every_row_names_tests_that_are_there() -> io::Result<()> {
    let tree = tree(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    let rows: Result<Vec<Vec<Row>>, String> = DOCUMENTS.iter().map(|name| document(&tree, name)).collect();
    let rows: Vec<Row> = rows.map_err(io::Error::other)?.into_iter().flatten().collect();
    let known: BTreeSet<String> =
        tree.iter().flat_map(|source| [scenarios(source), unit_tests(source)].concat()).collect();
    let mut seen = BTreeSet::new();
    let twice: Vec<&str> = rows.iter().map(|row| row.id.as_str()).filter(|id| !seen.insert(*id)).collect();
    assert!(twice.is_empty(), "these ids are there twice: {twice:?}");
    let named = rows.iter().flat_map(|row| row.tests.iter().map(move |test| (&row.id, test)));
    let missing: Vec<_> = named.filter(|(_, test)| !known.contains(*test)).collect();
    assert!(missing.is_empty(), "no such tests:\n{missing:#?}");
    // Not print!, which is only shown for a test that fails.
    writeln!(io::stdout().lock(), "rows of runtime-spec/ with a test: {}", summary(&rows))
}

/// A table that nobody reads would be one that nobody checks.
#[test]
fn every_table_is_a_document_of_the_specification() -> io::Result<()> {
    let tree = tree(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    let tables = tree.iter().filter_map(|source| source.file.strip_prefix("runtime-spec/")?.strip_suffix(".tsv"));
    assert_eq!(tables.collect::<BTreeSet<_>>(), BTreeSet::from(DOCUMENTS));
    Ok(())
}

#[test]
fn finds_rows_that_are_malformed() {
    let fault = |line: &str| rows("config", &format!("{HEADING}\nconfig/a\tMUST\tA\trule\t-\n{line}")).unwrap_err();
    assert_eq!(fault("config/b\tMUST\tB\trule"), "config.tsv:3: 4 fields, not 5");
    assert!(fault("runtime/b\tMUST\tB\trule\t-").contains("does not begin with config/"));
    assert!(fault("config/b\tOUGHT\tB\trule\t-").contains("no kind \"OUGHT\""));
    assert!(fault("config/b\tMUST\tB\t\t-").contains("is empty"));
    assert!(fault("config/b\tMUST\tB\trule\ta::b ").contains("ends with a space"));
    assert!(rows("config", "config/a\tMUST\tA\trule\t-").unwrap_err().contains("heading"));
}

#[test]
fn finds_tests_by_name_and_not_in_comments() {
    let suite =
        "scenario(\"one\", &[], f),\nscenario(\n  \"two\", g),\n// scenario(\"three\")\npub const fn scenario(name: x)";
    assert_eq!(scenarios(&Source::new("tests/suite/mounts.rs", suite)), ["mounts::one", "mounts::two"]);
    assert_eq!(scenarios(&Source::new("tests/suite/attacks/races.rs", "scenario(\"one\", f)")), ["attacks::one"]);
    let unit = "#[test]\nfn early() {}\nmod tests {\n// #[test]\n#[test]\nfn late() -> io::Result<()> {}\n}";
    let names = |file| unit_tests(&Source::new(file, unit));
    assert_eq!(names("src/spec/mod.rs"), ["spec::early", "spec::tests::late"]);
    assert_eq!(names("src/cgroup/fs_tests.rs")[0], "cgroup::fs::tests::early");
    assert_eq!(names("tests/tidy.rs"), [""; 0]);
}

#[test]
fn counts_rows_by_kind() {
    let row =
        |kind, tests: &[&str]| Row { id: String::new(), kind, tests: tests.iter().map(|t| (*t).into()).collect() };
    assert_eq!(summary(&[row("MAY", &[]), row("MUST", &["a"]), row("MUST", &[])]), "MUST 1 of 2, MAY 0 of 1");
}
