//! The flags before the verb, which hold for every verb.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::argv::{Word, Words};
use super::name::Name;
use super::usage;
use super::verb::{Flag, Value};
use crate::cgroup::Driver;
use crate::error::{Context, Error, Result};
use crate::lifecycle::Setting;
use crate::log::{Format, Level, Log};

/// The table of global flags.
pub const FLAGS: &[Flag] = &[
    Flag {
        long: "root",
        value: Value::Path("DIR"),
        help: "Keep the containers' records in DIR, which should be on a tmpfs (default /run/ferry, or \
               $XDG_RUNTIME_DIR/ferry or /tmp/ferry-UID for an ordinary user)",
        ..Flag::SWITCH
    },
    Flag {
        long: "store",
        value: Value::Path("DIR"),
        help: "Keep images in DIR (default /var/lib/ferry, or $XDG_DATA_HOME/ferry or ~/.local/share/ferry for an \
               ordinary user)",
        ..Flag::SWITCH
    },
    Flag {
        long: "log",
        value: Value::Path("FILE"),
        help: "Append warnings and errors to FILE instead of standard error; errors go to both",
        ..Flag::SWITCH
    },
    Flag {
        long: "log-format",
        value: Value::Words("text|json"),
        help: "Write the log as text (the default) or json",
        ..Flag::SWITCH
    },
    Flag {
        long: "log-level",
        value: Value::Words("debug|warning|error"),
        help: "Keep lines of this level and above; warning is the default",
        ..Flag::SWITCH
    },
    Flag { long: "debug", help: "Keep debug lines in the log, as --log-level debug does", ..Flag::SWITCH },
    Flag {
        long: "systemd-cgroup",
        help: "Have systemd make the cgroup; cgroupsPath then reads slice:prefix:name",
        ..Flag::SWITCH
    },
    Flag {
        long: "cgroup-manager",
        value: Value::Words("cgroupfs|systemd|disabled"),
        help: "Who makes the cgroup, if anybody; cgroupfs is the default",
        ..Flag::SWITCH
    },
    Flag {
        long: "rootless",
        value: Value::Words("true|false|auto"),
        help: "Go on without a cgroup when the kernel refuses one: true always, false never, auto (the default) where \
               config.json names no place for it; one that limits are set for must be there in any case",
        ..Flag::SWITCH
    },
    Flag { long: "version", short: Some('v'), help: "Print the version", ..Flag::SWITCH },
];

/// What the flags before the verb said.
#[derive(Debug, Default)]
pub struct Globals {
    /// What ferry was called by.
    pub name: Name,
    /// What the verb needs to know of them.
    pub setting: Setting,
    /// Whether `--root` was given: a default directory need not be there, a given one must.
    pub root_given: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// A verb by its name, and what stands behind it.
    Verb(OsString),
    /// The version.
    Version,
    /// The list of verbs: asked for, or no verb at all.
    Help,
}

/// The values as they were given, before any is judged.
#[derive(Debug, Default, PartialEq, Eq)]
struct Given {
    root: Option<PathBuf>,
    store: Option<PathBuf>,
    log: Option<PathBuf>,
    format: Format,
    level: Level,
    cgroup_manager: Driver,
    rootless: Option<bool>,
    version: bool,
}

