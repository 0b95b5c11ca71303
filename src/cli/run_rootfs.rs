//! What `ferry run --rootfs` is asked to run.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;

use clap::ArgMatches;

use super::{given, mount, size, user};
use crate::error::{Error, Result};
use crate::lifecycle::run_rootfs::Options;
use crate::spec::config::Mount;

/// What the options depend on beside the command line.
pub struct Caller<'a> {
    /// Whether standard input and output are terminals.
    pub terminal: bool,
    /// A variable of the caller's environment.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

/// The options the flags and the caller give.
///
/// # Errors
/// A value that is not understood, or flags that contradict each other.
pub fn options(matches: &ArgMatches, rootfs: PathBuf, caller: &Caller) -> Result<Options> {
    let mut args = given::arguments(matches)?;
    if args.is_empty() {
        let shell = (caller.variable)("SHELL").filter(|shell| !shell.is_empty());
        args.push(shell.unwrap_or_else(|| "sh".to_owned()));
    }
    flags(matches, rootfs, args, caller)
}

/// The same with this command.
///
/// # Errors
/// As [`options`].
pub fn flags(matches: &ArgMatches, rootfs: PathBuf, args: Vec<String>, caller: &Caller) -> Result<Options> {
    let detach = given::switch(matches, "detach");
    Ok(Options {
        id: given::string(matches, "name").unwrap_or_else(random_id),
        rootfs,
        args,
        hostname: given::string(matches, "hostname"),
        env: environment(matches, caller),
        cwd: given::path(matches, "cwd").map(Into::into),
        user: given::text(matches, "user").map(user::ids).transpose()?,
        mounts: mounts(matches)?,
        memory: parsed(matches, "memory", size::limit)?,
        cpus: parsed(matches, "cpus", cpus)?,
        pids_limit: given::number(matches, "pids-limit")?,
        read_only: given::switch(matches, "read-only"),
        tty: terminal(matches, detach, caller)?,
        detach,
        pid_file: given::absolute(matches, "pid-file")?,
        erofs: given::switch(matches, "erofs"),
    })
}

/// A terminal is wanted where a person sits at one; nobody sits at a detached container.
fn terminal(matches: &ArgMatches, detach: bool, caller: &Caller) -> Result<bool> {
    match (given::chosen(matches, "tty"), given::switch(matches, "no-tty")) {
        (Some(true), true) => Err(Error::plain("--tty and --no-tty contradict each other")),
        (Some(true), false) if detach => {
            Err(Error::plain("--tty does not go with --detach")
                .hint("nobody would be left at the terminal's other side"))
        }
        (Some(chosen), false) => Ok(chosen),
        (Some(false) | None, true) => Ok(false),
        (None, false) => Ok(caller.terminal && !detach),
    }
}

/// `NAME=VALUE` as it stands; a bare `NAME` passes the caller's on, and is left out where the caller has none.
fn environment(matches: &ArgMatches, caller: &Caller) -> Vec<String> {
    let variable = |entry: String| match entry.contains('=') {
        true => Some(entry),
        false => (caller.variable)(&entry).map(|value| format!("{entry}={value}")),
    };
    given::strings(matches, "env").into_iter().filter_map(variable).collect()
}

/// The mounts of both flags in the order they were given: a later one may lie inside an earlier one.
fn mounts(matches: &ArgMatches) -> Result<Vec<Mount>> {
    type Read = fn(&str) -> Result<Mount, String>;
    let mut mounts = Vec::new();
    for (flag, read) in [("mount", mount::from_mount as Read), ("volume", mount::from_volume as Read)] {
        let places = matches.indices_of(flag).into_iter().flatten();
        for (place, text) in places.zip(given::strings(matches, flag)) {
            mounts.push((place, read(&text).map_err(|why| given::invalid(flag, &text, why))?));
        }
    }
    mounts.sort_by_key(|(place, _)| *place);
    Ok(mounts.into_iter().map(|(_, mount)| mount).collect())
}

fn parsed<T>(matches: &ArgMatches, flag: &str, read: fn(&str) -> Result<T, String>) -> Result<Option<T>> {
    given::text(matches, flag).map(|text| read(text).map_err(|why| given::invalid(flag, text, why))).transpose()
}

fn cpus(given: &str) -> Result<f64, String> {
    match given.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() && cpus > 0.0 => Ok(cpus),
        _ => Err("it is a number greater than 0, such as 1.5".to_owned()),
    }
}

