//! What is executed: arguments, environment, working directory, and which file the first argument names.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, chdir, fchdir};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, StatVfsMountFlags, openat2};
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

/// Where a process begins, as far as the container's root can tell. A user that it becomes may be let in where that root is not: into
/// what belongs to an owner whom the user namespace does not map, or on a filesystem that knows its users by itself.
#[derive(Debug, Default)]
pub struct Beginning {
    /// Whether the working directory is entered.
    is_there: bool,
    /// The file to execute, once it is found.
    pub program: PathBuf,
}

impl Beginning {
    /// Enters the working directory, unless that is for the process itself to try.
    ///
    /// # Errors
    /// As [`enter`].
    pub fn enter(&mut self, command: &Command) -> Result<()> {
        match enter(&command.cwd) {
            Err(error) if matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM)) => Ok(()),
            entered => {
                self.is_there = entered.is_ok();
                entered
            }
        }
    }

    /// Finds the program, unless that is for the process itself to try.
    ///
    /// # Errors
    /// As [`find`].
    pub fn find(&mut self, command: &Command) -> Result<()> {
        match find(command) {
            Err(_) if candidates(command).any(|path| may_be_anothers(&path)) => Ok(()),
            found => {
                self.program = found?;
                Ok(())
            }
        }
    }

    /// Tries again what was denied, now as the process itself. Answers the program where it is found only now.
    ///
    /// # Errors
    /// As [`enter`] and [`find`].
    pub fn settle(&self, command: &Command) -> Result<Option<PathBuf>> {
        if !self.is_there {
            enter(&command.cwd)?;
        }
        if self.program.as_os_str().is_empty() { find(command).map(Some) } else { Ok(None) }
    }
}

/// Enters the working directory, which must then be one of the container's: a path through an inherited descriptor
/// (`/proc/self/fd/7`) would lead to the host (CVE-2024-21626), and the kernel says so by a name that is not absolute.
///
/// # Errors
/// The kernel's answer; a directory outside.
fn enter(cwd: &Path) -> Result<()> {
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
fn find(command: &Command) -> Result<PathBuf> {
    let name = name(command);
    let mut denied = false;
    for candidate in candidates(command) {
        match executable(&candidate) {
            Ok(()) if name.contains('/') => return Ok(name.into()),
            Ok(()) => return Ok(candidate),
            Err(answer) if name.contains('/') => return Err(refused(name, answer)),
            Err(answer) => denied |= answer == Errno::EACCES,
        }
    }
    if denied {
        return Err(refused(name, Errno::EACCES));
    }
    let hint = format!("looked for in {} inside the container", search_path(command));
    Err(Error::plain(format!("exec: {name:?}: executable file not found in $PATH")).hint(hint).exit(EXIT_NOT_FOUND))
}

fn name(command: &Command) -> &str {
    command.args.first().map_or("", String::as_str)
}

fn search_path(command: &Command) -> &str {
    command.env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH)
}

/// What `args[0]` may name, the first one first.
fn candidates(command: &Command) -> impl Iterator<Item = PathBuf> {
    let name = name(command);
    let path = if name.contains('/') { "" } else { search_path(command) };
    path.split(':').map(move |dir| command.cwd.join(if dir.is_empty() { "." } else { dir }).join(name))
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

/// Whether it is denied to the caller, and yet not to everybody: not because no file there can be executed.
fn may_be_anothers(path: &Path) -> bool {
    let is_for_nobody = || {
        let mode = rustix::fs::stat(path).map_or(0o111, |stat| stat.st_mode);
        let on = rustix::fs::statvfs(path).map_or(StatVfsMountFlags::empty(), |filesystem| filesystem.f_flag);
        mode & 0o111 == 0 || on.contains(StatVfsMountFlags::NOEXEC)
    };
    matches!(executable(path), Err(Errno::EACCES | Errno::EPERM)) && !is_for_nobody()
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
