//! `ferry stats`.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use clap::ArgMatches;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::globals::Globals;
use super::list::FORMAT;
use super::verb::{Arguments, CommandLine, Flag, Value, Verb};
use super::{duration, given, output, size};
use crate::error::{Error, Result};
use crate::lifecycle::stats::{self, Usage};

/// The row of `stats`.
pub const VERB: Verb = Verb {
    name: "stats",
    about: "Show what containers use, one line each",
    arguments: Arguments { usage: "[ID...]", min: 0, max: usize::MAX, command: CommandLine::None },
    flags: &[
        FORMAT,
        Flag {
            long: "interval",
            value: Value::Text("TIME"),
            help: "Time between two looks, such as 500ms or 1m (default 1s)",
            ..Flag::SWITCH
        },
        Flag { long: "no-stream", help: "Print one table, of one interval, and end", ..Flag::SWITCH },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Shows CPU time as percent of one CPU, memory and tasks in use and their limits, bytes read from and written to \
             block devices, and pressure: the percent of the last ten seconds in which a task waited for CPU, memory or \
             block I/O. Without an ID it shows all containers below --root that run. A dash is what is not counted: for want of \
             the cgroup's controller, or of a cgroup.\n\nOn a terminal the table is \
             refreshed every --interval; elsewhere one follows the other. It ends with the last of the containers that were \
             named, or when nobody reads any more.\n\nWith --format json each line is one container's object; sizes are \
             bytes, CPU time is in nanoseconds, and null is a limit that there is not, or what is not counted.",
        ),
        ("EXIT STATUS", "0, or 1 when a container that was named does not run."),
        ("EXAMPLES", "    ferry stats\n    ferry stats --no-stream --format json web | jq .memory"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "table")?;
    let (ids, interval, setting) = (given::arguments(matches)?, interval(matches)?, &globals.setting);
    let refreshes = !json && io::stdout().is_terminal();
    let mut before = stats::sample(setting, &ids)?;
    loop {
        if !wait(interval)? {
            return Ok(0);
        }
        let now = stats::sample_again(setting, &ids)?;
        if now.is_empty() && !ids.is_empty() {
            return Ok(0);
        }
        print(&stats::usage(&before, &now), json, refreshes)?;
        if given::switch(matches, "no-stream") {
            return Ok(0);
        }
        before = now;
    }
}

fn interval(matches: &ArgMatches) -> Result<Duration> {
    let text = given::text(matches, "interval").unwrap_or("1s");
    duration::interval(text).map_err(|why| given::invalid("interval", text, why))
}

/// Waits for the end of the interval; false: whoever read standard output has gone.
fn wait(interval: Duration) -> Result<bool> {
    let until = Instant::now() + interval;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(true);
        }
        // Rounded up, else the last millisecond would be spent in a busy loop.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let stdout = io::stdout();
        let mut waited = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        match poll(&mut waited, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(false),
            Err(errno) => return Err(Error::kernel("wait on", "standard output", errno)),
        }
    }
}

fn print(usage: &[Usage], json: bool, refreshes: bool) -> Result<()> {
    if json {
        return usage.iter().try_for_each(output::print_line);
    }
    // Home, the table over what was there, and the rest of the screen cleared: no flicker.
    let (home, rest) = if refreshes { ("\x1b[H\x1b[2J", "\x1b[J") } else { ("", "") };
    output::print(&format!("{home}{}{rest}", table(usage)))
}

fn table(usage: &[Usage]) -> String {
    let rows: Vec<_> = usage.iter().map(row).collect();
    output::table(["ID", "CPU %", "MEMORY / LIMIT", "PIDS", "READ / WRITTEN", "WAITS CPU/MEM/IO %"], &rows)
}

fn row(usage: &Usage) -> [String; 6] {
    let percent = |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |number| format!("{number:.1}"));
    let pair = |used: Option<u64>, other: Option<u64>, text: fn(u64) -> String| match used {
        Some(used) => format!("{} / {}", text(used), other.map_or_else(|| "max".to_owned(), text)),
        None => "-".to_owned(),
    };
    let waits = [usage.pressure.cpu, usage.pressure.memory, usage.pressure.io].map(percent);
    [
        usage.id.clone(),
        percent(usage.cpu_percent),
        pair(usage.memory, usage.memory_limit, size::text),
        pair(usage.pids, usage.pids_limit, |tasks| tasks.to_string()),
        pair(usage.io_read, usage.io_written, size::text),
        waits.join("/"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;
    use crate::lifecycle::stats::Waits;

    #[test]
    fn one_line_a_container() {
        let usage = Usage {
            id: "web".to_owned(),
            cpu_percent: Some(12.34),
            cpu_time: Some(5),
            memory: Some(12 << 20),
            memory_limit: Some(64 << 20),
            swap: Some(0),
            pids: Some(3),
            pids_limit: None,
            io_read: Some(1536),
            io_written: Some(0),
            pressure: Waits { cpu: Some(0.0), memory: None, io: Some(2.5) },
            ksm: None,
        };
        let expected = "\
            ID          CPU %       MEMORY / LIMIT   PIDS        READ / WRITTEN   WAITS CPU/MEM/IO %\n\
            web         12.3        12.0M / 64.0M    3 / max     1.5K / 0B        0.0/-/2.5\n\
            bare        -           -                -           -                -/-/-\n";
        assert_eq!(table(&[usage, Usage { id: "bare".to_owned(), ..Usage::default() }]), expected);
    }

    #[test]
    fn intervals_and_ids() {
        let parsed = |line| interval(&matches(&VERB, line).unwrap());
        assert_eq!(parsed("a b").unwrap(), Duration::from_secs(1));
        assert_eq!(parsed("--interval 100ms").unwrap(), Duration::from_millis(100));
        assert!(parsed("--interval 0s").unwrap_err().to_string().contains("--interval"));
    }
}
