//! What programs print: all of it once they have ended, or line by line while they run, and never for longer than a
//! time limit.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags};

/// A program that has ended.
#[derive(Debug)]
pub struct Output {
    /// Exit code, or 128 and the signal's number, as shells say it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// This output, provided that the program succeeded.
    pub fn success(self) -> Result<Self, Failed> {
        if self.code == 0 { Ok(self) } else { Err(format!("exit code {}, {}", self.code, self.stderr.trim()).into()) }
    }

    /// This output, provided that the program failed and said why.
    pub fn failure(self) -> Result<Self, Failed> {
        match (self.code, self.stderr.trim()) {
            (0, _) => Err("it succeeded, and should have failed".into()),
            (_, "") => Err("it failed without a word".into()),
            _ => Ok(self),
        }
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Result<serde_json::Value, Failed> {
        serde_json::from_str(self.stdout.trim()).map_err(|error| format!("{error} in {:?}", self.stdout).into())
    }
}

/// Runs a command to its end. Its output goes to files in memory and not to pipes, since a container that it leaves
/// running would hold those open.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output, Failed> {
    let (mut out, mut err) = (memory()?, memory()?);
    command.stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut child = command.spawn().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    let status = wait(&mut child, limit);
    let (stdout, stderr) = (all_of(&mut out)?, all_of(&mut err)?);
    let status = status.map_err(|_| format!("{command:?} did not end in {limit:?}; it said {stdout:?} {stderr:?}"))?;
    Ok(Output { code: code(status), stdout, stderr })
}

/// Waits for a child; kills it at the limit.
pub fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus, Failed> {
    if wait_for_pid(child.id(), limit)? {
        return Ok(child.wait()?);
    }
    child.kill()?;
    child.wait()?;
    Err(format!("process {} did not end in {limit:?}", child.id()).into())
}

/// Waits until a process (any, not only a child) has ended; false at the limit.
pub fn wait_for_pid(pid: u32, limit: Duration) -> Result<bool, Failed> {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Err("no such pid".into()) };
    match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
        Ok(pidfd) => readable(&pidfd, limit),
        // EINVAL: it has ended, and its number lives on as that of a session or a group.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Exit code, or 128 and the signal's number.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// Waits until something can be read; false at the limit.
pub fn readable(fd: &impl AsFd, limit: Duration) -> Result<bool, Failed> {
    let milliseconds = PollTimeout::try_from(limit).map_err(|_| "the limit is too long")?;
    let mut waited = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut waited, milliseconds)? > 0)
}

fn memory() -> Result<File, Failed> {
    Ok(rustix::fs::memfd_create("output", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

fn all_of(file: &mut File) -> Result<String, Failed> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Lets `command` inherit `count` files as descriptors 3 and on, each named after its number.
///
/// The descriptors are opened by `sh`, which then becomes the command: nothing of this process, which has threads, is
/// made inheritable.
pub fn inheriting(
    command: &Command,
    directory: &Path,
    numbers: impl IntoIterator<Item = u32>,
) -> Result<Command, Failed> {
    let mut script = String::new();
    for number in numbers {
        let file = directory.join(format!("inherited-{number}"));
        std::fs::write(&file, number.to_string())?;
        script += &format!("exec {number}<{}; ", file.display());
    }
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("{script} exec \"$0\" \"$@\"")).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(Stdio::null());
    Ok(shell)
}

/// The descriptors of a report beyond the standard streams, provided that each leads where it should.
pub fn inherited(report: &serde_json::Value) -> Vec<String> {
    let table = report["descriptors"].as_object().into_iter().flatten();
    table
        .filter(|(number, _)| number.parse().is_ok_and(|number: u32| number > 2))
        .map(|(number, target)| {
            let right = target.as_str().is_some_and(|path| path.ends_with(&format!("inherited-{number}")));
            if right { number.clone() } else { format!("{number} -> {target}") }
        })
        .collect()
}

/// The reading end of a pipe or terminal, line by line.
#[derive(Debug)]
pub struct Lines {
    source: File,
    seen: Vec<u8>,
    limit: Duration,
}

impl Lines {
    /// Reads from `source`; each wait is `limit` long at most.
    pub fn new(source: OwnedFd, limit: Duration) -> Self {
        Self { source: source.into(), seen: Vec::new(), limit }
    }

    /// A pipe: its lines, and the end to give to a program.
    pub fn pipe(limit: Duration) -> Result<(Self, Stdio), Failed> {
        let (read, write) = std::io::pipe()?;
        Ok((Self::new(read.into(), limit), write.into()))
    }

    /// Sets the time limit of the waits that follow.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// The next line that contains `text`; an error at the limit or the end.
    pub fn until(&mut self, text: &str) -> Result<String, Failed> {
        let end = Instant::now() + self.limit;
        loop {
            while let Some(line) = self.take_line() {
                if line.contains(text) {
                    return Ok(line);
                }
            }
            self.more(end).map_err(|why| format!("waiting for {text:?}: {}", why.message().unwrap_or("")))?;
        }
    }

    /// All that comes up to the end of `text`, as it came; an error at the limit or the end.
    pub fn up_to(&mut self, text: &str) -> Result<String, Failed> {
        let end = Instant::now() + self.limit;
        loop {
            if let Some(at) = self.text().find(text) {
                let before: Vec<u8> = self.seen.drain(..at + text.len()).collect();
                return Ok(String::from_utf8_lossy(&before).into_owned());
            }
            self.more(end).map_err(|why| format!("waiting for {text:?}: {}", why.message().unwrap_or("")))?;
        }
    }

    /// All that comes until the end, which the other side has to reach by itself.
    pub fn rest(&mut self) -> Result<String, Failed> {
        self.source.read_to_end(&mut self.seen)?;
        Ok(self.text())
    }

    fn take_line(&mut self) -> Option<String> {
        let end = self.seen.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.seen.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn more(&mut self, end: Instant) -> Result<(), Failed> {
        let mut bytes = [0; 4096];
        if !readable(&self.source, end.saturating_duration_since(Instant::now()))? {
            return Err(format!("nothing came in {:?}, only {:?}", self.limit, self.text()).into());
        }
        match self.source.read(&mut bytes)? {
            0 => Err(format!("it ended after {:?}", self.text()).into()),
            count => {
                self.seen.extend_from_slice(&bytes[..count]);
                Ok(())
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}
