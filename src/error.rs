//! What went wrong, in words a person can act on.
//!
//! An error names the deed that failed, the object it was done to, the kernel's answer, and, where somebody would be
//! stuck, the way out. Context is added once, by the caller who knows it; an error is returned or logged, never both;
//! only `main` prints. Every module builds on this one, so it imports nothing of ours.

use std::borrow::Cow;
use std::fmt;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// The result of everything in ferry that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Deed, object, the kernel's answer, what then failed as well, and a hint. Printed on one line:
/// `cannot mount proc on /proc: EPERM: Operation not permitted; and then: cannot … (hint: …)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(Box<Parts>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    deed: Cow<'static, str>,
    object: String,
    cause: Cause,
    /// Errors that came after it, while it was being undone.
    later: Vec<String>,
    hint: Option<Cow<'static, str>>,
    exit_code: u8,
    /// Whether a child that prepares a container has sent it.
    of_child: bool,
}

/// Why the deed failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The deed's own words say it all.
    Plain,
    /// The kernel's answer.
    Kernel(Errno),
    /// Another program's or a library's answer, or a rule that was broken.
    Said(String),
    /// A field of config.json breaks a rule; the object is its JSON path.
    Config(String),
}

/// Where nobody has a better hint for a call that is not there.
const LACKING: &str = "this kernel lacks the call, or a filter around ferry hides it: see `ferry doctor`";

/// The exit code of a failed verb, as runc's.
pub const EXIT_FAILURE: u8 = 1;
/// As shells have it: the program is not found. podman and docker pass it on.
pub const EXIT_NOT_FOUND: u8 = 127;

impl Error {
    /// A deed that failed without an answer from the kernel: a rule that was broken, in words. `deed` reads after
    /// "cannot", `why` stands alone.
    pub fn said(deed: impl Into<Cow<'static, str>>, object: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(deed.into(), object.into(), Cause::Said(why.into()))
    }

    /// A whole sentence of its own, printed as it is (`container "x" does not exist`).
    pub fn plain(sentence: impl Into<Cow<'static, str>>) -> Self {
        Self::new(sentence.into(), String::new(), Cause::Plain)
    }

