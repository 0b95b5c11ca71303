//! Reading a command line as Go's flag package and runc do, by the table of flags.
//!
//! Engines are written against that package: containerd sends `-no-subreaper`, others `--detach=false`. A flag has one
//! dash or two, its value behind `=` or in the next word whatever that looks like (`--memory-swap -1`), and a switch
//! takes `=true` or `=false` but never the next word. clap reads none of these, so every flag is brought to the form
//! `--long=value` first.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::verb::{CommandLine, Flag, Value, Verb, canonical};
use crate::error::{Error, Result};

/// One word of a command line, or a flag with the word that is its value.
#[derive(Debug, PartialEq, Eq)]
pub enum Word {
    /// A flag of the table; a switch's value is `true` or `false`.
    Flag(&'static Flag, OsString),
    /// `--help` in any form.
    Help,
    /// Looks like a flag and is in no table.
    Unknown(OsString),
    /// `--`: no flags after this.
    End,
    /// Anything else.
    Argument(OsString),
}

/// A command line, read word by word.
pub struct Words<I> {
    flags: &'static [Flag],
    rest: I,
    /// The letters of `-dt` that are still to be read.
    letters: Option<OsString>,
}

impl<I: Iterator<Item = OsString>> Words<I> {
    /// Reads `rest` by a table of flags.
    pub fn new(flags: &'static [Flag], rest: I) -> Self {
        Self { flags, rest, letters: None }
    }

    /// What has not been read.
    pub fn rest(self) -> I {
        self.rest
    }

    /// The next word; `None` at the end.
    ///
    /// # Errors
    /// A flag without its value, or a switch with a value that is no truth.
    pub fn read(&mut self) -> Result<Option<Word>> {
        let Some(word) = self.letters.take().or_else(|| self.rest.next()) else { return Ok(None) };
        let dashes = word.as_bytes().iter().take_while(|&&byte| byte == b'-').count();
        match (dashes, word.len()) {
            (2, 2) => Ok(Some(Word::End)),
            // A lone dash is an argument: it means standard input.
            (1 | 2, length) if length > dashes => self.flag(word, dashes).map(Some),
            _ => Ok(Some(Word::Argument(word))),
        }
    }

    fn flag(&mut self, word: OsString, dashes: usize) -> Result<Word> {
        let bytes = &word.as_bytes()[dashes..];
        let equals = bytes.iter().position(|&byte| byte == b'=');
        let (name, value) = equals.map_or((bytes, None), |at| (&bytes[..at], Some(&bytes[at + 1..])));
        let Some(flag) = self.flags.iter().find(|flag| flag.is_called(name)) else {
            return Ok(match name {
                b"help" | b"h" => Word::Help,
                _ if dashes == 1 && value.is_none() => self.switches(name).unwrap_or(Word::Unknown(word)),
                _ => Word::Unknown(word),
            });
        };
        let value = match (flag.value, value) {
            (Value::Switch, None) => "true".into(),
            (Value::Switch, Some(value)) => truth(flag, value)?.into(),
            (_, Some(value)) => OsStr::from_bytes(value).to_owned(),
            (_, None) => {
                let missing = || Error::plain(format!("flag needs an argument: --{}", flag.long));
                self.rest.next().ok_or_else(missing)?
            }
        };
        Ok(Word::Flag(flag, value))
    }

    /// `-dt` as `-d -t`, if every letter is a switch.
    fn switches(&mut self, letters: &[u8]) -> Option<Word> {
        let find = |letter: &u8| self.flags.iter().find(|f| f.value == Value::Switch && f.is_called(&[*letter]));
        let (first, rest) = letters.split_first()?;
        let flag = find(first)?;
        if rest.is_empty() || !rest.iter().all(|letter| find(letter).is_some()) {
            return None;
        }
        self.letters = Some(OsString::from_vec([b"-", rest].concat()));
        Some(Word::Flag(flag, "true".into()))
    }
}

/// The spellings Go's ParseBool knows.
fn truth(flag: &Flag, value: &[u8]) -> Result<&'static str> {
    match value {
        b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True" => Ok("true"),
        b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False" => Ok("false"),
        _ => {
            Err(Error::plain(format!("invalid boolean value {:?} for --{}", String::from_utf8_lossy(value), flag.long)))
        }
    }
}

