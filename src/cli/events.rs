//! `ferry events`.

use std::time::Duration;

use clap::ArgMatches;
use serde::Serialize;
use serde_json::Value;

use super::globals::Globals;
use super::verb::{Arguments, Flag, Value as FlagValue, Verb};
use super::{duration, given, output};
use crate::error::Result;
use crate::lifecycle::events::{self, Event};

/// The row of `events`.
pub const VERB: Verb = Verb {
    name: "events",
    about: "Show what a container uses, and when it runs out of memory",
    arguments: Arguments::ID,
    flags: &[
        Flag {
            long: "interval",
            value: FlagValue::Text("TIME"),
            help: "Time between two lines of usage, such as 500ms or 1m (default 5s)",
            ..Flag::SWITCH
        },
        Flag { long: "stats", help: "Print the usage once and end", ..Flag::SWITCH },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Prints one JSON object a line until the container stops: of type stats every --interval, with the usage of \
             CPU, memory, tasks and block I/O under data; of type oom whenever the kernel has killed one of the \
             container's processes for want of memory.",
        ),
        ("EXIT STATUS", "0, or 1 when the container does not run."),
        ("EXAMPLES", "    ferry events --stats web | jq .data.memory.usage"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let (id, interval) = (given::id(matches)?, interval(matches)?);
    if given::switch(matches, "stats") {
        print(&id, Event::Stats(events::stats(&globals.setting, &id)?))?;
    } else {
        events::follow(&globals.setting, &id, interval, &mut |event| print(&id, event))?;
    }
    Ok(0)
}

fn interval(matches: &ArgMatches) -> Result<Duration> {
    let text = given::text(matches, "interval").unwrap_or("5s");
    duration::interval(text).map_err(|why| given::invalid("interval", text, why))
}

fn print(id: &str, event: Event) -> Result<()> {
    let (kind, data) = match event {
        Event::Stats(data) => ("stats", Some(data)),
        Event::Oom => ("oom", None),
    };
    output::print_line(&Line { kind, id, data })
}

/// One event as it is printed: the type first, so that a person and a script find it at the same place in every line.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    #[test]
    fn a_line_begins_with_its_type_and_the_container() {
        let line = |kind, data| serde_json::to_string(&Line { kind, id: "c", data }).unwrap();
        assert_eq!(line("oom", None), r#"{"type":"oom","id":"c"}"#);
        let stats = line("stats", Some(serde_json::json!({"pids": {"current": 1}})));
        assert_eq!(stats, r#"{"type":"stats","id":"c","data":{"pids":{"current":1}}}"#);
    }

    #[test]
    fn the_interval_is_five_seconds_unless_another_is_given() {
        let parsed = |line| interval(&matches(&VERB, line).unwrap());
        assert_eq!(parsed("c").unwrap(), Duration::from_secs(5));
        assert_eq!(parsed("--interval 100ms c").unwrap(), Duration::from_millis(100));
        assert_eq!(
            parsed("--interval 0s c").unwrap_err().to_string(),
            "invalid value \"0s\" for --interval: it must be greater than 0"
        );
    }
}
