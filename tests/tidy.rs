//! The house rules, held by a test: what `src/lib.rs` says of ranks, where `unsafe` may stand, how long a file may grow, and words
//! that do not belong in the tree. Each rule is a function from a file's text to findings, so that it can be shown to fail.

use std::fmt;
use std::io;
use std::path::Path;

#[path = "tidy/ledger.rs"]
mod ledger;
#[path = "tidy/rows.rs"]
mod rows;
#[path = "tidy/source.rs"]
mod source;

use source::{Source, is_word, line_of, tree, words};

/// The modules of each rank, lowest first, as in `src/lib.rs`.
const RANKS: &[&[&str]] = &[
    &["sys"],
    &["error", "log", "passwd", "path", "procfs", "host"],
    &["spec"],
    &["namespaces", "rootfs", "security", "process", "cgroup", "network", "image"],
    &["container"],
    &["launch"],
    &["checkpoint", "migrate"],
    &["lifecycle"],
    &["cli", "shim"],
];

/// Imports between modules of one rank: who, from whom, and why. The second stands before the first in its row of [`RANKS`], so
/// that there can be no cycle.
const SIDEWAYS: &[(&str, &str, &str)] = &[
    ("log", "error", "an error is what a log line carries"),
    ("host", "error", "everything that can fail says so with it"),
    ("path", "error", "everything that can fail says so with it"),
    ("host", "procfs", "who we are stands in the id map of a process"),
    ("procfs", "error", "everything that can fail says so with it"),
    ("process", "namespaces", "which kernel parameters a container may set depends on the namespaces it has"),
    ("process", "security", "capabilities are part of who a process runs as"),
    ("rootfs", "namespaces", "what may be mounted depends on the namespaces it is mounted in"),
    ("migrate", "checkpoint", "what becomes of a container that was dumped for it"),
    ("image", "security", "who takes a layer apart confines itself first"),
    ("image", "rootfs", "the EROFS images of layers are mounted in the store"),
];

/// Files that may be longer than [`LONGEST`], and why.
const LONG: &[(&str, &str)] =
    &[("src/security/seccomp/syscalls.rs", "a table of system call numbers, and nothing else")];

/// The most lines a source file may have before its unit tests.
const LONGEST: usize = 500;

/// Names under which anything could be put.
const VAGUE: &[&str] = &["utils", "util", "helpers", "helper", "common", "types", "misc"];

/// Words that name one machine or one registry, and marks of unfinished work. Written in halves, since this file is searched too.
const BANNED: &[(&str, &str)] = &[
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/tmp/", "wt"), "a path of one machine"),
    (concat!("deb.deb", "ian.org"), "a registry's host: take it from the machine's configuration"),
    (concat!("snapshot.deb", "ian.org"), "a registry's host: take it from the machine's configuration"),
    (concat!("index.crates", ".io"), "a registry's host: take it from the machine's configuration"),
    (concat!("static.crates", ".io"), "a registry's host: take it from the machine's configuration"),
    (concat!("py", "pi.org"), "a registry's host: take it from the machine's configuration"),
    (concat!("registry.npm", "js.org"), "a registry's host: take it from the machine's configuration"),
    (concat!("TO", "DO"), "unfinished work"),
    (concat!("FIX", "ME"), "unfinished work"),
    (concat!("XX", "X"), "unfinished work"),
];

/// A rule that is broken, and where. Lines count from 1.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

impl Source {
    fn at(&self, line: usize, rule: impl Into<String>) -> Finding {
        Finding { file: self.file.clone(), line, rule: rule.into() }
    }
}

fn unsafe_outside_sys(source: &Source) -> Vec<Finding> {
    let held = source.file.starts_with("src/") || source.file.starts_with("tests/");
    if !held || source.file.starts_with("src/sys/") {
        return Vec::new();
    }
    let found = words(&source.code, "unsafe").map(|at| line_of(&source.code, at));
    found.map(|line| source.at(line, "`unsafe` stands in src/sys only")).collect()
}

fn rank(module: &str) -> Option<usize> {
    RANKS.iter().position(|row| row.contains(&module))
}

/// What is wrong with `from` importing `to`, if anything.
fn forbidden(from: &str, to: &str) -> Option<String> {
    let (low, high) = (rank(to)?, rank(from)?);
    if from == to || low < high || SIDEWAYS.iter().any(|(a, b, _)| (*a, *b) == (from, to)) {
        return None;
    }
    let direction = if low > high { "upwards" } else { "sideways, which no row of SIDEWAYS in tests/tidy.rs allows" };
    Some(format!("`{from}` (rank {high}) imports `{to}` (rank {low}): {direction}"))
}

