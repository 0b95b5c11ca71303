//! `ferry bundle`: bundles made from images. As with `ferry image`, `ferry-image` carries it out.

use clap::ArgMatches;

use super::family::Family;
use super::given;
use super::globals::Globals;
use super::image::delegate;
use super::verb::{Arguments, CommandLine, Flag, Value, Verb};
use crate::error::{Context, Error, Result};
use crate::lifecycle::image::bundle::{self, Options};

/// The row of `bundle`.
pub const FAMILY: Family = Family {
    name: "bundle",
    about: "Make bundles of images",
    details: &[(
        "DESCRIPTION",
        "A bundle is a directory with a root filesystem and a config.json that says how it is run: what `ferry run` and every \
         other OCI runtime takes.",
    )],
    verbs: &[CREATE],
};

/// The row of `bundle create`.
pub const CREATE: Verb = Verb {
    name: "bundle create",
    about: "Make a bundle of an image, which any OCI runtime runs",
    arguments: Arguments {
        usage: "--image NAME DIR [-- COMMAND [ARG...]]",
        min: 1,
        max: usize::MAX,
        command: CommandLine::WithOrBehind("", "image"),
    },
    flags: &[Flag { long: "image", value: Value::Text("NAME"), help: "The image of the store", ..Flag::SWITCH }],
    details: &[
        (
            "DESCRIPTION",
            "Writes DIR/config.json with what the image says of its command, user, environment, working directory, labels \
             and stop signal, and copies its layers to DIR/rootfs. Users and groups are looked up in the image. What it has \
             in its volumes is copied to DIR/volumes and bound over them. COMMAND replaces the image's own, but not its entry \
             point. DIR must be empty or not there; it appears whole or not at all, and only its owner can reach into it.\n\n\
             As an ordinary user, the container has a user namespace with the ids of /etc/subuid and /etc/subgid.",
        ),
        ("EXIT STATUS", "0, or 1 when there is no such image or the bundle cannot be made."),
        ("EXAMPLES", "    ferry bundle create --image debian:12 ./web -- /bin/sh\n    runc run --bundle ./web web"),
    ],
    run: delegate::run,
};

/// Carries `bundle create` out.
///
/// # Errors
/// As [`bundle::create`].
pub fn create(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    bundle::create(&globals.setting, &options(matches)?).map(|()| 0)
}

fn options(matches: &ArgMatches) -> Result<Options> {
    let image = given::string(matches, "image").ok_or_else(|| {
        Error::plain("--image is missing").hint("`ferry image list` shows the images that a bundle can be made of")
    })?;
    let words = given::arguments(matches)?;
    let dashes = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let [directory] = &words[..dashes] else {
        return Err(Error::plain("\"bundle create\" requires exactly 1 directory")
            .hint("a command stands behind `--`: ferry bundle create --image NAME DIR -- COMMAND"));
    };
    Ok(Options {
        image,
        directory: std::path::absolute(directory).or_cannot("find the working directory for", directory)?,
        args: words.get(dashes + 1..).unwrap_or_default().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    #[test]
    fn a_command_stands_behind_the_dashes() {
        let parse = |line: &str| options(&matches(&CREATE, line).unwrap());
        let found = parse("--image a:1 /b -- ls -l").unwrap();
        assert_eq!((found.image.as_str(), found.directory.as_path()), ("a:1", std::path::Path::new("/b")));
        assert_eq!(found.args, ["ls", "-l"]);
        assert!(parse("/b").unwrap_err().to_string().starts_with("--image is missing"));
        assert!(parse("--image a /b ls").unwrap_err().to_string().contains("exactly 1 directory"));
    }
}
