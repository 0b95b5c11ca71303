//! Lines for whoever looks after the containers: `--log FILE` in logrus' text or JSON form, which engines read back.
//!
//! containerd, CRI-O and Docker give every runtime `--log FILE --log-format json` and, when a verb fails, take the `msg`
//! of the last line with `"level":"error"` as what went wrong. So the one error goes there as well as to standard error,
//! where a person reads it as `ferry: …`. Nothing is global: a [`Log`] is made once per run and handed down.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

use crate::error::{Context, Error, Result};

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `time="…" level=error msg="…"`.
    #[default]
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`.
    Json,
}

/// How much a line matters. A log keeps lines of its own level and above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// What ferry does, for whoever looks for a fault in it.
    Debug,
    /// Something was ignored or done otherwise than asked.
    #[default]
    Warning,
    /// The verb failed.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// How the error of a failed verb reads on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `ferry: …`, as programs tell a person.
    Person,
    /// As a line of the log, where that is standard error; else as it is.
    Line,
    /// As it is.
    Bare,
}

/// How far a process has come that is to execute a program, for the debug log. The words are those that runc logs at the same
/// point: whoever looks for them in a runtime's log finds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// It was cloned, and its namespaces are there.
    Cloned,
    /// Everything around it is in force, and it prepares itself.
    Prepares,
    /// A process that joins a container is let go.
    LetGo,
    /// The stream on which it would have reported a failure has ended: it has executed the program, or it is dead.
    StreamEnds,
}

impl Milestone {
    fn words(self) -> &'static str {
        match self {
            Self::Cloned => "nsexec container setup",
            Self::Prepares => "child process in init()",
            Self::LetGo => "setns_init: about to exec",
            Self::StreamEnds => "init: closing the pipe to signal completion",
        }
    }
}

/// Where lines go, in what form, and from which level. The default is standard error, text, warnings and errors; making
/// that one costs no system call.
#[derive(Debug, Clone, Default)]
pub struct Log {
    format: Format,
    level: Level,
    file: Option<Arc<File>>,
}

impl Log {
    /// A log to standard error.
    pub fn stderr(format: Format, level: Level) -> Self {
        Self { format, level, file: None }
    }

    /// A log to a file, made if it is not there and appended to: the engine may have made it, and several runs share it.
    ///
    /// # Errors
    /// The file cannot be opened for writing.
    pub fn file(path: &Path, format: Format, level: Level) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o644)
            // A fifo that nobody reads is refused, and one that is full loses no time: the line is then said elsewhere.
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path)
            .or_cannot("open the log", path.display())
            .map_err(|error| match error.errno() {
                Some(nix::errno::Errno::ENXIO) => error.hint("it is a fifo, and nobody has it open to read"),
                _ => error,
            })?;
        Ok(Self { format, level, file: Some(Arc::new(file)) })
    }

    /// Whether debug lines are kept, for callers whose line is dear to make.
    pub fn debugs(&self) -> bool {
        self.level <= Level::Debug
    }

    /// What ferry does.
    pub fn debug(&self, message: impl fmt::Display) {
        self.line(Level::Debug, message);
    }

    /// A process has come so far.
    pub fn milestone(&self, milestone: Milestone, pid: impl fmt::Display) {
        self.debug(format_args!("{} (process {pid})", milestone.words()));
    }

    /// Something was ignored or done otherwise than asked, and the verb goes on.
    pub fn warning(&self, message: impl fmt::Display) {
        self.line(Level::Warning, message);
    }

    /// The end of a failed verb, from `main` alone: the log's line, and a person's on standard error.
    pub fn failure(&self, error: &Error, form: Form) {
        let logged = self.file.is_some() || self.format == Format::Json;
        if logged || form == Form::Line {
            self.line(Level::Error, error);
        }
        if self.file.is_none() && (self.format == Format::Json || form == Form::Line) {
            return;
        }
        to_stderr(match form {
            Form::Person => format!("ferry: {error}\n"),
            Form::Bare | Form::Line => format!("{error}\n"),
        });
    }

    fn line(&self, level: Level, message: impl fmt::Display) {
        if level < self.level {
            return;
        }
        let line = render(self.format, level, SystemTime::now(), &message.to_string());
        match &self.file {
            // One write for a line: O_APPEND keeps the lines of several runs whole.
            Some(file) => {
                if let Err(refused) = (&mut &**file).write_all(line.as_bytes()) {
                    to_stderr(format!("ferry: cannot write to the log: {refused}\n{line}"));
                }
            }
            None => to_stderr(line),
        }
    }
}

/// Standard error is the last resort: when it does not take a line, there is nobody left to tell.
fn to_stderr(text: String) {
    io::stderr().lock().write_all(text.as_bytes()).ok();
}

fn render(format: Format, level: Level, now: SystemTime, message: &str) -> String {
    let time = rfc3339(now);
    // JSON's escapes of a quoted string are also the ones logrus' text readers undo.
    let quoted = serde_json::Value::from(message).to_string();
    match format {
        Format::Text => format!("time=\"{time}\" level={} msg={quoted}\n", level.name()),
        Format::Json => format!("{{\"level\":\"{}\",\"msg\":{quoted},\"time\":\"{time}\"}}\n", level.name()),
    }
}

/// The time in UTC to the second, as RFC 3339 writes it. A clock before 1970 reads as 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The Gregorian date of a day counted from 1970-01-01. Counted from 0000-03-01 instead, a leap day is the last day of a
/// year, and months come in a fixed pattern of 153 days in five.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn writes_times_as_rfc3339() {
        assert_eq!(rfc3339(at(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(at(951_782_399)), "2000-02-28T23:59:59Z");
        assert_eq!(rfc3339(at(951_782_400)), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(at(1_735_689_599)), "2024-12-31T23:59:59Z");
        assert_eq!(rfc3339(at(4_107_542_400)), "2100-03-01T00:00:00Z");
    }

    #[test]
    fn a_text_line_is_logfmt_on_one_line() {
        assert_eq!(
            render(Format::Text, Level::Warning, at(0), "unknown capability \"X\"\nignored"),
            "time=\"1970-01-01T00:00:00Z\" level=warning msg=\"unknown capability \\\"X\\\"\\nignored\"\n"
        );
    }

    #[test]
    fn a_json_line_has_the_fields_engines_read() {
        assert_eq!(
            render(Format::Json, Level::Error, at(0), "container \"x\" does not exist"),
            "{\"level\":\"error\",\"msg\":\"container \\\"x\\\" does not exist\",\"time\":\"1970-01-01T00:00:00Z\"}\n"
        );
    }

    #[test]
    fn a_file_gets_the_lines_of_its_level_and_keeps_what_was_there() {
        let path = std::env::temp_dir().join(format!("ferry-log-{}", std::process::id()));
        std::fs::write(&path, "before\n").unwrap();
        let log = Log::file(&path, Format::Json, Level::Warning).unwrap();
        log.debug("not kept");
        log.warning("kept");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.starts_with("before\n{\"level\":\"warning\",\"msg\":\"kept\""), "{text}");
    }

    #[test]
    fn a_log_that_cannot_be_opened_says_so() {
        let error = Log::file(Path::new("/nonexistent/log"), Format::Text, Level::Warning).unwrap_err();
        assert_eq!(error.to_string(), "cannot open the log /nonexistent/log: ENOENT: No such file or directory");
    }
}
