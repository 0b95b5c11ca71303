//! `ferry balance`.

use std::time::Duration;

use clap::ArgMatches;
use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};

use super::globals::Globals;
use super::list::FORMAT;
use super::verb::{Arguments, Flag, Value, Verb};
use super::{duration, given, output, size};
use crate::cgroup::balance::Why;
use crate::error::{Error, Result};
use crate::lifecycle::balance::{self, Options, Outcome};

/// The row of `balance`.
pub const VERB: Verb = Verb {
    name: "balance",
    about: "Take memory back from containers that do not use it",
    arguments: Arguments::NONE,
    flags: &[
        Flag { long: "dry-run", help: "Say what the first round would take, and take nothing", ..Flag::SWITCH },
        Flag {
            long: "target",
            value: Value::Text("SIZE"),
            help: "Enough is SIZE, such as 512m; without it all that lies idle is taken",
            ..Flag::SWITCH
        },
        Flag {
            long: "interval",
            value: Value::Text("TIME"),
            help: "Time between two looks at the containers (default 1s)",
            ..Flag::SWITCH
        },
        FORMAT,
    ],
    details: &[
        (
            "DESCRIPTION",
            "Looks at the containers below --root that run and whose memory is counted, and takes back, round by round, \
             what they do not use: from one that does nothing, a quarter of its page cache and, as far as there is swap, of \
             its other memory at a time; from one that works, a little of what it has not touched of late. A container that \
             has to wait for memory, or reads back what was taken, is asked for less and then left alone. What memory.min \
             and memory.low promise stays. With --target those pay first who hold most memory idle.\n\nIt ends when no \
             container has anything left to give, and prints for each what it uses (memory), what of it lies idle (cold), \
             what was taken and read back. A dry run prints what the first round would take.",
        ),
        ("EXIT STATUS", "0, or 1 when the kernel refuses."),
        ("EXAMPLES", "    ferry balance --dry-run\n    ferry balance --target 2g"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "table")?;
    let options = options(matches)?;
    let outcomes = balance::balance(&globals.setting, &options, &mut wait)?;
    if json {
        output::print_line(&outcomes)?;
    } else {
        output::print(&table(&outcomes, options.dry_run))?;
    }
    Ok(0)
}

fn options(matches: &ArgMatches) -> Result<Options> {
    let bytes = |text: &str| size::bytes(text).and_then(|bytes| u64::try_from(bytes).map_err(|why| why.to_string()));
    let target = given::text(matches, "target");
    let interval = given::text(matches, "interval").unwrap_or("1s");
    Ok(Options {
        dry_run: given::switch(matches, "dry-run"),
        target: target.map(|text| bytes(text).map_err(|why| given::invalid("target", text, why))).transpose()?,
        interval: duration::interval(interval).map_err(|why| given::invalid("interval", interval, why))?,
    })
}

/// Nothing but time is waited for: a signal ends ferry, and the containers are none the worse.
fn wait(interval: Duration) -> Result<bool> {
    match poll(&mut [], PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX)) {
        Ok(_) => Ok(true),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(Error::kernel("wait for", "the end of the interval", errno)),
    }
}

fn table(outcomes: &[Outcome], dry_run: bool) -> String {
    let rows: Vec<_> = outcomes.iter().map(|outcome| row(outcome, dry_run)).collect();
    let taken = if dry_run { "WOULD TAKE" } else { "TAKEN" };
    output::table(["ID", "MEMORY", "COLD", taken, "READ BACK", "STATE"], &rows)
}

fn row(outcome: &Outcome, dry_run: bool) -> [String; 6] {
    let state = match outcome.last.why {
        Why::Idle => "idle",
        Why::Working => "working",
        Why::Pressed => "pressed",
        Why::Settled => "settled",
        Why::Spared => "spared",
    };
    [
        outcome.last.id.clone(),
        size::text(outcome.last.memory),
        size::text(outcome.last.cold),
        size::text(if dry_run { outcome.last.bytes } else { outcome.reclaimed }),
        size::text(outcome.refaulted),
        state.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::balance::Take;
    use crate::cli::matches;

    #[test]
    fn flags_become_options() {
        let parsed = |line| options(&matches(&VERB, line).unwrap());
        let plain = Options { dry_run: false, target: None, interval: Duration::from_secs(1) };
        assert_eq!(parsed("").unwrap(), plain);
        let all = Options { dry_run: true, target: Some(1 << 30), interval: Duration::from_millis(200) };
        assert_eq!(parsed("--dry-run --target 1g --interval 200ms").unwrap(), all);
        for wrong in ["--target -1", "--target x", "--interval 0s"] {
            let error = parsed(wrong).unwrap_err().to_string();
            assert!(error.starts_with("invalid value"), "{error}");
        }
    }

    #[test]
    fn a_dry_run_tells_of_the_future() {
        let last = Take { id: "web".into(), memory: 64 << 20, cold: 40 << 20, bytes: 10 << 20, why: Why::Idle };
        let outcome = Outcome { last, reclaimed: 0, refaulted: 0 };
        assert_eq!(
            table(&[outcome], true),
            "ID          MEMORY      COLD        WOULD TAKE   READ BACK   STATE\n\
             web         64.0M       40.0M       10.0M        0B          idle\n"
        );
    }
}
