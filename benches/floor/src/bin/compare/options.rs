//! The command line.

use std::path::PathBuf;

use crate::scenario::Scenario;

/// What `--help` and a mistake print.
pub const USAGE: &str = "usage: compare [-n ROUNDS] [--only SCENARIO]... [--config FILE] [--seccomp FILE] \
[--without-devices] [--limits] [--realtime] [--program FILE] [--json FILE]

  -n ROUNDS         rounds per scenario (default 100)
  --only SCENARIO   run, create+start+delete, create+start+wait+delete or exec; may be repeated (default all)
  --config FILE     another config.json; its args, terminal and root.path are replaced
  --seccomp FILE    adds a profile, the JSON object that linux.seccomp holds
  --without-devices leaves linux.resources out, and with it the device program
  --limits          adds limits of memory, swap, CPU time and tasks, as an engine usually does; needs their controllers
  --realtime        SCHED_FIFO for everything measured, where the machine is not idle
  --program FILE    a static program to run in place of the smallest possible; ends with 0 without arguments
  --json FILE       where the figures go (default target/compare.json)

FERRY_RUNTIME names ferry (default: beside this program); FERRY_BENCH_CRUN, FERRY_BENCH_RUNC and FERRY_BENCH_YOUKI
name further runtimes, several with colons between.";

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Rounds per scenario.
    pub rounds: usize,
    /// The scenarios, in the order in which they run.
    pub scenarios: Vec<Scenario>,
    /// A config.json in place of the built-in one.
    pub config: Option<PathBuf>,
    /// A file with the value of linux.seccomp.
    pub seccomp: Option<PathBuf>,
    /// Leave linux.resources out.
    pub without_devices: bool,
    /// Add the limits that engines usually set.
    pub limits: bool,
    /// Run everything measured under SCHED_FIFO.
    pub realtime: bool,
    /// A program in place of the built-in one.
    pub program: Option<PathBuf>,
    /// Where the figures go.
    pub json: PathBuf,
}

/// Reads the arguments after the program's name. The error is for the user, without `USAGE`.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        rounds: 100,
        scenarios: Vec::new(),
        config: None,
        seccomp: None,
        without_devices: false,
        limits: false,
        realtime: false,
        program: None,
        json: PathBuf::from("target/compare.json"),
    };
    let mut arguments = arguments.into_iter();
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "-n" => options.rounds = rounds(&value()?)?,
            "--only" => options.scenarios.push(scenario(&value()?)?),
            "--config" => options.config = Some(value()?.into()),
            "--seccomp" => options.seccomp = Some(value()?.into()),
            "--without-devices" => options.without_devices = true,
            "--limits" => options.limits = true,
            "--realtime" => options.realtime = true,
            "--program" => options.program = Some(value()?.into()),
            "--json" => options.json = value()?.into(),
            _ => return Err(format!("unknown argument {flag}")),
        }
    }
    if options.scenarios.is_empty() {
        options.scenarios = Scenario::ALL.to_vec();
    }
    Ok(options)
}

fn rounds(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rounds| *rounds > 0).ok_or_else(|| format!("{text} is no number of rounds"))
}

fn scenario(name: &str) -> Result<Scenario, String> {
    let found = Scenario::ALL.into_iter().find(|scenario| scenario.name() == name);
    found.ok_or_else(|| format!("{name} is no scenario"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options, String> {
        parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn everything_by_default() {
        let options = parsed(&[]).unwrap();
        assert_eq!((options.rounds, options.scenarios), (100, Scenario::ALL.to_vec()));
    }

    #[test]
    fn takes_values() {
        let options = parsed(&["-n", "7", "--only", "exec", "--json", "x"]).unwrap();
        assert_eq!((options.rounds, options.scenarios, options.json), (7, vec![Scenario::Exec], "x".into()));
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(parsed(&["-n"]), Err("-n needs a value".into()));
        assert_eq!(parsed(&["-n", "0"]), Err("0 is no number of rounds".into()));
        assert_eq!(parsed(&["--only", "walk"]), Err("walk is no scenario".into()));
        assert_eq!(parsed(&["--fast"]), Err("unknown argument --fast".into()));
    }
}
