//! What is measured: the deeds of each scenario, one container after the other, the runtimes taking turns.

use crate::bundle::{Bundles, PROOF, PROVING};
use crate::measure::{self, Cost, Output, Start};
use crate::runtime::{Deed, Runtime};

/// A sequence of commands whose time counts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// A container from beginning to end in the foreground.
    Run,
    /// create, start, delete --force, of a container that still runs when it is deleted.
    CreateStartDelete,
    /// The same of a container that has ended before; its end is waited for off the clock.
    CreateStartWaitDelete,
    /// A second program in a running container.
    Exec,
}

/// Rounds before those that count. They fill the caches, and give the peaks (see [`Start::Fork`]).
const WARM_UP: usize = 3;

impl Scenario {
    /// All, in the order of the report.
    pub const ALL: [Scenario; 4] =
        [Scenario::Run, Scenario::CreateStartDelete, Scenario::CreateStartWaitDelete, Scenario::Exec];

    /// Its name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Run => "run",
            Scenario::CreateStartDelete => "create+start+delete",
            Scenario::CreateStartWaitDelete => "create+start+wait+delete",
            Scenario::Exec => "exec",
        }
    }

    /// The commands whose time counts.
    pub fn steps(self) -> &'static [&'static str] {
        match self {
            Scenario::Run => &["run"],
            Scenario::CreateStartDelete | Scenario::CreateStartWaitDelete => &["create", "start", "delete"],
            Scenario::Exec => &["exec"],
        }
    }

    /// One turn of one runtime: the cost of each step.
    fn turn(
        self,
        runtime: &Runtime,
        bundles: &Bundles,
        start: Start,
        output: &mut Output,
    ) -> Result<Vec<Cost>, String> {
        let id = runtime.id();
        let mut step = |deed: Deed<'_>| runtime.command(&deed, &id)?.run(start, output);
        match self {
            Scenario::Run => Ok(vec![step(Deed::Run { bundle: &bundles.ends })?]),
            Scenario::CreateStartDelete => {
                let costs = vec![step(Deed::Create { bundle: &bundles.stays })?, step(Deed::Start)?];
                Ok([costs, vec![step(Deed::Delete)?]].concat())
            }
            Scenario::CreateStartWaitDelete => {
                let costs = vec![step(Deed::Create { bundle: &bundles.ends })?, step(Deed::Start)?];
                measure::reap_all();
                Ok([costs, vec![step(Deed::Delete)?]].concat())
            }
            Scenario::Exec => Ok(vec![step(Deed::Exec { words: &["/program"] })?]),
        }
    }
}

/// All samples of one runtime in one scenario.
pub struct Samples {
    /// One vector for each step, one cost for each round.
    pub steps: Vec<Vec<Cost>>,
    /// The largest resident set seen, in KiB.
    pub peak: u64,
}

impl Samples {
    /// The sum over the steps, round by round, in nanoseconds.
    pub fn totals(&self, part: fn(&Cost) -> u64) -> Vec<u64> {
        let rounds = self.steps.first().map_or(0, Vec::len);
        (0..rounds).map(|round| self.steps.iter().map(|step| part(&step[round])).sum()).collect()
    }
}

/// Measures a scenario. The runtimes take turns, so that a drift of the machine meets all of them; every other round
/// goes backwards, so that what one leaves to the kernel to clear away does not always burden the same next one.
pub fn measure(
    scenario: Scenario,
    runtimes: &[Runtime],
    bundles: &Bundles,
    rounds: usize,
    output: &mut Output,
) -> Result<Vec<Samples>, String> {
    let steps = scenario.steps().len();
    let mut all: Vec<Samples> = runtimes.iter().map(|_| Samples { steps: vec![Vec::new(); steps], peak: 0 }).collect();
    let mut running = Running { scenario, runtimes, started: 0 };
    let result = running.start(bundles, output).and_then(|()| {
        for round in 0..WARM_UP + rounds {
            let forward = 0..runtimes.len();
            let order: Vec<usize> = if round % 2 == 0 { forward.collect() } else { forward.rev().collect() };
            let start = if round < WARM_UP { Start::Fork } else { Start::Spawn };
            for index in order {
                let turn = scenario.turn(&runtimes[index], bundles, start, output);
                let costs = turn.inspect_err(|_| runtimes[index].sweep(&mut *output))?;
                all[index].take(&costs, start);
            }
        }
        Ok(())
    });
    // What failed says more than a clean-up that fails because of it.
    let stopped = running.stop(output);
    result.and(stopped).map(|()| all)
}

impl Samples {
    fn take(&mut self, costs: &[Cost], start: Start) {
        if start == Start::Fork {
            self.peak = costs.iter().map(|cost| cost.peak).fold(self.peak, u64::max);
            return;
        }
        for (step, cost) in self.steps.iter_mut().zip(costs) {
            step.push(*cost);
        }
    }
}

/// The containers that `exec` needs, one for each runtime.
struct Running<'a> {
    scenario: Scenario,
    runtimes: &'a [Runtime],
    started: usize,
}

impl Running<'_> {
    fn start(&mut self, bundles: &Bundles, output: &mut Output) -> Result<(), String> {
        if self.scenario != Scenario::Exec {
            return Ok(());
        }
        for runtime in self.runtimes {
            let id = runtime.id();
            runtime.command(&Deed::Create { bundle: &bundles.stays }, &id)?.run(Start::Spawn, output)?;
            self.started += 1;
            runtime.command(&Deed::Start, &id)?.run(Start::Spawn, output)?;
            runtime.command(&Deed::Exec { words: &PROVING }, &id)?.run_to(PROOF, Start::Spawn, output)?;
        }
        Ok(())
    }

    fn stop(&mut self, output: &mut Output) -> Result<(), String> {
        for runtime in &self.runtimes[..self.started] {
            runtime.command(&Deed::Delete, &runtime.id())?.run(Start::Spawn, output)?;
        }
        Ok(())
    }
}