/// Twelve hexadecimal digits, as engines shorten their ids to. The standard library seeds its hash maps from the
/// kernel's random numbers, and that is the only way it has to them.
fn random_id() -> String {
    format!("{:012x}", RandomState::new().build_hasher().finish() & 0xffff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{matches, run};

    fn parse(line: &str, terminal: bool) -> Result<Options> {
        let variable = |name: &str| match name {
            "SHELL" => Some("/bin/zsh".to_owned()),
            "LANG" => Some("C".to_owned()),
            _ => None,
        };
        options(&matches(&run::VERB, line)?, "/r".into(), &Caller { terminal, variable: &variable })
    }

    fn rootfs(line: &str, terminal: bool) -> Options {
        parse(line, terminal).unwrap()
    }

    fn refused(line: &str) -> String {
        parse(line, false).unwrap_err().to_string()
    }

    #[test]
    fn a_root_filesystem_takes_every_flag() {
        let line = "--rootfs /r --name web --hostname h -e A=1 -e LANG -e NONE --cwd /w -u 1:2 --mount src=/a,dst=/b \
                    -v /c:/d:ro -m 64m --cpus 1.5 --pids-limit 100 --read-only --pid-file /p -t -- ls -l --rootfs";
        let bind = |source: &str, destination: &str, options: &[&str]| Mount {
            kind: "bind".to_owned(),
            source: source.into(),
            destination: destination.into(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            ..Mount::default()
        };
        let expected = Options {
            id: "web".to_owned(),
            rootfs: "/r".into(),
            args: vec!["ls".to_owned(), "-l".to_owned(), "--rootfs".to_owned()],
            hostname: Some("h".to_owned()),
            env: vec!["A=1".to_owned(), "LANG=C".to_owned()],
            cwd: Some("/w".into()),
            user: Some((1, Some(2))),
            mounts: vec![bind("/a", "/b", &["rbind", "rprivate"]), bind("/c", "/d", &["rbind", "rprivate", "ro"])],
            memory: Some(64 << 20),
            cpus: Some(1.5),
            pids_limit: Some(100),
            read_only: true,
            tty: true,
            detach: false,
            pid_file: Some("/p".into()),
            erofs: false,
        };
        assert_eq!(rootfs(line, false), expected);
    }

    #[test]
    fn without_a_command_it_is_the_callers_shell_under_a_random_id() {
        let (first, second) = (rootfs("--rootfs /r", false), rootfs("--rootfs /r", false));
        assert_eq!(first.args, ["/bin/zsh"]);
        assert_ne!(first.id, second.id);
        assert!(first.id.len() == 12 && first.id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", first.id);
    }

    #[test]
    fn the_terminal_is_the_callers_unless_it_is_said() {
        for (line, terminal, tty) in [
            ("--rootfs /r sh", true, true),
            ("--rootfs /r sh", false, false),
            ("--rootfs /r --no-tty sh", true, false),
            ("--rootfs /r --tty=false sh", true, false),
            ("--rootfs /r --tty sh", false, true),
            ("--rootfs /r -d sh", true, false),
        ] {
            assert_eq!(rootfs(line, terminal).tty, tty, "{line} {terminal}");
        }
        assert_eq!(refused("--rootfs /r -t --no-tty sh"), "--tty and --no-tty contradict each other");
        assert!(refused("--rootfs /r -dt sh").starts_with("--tty does not go with --detach"));
    }

    #[test]
    fn mounts_and_volumes_keep_their_order_among_each_other() {
        let options = rootfs("-v /a:/1 --mount type=tmpfs,dst=/2 --volume=/c:/3 --mount src=/d,dst=/4 sh", false);
        let destinations: Vec<_> = options.mounts.iter().map(|mount| mount.destination.to_str().unwrap()).collect();
        assert_eq!(destinations, ["/1", "/2", "/3", "/4"]);
    }

    #[test]
    fn wrong_values_are_refused_by_the_flags_name() {
        for (line, said) in [
            ("--rootfs /r -m 64x sh", "invalid value \"64x\" for --memory: unknown unit \"x\""),
            ("--rootfs /r --cpus 0 sh", "invalid value \"0\" for --cpus: it is a number greater than 0"),
            ("--rootfs /r --cpus nan sh", "invalid value \"nan\" for --cpus: it is a number greater than 0"),
            ("--rootfs /r --mount src=/a sh", "invalid value \"src=/a\" for --mount: it names no destination"),
            ("--rootfs /r -v /a sh", "invalid value \"/a\" for --volume: it reads SRC:DST"),
        ] {
            assert!(refused(line).starts_with(said), "{line}: {}", refused(line));
        }
    }
}
