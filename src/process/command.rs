//! What is executed: arguments, environment, working directory, and which file the first argument names.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, chdir, fchdir};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use serde::Serialize;

use crate::error::{Context, EXIT_NOT_FOUND, Error, Result};
use crate::spec::config::Process;

/// Where programs are looked for when the environment has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Command {
    /// argv.
    pub args: Vec<String>,
    /// The environment, each name once.
    pub env: Vec<String>,
    /// Working directory, inside.
    pub cwd: PathBuf,
}

/// Plans the command. Of a variable that is given twice the last one counts; an empty HOME is none.
pub fn plan(process: &Process) -> Command {
    let mut env: Vec<String> = Vec::with_capacity(process.env.len() + 1);
    for variable in &process.env {
        let name = variable.split('=').next().unwrap_or_default();
        match env.iter_mut().find(|earlier| earlier.split('=').next() == Some(name)) {
            Some(earlier) => earlier.clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
    env.retain(|variable| variable != "HOME=");
    Command { args: process.args.clone(), env, cwd: process.cwd.clone() }
}

/// Enters the working directory, which must then be one of the container's: a path through an inherited descriptor
/// (`/proc/self/fd/7`) would lead to the host (CVE-2024-21626), and the kernel says so by a name that is not absolute.
///
/// # Errors
/// The kernel's answer; a directory outside.
pub fn enter(cwd: &Path) -> Result<()> {
    chdir_plainly(cwd).or_cannot("enter working directory", cwd.display()).map_err(|error| match error.errno() {
        Some(Errno::ENOENT) => error.hint("it must exist in the container: process.cwd, or --cwd"),
        Some(Errno::ELOOP) => error.hint("it must not lead through a link of procfs"),
        _ => error,
    })?;
    // Not getcwd of the C library, which walks upwards by itself when the kernel's answer is no absolute path.
    let here = rustix::process::getcwd(Vec::new()).or_cannot("enter working directory", cwd.display())?;
    if here.to_bytes().first() == Some(&b'/') {
        return Ok(());
    }
    Err(Error::said("enter working directory", cwd.display().to_string(), "it is outside the container's root"))
}

/// Links of procfs are not followed: they lead to where descriptors lead, and not by way of the root.
fn chdir_plainly(cwd: &Path) -> std::result::Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(CWD, cwd, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
        Err(rustix::io::Errno::NOSYS) => chdir(cwd),
        dir => fchdir(dir.map_err(crate::path::errno)?),
    }
}

/// The environment, with the HOME that it lacks: what the container's passwd file says of the user, or `/`. Called inside
/// the container.
pub fn environment(command: &Command, uid: u32) -> Vec<String> {
    let mut env = command.env.clone();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        let home = crate::passwd::find(uid).map(|user| user.home);
        let home = home.filter(|home| home.starts_with('/') && !home.contains('\0'));
        env.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
    }
    env
}

/// The file that `args[0]` names: itself when it has a slash, else the first executable of that name on the PATH of
/// `env`. Called inside the container.
///
/// # Errors
/// Not found, or not executable, in the words that engines look for.
pub fn find(command: &Command) -> Result<PathBuf> {
    let name = command.args.first().map_or("", String::as_str);
    if name.contains('/') {
        let path = command.cwd.join(name);
        return match executable(&path) {
            Ok(()) => Ok(name.into()),
            Err(answer) => Err(refused(name, answer)),
        };
    }
    let path = command.env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for dir in path.split(':') {
        let candidate = command.cwd.join(if dir.is_empty() { "." } else { dir }).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(answer) => denied |= answer == Errno::EACCES,
        }
    }
    if denied {
        return Err(refused(name, Errno::EACCES));
    }
    let hint = format!("looked for in {path} inside the container");
    Err(Error::plain(format!("exec: {name:?}: executable file not found in $PATH")).hint(hint).exit(EXIT_NOT_FOUND))
}

/// As shells: found, but not executable. podman and docker pass it on.
const EXIT_NOT_EXECUTABLE: u8 = 126;

/// An exec that was refused, in the words that engines look for.
pub fn refused(name: &str, answer: Errno) -> Error {
    refusal(&format!("exec: {name:?}"), answer)
}

/// What became of an exec that the kernel refused although the file is there.
pub fn not_executed(name: &str, answer: Errno) -> Error {
    refusal(&format!("{EXEC}{name}"), answer)
}

/// What the sentence of a program that could not be executed begins with.
const EXEC: &str = "exec ";

/// Whether it says that the kernel did not execute the program.
pub fn is_not_executed(error: &Error) -> bool {
    error.begins(EXEC)
}

fn refusal(deed: &str, answer: Errno) -> Error {
    let (words, code) = match answer {
        Errno::ENOENT => ("no such file or directory", EXIT_NOT_FOUND),
        Errno::EACCES => ("permission denied", EXIT_NOT_EXECUTABLE),
        Errno::ENOEXEC => ("exec format error", EXIT_NOT_EXECUTABLE),
        // With the words by which podman knows exit code 126.
        Errno::EISDIR => ("is a directory: permission denied", EXIT_NOT_EXECUTABLE),
        other => (other.desc(), EXIT_NOT_EXECUTABLE),
    };
    let error = Error::plain(format!("{deed}: {words}")).exit(code);
    match answer {
        Errno::ENOENT => error.hint("it, or the interpreter or loader it names, is not in the container"),
        Errno::ENOEXEC => error.hint("it is for another architecture, or a script without a #! line"),
        _ => error,
    }
}

fn executable(path: &Path) -> std::result::Result<(), Errno> {
    access(path, AccessFlags::X_OK)?;
    let is_dir = rustix::fs::stat(path)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory);
    if is_dir { Err(Errno::EISDIR) } else { Ok(()) }
}

/// Strings as exec takes them; they hold no NUL byte, as was checked when the configuration was read.
pub fn c_strings<'a>(strings: impl IntoIterator<Item = &'a String>) -> Vec<CString> {
    strings.into_iter().map(|text| CString::new(OsStr::new(text).as_bytes()).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(args: &[&str], env: &[&str]) -> Command {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        plan(&Process { args: strings(args), env: strings(env), cwd: "/".into(), ..Process::default() })
    }

    #[test]
    fn a_directory_is_refused_in_the_words_that_podman_knows() {
        let error = refusal("exec \"/etc\"", Errno::EISDIR);
        assert_eq!(
            (error.to_string().as_str(), error.exit_code()),
            ("exec \"/etc\": is a directory: permission denied", 126)
        );
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        assert_eq!(command(&["x"], &["A=1", "B=2", "A=3"]).env, ["A=3", "B=2"]);
        assert_eq!(command(&["x"], &["HOME=/x", "B=", "HOME="]).env, ["B="]);
    }

    #[test]
    fn programs_are_found_on_the_path() {
        assert_eq!(find(&command(&["sh"], &["PATH=/nowhere:/bin"])), Ok("/bin/sh".into()));
        let missing = find(&command(&["no-such-program"], &["PATH=/bin"])).unwrap_err();
        assert!(missing.to_string().starts_with("exec: \"no-such-program\": executable file not found in $PATH"));
        assert_eq!(missing.exit_code(), 127);
        let refused = find(&command(&["/etc/passwd"], &[])).unwrap_err();
        assert_eq!(
            (refused.to_string().as_str(), refused.exit_code()),
            ("exec: \"/etc/passwd\": permission denied", 126)
        );
    }
}