fn imports_upwards(source: &Source) -> Vec<Finding> {
    let Some(module) = source.file.strip_prefix("src/").and_then(|path| path.split(['/', '.']).next()) else {
        return Vec::new();
    };
    if ["lib", "main", "image_main", "shim_main"].contains(&module) {
        return Vec::new();
    }
    let Some(_) = rank(module) else {
        return vec![source.at(1, format!("`{module}` has no rank: give it one in src/lib.rs and tests/tidy.rs"))];
    };
    let found = imports(source).into_iter();
    found.filter_map(|(at, to)| Some(source.at(line_of(&source.code, at), forbidden(module, &to)?))).collect()
}

/// The modules at the root that a file names, through `crate::` or through as many `super::` as lead there: offset and name.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in words(&source.code, "crate::") {
        let names = first_names(&source.code[at + "crate::".len()..]);
        found.extend(names.into_iter().map(|name| (at, name)));
    }
    for at in words(&source.code, "super::") {
        let before = &source.code[..at];
        let path = source.code[at..].trim_start_matches("super::");
        let supers = (source.code.len() - at - path.len()) / "super::".len();
        if !before.ends_with("super::") && supers == depth(&source.file) + inline_modules(before) {
            found.extend(first_names(path).into_iter().map(|name| (at, name)));
        }
    }
    found
}

/// The first name of each path in `a::b`, or in `{a::b, c::{d, e}}`.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| text.trim_start().chars().take_while(|c| is_word(*c)).collect::<String>();
    let Some(group) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let (mut depth, mut names) = (0_usize, vec![name(group)]);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(name(&group[at + 1..])),
            _ => {}
        }
    }
    names
}

/// How deep below the root the module of a file is: 1 for `src/a.rs` and `src/a/mod.rs`.
fn depth(file: &str) -> usize {
    file.matches('/').count() - usize::from(file.ends_with("/mod.rs"))
}

/// How many `mod name { … }` are open at the end of `code`.
fn inline_modules(code: &str) -> usize {
    let (mut open, mut head) = (Vec::new(), 0);
    for (at, c) in code.char_indices() {
        match c {
            '{' => open.push(words(&code[head..at], "mod").next().is_some()),
            '}' => drop(open.pop()),
            ';' => {}
            _ => continue,
        }
        head = at + 1;
    }
    open.into_iter().filter(|is_module| *is_module).count()
}

fn too_long(source: &Source) -> Vec<Finding> {
    let lines = source.text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
    let exempt = LONG.iter().any(|(file, _)| *file == source.file);
    if !source.in_src() || exempt || lines <= LONGEST {
        return Vec::new();
    }
    vec![source.at(lines, format!("{lines} lines before its tests, {LONGEST} are the most: is it one idea?"))]
}

fn unexplained(source: &Source) -> Vec<Finding> {
    let explained = source.text.trim_start().starts_with("//!");
    if !source.file.ends_with(".rs") || explained {
        return Vec::new();
    }
    vec![source.at(1, "begins without a `//!` that says what it is for")]
}

fn banned(source: &Source) -> Vec<Finding> {
    // The lock file names where every crate comes from; that is its use.
    if source.file == "Cargo.lock" {
        return Vec::new();
    }
    let found = BANNED.iter().flat_map(|(word, why)| words(&source.text, word).map(move |at| (at, word, why)));
    found.map(|(at, word, why)| source.at(line_of(&source.text, at), format!("`{word}`: {why}"))).collect()
}

fn stubs(source: &Source) -> Vec<Finding> {
    let stubs = ["todo!", "unimplemented!"].into_iter();
    let found = stubs.flat_map(|stub| words(&source.code, stub).map(move |at| (at, stub)));
    found.map(|(at, stub)| source.at(line_of(&source.code, at), format!("`{stub}`: unfinished work"))).collect()
}

fn sleeps(source: &Source) -> Vec<Finding> {
    if !source.in_src() {
        return Vec::new();
    }
    let found = source.code.match_indices("sleep(").map(|(at, _)| line_of(&source.code, at));
    found.map(|line| source.at(line, "sleeps: wait on the event itself")).collect()
}

fn vague_name(source: &Source) -> Vec<Finding> {
    let parts = source.file.split('/').map(|part| part.split('.').next().unwrap_or(part));
    let vague = parts.filter(|part| VAGUE.contains(part));
    vague.map(|part| source.at(1, format!("`{part}` says nothing of what is in there"))).collect()
}

