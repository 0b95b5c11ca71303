//! `ferry mounts`: mounts of a container that is there.

use std::path::{Path, PathBuf};

use clap::ArgMatches;

use super::given;
use super::globals::Globals;
use super::verb::{Arguments, CommandLine, Verb};
use crate::error::{Error, Result};
use crate::lifecycle;
use crate::spec::Document;
use crate::spec::config::Mount;

/// The row of `mounts`.
pub const VERB: Verb = Verb {
    name: "mounts",
    about: "Add mounts to a container that is there, or remove them",
    arguments: Arguments {
        usage: "add|remove ID FILE|JSON|PLACE...",
        min: 3,
        max: usize::MAX,
        command: CommandLine::None,
    },
    flags: &[],
    details: &[
        (
            "DESCRIPTION",
            "add makes mounts in a container that is created, running or paused; all that are named, or none. They are given \
             in the form of config.json's mounts, a list or a single one, as JSON on the command line or in a file. Binds and \
             filesystems such as tmpfs can be added; those that show a namespace from inside (proc, sysfs, mqueue, cgroup) \
             cannot. Sources and paths in options are the host's; the place is resolved inside the container's root and made \
             where it is missing.\n\nremove takes away what is mounted on a place inside, with all below it; programs that have \
             files of it open keep them. Of JSON or a file in that form only the destinations are used. The root stays, and so \
             does what covers masked and read-only paths; no symbolic link is followed.",
        ),
        ("EXIT STATUS", "0 when every mount is made or removed, 1 otherwise."),
        (
            "EXAMPLES",
            "    ferry mounts add web '{\"destination\": \"/data\", \"source\": \"/srv/data\", \"options\": [\"rbind\", \
             \"ro\"]}'\n    ferry mounts add web mounts.json\n    ferry mounts remove web /data",
        ),
    ],
    run,
};

fn run(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let words = given::arguments(matches)?;
    let [deed, id, rest @ ..] = &words[..] else { return Err(Error::plain("the container's id is missing")) };
    match deed.as_str() {
        "add" => {
            let mounts: Vec<Vec<Mount>> = rest.iter().map(|word| mounts(word)).collect::<Result<_>>()?;
            lifecycle::mounts::add(&globals.setting, id, &mounts.concat())?;
        }
        "remove" => {
            let places: Vec<Vec<PathBuf>> = rest.iter().map(|word| places(word)).collect::<Result<_>>()?;
            lifecycle::mounts::remove(&globals.setting, id, &places.concat())?;
        }
        _ => return Err(Error::plain(format!("{deed:?} is neither add nor remove"))),
    }
    Ok(0)
}

/// Mounts as JSON, or out of a file.
fn mounts(word: &str) -> Result<Vec<Mount>> {
    let json = word.trim_start().starts_with(['{', '[']);
    let document = match json {
        true => Document::new(Path::new("the command line"), word.as_bytes().to_vec()),
        false => Document::read(Path::new(word))?,
    };
    // A single mount is a list of one.
    if document.text.trim_ascii_start().starts_with(b"{") {
        return document.parse::<Mount>().map(|mount| vec![mount]);
    }
    document.parse()
}

/// Places to unmount: the destinations of mounts as for `add`, or a path inside. A path that is a file of mounts on the host
/// is that file, for this is what crun takes.
fn places(word: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(word);
    let json = word.trim_start().starts_with(['{', '[']);
    let mounts = match (json, path.is_absolute()) {
        (true, _) | (false, false) => mounts(word)?,
        (false, true) if path.is_file() => match mounts(word) {
            Ok(mounts) => mounts,
            Err(_) => return Ok(vec![path.to_owned()]),
        },
        (false, true) => return Ok(vec![path.to_owned()]),
    };
    Ok(mounts.into_iter().map(|mount| mount.destination).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destinations(word: &str) -> Vec<PathBuf> {
        mounts(word).unwrap().into_iter().map(|mount| mount.destination).collect()
    }

    #[test]
    fn mounts_are_json_or_a_file_of_it() {
        assert_eq!(destinations(r#"{"destination": "/a"}"#), [Path::new("/a")]);
        assert_eq!(
            destinations(r#"[{"destination": "/a"}, {"destination": "/b"}]"#),
            [Path::new("/a"), Path::new("/b")]
        );
        let file = std::env::temp_dir().join(format!("ferry-mounts-{}.json", std::process::id()));
        std::fs::write(&file, r#" [{"destination": "/c"}]"#).unwrap();
        let name = file.display().to_string();
        assert_eq!((destinations(&name), places(&name).unwrap()), (vec!["/c".into()], vec!["/c".into()]));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(places(&name).unwrap(), [file]);
        assert!(mounts(r#"[{"destination": 5}]"#).unwrap_err().to_string().contains("[0].destination"));
        assert!(mounts("/nonexistent").is_err());
    }

    #[test]
    fn a_path_is_a_place_inside_whatever_the_host_has_there() {
        assert_eq!(places("/etc/passwd").unwrap(), [Path::new("/etc/passwd")]);
        assert_eq!(places("/dev/zero").unwrap(), [Path::new("/dev/zero")]);
        assert!(places("data").is_err(), "a relative path is a file, and must be there");
    }
}
