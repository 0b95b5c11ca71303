//! Reading a verb's flags and arguments out of what clap parsed. An empty value is as good as none: engines send
//! `--pid-file ""`.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ArgMatches;

use super::verb::ARGUMENTS;
use crate::error::{Context, Error, Result};

/// Whether a switch is on.
pub fn switch(matches: &ArgMatches, flag: &str) -> bool {
    chosen(matches, flag).unwrap_or(false)
}

/// What a switch was set to, if it was.
pub fn chosen(matches: &ArgMatches, flag: &str) -> Option<bool> {
    matches.get_one::<bool>(flag).copied()
}

/// A flag's text.
pub fn text<'a>(matches: &'a ArgMatches, flag: &str) -> Option<&'a str> {
    matches.get_one::<String>(flag).map(String::as_str).filter(|text| !text.is_empty())
}

/// A flag's text, to keep.
pub fn string(matches: &ArgMatches, flag: &str) -> Option<String> {
    text(matches, flag).map(str::to_owned)
}

/// The texts of a flag that may be given many times, in order.
pub fn strings(matches: &ArgMatches, flag: &str) -> Vec<String> {
    matches.get_many::<String>(flag).into_iter().flatten().cloned().collect()
}

/// A flag's path as it was given.
pub fn path<'a>(matches: &'a ArgMatches, flag: &str) -> Option<&'a OsStr> {
    matches.get_one::<OsString>(flag).map(OsString::as_os_str).filter(|path| !path.is_empty())
}

/// The paths of a flag that may be given many times, in order, as they were given.
pub fn paths(matches: &ArgMatches, flag: &str) -> Vec<PathBuf> {
    matches.get_many::<OsString>(flag).into_iter().flatten().map(PathBuf::from).collect()
}

/// A flag's path, absolute: the verb may change its working directory. Symbolic links and `..` stay as they are.
///
/// # Errors
/// The path is relative and the working directory is gone.
pub fn absolute(matches: &ArgMatches, flag: &str) -> Result<Option<PathBuf>> {
    path(matches, flag)
        .map(|path| std::path::absolute(path).or_cannot("find the working directory for", path.display()))
        .transpose()
}

/// A flag's number.
///
/// # Errors
/// It is none, or out of range.
pub fn number<T: FromStr<Err: Display>>(matches: &ArgMatches, flag: &str) -> Result<Option<T>> {
    text(matches, flag).map(|text| text.parse().map_err(|why| invalid(flag, text, why))).transpose()
}

/// `invalid value "x" for --flag: why`.
pub fn invalid(flag: &str, value: &str, why: impl Display) -> Error {
    Error::plain(format!("invalid value {value:?} for --{flag}: {why}"))
}

/// The arguments that are not flags.
///
/// # Errors
/// One of them is not UTF-8, which config.json could not hold either.
pub fn arguments(matches: &ArgMatches) -> Result<Vec<String>> {
    let text = |word: &OsString| {
        word.to_str().map(str::to_owned).ok_or_else(|| Error::plain(format!("{word:?} is not UTF-8")))
    };
    matches.get_many::<OsString>(ARGUMENTS).into_iter().flatten().map(text).collect()
}

/// The container's id and the arguments behind it.
///
/// # Errors
/// One of them is not UTF-8, or there is none.
pub fn id_and_rest(matches: &ArgMatches) -> Result<(String, Vec<String>)> {
    let mut words = arguments(matches)?.into_iter();
    let id = words.next().ok_or_else(|| Error::plain("the container's id is missing"))?;
    Ok((id, words.collect()))
}

/// The container's id.
///
/// # Errors
/// It is not UTF-8, or there is none.
pub fn id(matches: &ArgMatches) -> Result<String> {
    Ok(id_and_rest(matches)?.0)
}