    /// A field of config.json that breaks a rule: its JSON path (`linux.namespaces[2].type`), and what is wrong with it.
    pub fn config(path: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Cow::Borrowed(""), path.into(), Cause::Config(why.into()))
    }

    /// The JSON path, where a field of config.json is at fault.
    pub fn config_path(&self) -> Option<&str> {
        matches!(self.0.cause, Cause::Config(_)).then_some(self.0.object.as_str())
    }

    /// The same field, with a path that begins further in: for a document that holds a part of a configuration.
    pub fn without_prefix(mut self, prefix: &str) -> Self {
        if let (Cause::Config(_), Some(rest)) = (&self.0.cause, self.0.object.strip_prefix(prefix)) {
            self.0.object = rest.to_owned();
        }
        self
    }

    /// Says in which file, and in which line of it, the field at fault stands.
    pub fn in_file(mut self, file: &str, line: Option<usize>) -> Self {
        if let Cause::Config(_) = self.0.cause {
            self.0.deed = match line {
                Some(line) => format!("{file}:{line}: "),
                None => format!("{file}: "),
            }
            .into();
        }
        self
    }

    /// A deed the kernel refused. `deed` reads after "cannot".
    pub fn kernel(deed: impl Into<Cow<'static, str>>, object: impl Into<String>, errno: Errno) -> Self {
        Self::new(deed.into(), object.into(), Cause::Kernel(errno))
    }

    fn new(deed: Cow<'static, str>, object: String, cause: Cause) -> Self {
        let (deed, object, later) = (printable(deed), printable(object).into_owned(), Vec::new());
        let cause = match cause {
            Cause::Said(why) => Cause::Said(printable(why).into_owned()),
            Cause::Config(why) => Cause::Config(printable(why).into_owned()),
            cause => cause,
        };
        let exit_code = EXIT_FAILURE;
        Self(Box::new(Parts { deed, object, cause, later, hint: None, exit_code, of_child: false }))
    }

    /// Adds what a person can do about it. The first hint stays: it is the one nearest to the failure.
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.0.hint.get_or_insert_with(|| printable(hint));
        self
    }

    /// Adds what failed as well while this was being undone: this one stays the error.
    pub fn and_then<T>(mut self, undone: Result<T>) -> Self {
        self.0.later.extend(undone.err().map(|second| second.to_string()));
        self
    }

    /// Sets the exit code of the process that fails with this error (`exec` answers 255 like runc, 126/127 like shells).
    pub fn exit(mut self, code: u8) -> Self {
        self.0.exit_code = code;
        self
    }

    /// The form in which the child sends an error to whoever waits for it.
    pub fn to_wire(&self) -> Wire {
        let Parts { deed, object, cause, later, hint, exit_code, .. } = &*self.0;
        let (kind, errno, said) = match cause {
            Cause::Plain => (0, 0, ""),
            Cause::Kernel(errno) => (1, *errno as i32, ""),
            Cause::Said(said) => (2, 0, said.as_str()),
            Cause::Config(said) => (3, 0, said.as_str()),
        };
        let hint = hint.as_deref().map(str::to_owned);
        Wire {
            deed: deed.clone().into(),
            object: object.clone(),
            kind,
            errno,
            said: said.to_owned(),
            later: later.clone(),
            hint,
            exit_code: *exit_code,
        }
    }

    /// The error that was sent.
    pub fn from_wire(wire: Wire) -> Self {
        let cause = match wire.kind {
            0 => Cause::Plain,
            1 => Cause::Kernel(Errno::from_raw(wire.errno)),
            3 => Cause::Config(wire.said),
            _ => Cause::Said(wire.said),
        };
        let hint = wire.hint.map(Cow::Owned);
        let Wire { object, later, exit_code, .. } = wire;
        Self(Box::new(Parts { deed: wire.deed.into(), object, cause, later, hint, exit_code, of_child: false }))
    }

    /// Says that a child sent it, which failed at preparing a container.
    pub fn of_child(mut self) -> Self {
        self.0.of_child = true;
        self
    }

    /// Whether a child sent it.
    pub fn is_of_child(&self) -> bool {
        self.0.of_child
    }

    /// The same failure behind other words, as programs in Go tell it: without the answer's name, and in small letters
    /// (`operation not permitted`).
    pub fn behind(mut self, words: impl fmt::Display) -> Self {
        let Parts { deed, object, cause, .. } = &*self.0;
        let told = match cause {
            Cause::Plain => deed.clone().into_owned(),
            Cause::Kernel(errno) => format!("cannot {deed}{}{object}: {}", space(object), errno.desc().to_lowercase()),
            Cause::Config(why) => format!("{deed}{object}: {why}"),
            Cause::Said(why) => format!("cannot {deed}{}{object}: {why}", space(object)),
        };
        self.0.deed = format!("{words}{told}").into();
        self.0.cause = Cause::Plain;
        self
    }

    /// The exit code that `main` ends with.
    pub fn exit_code(&self) -> u8 {
        self.0.exit_code
    }

    /// Whether it is this deed that failed.
    pub fn is_of(&self, deed: &str) -> bool {
        self.0.deed == deed
    }

    /// Whether its sentence begins so.
    pub fn begins(&self, words: &str) -> bool {
        self.0.deed.starts_with(words)
    }

    /// The same without its hint.
    pub fn unhinted(mut self) -> Self {
        self.0.hint = None;
        self
    }

    /// The kernel's answer, where there was one.
    pub fn errno(&self) -> Option<Errno> {
        match self.0.cause {
            Cause::Kernel(errno) => Some(errno),
            Cause::Plain | Cause::Said(_) | Cause::Config(_) => None,
        }
    }
}

/// An error between two processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    deed: String,
    object: String,
    kind: u8,
    errno: i32,
    said: String,
    later: Vec<String>,
    hint: Option<String>,
    exit_code: u8,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { deed, object, cause, later, hint, .. } = &*self.0;
        match cause {
            Cause::Plain => write!(f, "{deed}")?,
            Cause::Kernel(errno) => {
                write!(f, "cannot {deed}{}{object}: {errno:?}: {}", space(object), errno.desc())?;
            }
            Cause::Config(why) => write!(f, "{deed}{object}: {why}")?,
            Cause::Said(why) => write!(f, "cannot {deed}{}{object}: {why}", space(object))?,
        }
        for second in later {
            write!(f, "; and then: {second}")?;
        }
        match (hint, cause) {
            (Some(hint), _) => write!(f, " (hint: {hint})"),
            (None, Cause::Kernel(Errno::ENOSYS)) => write!(f, " (hint: {LACKING})"),
            (None, _) => Ok(()),
        }
    }
}

