//! What came of faults: how many there were, how the verbs ended, and what was found, told as it is found in a long run.

use std::collections::BTreeSet;

use super::case::Case;
use super::fault_points::{Ended, Fault, Point};
use super::scenario::Outcome;
use super::stage::is_long;

/// What has been counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// How many there are.
    pub of: usize,
    pub injected: u32,
    pub successes: u32,
    pub errors: u32,
    pub killed: u32,
    pub interrupted: u32,
    pub crashes: Vec<String>,
    pub hangs: Vec<String>,
    pub left_by_errors: Vec<String>,
    pub left: Vec<String>,
    pub weaker: Vec<String>,
}

impl Counts {
    /// What was found, and of which kind.
    fn found(&self) -> Vec<String> {
        let Self { crashes, hangs, left_by_errors, left, weaker, .. } = self;
        let kinds = [
            ("crash", crashes),
            ("hang", hangs),
            ("left by an error", left_by_errors),
            ("left", left),
            ("weaker", weaker),
        ];
        kinds.iter().flat_map(|(kind, points)| points.iter().map(move |point| format!("{kind}: {point}"))).collect()
    }

    /// Prints what was found since `told`, and now and then how far it is.
    pub fn tell_progress(&self, told: &mut BTreeSet<String>) {
        let found = self.found();
        if self.injected.is_multiple_of(100) {
            println!("{} of {} injected, {} found", self.injected, self.of, found.len());
        }
        found.into_iter().for_each(|found| {
            if told.insert(found.clone()) {
                println!("{found}");
            }
        });
    }
}

/// Counts how it ended.
pub fn count(point: &Point, end: &Ended, counts: &mut Counts) {
    let told = end.stderr.trim();
    let panicked = told.contains("panicked") || end.code == 101;
    match (point.fault, end.code) {
        // What reserves memory has nobody to say that it failed, and the words of an error are written, too.
        (Fault::Answer(_), 101..) if is_the_languages(&point.call.0) || point.call.0 == "write" => counts.errors += 1,
        // The far end of a migration has no code that is seen here.
        (Fault::Answer(_), _) if is_the_languages(&point.call.0) && panicked => counts.errors += 1,
        (Fault::Answer(_), 1) if told.is_empty() && point.call.0 == "write" => counts.errors += 1,
        _ if panicked => counts.crashes.push(format!("{point}: {told}")),
        (Fault::Kill, _) => counts.killed += 1,
        (Fault::Answer("EINTR"), 0) => {
            (counts.successes, counts.interrupted) = (counts.successes + 1, counts.interrupted + 1)
        }
        (_, 0) => counts.successes += 1,
        (_, 1..=127 | 255) if told.contains("cannot") || told.contains(": ") => counts.errors += 1,
        (_, code) => counts.crashes.push(format!("{point}: {code} {told:?}")),
    }
}

/// Calls that are only made by the language's own runtime, whose failure ends the program.
pub fn is_the_languages(name: &str) -> bool {
    ["mmap", "brk", "munmap", "mprotect", "mremap", "sigaltstack", "getrandom", "rseq"].contains(&name)
}

/// Tells the counts; an error with all that was found, if anything was.
pub fn tell(case: &Case, verb: &str, counts: &Counts) -> Outcome {
    let Counts {
        injected, successes, errors, killed, interrupted, crashes, hangs, left_by_errors, left, weaker, ..
    } = counts;
    let sum = format!(
        "{verb}: {injected} of {} injected, {successes} successes ({interrupted} of EINTR), {errors} clear errors, {killed} killed, \
         {} crashes, {} hangs, {} left by an error, {} left after delete --force, {} with weaker walls",
        counts.of,
        crashes.len(),
        hangs.len(),
        left_by_errors.len(),
        left.len(),
        weaker.len()
    );
    // Another runtime is known to leave something: how much, is what it is asked for.
    if is_long() || case.stage.runtime.name != "ferry" {
        println!("{sum}");
    }
    let found = counts.found();
    if found.is_empty() { Ok(()) } else { Err(format!("{sum}\n{}", found.join("\n")).into()) }
}
