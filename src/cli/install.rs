//! `ferry install`.

use clap::ArgMatches;

use super::globals::Globals;
use super::verb::{Arguments, Flag, Value, Verb};
use super::{given, output};
use crate::error::{Error, Result};
use crate::lifecycle::install::{self, Deed, Options, Outcome};

/// The row of `install`.
pub const VERB: Verb = Verb {
    name: "install",
    about: "Make this program a runtime of an engine",
    arguments: Arguments::NONE,
    flags: &[
        Flag { long: "engine", value: Value::Words("containerd|docker|podman"), help: "The engine", ..Flag::SWITCH },
        Flag { long: "write", help: "Change the engine's configuration; otherwise it is only shown", ..Flag::SWITCH },
        Flag { long: "undo", help: "Take out again what --write put there", ..Flag::SWITCH },
        Flag {
            long: "binary",
            value: Value::Path("FILE"),
            help: "The program the engine is to start, where it is not this one",
            ..Flag::SWITCH
        },
        Flag {
            long: "native",
            help: "Have containerd start containerd-shim-ferry-v2, which lies beside this program, in place of its own shim",
            ..Flag::SWITCH
        },
        Flag {
            long: "config",
            value: Value::Path("FILE"),
            help: "The engine's configuration, where it is not in its usual place",
            ..Flag::SWITCH
        },
    ],
    details: &[
        (
            "DESCRIPTION",
            "Shows the configuration with which an engine knows ferry as a runtime of that name, or with --write puts it \
             there: for root that of the whole machine, for other users that of their own engine. Whatever else the \
             configuration says stays. Doing it twice changes nothing. Which runtime is the engine's default stays as it \
             is.\n\npodman gets a file of its own in containers.conf.d, docker a row in daemon.json, containerd tables for \
             its CRI plugin in config.toml, between two marks. The last lines say how the engine is made to read it, and \
             how ferry is asked for.",
        ),
        ("EXIT STATUS", "0, or 1 when the configuration cannot be read, understood or changed."),
        (
            "EXAMPLES",
            "    ferry install --engine podman --write\n    podman --runtime ferry run IMAGE\n    ferry install --engine podman \
             --write --undo\n    ferry install --engine containerd --native --write",
        ),
    ],
    run,
};

fn run(_: &Globals, matches: &ArgMatches) -> Result<u8> {
    let Some(name) = given::text(matches, "engine") else {
        return Err(Error::plain("which engine?").hint("give --engine containerd, docker or podman"));
    };
    let undo = given::switch(matches, "undo");
    let options = Options {
        engine: install::engine(name)?,
        deed: if undo { Deed::Undo } else { Deed::Install },
        binary: given::absolute(matches, "binary")?,
        native: given::switch(matches, "native"),
        config: given::absolute(matches, "config")?,
        write: given::switch(matches, "write"),
    };
    let outcome = install::install(&options)?;
    output::print(&told(&outcome, options.write)).map(|()| 0)
}

/// In words: what became of which file, what is in it, what is left to do.
fn told(outcome: &Outcome, write: bool) -> String {
    let Outcome { path, changed, text, then } = outcome;
    let path = path.display();
    let said = match (changed, write, text) {
        (false, ..) => format!("{path} is as it should be\n"),
        (true, true, Some(_)) => format!("{path} is written\n"),
        (true, true, None) => format!("{path} is removed\n"),
        (true, false, Some(text)) => format!("{path}, with --write, would have:\n\n{text}\n"),
        (true, false, None) => format!("{path}, with --write, would be removed\n"),
    };
    let then = if *changed { then.as_slice() } else { &[] };
    then.iter().fold(said, |said, line| said + "then: " + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(changed: bool, text: Option<&str>) -> Outcome {
        Outcome { path: "/c".into(), changed, text: text.map(str::to_owned), then: vec!["restart it"] }
    }

    #[test]
    fn what_is_told() {
        assert_eq!(
            told(&outcome(true, Some("a\n")), false),
            "/c, with --write, would have:\n\na\n\nthen: restart it\n"
        );
        assert_eq!(told(&outcome(true, Some("a\n")), true), "/c is written\nthen: restart it\n");
        assert_eq!(told(&outcome(true, None), true), "/c is removed\nthen: restart it\n");
        assert_eq!(told(&outcome(true, None), false), "/c, with --write, would be removed\nthen: restart it\n");
        assert_eq!(told(&outcome(false, None), true), "/c is as it should be\n");
    }
}
