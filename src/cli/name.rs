//! The name ferry was called by.
//!
//! An engine or a script that cannot be told of another runtime calls whatever lies where runc did. A ferry that was put there, by
//! a copy or a link named `runc`, introduces itself as `runc` and reports failures in runc's form, which is what such callers match:
//! `runc version …`, `runc run failed: unable to start container process: …` in a logrus line. And where runc does otherwise than the
//! specification says, ferry does so under that name: `delete` of a container that was created and never started removes it.

use std::ffi::OsStr;
use std::path::Path;

use crate::error::Error;
use crate::log::{Form, Log};
use crate::process::command;
use crate::rootfs::mount;
use crate::spec::template::OCI_VERSION;

/// What ferry is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Name {
    /// Its own name, or any other.
    #[default]
    Ferry,
    /// `runc`.
    Runc,
}

/// The version of runc whose command line ferry has.
const RUNC: &str = "1.5.0";

impl Name {
    /// By the first word of the command line.
    pub fn of(program: Option<&OsStr>) -> Self {
        match program.and_then(|program| Path::new(program).file_name()) {
            Some(name) if name == "runc" => Self::Runc,
            _ => Self::Ferry,
        }
    }

    /// The shape engines take apart: the name, the word, the version; then `key: value`.
    pub fn version(self) -> String {
        let own = env!("CARGO_PKG_VERSION");
        match self {
            Self::Ferry => format!("ferry version {own}\nspec: {OCI_VERSION}\n"),
            Self::Runc => format!("runc version {RUNC}\ncommit: ferry {own}\nspec: {OCI_VERSION}\n"),
        }
    }

    /// A help text, with this name where ferry's own stands as that of the program.
    pub fn help(self, text: String) -> String {
        match self {
            Self::Ferry => text,
            Self::Runc => {
                let text = text.replacen("NAME:\n    ferry", "NAME:\n    runc", 1);
                text.replacen("Usage: ferry", "Usage: runc", 1).replace("`ferry ", "`runc ")
            }
        }
    }

    /// The error that a verb failed with, in the words that go with the name.
    pub fn tells(self, verb: &str, error: Error) -> Error {
        match self {
            Self::Ferry => return error,
            // It comes from where the container is, and stands alone.
            Self::Runc if command::is_not_executed(&error) => return error.unhinted(),
            Self::Runc => (),
        }
        let failed = match verb {
            "run" | "create" | "restore" => format!("runc {verb} failed: "),
            "exec" => "exec failed: ".to_owned(),
            _ => String::new(),
        };
        let stage = match (error.is_of_child(), mount::is_of_mount(&error)) {
            (false, _) => "",
            (true, false) => "unable to start container process: error during container init: ",
            (true, true) => "unable to start container process: error during container init: error mounting: ",
        };
        error.behind(format_args!("{failed}{stage}"))
    }

    /// Reports the failure: to the log, and to a person.
    pub fn report(self, error: &Error, log: &Log) {
        log.failure(
            error,
            match self {
                Self::Ferry => Form::Person,
                Self::Runc if command::is_not_executed(error) => Form::Bare,
                Self::Runc => Form::Line,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn the_name_is_the_last_word_of_the_path() {
        let of = |program: &str| Name::of(Some(OsStr::new(program)));
        assert_eq!((of("runc"), of("/usr/bin/runc")), (Name::Runc, Name::Runc));
        assert_eq!((of("ferry"), of("/opt/runc/ferry"), of("runc-1.5")), (Name::Ferry, Name::Ferry, Name::Ferry));
        assert_eq!((of(""), Name::of(None)), (Name::Ferry, Name::Ferry));
    }

    #[test]
    fn the_version_has_the_shape_engines_take_apart() {
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(Name::Ferry.version(), format!("ferry version {own}\nspec: 1.3.0\n"));
        assert_eq!(Name::Runc.version(), format!("runc version 1.5.0\ncommit: ferry {own}\nspec: 1.3.0\n"));
    }

    #[test]
    fn a_failure_is_told_in_runcs_words() {
        let told = |verb, error| Name::Runc.tells(verb, error).to_string();
        let mount = Error::kernel("set attributes of", "a on b", Errno::EPERM).hint("locked");
        let stages = "runc run failed: unable to start container process: error during container init: ";
        assert_eq!(
            told("run", mount.clone().of_child()),
            format!("{stages}error mounting: cannot set attributes of a on b: operation not permitted (hint: locked)")
        );
        assert_eq!(told("exec", Error::plain("no")), "exec failed: no");
        assert_eq!(told("state", Error::plain("no")), "no");
        let executed = command::not_executed("/x", Errno::ENOENT);
        assert_eq!(told("run", executed.clone()), "exec /x: no such file or directory");
        assert_eq!(Name::Runc.tells("run", executed.clone()).exit_code(), executed.exit_code());
        assert_eq!(Name::Ferry.tells("run", mount.clone()), mount);
    }
}
