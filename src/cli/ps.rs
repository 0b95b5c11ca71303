//! `ferry ps`.

use std::process::Command;

use clap::ArgMatches;

use super::globals::Globals;
use super::list::FORMAT;
use super::verb::{Arguments, CommandLine, Verb};
use super::{given, output};
use crate::error::{Context, Error, Result};
use crate::lifecycle;

/// The row of `ps`.
pub const VERB: Verb = Verb {
    name: "ps",
    about: "Show the processes of a container",
    arguments: Arguments { usage: "ID [PS-OPTION...]", min: 1, max: usize::MAX, command: CommandLine::AfterId },
    flags: &[FORMAT],
    details: &[
        (
            "DESCRIPTION",
            "Runs the host's ps(1) with the options behind ID, -ef unless there are any, and prints the lines of the \
             container's processes. The ids are the host's. The options must leave the PID column in, and before it none \
             whose values hold blanks.\n\nWith --format json it prints the process ids alone, as a list, and ps(1) is not \
             needed.",
        ),
        ("EXIT STATUS", "0, or 1 when there is no such container or ps(1) failed."),
        ("EXAMPLES", "    ferry ps web\n    ferry ps web -o pid,rss,args\n    ferry ps --format json web"),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let json = output::is_json(given::text(matches, "format"), "table")?;
    let (id, options) = given::id_and_rest(matches)?;
    let pids = lifecycle::ps::pids(&globals.setting, &id)?;
    if json {
        output::print_line(&pids)?;
    } else {
        output::print(&lines_of(&pids, &ps(&options)?)?)?;
    }
    Ok(0)
}

/// What the host's ps prints.
fn ps(options: &[String]) -> Result<String> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() { &default } else { options };
    let output = Command::new("ps").args(options).output().or_cannot("run", "ps")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Error::said("list processes with ps", options.join(" "), said.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The heading, and the lines whose PID column holds one of the ids.
fn lines_of(pids: &[i32], output: &str) -> Result<String> {
    let mut lines = output.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|title| title == "PID");
    let column = column.ok_or_else(|| {
        Error::plain("couldn't find PID field in ps output")
            .hint("give ps options that keep the PID column, such as -ef")
    })?;
    let mut kept = format!("{heading}\n");
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let field = line.split_whitespace().nth(column).unwrap_or_default();
        let pid: i32 =
            field.parse().map_err(|_| Error::said("find the process id in", line, "its PID column is no number"))?;
        if pids.contains(&pid) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    const OUTPUT: &str =
        "UID   PID  PPID CMD\nroot    1     0 init\nroot   42     1 sh 7\nroot    7    42 sleep 42\n\n";

    #[test]
    fn only_the_containers_processes_are_kept() {
        assert_eq!(lines_of(&[7, 9], OUTPUT).unwrap(), "UID   PID  PPID CMD\nroot    7    42 sleep 42\n");
        assert_eq!(lines_of(&[], OUTPUT).unwrap(), "UID   PID  PPID CMD\n");
    }

    #[test]
    fn output_without_a_pid_column_is_refused() {
        assert!(lines_of(&[1], "UID CMD\nroot init\n").unwrap_err().to_string().starts_with("couldn't find PID field"));
        assert!(lines_of(&[1], "CMD PID\nsleep 5 1\n").is_ok());
        assert!(lines_of(&[1], "CMD PID\nsleep x 1\n").is_err());
    }

    #[test]
    fn options_behind_the_id_are_the_host_ps_own() {
        let matches = matches(&VERB, "-f json c -f -o pid").unwrap();
        assert_eq!(given::text(&matches, "format"), Some("json"));
        assert_eq!(
            given::id_and_rest(&matches).unwrap(),
            ("c".to_owned(), vec!["-f".into(), "-o".into(), "pid".into()])
        );
    }
}
