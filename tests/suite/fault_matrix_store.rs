//! Every verb that changes the image store, with a fault at every system call it makes: killed there, or answered with an error.
//!
//! Each time `image check` finds the store whole afterwards, what was not done is said, and an image that is listed runs. A few dozen
//! places of each verb in the usual run, all of them in a long one, which also tells the counts.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::case::{Case, names_in};
use super::fault_counts::{Counts, is_the_languages, tell};
use super::fault_matrix::each;
use super::fault_points::{Fault, Point, find, inject};
use super::image::{self, image};
use super::need::Need::{Ferry, Root, Tool};
use super::scenario::{Outcome, Scenario, scenario};
use crate::image_fixtures::{self as fixtures, Layer};

/// This file's scenarios. An ordinary user maps subordinate ids through newuidmap, which has no rights of its own under strace.
pub const SCENARIOS: &[Scenario] = &[
    scenario("import_with_a_fault", &[Ferry, Tool("strace"), Root], |case| matrix(case, &IMPORT)),
    scenario("commit_with_a_fault", &[Ferry, Tool("strace"), Root], |case| matrix(case, &COMMIT)),
    scenario("prune_with_a_fault", &[Ferry, Tool("strace"), Root], |case| matrix(case, &PRUNE)),
];

/// One verb.
struct Verb {
    /// Its words behind `image`; ID, LAYOUT for what they are in the case.
    words: &'static [&'static str],
    /// Brings the store to where the verb is called.
    before: fn(&mut Case) -> Outcome,
}

const IMPORT: Verb = Verb { words: &["import", "--progress", "none", "LAYOUT"], before: emptied };
const COMMIT: Verb = Verb { words: &["commit", "ID", "test:new"], before: running };
const PRUNE: Verb = Verb { words: &["prune", "--all"], before: imported };

const OUT: &str = "out";

fn emptied(case: &mut Case) -> Outcome {
    let path = case.path("layout");
    if !PathBuf::from(&path).exists() {
        let layers = vec![image::base(case)?, Layer::new().file("cargo", 0o640, b"tea")?.finish()?];
        fixtures::layout(path.as_ref(), "test:latest", &layers, &json!({"Cmd": ["/probe"]}))?;
    }
    image(case, &["prune", "--all"]).map(drop)
}

fn imported(case: &mut Case) -> Outcome {
    emptied(case)?;
    let path = case.path("layout");
    image(case, &["import", &path])?.success().map(drop)
}

/// A container of the image, which has written something.
fn running(case: &mut Case) -> Outcome {
    let id = case.id.clone();
    if case.state_root().join(&id).exists() {
        return image(case, &["prune"]).map(drop);
    }
    imported(case)?;
    let store = case.path("store");
    case.begin(&["--store", &store, "run", "-d", "--image", "test", &id, "--", "/probe", "sleep", "forever"])?
        .until("ready")?;
    case.exec(&[], &["/probe", "write", "/written", "x"])?.success().map(drop)
}

fn matrix(case: &mut Case, verb: &Verb) -> Outcome {
    (verb.before)(case)?;
    let (layout, store, id) = (case.path("layout"), case.path("store"), case.id.clone());
    let place = |word: &&'static str| match *word {
        "LAYOUT" => &layout,
        "ID" => &id,
        word => word,
    };
    let words: Vec<&str> = ["--store", &store, "image"].into_iter().chain(verb.words.iter().map(place)).collect();
    let places = find(case, &words, "", OUT)?;
    let is_a_wake = |point: &Point| point.call.0 == "futex";
    // No kernel forgets to wake a thread.
    let counts = each(case, &places, 6, is_a_wake, |case, point, counts| {
        (verb.before)(case)?;
        one(case, &words, point, counts)
    })?;
    tell(case, &format!("image {}", verb.words[0]), &counts)
}

fn one(case: &mut Case, words: &[&str], point: &Point, counts: &mut Counts) -> Outcome {
    counts.injected += 1;
    let Ok(end) = inject(case, point, words, OUT) else {
        counts.hangs.push(point.to_string());
        return case.clear();
    };
    let told = end.stderr.trim();
    match (point.fault, end.code) {
        // What reserves memory has nobody to say that it failed.
        (Fault::Answer(_), 101..) if is_the_languages(&point.call.0) => counts.errors += 1,
        // And the words of an error are written, too.
        (Fault::Answer(_), 1..) if point.call.0 == "write" => counts.errors += 1,
        _ if told.contains("panicked") || end.code == 101 => counts.crashes.push(format!("{point}: {told}")),
        (Fault::Kill, _) => counts.killed += 1,
        (Fault::Answer(answer), 0) => {
            counts.successes += 1;
            counts.interrupted += u32::from(answer == "EINTR");
        }
        (_, 1..=127) if told.contains("cannot") || told.contains(": ") => counts.errors += 1,
        (_, code) => counts.crashes.push(format!("{point}: {code} {told:?}")),
    }
    let checked = image(case, &["check"])?;
    if checked.code != 0 {
        counts.left.push(format!("{point}: {}{}({told})", checked.stdout, checked.stderr));
    }
    for name in image(case, &["list", "-q"])?.success()?.stdout.lines() {
        let run = image::run(case, name, &[])?;
        if run.code != 0 {
            counts.left.push(format!("{point}: {name} does not run: {}", run.stderr));
        }
    }
    if !case.state_root().join(&case.id).exists() {
        image(case, &["prune", "--all"])?.success()?;
        for directory in ["blobs/sha256", "layers", "containers", "tmp"] {
            let left = names_in(&PathBuf::from(case.path("store")).join(directory));
            if !left.is_empty() {
                counts.left.push(format!("{point}: {directory} has {left:?}"));
            }
        }
    } else if words.contains(&"commit") {
        // It may have come about, or not.
        image(case, &["remove", "test:new"])?;
    }
    fs::remove_file(case.directory.join(OUT)).map_err(Into::into)
}