/// Reads the flags before the verb and leaves `argv` behind it. `log` becomes the log that was asked for as soon as that
/// is known, so that everything that fails after it is logged there.
///
/// # Errors
/// An unknown flag, a value outside its vocabulary, a root of `/`, a log that cannot be opened.
pub fn read(argv: &mut impl Iterator<Item = OsString>, log: &mut Log) -> Result<(Globals, Asked)> {
    let (given, asked) = parse(argv).map_err(|error| usage(error, None))?;
    *log = match given.log.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => Log::file(&path, given.format, given.level)?,
        None => Log::stderr(given.format, given.level),
    };
    let asked = if given.version { Asked::Version } else { asked };
    if !matches!(asked, Asked::Verb(_)) {
        return Ok((Globals::default(), asked));
    }
    let root_given = given.root.is_some();
    let root = given.root.map_or_else(|| Ok(default_root()), |root| absolute_root(&root))?;
    let store = given.store.filter(|path| !path.as_os_str().is_empty());
    let store = store
        .map(|path| std::path::absolute(&path).or_cannot("find the working directory for --store", path.display()));
    let store = store.transpose()?;
    let setting =
        Setting { root, cgroup_manager: given.cgroup_manager, rootless: given.rootless, store, log: log.clone() };
    Ok((Globals { name: Name::default(), setting, root_given }, asked))
}

fn parse(argv: &mut impl Iterator<Item = OsString>) -> Result<(Given, Asked)> {
    let mut words = Words::new(FLAGS, argv);
    let mut given = Given::default();
    loop {
        match words.read()? {
            None | Some(Word::Help) => return Ok((given, Asked::Help)),
            Some(Word::Flag(flag, value)) => take(&mut given, flag, value)?,
            Some(Word::Unknown(word)) => {
                return Err(Error::plain(format!("flag provided but not defined: {}", word.to_string_lossy())));
            }
            Some(Word::Argument(verb)) => return Ok((given, Asked::Verb(verb))),
            Some(Word::End) => {}
        }
    }
}

fn take(given: &mut Given, flag: &Flag, value: OsString) -> Result<()> {
    let text = value.to_string_lossy();
    let wrong = |known: &str| Err(Error::plain(format!("invalid {} {text:?}: it is one of {known}", flag.long)));
    match (flag.long, &*text) {
        ("root", _) => given.root = Some(value.into()),
        ("store", _) => given.store = Some(value.into()),
        ("log", _) => given.log = Some(value.into()),
        ("log-format", "" | "text") => given.format = Format::Text,
        ("log-format", "json") => given.format = Format::Json,
        ("log-format", _) => return wrong("text, json"),
        ("log-level", "debug") | ("debug", "true") => given.level = Level::Debug,
        ("log-level", "warning" | "warn" | "info") => given.level = Level::Warning,
        ("log-level", "error") => given.level = Level::Error,
        ("log-level", _) => return wrong("debug, warning, error"),
        ("cgroup-manager", "systemd") | ("systemd-cgroup", "true") => given.cgroup_manager = Driver::Systemd,
        ("cgroup-manager", "cgroupfs") => given.cgroup_manager = Driver::Cgroupfs,
        ("cgroup-manager", "disabled") => given.cgroup_manager = Driver::Disabled,
        ("cgroup-manager", _) => return wrong("cgroupfs, systemd, disabled"),
        ("rootless", word) => match word.to_ascii_lowercase().as_str() {
            "" | "auto" => given.rootless = None,
            "1" | "t" | "true" => given.rootless = Some(true),
            "0" | "f" | "false" => given.rootless = Some(false),
            _ => return wrong("true, false, auto"),
        },
        ("version", truth) => given.version = truth == "true",
        // A switch that was turned off is as if it had not been given.
        _ => {}
    }
    Ok(())
}

/// Records in `/` would make every directory there a container, and deleting one of them the end of the host.
fn absolute_root(given: &Path) -> Result<PathBuf> {
    let path = if given.as_os_str().is_empty() { Path::new(".") } else { given };
    let path = std::path::absolute(path).or_cannot("find the working directory for --root", given.display())?;
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    if clean.parent().is_none() {
        return Err(Error::plain("--root must not be /").hint("give a directory of its own, such as /run/ferry"));
    }
    Ok(clean)
}