/// Verbs are the files of `src/cli` with a `VERB` in them. Each has a page, and a line of help that its `about` gives.
fn verb_without_page(source: &Source, tree: &[Source]) -> Vec<Finding> {
    let Some(verb) = source.file.strip_prefix("src/cli/").and_then(|file| file.strip_suffix(".rs")) else {
        return Vec::new();
    };
    let Some(at) = source.code.find("pub const VERB: Verb") else {
        return Vec::new();
    };
    let (page, line) = (format!("man/ferry-{}.1", verb.replace(['_', '/'], "-")), line_of(&source.code, at));
    let mut found = Vec::new();
    if !tree.iter().any(|other| other.file == page) {
        found.push(source.at(line, format!("verb `{verb}` has no page {page}")));
    }
    let about = words(&source.text[at..], "about").next().map(|word| &source.text[at + word + "about".len()..]);
    let help = about.and_then(|text| text.trim_start_matches([':', '(', ' ', '\n']).strip_prefix('"'));
    if help.is_none_or(|help| help.starts_with('"')) {
        found.push(source.at(line, format!("verb `{verb}` has no help: give its VERB an `about`")));
    }
    found
}

fn check(source: &Source, tree: &[Source]) -> Vec<Finding> {
    let rules =
        [unsafe_outside_sys, imports_upwards, too_long, unexplained, banned, stubs, sleeps, vague_name].into_iter();
    rules.flat_map(|rule| rule(source)).chain(verb_without_page(source, tree)).collect()
}

