//! `ferry image import`.

use std::path::PathBuf;

use clap::ArgMatches;

use super::delegate;
use super::progress::{PROGRESS, Shown};
use crate::cli::globals::Globals;
use crate::cli::verb::{Arguments, CommandLine, Flag, Value, Verb};
use crate::cli::{given, output, size};
use crate::error::{Context, Error, Result};
use crate::image::erofs::Maker;
use crate::image::manifest::{self, Platform};
use crate::image::source::FORMS;
use crate::lifecycle::image::import::Options;
use crate::lifecycle::image::{self, list};

/// `--platform`.
pub const PLATFORM: Flag = Flag {
    long: "platform",
    value: Value::Text("OS/ARCH[/VARIANT]"),
    help: "Choose the image for another machine than this one",
    ..Flag::SWITCH
};

/// `--max-size`.
pub const MAX_SIZE: Flag = Flag {
    long: "max-size",
    value: Value::Text("SIZE"),
    help: "Refuse a layer that unpacks to more, such as 10g (default 64g)",
    ..Flag::SWITCH
};

/// `--erofs`.
pub const EROFS: Flag = Flag {
    long: "erofs",
    help: "Make each layer an EROFS image as well, for `run --image --erofs`; as root, with mkfs.erofs",
    ..Flag::SWITCH
};

/// The row of `image import`.
pub const VERB: Verb = Verb {
    name: "image import",
    about: "Bring an image into the store, from an archive or a directory",
    arguments: Arguments { usage: "SOURCE", min: 1, max: 1, command: CommandLine::None },
    flags: &[
        Flag {
            long: "name",
            short: Some('n'),
            value: Value::Text("NAME"),
            help: "Call the image so, in place of what the source calls it",
            ..Flag::SWITCH
        },
        Flag {
            long: "format",
            short: Some('f'),
            value: Value::Words("oci|docker|rootfs"),
            help: "What SOURCE is (default: found out)",
            ..Flag::SWITCH
        },
        PLATFORM,
        MAX_SIZE,
        EROFS,
        PROGRESS,
    ],
    details: &[
        (
            "DESCRIPTION",
            "Reads an OCI image layout (a directory or an archive of one), an archive that `docker save` or `podman save` \
             wrote, or a root filesystem (a directory or an archive). Archives may be packed with gzip or zstd; - is \
             standard input. All layers are verified and unpacked at once, and the image becomes visible when it is whole: \
             after a failure the store is as it was.\n\nOf a source with several images, SOURCE:NAME takes the one of that name \
             or tag, or of a docker archive that of this id; all of them are taken otherwise. Of an image for several machines the one for this machine is taken. \
             With --erofs, layers that are there already get their EROFS images too. \
             As an ordinary user, files keep their owners as far as /etc/subuid and /etc/subgid reach, and device nodes are \
             left out.",
        ),
        ("EXIT STATUS", "0 when every image of the source is in the store, 1 otherwise."),
        (
            "EXAMPLES",
            "    docker save debian:12 | ferry image import -\n    ferry image import ./layout:v2 --name web:2\n    \
             ferry image import rootfs.tar.zst --name base:latest --progress json",
        ),
    ],
    run: delegate::run,
};

/// Carries it out.
///
/// # Errors
/// As [`image::import::import`].
pub fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let options = options(matches)?;
    let shown = given::text(matches, "progress").map(str::to_owned);
    image::as_root(&globals.setting, |setting| {
        let before = list::list(setting)?;
        let progress = Shown::new(shown.as_deref())?;
        let imported = image::import::import(setting, &options, &progress);
        progress.finish()?;
        imported?;
        if shown.as_deref() != Some("json") {
            let new = list::list(setting)?.into_iter().filter(|row| !before.contains(row));
            new.into_iter().try_for_each(|row| output::print(&format!("{} {}\n", row.name, row.digest)))?;
        }
        Ok(0)
    })
}

fn options(matches: &ArgMatches) -> Result<Options> {
    let source = given::arguments(matches)?.into_iter().next().unwrap_or_default();
    let form = given::text(matches, "format").map(|word| {
        let known = || FORMS.map(|(name, _)| name).join(", ");
        let found = FORMS.iter().find(|(name, _)| *name == word).map(|(_, form)| *form);
        found.ok_or_else(|| Error::plain(format!("invalid format {word:?}: it is one of {}", known())))
    });
    Ok(Options {
        source: match source.as_str() {
            "-" => PathBuf::from("-"),
            path => std::path::absolute(path).or_cannot("find the working directory for", path)?,
        },
        name: given::string(matches, "name"),
        form: form.transpose()?,
        platform: platform(matches)?,
        max_size: max_size(matches)?,
        erofs: erofs(matches)?,
    })
}

/// The value of [`PLATFORM`].
///
/// # Errors
/// It is none.
pub fn platform(matches: &ArgMatches) -> Result<Option<Platform>> {
    let read = |text| manifest::platform(text).map_err(|why| given::invalid("platform", text, &why));
    given::text(matches, "platform").map(read).transpose()
}

/// What makes EROFS images, where [`EROFS`] is given.
///
/// # Errors
/// They cannot be made here.
pub fn erofs(matches: &ArgMatches) -> Result<Option<Maker>> {
    given::switch(matches, "erofs").then(Maker::find).transpose()
}

/// The value of [`MAX_SIZE`], in bytes.
///
/// # Errors
/// It is none.
pub fn max_size(matches: &ArgMatches) -> Result<Option<u64>> {
    let read = |text| size::limit(text).map_err(|why| given::invalid("max-size", text, why));
    let bytes = given::text(matches, "max-size").map(read).transpose()?;
    Ok(bytes.and_then(|bytes| u64::try_from(bytes).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::matches;
    use crate::image::source::Form;

    #[test]
    fn flags_become_options() {
        let parse = |line: &str| options(&matches(&VERB, line).unwrap());
        let found = parse("-n web:1 --format docker --platform linux/arm64 --max-size 1m -").unwrap();
        assert_eq!((found.form, found.max_size, found.source), (Some(Form::Docker), Some(1 << 20), PathBuf::from("-")));
        assert_eq!(found.name.as_deref(), Some("web:1"));
        assert!(parse("--format zip x").unwrap_err().to_string().ends_with("it is one of oci, docker, rootfs"));
        assert!(parse("--platform arm x").unwrap_err().to_string().starts_with("invalid value \"arm\" for --platform"));
    }
}
