//! The command line of a shim, as containerd writes it: flags with one dash, then a verb.

use std::ffi::OsString;
use std::path::PathBuf;

use super::start;
use crate::error::{Error, Result};

/// What containerd says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Its namespace.
    pub namespace: String,
    /// Its socket.
    pub address: String,
    /// The container.
    pub id: String,
    /// Of `delete`.
    pub bundle: Option<PathBuf>,
    verb: Verb,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Verb {
    #[default]
    None,
    Start,
    Delete,
    Info,
    Version,
}

/// Does what the command line says. Answers the exit code.
///
/// # Errors
/// It says nothing that is known; what the verb fails with.
pub fn run(words: impl Iterator<Item = OsString>) -> Result<u8> {
    let arguments = parse(words)?;
    match arguments.verb {
        Verb::Start => start::start(&arguments)?,
        Verb::Delete => start::clean_up(&arguments)?,
        Verb::Info => start::info()?,
        Verb::Version => start::version()?,
        Verb::None => {
            return Err(Error::plain("containerd starts this program, for --runtime io.containerd.ferry.v2")
                .hint("put it where containerd finds programs: a directory of its PATH"));
        }
    }
    Ok(0)
}

fn parse(words: impl Iterator<Item = OsString>) -> Result<Arguments> {
    let mut arguments = Arguments::default();
    let mut words = words.map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix('-') else {
            arguments.verb = match word.as_str() {
                "start" => Verb::Start,
                "delete" => Verb::Delete,
                _ => return Err(Error::plain(format!("unknown verb {word:?}: it is start or delete"))),
            };
            continue;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (flag, given) = match flag.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (flag.to_owned(), None),
        };
        let mut value = || given.clone().or_else(|| words.next()).unwrap_or_default();
        match flag.as_str() {
            "namespace" => arguments.namespace = value(),
            "address" => arguments.address = value(),
            "id" => arguments.id = value(),
            "bundle" => arguments.bundle = Some(value().into()),
            // The program by which events are told where there is no ttrpc.
            "publish-binary" | "socket" => drop(value()),
            "debug" => (),
            "info" => arguments.verb = Verb::Info,
            "v" | "version" => arguments.verb = Verb::Version,
            _ => return Err(Error::plain(format!("unknown flag -{flag}"))),
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments> {
        parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn flags_have_one_dash_or_two_and_their_values_behind_them() {
        let line = "-namespace n --address=/a -publish-binary /usr/bin/containerd -id x -bundle /b -debug delete";
        let wanted = Arguments {
            namespace: "n".into(),
            address: "/a".into(),
            id: "x".into(),
            bundle: Some("/b".into()),
            verb: Verb::Delete,
        };
        assert_eq!(parsed(line), Ok(wanted));
        assert_eq!(parsed("-v").unwrap().verb, Verb::Version);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(parsed("-nothing start").unwrap_err().to_string().contains("-nothing"));
        assert!(parsed("-id x stop").unwrap_err().to_string().contains("\"stop\""));
    }
}