/// A verb's command line in the one form its parser reads: flags as `--long=value`, then `--`, then the arguments.
/// `None`: help was asked for.
///
/// # Errors
/// A flag without its value, or a switch with a value that is no truth.
pub fn normalise(verb: &Verb, argv: impl Iterator<Item = OsString>) -> Result<Option<Vec<OsString>>> {
    let mut words = Words::new(verb.flags, argv);
    let mut flags = Vec::new();
    let mut arguments = Vec::new();
    // Whether the flag is there that makes the arguments a command line.
    let mut command = false;
    let mut verbatim = false;
    // Whether the flag is there that makes them one behind the dashes.
    let mut parted = false;
    while let Some(word) = words.read()? {
        match word {
            Word::Help => return Ok(None),
            Word::Flag(flag, value) => {
                match verb.arguments.command {
                    CommandLine::With(with) => command |= flag.long == with,
                    CommandLine::WithOrBehind(with, behind) => {
                        command |= flag.long == with;
                        parted |= flag.long == behind;
                    }
                    CommandLine::None | CommandLine::AfterId => {}
                }
                flags.push(canonical(flag, &value));
            }
            Word::Unknown(word) => flags.push(word),
            Word::End => {
                verbatim = true;
                if parted {
                    arguments.push("--".into());
                }
            }
            Word::Argument(word) => {
                arguments.push(word);
                verbatim = command || verb.arguments.command == CommandLine::AfterId;
            }
        }
        if verbatim {
            break;
        }
    }
    arguments.extend(words.rest());
    // `exec ID -- ls`: the dashes only part ferry's words from the command's.
    if verb.arguments.command == CommandLine::AfterId && arguments.get(1).is_some_and(|word| word == "--") {
        arguments.remove(1);
    }
    flags.push("--".into());
    flags.append(&mut arguments);
    Ok(Some(flags))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{exec, kill, run, update};

    fn words(line: &str) -> impl Iterator<Item = OsString> {
        line.split(' ').filter(|word| !word.is_empty()).map(OsString::from)
    }

    fn normal(verb: &Verb, line: &str) -> String {
        let words = normalise(verb, words(line)).unwrap().expect("help");
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    fn refused(verb: &Verb, line: &str) -> String {
        normalise(verb, words(line)).unwrap_err().to_string()
    }

    #[test]
    fn one_dash_and_two_and_the_short_letter_are_the_same_flag() {
        for line in ["-bundle=/b c", "--bundle=/b c", "-bundle /b c", "--bundle /b c", "-b /b c", "-b=/b c", "c -b /b"]
        {
            assert_eq!(normal(&run::VERB, line), "--bundle=/b -- c", "{line}");
        }
        assert_eq!(normal(&run::VERB, "-no-subreaper c"), "--no-subreaper=true -- c");
    }

    #[test]
    fn a_switch_takes_a_truth_behind_equals_and_never_the_next_word() {
        assert_eq!(normal(&run::VERB, "--keep=F --detach=1 false"), "--keep=false --detach=true -- false");
        assert_eq!(refused(&run::VERB, "--keep=maybe c"), "invalid boolean value \"maybe\" for --keep");
    }

    #[test]
    fn switches_of_one_letter_can_be_joined_and_others_cannot() {
        assert_eq!(normal(&exec::VERB, "-dt c sh"), "--detach=true --tty=true -- c sh");
        assert_eq!(normal(&exec::VERB, "-du c sh"), "-du -- c sh");
    }

    #[test]
    fn a_value_is_the_next_word_whatever_it_looks_like() {
        assert_eq!(normal(&update::VERB, "--memory-swap -1 c"), "--memory-swap=-1 -- c");
        assert_eq!(normal(&update::VERB, "--resources - c"), "--resources=- -- c");
        assert_eq!(normal(&exec::VERB, "-e A=b=c x"), "--env=A=b=c -- x");
        assert_eq!(refused(&update::VERB, "--memory-swap"), "flag needs an argument: --memory-swap");
    }

    #[test]
    fn after_execs_id_everything_is_the_command() {
        assert_eq!(normal(&exec::VERB, "-t c ls -l --detach"), "--tty=true -- c ls -l --detach");
        assert_eq!(normal(&exec::VERB, "c -- ls -- -l"), "-- c ls -- -l");
        assert_eq!(normal(&exec::VERB, "-- c ls -l"), "-- c ls -l");
    }

    #[test]
    fn with_a_rootfs_everything_from_the_first_argument_is_the_command() {
        assert_eq!(normal(&run::VERB, "--rootfs / ls -l"), "--rootfs=/ -- ls -l");
        assert_eq!(normal(&run::VERB, "--rootfs / -- ls -- -b"), "--rootfs=/ -- ls -- -b");
        assert_eq!(normal(&run::VERB, "c --detach"), "--detach=true -- c");
    }

    #[test]
    fn with_an_image_the_command_stands_behind_the_dashes() {
        assert_eq!(normal(&run::VERB, "--image a web --tty -- ls -- -l"), "--image=a --tty=true -- web -- ls -- -l");
        assert_eq!(normal(&run::VERB, "--image a -- ls"), "--image=a -- -- ls");
        assert_eq!(normal(&run::VERB, "--image a"), "--image=a --");
    }

    #[test]
    fn help_is_asked_for_before_the_command_only() {
        for line in ["--help", "-h", "-help", "c -h"] {
            assert!(normalise(&run::VERB, words(line)).unwrap().is_none(), "{line}");
        }
        assert_eq!(normal(&exec::VERB, "c ls -h"), "-- c ls -h");
    }

    #[test]
    fn unknown_flags_are_left_for_the_parser_to_name() {
        assert_eq!(normal(&kill::VERB, "--al c"), "--al -- c");
    }

    #[test]
    fn bytes_that_are_no_text_go_through() {
        let path = OsString::from_vec(b"--bundle=/\xff".to_vec());
        let words = normalise(&run::VERB, [path.clone(), "c".into()].into_iter()).unwrap().unwrap();
        assert_eq!(words[0], path);
    }
}
