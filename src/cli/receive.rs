//! `ferry receive`: the row is `ferry`'s, what it does is linked into `ferry-image` alone.

use std::time::Duration;

use clap::ArgMatches;

use super::globals::Globals;
use super::image::delegate;
use super::migrate::{TIMEOUT, time};
use super::verb::{Arguments, Flag, Value, Verb};
use super::{given, output};
use crate::error::{Error, Result};
use crate::lifecycle::receive::{self, Options};

/// The row of `receive`.
pub const VERB: Verb = Verb {
    name: "receive",
    about: "Take a container that is carried here",
    arguments: Arguments::NONE,
    flags: &[
        Flag { long: "stdio", help: "Standard input and output lead to `ferry migrate`", ..Flag::SWITCH },
        Flag {
            long: "listen",
            value: Value::Text("ADDRESS:PORT"),
            help: "Wait for connections there; without --tls only from this machine",
            ..Flag::SWITCH
        },
        Flag {
            long: "tls",
            value: Value::Path("DIR"),
            help: "With --listen: speak TLS, and take who has a certificate of an authority in DIR/ca.pem; DIR/cert.pem and \
                   DIR/key.pem are this machine's own",
            ..Flag::SWITCH
        },
        Flag { long: "once", help: "End after the first connection", ..Flag::SWITCH },
        Flag {
            long: "output",
            value: Value::Path("DIR"),
            help: "Where files are that take the place of the container's standard streams (default: output beside the \
                   images)",
            ..Flag::SWITCH
        },
        TIMEOUT,
    ],
    details: &[
        (
            "DESCRIPTION",
            "The far end of ferry-migrate(1), which calls it by ssh, or by TLS where it listens: version 1.3, and a \
             certificate of each end that the other believes, before anything else is said. It takes containers whose bundle is here already: \
             root filesystem, mounts, limits and hooks are this machine's own, and a container whose config.json is another \
             is refused. An ssh key may be held to it by command=\"ferry receive --stdio\" in authorized_keys.\n\n\
             Standard output and error of a container that led to a pipe or a file on the other machine lead to ID.stdout \
             and ID.stderr in the directory of --output. What was written there before stays there: a file that has \
             to be as long as the one it replaces begins with a hole.",
        ),
        ("EXIT STATUS", "0 when the container runs here, or none came; 1 otherwise."),
        (
            "EXAMPLES",
            "    ssh b ferry receive --stdio\n    ferry receive --listen 127.0.0.1:7000 --once\n    ferry receive --listen 0.0.0.0:7000 --tls /etc/ferry/tls",
        ),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// As [`receive::receive`].
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let options = options(matches)?;
    receive::receive(&globals.setting, &options, &mut |line| output::print(&format!("{line}\n")))
        .map(|came| u8::from(!came))
}

fn options(matches: &ArgMatches) -> Result<Options> {
    let listen = given::string(matches, "listen");
    match (given::switch(matches, "stdio"), &listen) {
        (true, None) | (false, Some(_)) => (),
        (true, Some(_)) => return Err(Error::plain("--stdio and --listen do not go together")),
        (false, None) => return Err(Error::plain("it is not said where from").hint("give --stdio or --listen")),
    }
    let tls = given::absolute(matches, "tls")?;
    if tls.is_some() && listen.is_none() {
        return Err(Error::plain("--tls needs --listen").hint("what --stdio leads through is the caller's affair"));
    }
    Ok(Options {
        listen,
        tls,
        once: given::switch(matches, "once"),
        output: given::absolute(matches, "output")?,
        patience: time(matches, "timeout", Duration::from_secs(60))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    #[test]
    fn one_way_in_is_named() {
        let parsed = |line: &str| options(&matches(&VERB, line).unwrap());
        let found = parsed("--listen 127.0.0.1:7 --once --output /o --timeout 5s").unwrap();
        assert_eq!((found.listen.as_deref(), found.once), (Some("127.0.0.1:7"), true));
        assert_eq!((found.output, found.patience), (Some("/o".into()), Duration::from_secs(5)));
        assert_eq!(parsed("--stdio").unwrap().listen, None);
        assert!(parsed("").unwrap_err().to_string().starts_with("it is not said where from"));
        assert!(parsed("--stdio --listen 127.0.0.1:7").is_err());
        assert_eq!(parsed("--listen 0.0.0.0:7 --tls /t").unwrap().tls, Some("/t".into()));
        assert!(parsed("--stdio --tls /t").unwrap_err().to_string().starts_with("--tls needs --listen"));
    }
}
