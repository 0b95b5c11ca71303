//! `install`: have an engine know ferry as one of its runtimes, or forget it again.
//!
//! Each engine has a file here, which is a pure function from the configuration's text to what it becomes. A file of the
//! user's keeps every byte that is not about ferry; where that cannot be had, the deed is refused. The new text takes the
//! old one's place by rename, so that an engine never reads half of it.

mod containerd;
mod docker;
mod podman;

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// What an engine's file does with its configuration.
type Edit = fn(current: &str, binary: &str, deed: Deed) -> Result<Edited>;

/// An engine: how it is called, where its configuration is, and what is done there.
pub struct Engine {
    /// As on the command line.
    pub name: &'static str,
    /// The configuration of the whole machine.
    system: &'static str,
    /// The configuration of a user's own engine, under the folder for such files.
    user: &'static str,
    edit: Edit,
    /// What makes a running engine read it, for the machine's and a user's own; then how ferry is asked for.
    then: [&'static str; 3],
}

/// The engines.
pub static ENGINES: [Engine; 3] = [containerd::ENGINE, docker::ENGINE, podman::ENGINE];

/// The name that containerd makes of the runtime type `io.containerd.ferry.v2`.
const SHIM: &str = "containerd-shim-ferry-v2";

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// ferry becomes one of the engine's runtimes.
    Install,
    /// It is none any longer.
    Undo,
}

/// A configuration as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Edited {
    /// The whole file; nothing where none is needed.
    file: Option<String>,
    /// The part of it that is about ferry, where a person needs no more.
    part: Option<String>,
}

/// What was asked for.
pub struct Options {
    /// The engine.
    pub engine: &'static Engine,
    /// To install or to undo.
    pub deed: Deed,
    /// The runtime that the engine is to start, absolute; otherwise this program.
    pub binary: Option<PathBuf>,
    /// Whether containerd is to start ferry's own shim, which lies beside that program, in place of its own.
    pub native: bool,
    /// The configuration, where it is not in its usual place.
    pub config: Option<PathBuf>,
    /// Whether the file is changed, or only shown.
    pub write: bool,
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The configuration.
    pub path: PathBuf,
    /// Whether it is another one than before.
    pub changed: bool,
    /// What is to be shown of it; nothing where the file is removed, or was not there.
    pub text: Option<String>,
    /// What is left to do, a line each.
    pub then: Vec<&'static str>,
}

/// The engine of that name.
///
/// # Errors
/// There is none.
pub fn engine(name: &str) -> Result<&'static Engine> {
    ENGINES.iter().find(|engine| engine.name == name).ok_or_else(|| {
        let names: Vec<_> = ENGINES.iter().map(|engine| engine.name).collect();
        Error::plain(format!("unknown engine {name:?}: it is one of {}", names.join(", ")))
    })
}

/// Installs ferry under an engine, or undoes it.
///
/// # Errors
/// The configuration cannot be read, understood or replaced; or it says something of ferry that is not ours to change.
pub fn install(options: &Options) -> Result<Outcome> {
    let root = nix::unistd::geteuid().is_root();
    if options.native && options.engine.name != containerd::ENGINE.name {
        return Err(Error::plain(format!(
            "{} has no shims of its runtimes' own: leave out --native",
            options.engine.name
        )));
    }
    let path = match &options.config {
        Some(path) => path.clone(),
        None => usual_place(options.engine, root, |name| std::env::var_os(name).map(PathBuf::from))?,
    };
    let current = read(&path)?;
    let binary = binary(options.binary.clone(), options.native)?;
    let edited = (options.engine.edit)(current.as_deref().unwrap_or(""), &binary, options.deed)
        .map_err(|error| error.in_file(&path.display().to_string(), None))?;
    let changed = current != edited.file;
    if changed && options.write {
        match &edited.file {
            Some(text) => replace(&path, text)?,
            None => fs::remove_file(&path).or_cannot("remove", path.display())?,
        }
    }
    let [system, user, usage] = options.engine.then;
    let reload = if root { system } else { user };
    let then = match options.deed {
        Deed::Install => vec![reload, usage],
        Deed::Undo => vec![reload],
    };
    let then = then.into_iter().filter(|line| !line.is_empty()).collect();
    Ok(Outcome { path, changed, text: edited.part.or(edited.file), then })
}

