//! `ferry help`: the list of verbs, or one verb's help. No row of the table, for it speaks about the table.

use std::ffi::{OsStr, OsString};

use clap::Command;

use super::name::Name;
use super::verb::{documented, help_template};
use super::{FAMILIES, VERBS, find, globals, output};
use crate::error::{Error, Result};

/// What ferry(1) says under DESCRIPTION.
const ABOUT: &str = "ferry is an OCI container runtime: it makes an isolated process of a bundle, which is a directory with \
    a config.json and a root filesystem. Container engines call it with runc's command line, which it takes with one dash \
    or two before a flag; people can as well give it a bare root filesystem and a command.\n\nEvery error names what could \
    not be done, to what, and the kernel's answer. With --log it is also written there, in the form engines read.\n\n\
    Called by the name runc, by a link or a copy, it says that name in its version and help, and tells failures in runc's words.";

/// Prints the list of verbs, or the help of the verb that is named.
///
/// # Errors
/// There is no such verb.
pub fn run(called: Name, mut argv: impl Iterator<Item = OsString>) -> Result<u8> {
    let text = match argv.next() {
        Some(name) if name != "help" && !asks(&name) => {
            match (FAMILIES.iter().find(|family| name == family.name), argv.next()) {
                (Some(family), Some(word)) => family.find(&word)?.help(),
                (Some(family), None) => family.help(),
                (None, _) => find(&name).map_err(|error| no_topic(&name, &error))?.help(),
            }
        }
        _ => overview().render_help().to_string(),
    };
    show(called, text)
}

/// Prints a help text.
///
/// # Errors
/// Standard output does not take it.
pub fn show(called: Name, text: String) -> Result<u8> {
    output::print(&called.help(text)).map(|()| 0)
}

/// Whether a word asks for help.
pub fn asks(word: &OsStr) -> bool {
    ["-h", "-help", "--help"].iter().any(|known| word == *known)
}

/// Help was asked for a verb that there is not.
pub fn no_topic(name: &OsStr, unknown: &Error) -> Error {
    Error::plain(format!("No help topic for '{}': {unknown}", name.to_string_lossy()))
}

/// The program as a whole: its verbs, one line each, and the flags before them. For `ferry help` and ferry(1).
pub fn overview() -> Command {
    let command = Command::new("ferry")
        .about("Open Container Initiative runtime, for bundles, bare root filesystems and images")
        .long_about(ABOUT)
        .help_template(help_template("ferry"))
        .override_usage("ferry [GLOBAL-FLAG...] COMMAND [FLAG...] [ARG...]")
        .after_help("`ferry COMMAND --help` shows a command's flags and examples.")
        .disable_help_subcommand(true);
    let command = globals::FLAGS.iter().fold(command, |command, flag| command.arg(documented(flag)));
    let help = Command::new("help").about("Show this list, or the help of a command");
    let families = FAMILIES.iter().map(|family| Command::new(family.name).about(family.about));
    VERBS
        .iter()
        .map(|verb| Command::new(verb.name).about(verb.about))
        .chain(families)
        .chain([help])
        .fold(command, Command::subcommand)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_every_verb_and_every_global_flag() {
        let text = overview().render_help().to_string();
        assert!(text.starts_with("NAME:\n    ferry - Open Container Initiative runtime"), "{text}");
        for verb in &VERBS {
            assert!(text.contains(&format!("\n  {} ", verb.name)), "{}: {text}", verb.name);
        }
        for flag in globals::FLAGS {
            assert!(text.contains(&format!("--{}", flag.long)), "{}: {text}", flag.long);
        }
    }
}
