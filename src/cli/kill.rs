//! `ferry kill`.

use clap::ArgMatches;

use super::delete::REGEX;
use super::given;
use super::globals::Globals;
use super::verb::{Arguments, CommandLine, Flag, Verb};
use crate::error::Result;
use crate::lifecycle;
use crate::process::signal;

/// The row of `kill`.
pub const VERB: Verb = Verb {
    name: "kill",
    about: "Send a signal to a container",
    arguments: Arguments { usage: "ID [SIGNAL]", min: 1, max: 2, command: CommandLine::None },
    flags: &[
        Flag {
            long: "all",
            short: Some('a'),
            help: "Signal every process of the container; one that has stopped is no failure",
            ..Flag::SWITCH
        },
        REGEX,
    ],
    details: &[
        (
            "DESCRIPTION",
            "Sends a signal to the container's first process: SIGTERM unless another is given, by name (TERM, SIGTERM, \
             RTMIN+3) or by number. A container without a pid namespace of its own gets KILL in all its processes, for \
             they would outlive the first one.",
        ),
        ("EXIT STATUS", "0 when the signal was sent, 1 otherwise."),
        (
            "EXAMPLES",
            "    ferry kill web\n    ferry kill web HUP\n    ferry kill --all web 9\n    ferry kill --regex '^job-' INT",
        ),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let (id, signal, all) = options(matches)?;
    let kill = |id: &str| lifecycle::kill::kill(&globals.setting, id, signal, all);
    if given::switch(matches, "regex") {
        lifecycle::matching::each(&globals.setting, &id, kill)?;
    } else {
        kill(&id)?;
    }
    Ok(0)
}

/// Id, signal, and whether it goes to every process.
fn options(matches: &ArgMatches) -> Result<(String, i32, bool)> {
    let (id, rest) = given::id_and_rest(matches)?;
    // An empty word is what a script's unset variable leaves.
    let name = rest.first().map(String::as_str).filter(|name| !name.is_empty()).unwrap_or("TERM");
    Ok((id, signal::number(name)?, given::switch(matches, "all")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    fn parsed(line: &str) -> Result<(String, i32, bool)> {
        options(&matches(&VERB, line)?)
    }

    #[test]
    fn the_signal_is_term_unless_another_is_named() {
        assert_eq!(parsed("c").unwrap(), ("c".to_owned(), libc::SIGTERM, false));
        assert_eq!(parsed("c KILL").unwrap(), ("c".to_owned(), libc::SIGKILL, false));
        assert_eq!(parsed("--all c 9").unwrap(), ("c".to_owned(), libc::SIGKILL, true));
        assert_eq!(parsed("-a c SIGRTMIN+1").unwrap(), ("c".to_owned(), 35, true));
        assert_eq!(parsed("c HUP --all").unwrap(), ("c".to_owned(), libc::SIGHUP, true));
    }

    #[test]
    fn an_unknown_signal_is_refused() {
        assert!(parsed("c NOPE").unwrap_err().to_string().starts_with("unknown signal \"NOPE\""));
    }
}
