//! Archives of checkpoints: what `checkpoint --export`, `checkpoint inspect` and `restore --import` do; and both verbs where a
//! container has a root of its own. It is linked into `ferry-image` alone, to which those verbs hand their command line over.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::ArgMatches;

use super::checkpoint::{IDENTITY, RECIPIENT};
use super::globals::Globals;
use super::{checkpoint, given, output, restore, size};
use crate::checkpoint::archive::encryption::{Identities, Recipients};
use crate::checkpoint::archive::inspect::Inspected;
use crate::checkpoint::criu;
use crate::error::{Context, Error, Result};
use crate::lifecycle::archive;

/// `checkpoint` with an archive.
///
/// # Errors
/// As [`archive::export`] and [`archive::inspect`].
pub fn checkpoint(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    if let Some(from) = checkpoint::inspected(matches)? {
        if matches.contains_id(RECIPIENT.long) {
            return Err(Error::plain("--recipient is for --export"));
        }
        let found = archive::inspect(&path(&from)?, &identities(matches)?)?;
        return match output::is_json(given::text(matches, "format"), "text")? {
            true => output::print_pretty(&found).map(|()| 0),
            false => output::print(&text(&found)).map(|()| 0),
        };
    }
    let Some(to) = given::path(matches, "export") else {
        return checkpoint::save(globals, matches, &|id, choice, progress| {
            archive::save(&globals.setting, id, choice, progress)
        });
    };
    if matches.contains_id(IDENTITY.long) {
        return Err(Error::plain("--identity is for inspect"));
    }
    let to = path(Path::new(to))?;
    let choice = checkpoint::options(matches, globals.setting.log.debugs())?;
    let recipients = Recipients::read(&given::strings(matches, RECIPIENT.long))?;
    let keep = given::path(matches, "image-path").is_some();
    checkpoint::shown(matches, |progress| {
        let export = archive::Export { to: &to, keep, recipients: &recipients, progress };
        archive::export(&globals.setting, &given::id(matches)?, &choice, &export).map(|()| 0)
    })
}

/// `restore` from an archive, or with a root of its own.
///
/// # Errors
/// As [`archive::import`] and [`archive::revive`].
pub fn restore(globals: &Globals, matches: &ArgMatches) -> Result<u8> {
    let options = restore::options(matches, globals.setting.log.debugs())?;
    let has_bundle = given::path(matches, "bundle").is_some();
    let rootfs = given::absolute(matches, "rootfs")?;
    let Some(from) = given::path(matches, "import") else {
        return restore::shown(matches, |progress| {
            archive::revive(&globals.setting, &options, has_bundle, rootfs.as_deref(), progress)
        });
    };
    let keep = given::path(matches, "image-path").is_some();
    let identities = identities(matches)?;
    let from = path(Path::new(from))?;
    restore::shown(matches, |progress| {
        let (identities, rootfs) = (&identities, rootfs.as_deref());
        let import = archive::Import { from: &from, identities, keep, has_bundle, rootfs, progress };
        archive::import(&globals.setting, &options, &import)
    })
}

fn identities(matches: &ArgMatches) -> Result<Identities> {
    Identities::read(&given::paths(matches, IDENTITY.long))
}

fn path(given: &Path) -> Result<PathBuf> {
    match given {
        stream if stream == Path::new("-") => Ok(PathBuf::from("-")),
        path => std::path::absolute(path).or_cannot("find the working directory for", path.display()),
    }
}

fn text(found: &Inspected) -> String {
    let (manifest, mut text) = (&found.manifest, String::new());
    let bytes: u64 = manifest.parts.values().map(|part| part.size).sum();
    let host = &manifest.host;
    // Writing to a text does not fail.
    let mut line = |key: &str, value: &dyn std::fmt::Display| writeln!(text, "{key:<13}{value}").unwrap_or_default();
    line("id", &manifest.id);
    line("made", &manifest.created);
    line("host", &format_args!("{}, Linux {}, {}", host.architecture, host.kernel, criu::shown(host.criu)));
    if let Some(root) = &manifest.root {
        line("root", root);
    }
    line("unpacked", &size::text(bytes));
    if !manifest.flags.is_empty() {
        let flags: Vec<String> = manifest.flags.iter().map(|flag| format!("--{flag}")).collect();
        line("restore with", &flags.join(" "));
    }
    let rows: Vec<[String; 5]> = found
        .processes
        .iter()
        .map(|process| {
            let numbers = [process.pid, process.parent, process.threads as u64].map(|number| number.to_string());
            let [pid, parent, threads] = numbers;
            [pid, parent, threads, size::text(process.memory), process.name.clone()]
        })
        .collect();
    text.push('\n');
    text += &output::table(["PID", "PARENT", "THREADS", "MEMORY", "NAME"], &rows);
    let rows: Vec<[String; 2]> = found
        .mounts
        .iter()
        .map(|mount| [if mount.external { "outside".into() } else { mount.source.clone() }, mount.point.clone()])
        .collect();
    text.push('\n');
    text += &output::table(["MOUNT OF", "ON"], &rows);
    if !found.sockets.is_empty() {
        text.push('\n');
        found.sockets.iter().for_each(|socket| text += &format!("{socket}\n"));
    }
    text
}
