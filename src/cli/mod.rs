//! The command line: one row a verb in [`VERBS`], one file a verb beside this one.
//!
//! ```text
//! argv -> globals::read   the flags before the verb
//!      -> argv::normalise the verb's flags, brought to one form
//!      -> Verb::parser    clap, for this verb alone
//!      -> Verb::run       options for lifecycle, then print what it answers
//! ```

use std::ffi::OsString;

use clap::ArgMatches;
use clap::error::{ContextKind, ContextValue};

use crate::error::{Error, Result};
use crate::log::Log;

mod archive;
pub mod argv;
mod balance;
mod bundle;
mod checkpoint;
mod completion;
mod create;
mod delete;
mod doctor;
mod duration;
mod events;
mod exec;
mod explain;
pub mod family;
mod features;
mod given;
pub mod globals;
mod help;
pub mod image;
mod install;
mod kill;
mod list;
mod migrate;
mod mount;
mod mounts;
pub mod name;
mod output;
mod pause;
mod progress;
mod ps;
mod receive;
mod restore;
mod resume;
mod run;
mod run_image;
mod run_rootfs;
mod size;
mod snapshot;
mod spec;
mod start;
mod state;
mod stats;
mod suggest;
mod update;
mod user;
pub mod verb;

use family::Family;
use globals::Asked;
pub use help::overview;
use name::Name;
use verb::{ARGUMENTS, Arguments, Verb};

/// The command table, in the order of a container's life.
pub static VERBS: [Verb; 26] = [
    run::VERB,
    create::VERB,
    start::VERB,
    state::VERB,
    list::VERB,
    ps::VERB,
    exec::VERB,
    kill::VERB,
    pause::VERB,
    resume::VERB,
    update::VERB,
    mounts::VERB,
    events::VERB,
    stats::VERB,
    balance::VERB,
    checkpoint::VERB,
    restore::VERB,
    migrate::VERB,
    receive::VERB,
    delete::VERB,
    spec::VERB,
    features::VERB,
    explain::VERB,
    doctor::VERB,
    install::VERB,
    completion::VERB,
];

/// Verbs of one noun each.
pub static FAMILIES: [Family; 3] = [image::FAMILY, bundle::FAMILY, snapshot::FAMILY];

/// Every row, those of families too.
pub fn rows() -> impl Iterator<Item = &'static Verb> {
    VERBS.iter().chain(FAMILIES.iter().flat_map(|family| family.verbs))
}

/// Carries out a command line, without the program's `name`, and answers the exit code. `log` becomes the log the command
/// line asks for, so that the caller can put the error there.
///
/// # Errors
/// The command line is not understood, or the verb failed.
pub fn run(name: Name, mut argv: impl Iterator<Item = OsString>, log: &mut Log) -> Result<u8> {
    let (mut globals, asked) = globals::read(&mut argv, log)?;
    globals.name = name;
    let word = match asked {
        Asked::Verb(word) => word,
        Asked::Version => return output::print(&name.version()).map(|()| 0),
        Asked::Help => return help::show(name, overview().render_help().to_string()),
    };
    if word == "help" || word == "h" {
        return help::run(name, argv);
    }
    let verb = match FAMILIES.iter().find(|family| word == family.name) {
        Some(family) => match argv.next().filter(|word| !help::asks(word) && word != "help") {
            Some(word) => family.find(&word)?,
            None => return help::show(name, family.help()),
        },
        None => match find(&word) {
            Err(unknown) if argv.next().is_some_and(|word| help::asks(&word)) => {
                return Err(help::no_topic(&word, &unknown));
            }
            verb => verb?,
        },
    };
    match argv::normalise(verb, argv).map_err(|error| usage(error, Some(verb)))? {
        Some(argv) => (verb.run)(&globals, &parse(verb, argv)?).map_err(|error| name.tells(verb.name, error)),
        None => help::show(name, verb.help()),
    }
}

/// The row of a verb.
fn find(name: &std::ffi::OsStr) -> Result<&'static Verb> {
    if let Some(verb) = VERBS.iter().find(|verb| name == verb.name) {
        return Ok(verb);
    }
    let name = name.to_string_lossy();
    let unknown = Error::plain(format!("unknown command {name:?}"));
    Err(
        match suggest::nearest(
            &name,
            VERBS.iter().map(|verb| verb.name).chain(FAMILIES.iter().map(|family| family.name)),
        ) {
            Some(near) => unknown.hint(format!("did you mean `ferry {near}`? `ferry help` lists the commands")),
            None => unknown.hint("`ferry help` lists the commands"),
        },
    )
}

/// A verb's flags and arguments, in the right number.
fn parse(verb: &Verb, argv: Vec<OsString>) -> Result<ArgMatches> {
    let matches =
        verb.parser().try_get_matches_from(argv).map_err(|refusal| usage(explain_refusal(&refusal), Some(verb)))?;
    let count = matches.get_many::<OsString>(ARGUMENTS).map_or(0, |words| words.len());
    match miscount(verb.name, &verb.arguments, count) {
        Some(sentence) => Err(usage(Error::plain(sentence), Some(verb))),
        None => Ok(matches),
    }
}

