//! `ferry image pull`.

use clap::ArgMatches;

use super::delegate;
use super::import::{EROFS, MAX_SIZE, PLATFORM, erofs, max_size, platform};
use super::progress::{PROGRESS, Shown};
use crate::cli::globals::Globals;
use crate::cli::verb::{Arguments, CommandLine, Flag, Value, Verb};
use crate::cli::{given, output};
use crate::error::Result;
use crate::image::registry::Wishes;
use crate::lifecycle::image::pull::Options;
use crate::lifecycle::image::{self, list};

/// The row of `image pull`.
pub const VERB: Verb = Verb {
    name: "image pull",
    about: "Bring an image into the store, from a registry",
    arguments: Arguments { usage: "NAME", min: 1, max: 1, command: CommandLine::None },
    flags: &[
        PLATFORM,
        Flag {
            long: "mirror",
            value: Value::Text("HOST[:PORT][/PATH]"),
            many: true,
            help: "Ask this server first",
            ..Flag::SWITCH
        },
        Flag {
            long: "insecure",
            help: "Take any certificate, and do without TLS where the server has none",
            ..Flag::SWITCH
        },
        Flag {
            long: "authfile",
            value: Value::Path("FILE"),
            help: "Read the password from FILE, and from nowhere else",
            ..Flag::SWITCH
        },
        MAX_SIZE,
        EROFS,
        PROGRESS,
    ],
    details: &[
        (
            "DESCRIPTION",
            "Asks a registry for an image, as OCI's distribution specification says. A name without a host is docker.io's, \
             or that of the one registry that registries.conf names for such names. Passwords are those that `podman login` or \
             `docker login` left, mirrors those of registries.conf, certificates those of the system and of \
             /etc/containers/certs.d and /etc/docker/certs.d. Only to this machine itself is spoken without TLS unasked.\n\n\
             Everything is verified while it comes, and unpacked at once; a connection that breaks is taken up where it \
             broke. The image becomes visible when it is whole: after a failure the store is as it was. A layer that is in \
             the store is not fetched again.",
        ),
        (
            "FILES",
            "$REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json, ~/.config/containers/auth.json, \
                   ~/.docker/config.json: passwords, the first that has one.\n\n\
                   $CONTAINERS_REGISTRIES_CONF, ~/.config/containers/registries.conf, /etc/containers/registries.conf and \
                   registries.conf.d beside it: mirrors.",
        ),
        ("EXIT STATUS", "0 when the image is in the store, 1 otherwise."),
        (
            "EXAMPLES",
            "    ferry image pull debian:12\n    ferry image pull registry.example/team/app@sha256:...\n    \
             ferry image pull --mirror mirror.example:5000 --platform linux/arm64 debian:12",
        ),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// As [`image::pull::pull`].
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let options = options(matches)?;
    let shown = given::text(matches, "progress").map(str::to_owned);
    let found = image::pull::find(&options)?;
    image::as_root(&globals.setting, |setting| {
        let progress = Shown::new(shown.as_deref())?;
        let pulled = image::pull::pull(setting, found, &options, &progress);
        progress.finish()?;
        pulled?;
        if shown.as_deref() != Some("json") {
            let name = options.name.to_string();
            let rows = list::list(setting)?.into_iter().filter(|row| row.name == name);
            rows.into_iter().try_for_each(|row| output::print(&format!("{} {}\n", row.name, row.digest)))?;
        }
        Ok(0)
    })
}

fn options(matches: &ArgMatches) -> Result<Options> {
    let name = given::arguments(matches)?.into_iter().next().unwrap_or_default();
    Ok(Options {
        name: name.parse()?,
        platform: platform(matches)?,
        max_size: max_size(matches)?,
        erofs: erofs(matches)?,
        wishes: Wishes { mirrors: given::strings(matches, "mirror"), insecure: given::switch(matches, "insecure") },
        auth_file: given::absolute(matches, "authfile")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;

    #[test]
    fn flags_become_options() {
        let parse = |line: &str| options(&matches(&VERB, line).unwrap());
        let found =
            parse("--mirror a.example --mirror b.example/x --insecure --authfile /a --max-size 1k r.example/app:1")
                .unwrap();
        assert_eq!(found.name.to_string(), "r.example/app:1");
        assert_eq!(found.wishes.mirrors, ["a.example", "b.example/x"]);
        assert_eq!((found.wishes.insecure, found.max_size), (true, Some(1024)));
        assert!(parse("UPPER").unwrap_err().to_string().contains("UPPER"));
    }
}
