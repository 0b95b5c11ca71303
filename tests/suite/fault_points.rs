//! The places at which a verb can be made to fail: every system call it makes, in the process that was called and in those
//! it clones, found by tracing it once. Strace then answers one of them, or kills.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::Failed;

use super::case::Case;
use super::output;

/// What happens at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// The call is not made, and this is the answer.
    Answer(&'static str),
}

impl Fault {
    /// `Kill`, or the error's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "Kill",
            Self::Answer(errno) => errno,
        }
    }
}

/// Every fault.
pub const FAULTS: [Fault; 6] = [
    Fault::Kill,
    Fault::Answer("EIO"),
    Fault::Answer("ENOMEM"),
    Fault::Answer("EINTR"),
    Fault::Answer("ENOSYS"),
    Fault::Answer("EAGAIN"),
];

/// A system call by name, and which of that name it is, from 1.
pub type Call = (String, usize);

/// Where, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// In a process that the runtime cloned, and not in the one that was called. A call of that name and number in the one
    /// that was called fails as well.
    pub cloned: bool,
    /// The call.
    pub call: Call,
    /// What happens there.
    pub fault: Fault,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.cloned { "in the child" } else { "in the caller" };
        write!(f, "{:?} at {} number {} {place}", self.fault, self.call.0, self.call.1)
    }
}

/// Calls that have no error, or do not return.
const LEFT_OUT: [&str; 11] = [
    "exit_group",
    "exit",
    "rt_sigreturn",
    "umask",
    "getpid",
    "gettid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "uname",
];

/// How a verb under strace ended.
#[derive(Debug)]
pub struct Ended {
    /// As shells say it.
    pub code: i32,
    /// What it said on standard error.
    pub stderr: String,
}

/// Runs `verb` under strace with `flags`, its standard output to the file `out`. Strace is no parent of the runtime's, so that
/// it keeps nobody waiting for a container that lives on.
fn strace(case: &Case, flags: &[&str], verb: &[&str], out: &str) -> Result<(u32, Ended), Failed> {
    let command = case.command(verb);
    let mut strace = Command::new("strace");
    strace.args(["-D", "-qq"]).args(flags).arg(command.get_program()).args(command.get_args());
    strace.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let errors = case.directory.join("errors");
    strace.stdin(Stdio::null()).stdout(File::create(case.directory.join(out))?).stderr(File::create(&errors)?);
    let mut child = strace.spawn()?;
    let code = match output::wait(&mut child, case.patience()) {
        Ok(status) => output::code(status),
        Err(_) => return Err(format!("{verb:?} hangs with {flags:?}: {}", fs::read_to_string(&errors)?).into()),
    };
    Ok((child.id(), Ended { code, stderr: fs::read_to_string(&errors)? }))
}

/// Runs `verb` with the fault at `point`.
pub fn inject(case: &Case, point: &Point, verb: &[&str], out: &str) -> Result<Ended, Failed> {
    let flags = point.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    strace(case, &flags, verb, out).map(|(_, ended)| ended)
}

impl Point {
    /// What has strace make it fail there.
    pub fn flags(&self) -> Vec<String> {
        let (name, count) = &self.call;
        let what = match self.fault {
            Fault::Kill => "signal=KILL".to_owned(),
            Fault::Answer(errno) => format!("error={errno}"),
        };
        let (trace, inject) = (format!("trace={name}"), format!("inject={name}:{what}:when={count}"));
        let mut flags = ["-o", "/dev/null", "-e", &trace, "-e", &inject].map(str::to_owned).to_vec();
        if self.cloned {
            flags.push("-f".to_owned());
        }
        flags
    }
}

/// Flags that have strace write what a program calls to files in `traces`, for [`places`]; and in the threads and processes it clones,
/// until they execute another program, which is not traced any more: nobody else may trace what CRIU restores.
pub fn tracing(traces: &Path) -> [String; 5] {
    ["-ff".into(), "-b".into(), "execve".into(), "-o".into(), traces.join("t").display().to_string()]
}

/// The places in what [`tracing`] has written, which is removed.
pub fn places(traces: &Path) -> Result<Vec<(bool, Call)>, Failed> {
    let mut places = Vec::new();
    let mut of_others = BTreeSet::new();
    for entry in fs::read_dir(traces)?.flatten() {
        let text = fs::read_to_string(entry.path())?;
        let is_called = text.starts_with("execve(");
        for call in calls(&text, "", is_called).into_iter().filter(|(name, _)| name != "execve") {
            if is_called {
                places.push((false, call));
            } else if of_others.insert(call.clone()) {
                places.push((true, call));
            }
        }
        fs::remove_file(entry.path())?;
    }
    if places.len() < 20 { Err("the trace is too short to be one".into()) } else { Ok(places) }
}

/// Runs `verb` without a fault and answers all its places. What `program` does once it is executed is none of them.
pub fn find(case: &Case, verb: &[&str], program: &str, out: &str) -> Result<Vec<(bool, Call)>, Failed> {
    let traces = case.host_directory("traces")?;
    let prefix = traces.join("t").display().to_string();
    let (called, ended) = strace(case, &["-ff", "-o", &prefix], verb, out)?;
    if ended.code != 0 {
        return Err(format!("{verb:?} fails by itself: {}", ended.stderr).into());
    }
    let mut places = Vec::new();
    let mut of_children = BTreeSet::new();
    for entry in fs::read_dir(&traces)?.flatten() {
        let text = fs::read_to_string(entry.path())?;
        let is_called = entry.file_name().to_string_lossy() == format!("t.{called}");
        for call in calls(&text, program, is_called) {
            if is_called {
                places.push((false, call));
            } else if of_children.insert(call.clone()) {
                places.push((true, call));
            }
        }
        fs::remove_file(entry.path())?;
    }
    fs::remove_dir(&traces)?;
    if places.len() < 20 { Err("the trace is too short to be one".into()) } else { Ok(places) }
}

/// The calls of a process' trace, in order, up to the one that executes `program`.
fn calls(trace: &str, program: &str, is_called: bool) -> Vec<Call> {
    let mut seen = BTreeMap::<&str, usize>::new();
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some((name, rest)) = line.split_once('(') else { continue };
        if !name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_') {
            continue;
        }
        let count = seen.entry(name).or_default();
        *count += 1;
        // The caller's first is strace's own.
        let left_out = LEFT_OUT.contains(&name) || (is_called && calls.is_empty() && name == "execve" && *count == 1);
        if !left_out {
            calls.push((name.to_owned(), *count));
        }
        if !is_called && name == "execve" && rest.starts_with(&format!("\"{program}\"")) {
            break;
        }
    }
    calls
}