#[test]
fn the_tree_keeps_the_rules() -> io::Result<()> {
    let tree = tree(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    assert!(tree.iter().any(|source| source.file == "src/lib.rs"), "the tree was not found");
    let mut found: Vec<_> = tree.iter().flat_map(|source| check(source, &tree)).map(|f| f.to_string()).collect();
    found.sort();
    assert!(found.is_empty(), "{} rules are broken:\n{}", found.len(), found.join("\n"));
    Ok(())
}

/// The table of ranks is the one that the map in `src/lib.rs` shows to people.
#[test]
fn ranks_are_those_of_the_map() {
    let map = include_str!("../src/lib.rs");
    for (rank, row) in RANKS.iter().enumerate() {
        let names: Vec<_> = row.iter().map(|name| format!("`{name}`")).collect();
        let line = format!("//! | {rank} | {} |", names.join(", "));
        assert!(map.contains(&line), "src/lib.rs has no row {line}");
    }
}

#[test]
fn sideways_imports_cannot_form_a_cycle() {
    for (from, to, _) in SIDEWAYS {
        let row = RANKS.iter().find(|row| row.contains(from)).expect("a module with a rank");
        let place = |name| row.iter().position(|module| *module == name);
        assert!(place(*to) < place(*from) && place(*to).is_some(), "{from} -> {to}");
    }
}

/// The lines that a rule finds in a file.
fn lines(rule: fn(&Source) -> Vec<Finding>, file: &str, text: &str) -> Vec<usize> {
    rule(&Source::new(file, text)).into_iter().map(|finding| finding.line).collect()
}

#[test]
fn finds_unsafe_in_code_only() {
    let text =
        "// unsafe\nlet a = \"unsafe\"; let b = r#\"un\"safe unsafe\"#;\nunsafe { x() }\n/* unsafe /* */ unsafe */\n";
    assert_eq!(lines(unsafe_outside_sys, "src/launch/parent.rs", text), [3]);
    assert_eq!(lines(unsafe_outside_sys, "src/sys/clone.rs", text), []);
    assert_eq!(lines(unsafe_outside_sys, "src/lib.rs", "#![deny(unsafe_code)]"), []);
    assert_eq!(lines(unsafe_outside_sys, "src/lib.rs", "let q = '\"'; unsafe {}\nfn f<'a>() {} unsafe {}"), [1, 2]);
    assert_eq!(lines(unsafe_outside_sys, "src/lib.rs", r"let q = '\''; unsafe {} let s = b'\\';"), [1]);
}

#[test]
fn finds_imports_that_point_upwards() {
    let upwards = "use crate::launch::plan::Plan;\n";
    assert_eq!(lines(imports_upwards, "src/cgroup/fs.rs", upwards), [1]);
    assert_eq!(lines(imports_upwards, "src/lifecycle/run.rs", upwards), []);
    assert_eq!(lines(imports_upwards, "src/launch/init.rs", upwards), []);
    assert_eq!(lines(imports_upwards, "src/spec/config.rs", "\nlet x = crate::cli::main();"), [2]);
    assert_eq!(lines(imports_upwards, "src/spec/config.rs", "// see crate::cli::main"), []);
    let grouped = "use crate::{error::{self, Error}, container::{id, status}};";
    assert_eq!(lines(imports_upwards, "src/spec/config.rs", grouped), [1]);
    assert_eq!(lines(imports_upwards, "src/lifecycle/run.rs", grouped), []);
}

#[test]
fn finds_imports_through_super() {
    assert_eq!(lines(imports_upwards, "src/cgroup/fs.rs", "use super::super::launch::plan;"), [1]);
    assert_eq!(lines(imports_upwards, "src/cgroup/mod.rs", "use super::{error::Error, launch};"), [1]);
    assert_eq!(lines(imports_upwards, "src/cgroup/fs.rs", "use super::launch;"), []);
    let tests = "fn f() { if x {} }\nmod tests { use super::super::launch; fn g() {} }";
    assert_eq!(lines(imports_upwards, "src/cgroup/fs.rs", tests), []);
    assert_eq!(lines(imports_upwards, "src/path.rs", tests), [2]);
}

#[test]
fn finds_imports_sideways_and_modules_without_a_rank() {
    assert_eq!(lines(imports_upwards, "src/rootfs/plan.rs", "use crate::cgroup::Location;"), [1]);
    assert_eq!(lines(imports_upwards, "src/error.rs", "use crate::path::Root;"), [1]);
    assert_eq!(lines(imports_upwards, "src/path.rs", "use crate::error::Error;"), []);
    assert_eq!(lines(imports_upwards, "src/weather.rs", ""), [1]);
}

#[test]
fn finds_files_that_are_too_long() {
    let (long, tested) = ("\n".repeat(501), format!("{}#[cfg(test)]\n{0}", "\n".repeat(500)));
    assert_eq!(lines(too_long, "src/error.rs", &long), [501]);
    assert_eq!(lines(too_long, "src/error.rs", &tested), []);
    assert_eq!(lines(too_long, LONG[0].0, &long), []);
}

#[test]
fn finds_files_without_a_word_on_what_they_are_for() {
    assert_eq!(lines(unexplained, "src/error.rs", "use std::fmt;\n//! Late."), [1]);
    assert_eq!(lines(unexplained, "src/error.rs", "\n//! What went wrong.\n"), []);
}

#[test]
fn finds_banned_words() {
    for (word, _) in BANNED {
        assert_eq!(lines(banned, "README.md", &format!("one\n# {word} two\n")), [2], "{word}");
        assert_eq!(lines(banned, "Cargo.lock", word), []);
    }
    for path in ["lower/upper", "{root}", "../x", "mnt"] {
        assert_eq!(lines(banned, "src/a.rs", &format!("{path}{}a", BANNED[0].0)), [], "{path}");
    }
    assert_eq!(lines(banned, "tests/run", &format!("mktemp ferry.{}", "X".repeat(6))), []);
}

#[test]
fn finds_stubs_and_sleeps() {
    assert_eq!(lines(stubs, "src/a.rs", "// todo!()\nfn f() { todo!() }\nfn g() { unimplemented!() }"), [2, 3]);
    let text = "thread::sleep(d);\n// sleep(1)\ntokio::time::sleep(d);\nlet name = \"nanosleep(2)\";";
    assert_eq!(lines(sleeps, "src/a.rs", text), [1, 3]);
    assert_eq!(lines(sleeps, "tests/a.rs", text), []);
}

#[test]
fn finds_names_that_say_nothing() {
    for file in ["src/utils.rs", "src/rootfs/helpers/mod.rs", "tests/common/mod.rs", "src/types.rs", "misc/notes.md"] {
        assert_eq!(lines(vague_name, file, ""), [1], "{file}");
    }
    assert_eq!(lines(vague_name, "src/rootfs/devices.rs", ""), []);
}

#[test]
fn finds_verbs_without_page_or_help() {
    let verb = "pub const VERB: Verb = Verb { name: \"run\", about: \"Create and start\" };";
    let silent = "pub const VERB: Verb = Verb { name: \"run\", about: \"\" };";
    let page = [Source::new("man/ferry-run.1", ".TH ferry-run 1")];
    let found = |text: &str, tree: &[Source]| verb_without_page(&Source::new("src/cli/run.rs", text), tree).len();
    assert_eq!((found(verb, &page), found(verb, &[]), found(silent, &page), found(silent, &[])), (0, 1, 1, 2));
    assert_eq!(found("pub const VERB: Verb = verb();", &page), 1);
    assert_eq!(found("fn print() {}", &[]), 0);
}
