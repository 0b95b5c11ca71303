//! What `ferry run --image` is asked to run: the flags of `run --rootfs`, an id before the dashes, a command behind them.

use std::path::PathBuf;

use clap::ArgMatches;

use super::given;
use super::run_rootfs::{self, Caller};
use crate::error::{Error, Result};
use crate::lifecycle::run_rootfs::Options;

/// The options the flags and the caller give.
///
/// # Errors
/// A value that is not understood, or more than one id.
pub fn options(matches: &ArgMatches, caller: &Caller) -> Result<Options> {
    let words = given::arguments(matches)?;
    let dashes = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let command = words.get(dashes + 1..).unwrap_or_default().to_vec();
    let options = run_rootfs::flags(matches, PathBuf::new(), command, caller)?;
    match &words[..dashes] {
        [] => Ok(options),
        [id] if given::text(matches, "name").is_none_or(|name| name == id) => Ok(Options { id: id.clone(), ..options }),
        [_] => Err(Error::plain("--name and the container's id contradict each other")),
        [_, second, ..] => Err(Error::plain(format!("{second:?} is one argument too many"))
            .hint("a command stands behind `--`: ferry run --image NAME [ID] -- COMMAND")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{matches, run};

    fn parse(line: &str) -> Result<Options> {
        options(&matches(&run::VERB, line)?, &Caller { terminal: false, variable: &|_| None })
    }

    #[test]
    fn an_id_stands_before_the_dashes_and_a_command_behind() {
        let of = |line: &str| parse(line).map(|options| (options.id, options.args));
        assert_eq!(of("--image a web -- ls -- -l"), Ok(("web".into(), ["ls", "--", "-l"].map(str::to_owned).to_vec())));
        assert_eq!(of("--image a --name web"), Ok(("web".into(), vec![])));
        assert_eq!(of("--image a -- ls").unwrap().1, ["ls"]);
        assert_eq!(of("--image a").unwrap().0.len(), 12);
        assert!(of("--image a web ls").unwrap_err().to_string().contains("behind `--`"));
        assert!(of("--image a --name x web").is_err());
    }
}