/// A text that may be anybody's, such as an image's, without what a terminal would obey: only lines and columns may be left.
pub fn printable<'a>(text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
    let text = text.into();
    let obeyed = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
    if text.contains(obeyed) { text.replace(obeyed, "\u{fffd}").into() } else { text }
}

fn space(object: &str) -> &'static str {
    if object.is_empty() { "" } else { " " }
}

impl std::error::Error for Error {}

/// Turns a kernel's answer into an [`Error`] by saying what was being done, to what.
pub trait Context<T> {
    /// `open(path).or_cannot("open", path)`: on failure "cannot open PATH: ENOENT: …".
    fn or_cannot(self, deed: &'static str, object: impl fmt::Display) -> Result<T>;
}

impl<T, E: IntoErrno> Context<T> for std::result::Result<T, E> {
    fn or_cannot(self, deed: &'static str, object: impl fmt::Display) -> Result<T> {
        self.map_err(|answer| match answer.into_errno() {
            Ok(errno) => Error::kernel(deed, object.to_string(), errno),
            Err(said) => Error::said(deed, object.to_string(), said),
        })
    }
}

/// The libraries' error types, brought to one: an errno, or words where there is none.
pub trait IntoErrno {
    /// The errno inside, or the library's own words.
    fn into_errno(self) -> std::result::Result<Errno, String>;
}

impl IntoErrno for Errno {
    fn into_errno(self) -> std::result::Result<Errno, String> {
        Ok(self)
    }
}

impl IntoErrno for rustix::io::Errno {
    fn into_errno(self) -> std::result::Result<Errno, String> {
        Ok(Errno::from_raw(self.raw_os_error()))
    }
}

impl IntoErrno for std::io::Error {
    fn into_errno(self) -> std::result::Result<Errno, String> {
        match self.raw_os_error() {
            Some(raw) => Ok(Errno::from_raw(raw)),
            None => Err(self.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_deed_object_answer_and_hint() {
        let error = Error::kernel("mount proc on", "/proc", Errno::EPERM).hint("give the container a pid namespace");
        assert_eq!(
            error.to_string(),
            "cannot mount proc on /proc: EPERM: Operation not permitted (hint: give the container a pid namespace)"
        );
    }

    #[test]
    fn what_failed_as_well_stands_between_the_error_and_its_hint() {
        let second: Result<()> = Err(Error::kernel("remove", "/x", Errno::EBUSY));
        let error = Error::plain("no").hint("near").and_then(second).and_then(Ok(()));
        assert_eq!(error.to_string(), "no; and then: cannot remove /x: EBUSY: Device or resource busy (hint: near)");
        assert_eq!(Error::from_wire(error.to_wire()), error);
    }

    #[test]
    fn a_field_at_fault_is_named_with_its_line() {
        let error = Error::config("process.cwd", "must be absolute").in_file("config.json", Some(7));
        assert_eq!(error.to_string(), "config.json:7: process.cwd: must be absolute");
    }

    #[test]
    fn no_text_of_others_reaches_the_terminal_as_a_command() {
        let theirs = "\u{1b}[2J\u{9b}2J\r\u{7f}ä\tb\n";
        let shown = "\u{fffd}[2J\u{fffd}2J\u{fffd}\u{fffd}ä\tb\n";
        let said = Error::said("read", theirs, theirs).hint(theirs).and_then::<()>(Err(Error::plain(theirs)));
        assert_eq!(said.to_string(), format!("cannot read {shown}: {shown}; and then: {shown} (hint: {shown})"));
        let kernel = Error::kernel("open", theirs, Errno::EPERM).to_string();
        assert_eq!(kernel, format!("cannot open {shown}: EPERM: Operation not permitted"));
        assert_eq!(Error::config(theirs, theirs).to_string(), format!("{shown}: {shown}"));
    }

    #[test]
    fn the_hint_nearest_to_the_failure_stays() {
        let error = Error::plain("no").hint("near").hint("far");
        assert_eq!(error.to_string(), "no (hint: near)");
    }
}