/// runc's words for too few or too many arguments.
fn miscount(name: &str, Arguments { min, max, .. }: &Arguments, count: usize) -> Option<String> {
    if (*min..=*max).contains(&count) {
        None
    } else if min == max {
        Some(format!("{name:?} requires exactly {min} argument(s)"))
    } else if count < *min {
        Some(format!("{name:?} requires a minimum of {min} argument(s)"))
    } else {
        Some(format!("{name:?} requires a maximum of {max} argument(s)"))
    }
}

/// clap's refusal as one sentence; its own goes over several lines.
fn explain_refusal(refusal: &clap::Error) -> Error {
    let context = |kind| match refusal.get(kind) {
        Some(ContextValue::String(word)) => Some(word.clone()),
        Some(ContextValue::Strings(words)) => words.first().cloned(),
        _ => None,
    };
    match refusal.kind() {
        clap::error::ErrorKind::UnknownArgument => {
            let flag = context(ContextKind::InvalidArg).unwrap_or_default();
            let unknown = Error::plain(format!("flag provided but not defined: {flag}"));
            match context(ContextKind::SuggestedArg) {
                Some(near) => unknown.hint(format!("did you mean {near}?")),
                None => unknown,
            }
        }
        clap::error::ErrorKind::InvalidUtf8 => Error::plain("a flag's value is not UTF-8"),
        _ => Error::plain(refusal.to_string().trim().trim_start_matches("error: ").replace('\n', " ")),
    }
}

/// A command line that is not understood: says where its help is, unless the error knows something better.
fn usage(error: Error, verb: Option<&Verb>) -> Error {
    error.hint(match verb {
        Some(verb) => format!("`ferry {} --help` shows the usage", verb.name),
        None => "`ferry help` shows the usage".to_owned(),
    })
}

/// A verb's matches from its line, for the tests of each verb.
#[cfg(test)]
fn matches(verb: &Verb, line: &str) -> Result<ArgMatches> {
    let words = line.split(' ').filter(|word| !word.is_empty()).map(OsString::from);
    parse(verb, argv::normalise(verb, words)?.expect("a line without --help"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> String {
        let words = line.split(' ').filter(|word| !word.is_empty()).map(OsString::from);
        run(Name::Ferry, words, &mut Log::default()).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_verb_gets_the_nearest_one() {
        assert_eq!(
            refused("stat c"),
            "unknown command \"stat\" (hint: did you mean `ferry state`? `ferry help` lists the commands)"
        );
        assert_eq!(refused("frobnicate"), "unknown command \"frobnicate\" (hint: `ferry help` lists the commands)");
    }

    #[test]
    fn there_is_no_help_for_an_unknown_verb() {
        for line in ["foo -h", "foo --help", "help foo"] {
            assert!(refused(line).starts_with("No help topic for 'foo': unknown command \"foo\""), "{line}");
        }
    }

    #[test]
    fn an_unknown_flag_gets_the_nearest_one() {
        assert_eq!(refused("delete --forse c"), "flag provided but not defined: --forse (hint: did you mean --force?)");
        assert_eq!(
            refused("state --zzz c"),
            "flag provided but not defined: --zzz (hint: `ferry state --help` shows the usage)"
        );
    }

    #[test]
    fn the_number_of_arguments_is_held_to() {
        for (line, said) in [
            ("state", "\"state\" requires exactly 1 argument(s) (hint: `ferry state --help` shows the usage)"),
            ("delete a b", "\"delete\" requires exactly 1 argument(s) (hint: `ferry delete --help` shows the usage)"),
            ("kill", "\"kill\" requires a minimum of 1 argument(s) (hint: `ferry kill --help` shows the usage)"),
            ("kill a b c", "\"kill\" requires a maximum of 2 argument(s) (hint: `ferry kill --help` shows the usage)"),
            ("list a", "\"list\" requires exactly 0 argument(s) (hint: `ferry list --help` shows the usage)"),
        ] {
            assert_eq!(refused(line), said, "{line}");
        }
    }

    #[test]
    fn every_row_says_what_help_and_man_pages_need() {
        for verb in rows() {
            assert!(!verb.about.is_empty() && !verb.about.ends_with('.'), "{}: about", verb.name);
            assert!(verb.details.iter().any(|(title, _)| *title == "DESCRIPTION"), "{}: no description", verb.name);
            for flag in verb.flags.iter().chain(globals::FLAGS) {
                assert!(!flag.help.is_empty() && !flag.help.ends_with('.'), "{} --{}: help", verb.name, flag.long);
            }
            verb.parser().debug_assert();
            verb.manual().debug_assert();
            let help = verb.help();
            for flag in verb.flags {
                assert_eq!(help.contains(&format!("--{}", flag.long)), !flag.hidden, "{} --{}", verb.name, flag.long);
            }
        }
    }
}