/// Where an engine looks: for root in /etc, for a user where the XDG base directory specification says.
fn usual_place(engine: &Engine, root: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf> {
    if root {
        return Ok(PathBuf::from(engine.system));
    }
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
    folder.map(|folder| folder.join(engine.user)).ok_or_else(|| {
        Error::plain("neither $XDG_CONFIG_HOME nor $HOME says where this user's configuration is").hint("give --config")
    })
}

/// The path an engine is to start, in a form that a configuration can hold.
fn binary(given: Option<PathBuf>, native: bool) -> Result<String> {
    let path = match given {
        Some(path) => path,
        None => std::env::current_exe().or_cannot("find", "this program's own file")?,
    };
    let path = if native { path.with_file_name(SHIM) } else { path };
    if !path.is_file() {
        return Err(Error::said("install", path.display().to_string(), "it is no file"));
    }
    match path.to_str() {
        Some(text) if path.is_absolute() && !text.contains(char::is_control) => Ok(text.to_owned()),
        _ => Err(Error::said("install", format!("{path:?}"), "an engine needs an absolute path in UTF-8")),
    }
}

/// A string as both JSON and TOML spell it, for one without control characters.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The configuration, if there is one. One that lies behind a link is somebody's arrangement, which a rename would undo.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::symlink_metadata(path) {
        Err(refused) if refused.kind() == ErrorKind::NotFound => return Ok(None),
        Ok(found) if found.is_symlink() => {
            return Err(Error::said("change", path.display().to_string(), "it is a symbolic link")
                .hint("give what it leads to by --config"));
        }
        found => _ = found.or_cannot("look at", path.display())?,
    }
    fs::read_to_string(path).or_cannot("read", path.display()).map(Some)
}

/// Puts a file in place of another one of the same owner and mode, whole or not at all.
fn replace(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).or_cannot("make the folder", folder.display())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder.join(format!(".{name}.{}", std::process::id()));
    let before = fs::metadata(path).ok();
    let mode = before.as_ref().map_or(0o644, |before| before.permissions().mode() & 0o7777);
    let done = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        if let Some(before) = before {
            file.set_permissions(before.permissions())?;
            fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if done.is_err() {
        // It may not have been made; the error that counts is the first one.
        drop(fs::remove_file(&beside));
    }
    done.or_cannot("replace", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, root: bool, variables: &[(&str, &str)]) -> Result<PathBuf> {
        let variable =
            |wanted: &str| variables.iter().find(|(name, _)| *name == wanted).map(|(_, value)| PathBuf::from(value));
        usual_place(engine(name)?, root, variable)
    }

    #[test]
    fn roots_configuration_is_the_machines_and_a_users_is_below_home() {
        assert_eq!(place("docker", true, &[("HOME", "/root")]).unwrap(), Path::new("/etc/docker/daemon.json"));
        assert_eq!(
            place("docker", false, &[("HOME", "/home/a")]).unwrap(),
            Path::new("/home/a/.config/docker/daemon.json")
        );
        assert_eq!(
            place("podman", false, &[("HOME", "/home/a"), ("XDG_CONFIG_HOME", "/c")]).unwrap(),
            Path::new("/c/containers/containers.conf.d/50-ferry.conf")
        );
        let error = place("containerd", false, &[("XDG_CONFIG_HOME", "relative")]).unwrap_err().to_string();
        assert!(error.ends_with("configuration is (hint: give --config)"), "{error}");
    }

    #[test]
    fn an_unknown_engine_is_told_the_known_ones() {
        let error = engine("dokcer").err().unwrap().to_string();
        assert_eq!(error, "unknown engine \"dokcer\": it is one of containerd, docker, podman");
    }

    #[test]
    fn what_no_configuration_can_hold_is_refused() {
        assert_eq!(
            binary(Some("/dev/null".into()), false).unwrap_err().to_string(),
            "cannot install /dev/null: it is no file"
        );
        assert!(binary(Some("Cargo.toml".into()), false).unwrap_err().to_string().contains("absolute path"));
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_link_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("ferry-install-{}", std::process::id()));
        let (file, link) = (folder.join("new/file"), folder.join("link"));
        replace(&file, "first").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        replace(&file, "second").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let refused = read(&link).unwrap_err().to_string();
        let (text, mode) = (read(&file).unwrap(), fs::metadata(&file).unwrap().permissions().mode());
        let left = fs::read_dir(folder.join("new")).unwrap().count();
        fs::remove_file(&link).unwrap();
        fs::remove_file(&file).unwrap();
        fs::remove_dir(folder.join("new")).unwrap();
        fs::remove_dir(&folder).unwrap();
        assert_eq!((text.as_deref(), mode & 0o7777, left), (Some("second"), 0o600, 1));
        assert!(refused.contains("it is a symbolic link (hint: "), "{refused}");
    }
}
