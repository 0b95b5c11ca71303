//! The form of the command table: a verb, its flags, its arguments, and the clap command made from them.
//!
//! Everything that is said about a verb is said once, in its row: parsing, `help`, the man pages and completions are
//! made from it. Only the verb that runs becomes a clap command, and without its texts: making all of them, or their
//! help, would cost every container's start more than parsing does.

use std::ffi::{OsStr, OsString};

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::globals::Globals;
use crate::error::Result;

/// The clap id of the arguments that are not flags.
pub const ARGUMENTS: &str = "arguments";

/// A row of the command table.
pub struct Verb {
    /// The word on the command line.
    pub name: &'static str,
    /// One line, without a full stop.
    pub about: &'static str,
    /// What may follow the flags.
    pub arguments: Arguments,
    /// Its flags, in the order of its help.
    pub flags: &'static [Flag],
    /// Title and text of each section of its help and man page: `DESCRIPTION`, `EXIT STATUS`, `EXAMPLES`. Paragraphs are
    /// parted by an empty line; a paragraph indented by four spaces is printed as it stands.
    pub details: &'static [(&'static str, &'static str)],
    /// Carries it out, and answers the exit code.
    pub run: fn(&Globals, &ArgMatches) -> Result<u8>,
}

/// The arguments that are not flags.
pub struct Arguments {
    /// As the usage line shows them.
    pub usage: &'static str,
    /// At least so many.
    pub min: usize,
    /// At most so many.
    pub max: usize,
    /// Whether they end in a command line of somebody else's.
    pub command: CommandLine,
}

/// Where the flags end because what follows is somebody else's command line: `exec ID ls -l` gives `-l` to ls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandLine {
    /// Flags may stand anywhere.
    None,
    /// After the container's id.
    AfterId,
    /// From the first argument on, once this flag was given.
    With(&'static str),
    /// From the first argument on, once the first flag was given; behind `--`, which stays among the arguments, once the
    /// second was.
    WithOrBehind(&'static str, &'static str),
}

impl Arguments {
    /// No arguments.
    pub const NONE: Self = Self { usage: "", min: 0, max: 0, command: CommandLine::None };
    /// The container's id.
    pub const ID: Self = Self { usage: "ID", min: 1, max: 1, command: CommandLine::None };
}

/// A flag of a verb, or a global one.
#[derive(Debug, PartialEq, Eq)]
pub struct Flag {
    /// `--long`, also taken as `-long`.
    pub long: &'static str,
    /// `-s`.
    pub short: Option<char>,
    /// What it takes.
    pub value: Value,
    /// Whether each use adds a value; otherwise the last one holds.
    pub many: bool,
    /// Taken for the sake of old callers, and not shown.
    pub hidden: bool,
    /// One sentence without a full stop.
    pub help: &'static str,
}

/// What a flag takes, by the name its help shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Nothing: it is on, or off with `=false`.
    Switch,
    /// UTF-8.
    Text(&'static str),
    /// One of these, parted by `|`: completion offers them. Whether it is one is for the verb to say.
    Words(&'static str),
    /// A path: any bytes.
    Path(&'static str),
}

impl Flag {
    /// What a row that says nothing more has.
    pub const SWITCH: Self = Self { long: "", short: None, value: Value::Switch, many: false, hidden: false, help: "" };

    /// Whether the flag is called so, without dashes.
    pub fn is_called(&self, name: &[u8]) -> bool {
        name == self.long.as_bytes()
            || matches!((self.short, name), (Some(short), [byte]) if short == char::from(*byte))
    }
}

impl Verb {
    /// What reads this verb's command line, once [`super::argv`] has brought it to one form. It knows no texts.
    pub fn parser(&self) -> Command {
        let command = Command::new(self.name).no_binary_name(true).args_override_self(true).disable_help_flag(true);
        let command = self.flags.iter().fold(command, |command, flag| command.arg(parsed(flag)));
        command.arg(Arg::new(ARGUMENTS).num_args(0..).value_parser(ValueParser::os_string()))
    }

    /// What shows this verb's help and man page.
    pub fn manual(&self) -> Command {
        let usage = format!("ferry {} [FLAG...] {}", self.name, self.arguments.usage);
        let command = Command::new(self.name).about(self.about).override_usage(usage.trim_end().to_owned());
        let command = command.help_template(help_template(&format!("ferry {}", self.name)));
        let shown = self.flags.iter().filter(|flag| !flag.hidden);
        shown.fold(command, |command, flag| command.arg(documented(flag)))
    }

    /// The text of `ferry VERB --help`.
    pub fn help(&self) -> String {
        with_details(self.manual().render_help().to_string(), self.details)
    }
}

/// A help with the sections behind it.
pub fn with_details(mut text: String, details: &[(&str, &str)]) -> String {
    for (title, body) in details {
        let paragraphs: Vec<String> = body.split("\n\n").map(wrapped).collect();
        text.push_str(&format!("\n{title}:\n{}\n", paragraphs.join("\n\n")));
    }
    text
}

/// The order of a help text, which begins as a man page does: with what `name` is, in one line.
pub fn help_template(name: &str) -> String {
    format!("NAME:\n    {name} - {{about}}\n\n{{usage-heading}} {{usage}}\n\n{{all-args}}{{after-help}}")
}

/// A paragraph in lines of at most 80 columns; one that is indented stands as it is.
fn wrapped(paragraph: &str) -> String {
    if paragraph.starts_with("    ") {
        return paragraph.to_owned();
    }
    let (mut text, mut column) = (String::new(), 0);
    for word in paragraph.split_whitespace() {
        let width = word.chars().count();
        match column {
            0 => {}
            _ if column + 1 + width > 80 => {
                text.push('\n');
                column = 0;
            }
            _ => {
                text.push(' ');
                column += 1;
            }
        }
        text.push_str(word);
        column += width;
    }
    text
}

/// A switch takes `true` or `false` here: what stands last on the command line holds.
fn parsed(flag: &Flag) -> Arg {
    let parser = match flag.value {
        Value::Switch => ValueParser::bool(),
        Value::Text(_) | Value::Words(_) => ValueParser::string(),
        Value::Path(_) => ValueParser::os_string(),
    };
    let action = if flag.many { ArgAction::Append } else { ArgAction::Set };
    Arg::new(flag.long).long(flag.long).value_parser(parser).action(action)
}

/// The same flag as a person sees it.
pub fn documented(flag: &Flag) -> Arg {
    let arg = Arg::new(flag.long).long(flag.long).short(flag.short).help(flag.help);
    match flag.value {
        Value::Switch => arg.action(ArgAction::SetTrue),
        Value::Text(name) | Value::Words(name) | Value::Path(name) => {
            arg.value_name(name).action(if flag.many { ArgAction::Append } else { ArgAction::Set })
        }
    }
}

/// A flag in the one form the parser is given: `--long=value`.
pub fn canonical(flag: &Flag, value: &OsStr) -> OsString {
    let mut word = OsString::with_capacity(flag.long.len() + value.len() + 3);
    word.push("--");
    word.push(flag.long);
    word.push("=");
    word.push(value);
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_wrapped_and_examples_are_not() {
        let long = "word ".repeat(40);
        let lines = wrapped(&long);
        assert!(lines.lines().count() == 3 && lines.lines().all(|line| line.len() <= 80), "{lines}");
        assert_eq!(lines.split_whitespace().count(), 40);
        let example = format!("    {long}");
        assert_eq!(wrapped(&example), example);
    }
}
