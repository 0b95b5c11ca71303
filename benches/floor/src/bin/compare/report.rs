//! The figures as a table for people and as JSON for programs.

use std::fmt::Write;

use crate::host::Facts;
use crate::json::quoted;
use crate::runtime::Runtime;
use crate::scenario::{Samples, Scenario};

/// Half of the samples lie below `median`, a tenth above `p90`; in the samples' unit.
#[derive(Debug, PartialEq, Eq)]
pub struct Summary {
    /// The smallest.
    pub min: u64,
    /// The middle.
    pub median: u64,
    /// The ninth decile.
    pub p90: u64,
}

/// Summarises at least one sample.
pub fn summary(samples: &[u64]) -> Summary {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at = |share: usize| sorted[(sorted.len() - 1) * share / 10];
    let middle = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2;
    Summary { min: at(0), median: middle, p90: at(9) }
}

/// A scenario's table. Ratios are of medians; to the first runtime named floor, and the first whose name begins with
/// crun.
pub fn table(scenario: Scenario, runtimes: &[Runtime], all: &[Samples]) -> String {
    let walls: Vec<Summary> = all.iter().map(|samples| summary(&samples.totals(|cost| cost.wall))).collect();
    let base = |name: &str| runtimes.iter().position(|runtime| runtime.name.starts_with(name));
    let medians: Vec<u64> = walls.iter().map(|wall| wall.median).collect();
    let ratio = |index: usize, base: Option<usize>| {
        base.map_or("-".to_owned(), |base| format!("{:.2}", medians[index] as f64 / medians[base] as f64))
    };
    let mut table = format!(
        "{:<26}{:>10}{:>10}{:>10}{:>9}{:>9}{:>9}{:>12}\n",
        scenario.name(),
        "median ms",
        "min",
        "p90",
        "x floor",
        "x crun",
        "cpu ms",
        "peak RSS MB"
    );
    for (index, (runtime, samples)) in runtimes.iter().zip(all).enumerate() {
        let cpu = summary(&samples.totals(|cost| cost.cpu));
        let (floor, crun) = (ratio(index, base("floor")), ratio(index, base("crun")));
        let peak = samples.peak as f64 / 1024.0;
        let times = times(&walls[index]);
        let cpu = milliseconds(cpu.median);
        line(&mut table, format_args!("  {:<24}{times}{floor:>9}{crun:>9}{cpu:>9}{peak:>12.1}", runtime.name));
        if scenario.steps().len() > 1 {
            for (name, step) in scenario.steps().iter().zip(&samples.steps) {
                let walls: Vec<u64> = step.iter().map(|cost| cost.wall).collect();
                line(&mut table, format_args!("    {name:<22}{}", self::times(&summary(&walls))));
            }
        }
    }
    table
}

fn times(wall: &Summary) -> String {
    format!("{:>10}{:>10}{:>10}", milliseconds(wall.median), milliseconds(wall.min), milliseconds(wall.p90))
}

fn milliseconds(nanoseconds: u64) -> String {
    format!("{:.2}", nanoseconds as f64 / 1e6)
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").unwrap_or_default();
}

/// All figures, with every sample (microseconds, in the order of the rounds).
pub fn json(facts: &Facts, config: &str, runtimes: &[Runtime], all: &[(Scenario, Vec<Samples>)]) -> String {
    let scenarios: Vec<String> =
        all.iter().map(|(scenario, samples)| scenario_json(*scenario, runtimes, samples)).collect();
    format!(
        "{{\n\"kernel\": {}, \"processors\": {}, \"load\": {:.2}, \"busy\": {},\n\"scenarios\": [\n{}\n],\n\"config\": {}\n}}\n",
        quoted(&facts.kernel),
        facts.processors,
        facts.load,
        facts.busy(),
        scenarios.join(",\n"),
        config.trim()
    )
}

fn scenario_json(scenario: Scenario, runtimes: &[Runtime], all: &[Samples]) -> String {
    let rows: Vec<String> =
        runtimes.iter().zip(all).map(|(runtime, samples)| row_json(scenario, runtime, samples)).collect();
    format!("{{\"name\": {}, \"runtimes\": [\n{}\n]}}", quoted(scenario.name()), rows.join(",\n"))
}

fn row_json(scenario: Scenario, runtime: &Runtime, samples: &Samples) -> String {
    let steps: Vec<String> = scenario
        .steps()
        .iter()
        .zip(&samples.steps)
        .map(|(name, costs)| {
            let walls: Vec<u64> = costs.iter().map(|cost| cost.wall).collect();
            format!("{}: {}", quoted(name), figures(&walls))
        })
        .collect();
    format!(
        " {{\"runtime\": {}, \"version\": {}, \"binary\": {}, \"peak_rss_kib\": {},\n  \"total\": {},\n  \"cpu\": {},\n  \"steps\": {{{}}}}}",
        quoted(&runtime.name),
        quoted(&runtime.version),
        quoted(&runtime.binary.to_string_lossy()),
        samples.peak,
        figures(&samples.totals(|cost| cost.wall)),
        figures(&samples.totals(|cost| cost.cpu)),
        steps.join(", ")
    )
}

fn figures(nanoseconds: &[u64]) -> String {
    let Summary { min, median, p90 } = summary(nanoseconds);
    let samples: Vec<String> = nanoseconds.iter().map(|sample| (sample / 1000).to_string()).collect();
    let [min, median, p90] = [min, median, p90].map(|figure| figure / 1000);
    format!(
        "{{\"median_us\": {median}, \"min_us\": {min}, \"p90_us\": {p90}, \"samples_us\": [{}]}}",
        samples.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summarises() {
        assert_eq!(summary(&[5]), Summary { min: 5, median: 5, p90: 5 });
        assert_eq!(summary(&[4, 1]), Summary { min: 1, median: 2, p90: 1 });
        let eleven: Vec<u64> = (0..=10).rev().collect();
        assert_eq!(summary(&eleven), Summary { min: 0, median: 5, p90: 9 });
    }
}