/// `/run/ferry` for root, `$XDG_RUNTIME_DIR/ferry` for everybody else, and without a session a directory of the user's own
/// among temporary files (`container::Store` refuses one that is somebody else's). Root inside a user namespace is somebody else too,
/// except where `$USER` says that this is a whole system of its own.
fn default_root() -> PathBuf {
    let is_root = nix::unistd::geteuid().is_root();
    match directory("XDG_RUNTIME_DIR") {
        Some(dir) if !is_root || (crate::host::in_user_namespace() && !user_is_root()) => dir.join("ferry"),
        None if !is_root => {
            let temporary = directory("TMPDIR").unwrap_or_else(|| PathBuf::from("/tmp"));
            temporary.join(format!("ferry-{}", nix::unistd::geteuid()))
        }
        _ => PathBuf::from("/run/ferry"),
    }
}

/// Where records are may not depend on where ferry is called: a relative one is as if it were not set. basedir-spec
fn directory(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|dir| dir.is_absolute())
}

fn user_is_root() -> bool {
    env::var_os("USER").is_some_and(|user| user == "root")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Given, Asked, Vec<OsString>)> {
        let mut words = line.split(' ').filter(|word| !word.is_empty()).map(OsString::from);
        let (given, asked) = parse(&mut words)?;
        Ok((given, asked, words.collect()))
    }

    #[test]
    fn flags_before_the_verb_are_global_and_the_rest_is_the_verbs() {
        let (given, asked, rest) = parsed("--root /r -log=/l --log-format json --debug kill --all c 9").unwrap();
        let expected = Given {
            root: Some("/r".into()),
            log: Some("/l".into()),
            format: Format::Json,
            level: Level::Debug,
            ..Given::default()
        };
        assert_eq!(given, expected);
        assert!(matches!(asked, Asked::Verb(verb) if verb == "kill"));
        assert_eq!(rest, ["--all", "c", "9"]);
    }

    #[test]
    fn the_cgroup_manager_has_runcs_spelling_and_cruns() {
        for (line, manager) in [
            ("--systemd-cgroup list", Driver::Systemd),
            ("--systemd-cgroup=false list", Driver::Cgroupfs),
            ("--cgroup-manager=systemd list", Driver::Systemd),
            ("--cgroup-manager disabled list", Driver::Disabled),
        ] {
            assert_eq!(parsed(line).unwrap().0.cgroup_manager, manager, "{line}");
        }
    }

    #[test]
    fn rootless_is_true_false_or_found_out() {
        for (line, rootless) in [
            ("--rootless true list", Some(true)),
            ("--rootless=False list", Some(false)),
            ("--rootless auto list", None),
        ] {
            assert_eq!(parsed(line).unwrap().0.rootless, rootless, "{line}");
        }
    }

    #[test]
    fn words_outside_a_vocabulary_are_refused_by_name() {
        for (line, said) in [
            ("--log-format xml list", "invalid log-format \"xml\": it is one of text, json"),
            ("--rootless maybe list", "invalid rootless \"maybe\": it is one of true, false, auto"),
            ("--foo list", "flag provided but not defined: --foo"),
            ("--root", "flag needs an argument: --root"),
        ] {
            assert_eq!(parsed(line).unwrap_err().to_string(), said, "{line}");
        }
    }

    #[test]
    fn no_verb_is_a_call_for_help_and_version_has_two_spellings() {
        assert!(matches!(parsed("").unwrap().1, Asked::Help));
        assert!(matches!(parsed("--debug -h").unwrap().1, Asked::Help));
        assert!(parsed("-v").unwrap().0.version && parsed("--version").unwrap().0.version);
    }

    #[test]
    fn the_root_is_absolute_clean_and_never_the_hosts_own() {
        assert_eq!(absolute_root(Path::new("/run/../run/./x/")).unwrap(), Path::new("/run/x"));
        assert!(absolute_root(Path::new("x")).unwrap().is_absolute());
        for wrong in ["/", "/..", "/run/.."] {
            assert!(absolute_root(Path::new(wrong)).is_err(), "{wrong}");
        }
    }
}
