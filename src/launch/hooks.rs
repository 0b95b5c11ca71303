//! Running hooks: each gets the container's state on its standard input, in order, and has its time.
//! runtime.md#lifecycle, config.md#posix-platform-hooks

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{Access, MemfdFlags, access, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::container::State;
use crate::error::{Context, Error, Result};
use crate::log::Log;
use crate::process::command::c_strings;
use crate::spec::config::{Hook, Hooks};
use crate::spec::extensions::{Annotations, hook_streams};
use crate::sys::{signal, stub};

/// Hooks of this kind are programs of the image, and may not get hold of ferry. config.md#posix-platform-hooks
const OF_THE_IMAGE: &str = "startContainer";

/// Hooks of these kinds run on the host, and begin in the bundle: names that they are given are often meant from there.
const OF_THE_HOST: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

/// Where hooks write, where annotations name a file: opened on the host and before anything else, for hooks that run inside
/// the container have its files in sight and not the host's.
#[derive(Debug, Default)]
pub struct Streams {
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Streams {
    /// Opens the files, if there are hooks that would write there.
    ///
    /// # Errors
    /// A file cannot be opened for appending.
    pub fn open(hooks: &Hooks, annotations: &Annotations) -> Result<Self> {
        if *hooks == Hooks::default() {
            return Ok(Self::default());
        }
        let (stdout, stderr) = hook_streams(annotations);
        let open = |path: &Path| {
            let file = OpenOptions::new().append(true).create(true).open(path);
            file.or_cannot("open, for what hooks write,", path.display())
        };
        Ok(Self { stdout: stdout.map(open).transpose()?, stderr: stderr.map(open).transpose()? })
    }

    /// The descriptors.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.stdout.iter().chain(&self.stderr).map(AsFd::as_fd)
    }
}

/// Runs the hooks of one kind (`name`) in order.
///
/// # Errors
/// The first hook that cannot be run, fails, or takes longer than its timeout; the ones after it are not run.
pub fn run(name: &str, hooks: &[Hook], state: &State, streams: &Streams) -> Result<()> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| run_one(name, index, hook, state, streams))
}

/// Runs the hooks of one kind whose failure changes nothing: all of them, each failure a line in the log.
/// runtime.md#lifecycle: poststop
pub fn run_each(name: &str, hooks: &[Hook], state: &State, streams: &Streams, log: &Log) {
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(error) = run_one(name, index, hook, state, streams) {
            log.warning(error);
        }
    }
}

/// Whether the hooks that begin on the host, and whose failure a container does not survive, could be executed at all. `bundle` is
/// where they begin.
///
/// # Errors
/// The first that could not, as [`run`] would say it.
pub fn look_for(hooks: &Hooks, bundle: &Path) -> Result<()> {
    let fatal = hooks.named().into_iter().filter(|(name, _)| !matches!(*name, OF_THE_IMAGE | "poststop"));
    for (name, list) in fatal {
        for (index, hook) in list.iter().enumerate() {
            let file = bundle.join(&hook.path);
            let answer = match access(&file, Access::EXEC_OK) {
                Ok(()) if file.is_dir() => Err(rustix::io::Errno::ACCESS),
                answer => answer,
            };
            let told = answer.or_cannot("run hook", naming(name, index, hook));
            told.map_err(|error| failing(name, index, &error))?;
        }
    }
    Ok(())
}

/// In the words that runc's users look for, and then ferry's own.
fn failing(name: &str, index: usize, error: &Error) -> Error {
    Error::plain(format!("error running {name} hook #{index}: {error}"))
}

fn naming(name: &str, index: usize, hook: &Hook) -> String {
    format!("hooks.{name}[{index}] ({})", hook.path.display())
}

fn run_one(name: &str, index: usize, hook: &Hook, state: &State, streams: &Streams) -> Result<()> {
    attend(name, index, hook, state, streams).map_err(|error| failing(name, index, &error))
}

fn attend(name: &str, index: usize, hook: &Hook, state: &State, streams: &Streams) -> Result<()> {
    let named = || naming(name, index, hook);
    // Not pipes, which somebody would have to fill or to read meanwhile, and a hook need not read; nor the caller's stream, which
    // a hook that goes on in the background would keep open.
    let told =
        memfd_create("state", MemfdFlags::CLOEXEC).map(File::from).or_cannot("keep the state for hook", named())?;
    let state_text = serde_json::to_vec(state).map_err(std::io::Error::from);
    state_text.and_then(|text| told.write_all_at(&text, 0)).or_cannot("keep the state for hook", named())?;
    let said =
        memfd_create("hook", MemfdFlags::CLOEXEC).map(File::from).or_cannot("keep the words of hook", named())?;
    let stderr = streams.stderr.as_ref().unwrap_or(&said);
    let stderr = stderr.try_clone().or_cannot("keep the words of hook", named())?;
    let stdout = match &streams.stdout {
        Some(file) => file.try_clone().or_cannot("pass the output file to hook", named())?.into(),
        None => Stdio::null(),
    };
    let mut command = Command::new(&hook.path);
    if let Some((first, rest)) = hook.args.split_first() {
        command.arg0(first).args(rest);
    }
    // One that names none has ferry's own, by which engines tell their hooks what to do. What is of the image never has it: the
    // process' is named for startContainer hooks.
    if !hook.env.is_empty() {
        command.env_clear().envs(hook.env.iter().filter_map(|variable| variable.split_once('=')));
    }
    // One that is gone holds nothing a hook could look for, and poststop hooks run all the same.
    if OF_THE_HOST.contains(&name) && state.bundle.is_dir() {
        command.current_dir(&state.bundle);
    }
    signal::reset_in(&mut command);
    let led = if name == OF_THE_IMAGE { Some(lead(&mut command, hook).or_cannot("run hook", named())?) } else { None };
    let mut child = command.stdin(told).stdout(stdout).stderr(stderr).spawn().or_cannot("run hook", named())?;
    // Its end of the stub's report.
    drop(command);
    if let Some(answer) = led.and_then(failed) {
        child.wait().or_cannot("wait for hook", named())?;
        return Err(answer).or_cannot("run hook", named());
    }
    let limit = hook.timeout.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    if !ends_within(&child, limit).or_cannot("wait for hook", named())? {
        child.kill().or_cannot("kill hook", named())?;
        child.wait().or_cannot("wait for hook", named())?;
        let why = format!("it took longer than {} s{}", hook.timeout.unwrap_or(0), words(said));
        return Err(Error::said("run hook", named(), why));
    }
    let status = child.wait().or_cannot("wait for hook", named())?;
    let why = match (status.code(), status.signal()) {
        (Some(0), _) => return Ok(()),
        (Some(code), _) => format!("it ended with exit status {code}"),
        (None, Some(libc::SIGSYS)) => {
            format!("it was killed by signal {}: bad system call, by a seccomp rule", libc::SIGSYS)
        }
        (None, signal) => format!("it was killed by signal {}", signal.unwrap_or(0)),
    };
    Err(Error::said("run hook", named(), why + &words(said)))
}

/// Has the hook executed by way of the stub.
fn lead(command: &mut Command, hook: &Hook) -> std::result::Result<File, Errno> {
    let program = CString::new(hook.path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let named = [hook.path.to_string_lossy().into_owned()];
    let args = if hook.args.is_empty() { &named[..] } else { &hook.args };
    stub::lead(command, &program, &c_strings(args), &c_strings(&hook.env))
}

/// Why the stub could not execute it, once it has executed it or has told.
fn failed(mut told: File) -> Option<Errno> {
    let mut report = Vec::new();
    told.read_to_end(&mut report).ok()?;
    stub::parse_report(&report).map(|(_, errno)| errno)
}

/// What a hook wrote to its standard error, as an error's last part.
fn words(mut said: File) -> String {
    const MOST: u64 = 2048;
    let mut text = Vec::new();
    // What cannot be read is not known; that the hook failed is.
    if said.rewind().and_then(|()| said.take(MOST).read_to_end(&mut text)).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&text);
    if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) }
}

/// Whether the child ends in time.
fn ends_within(child: &Child, limit: Option<Duration>) -> std::result::Result<bool, Errno> {
    let Some(limit) = limit else { return Ok(true) };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::ESRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(crate::path::errno)?;
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => (),
            answer => return answer.map(|ready| ready > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            oci_version: "1.3.0".to_owned(),
            id: "web".to_owned(),
            pid: 4711,
            status: crate::container::Status::Creating,
            bundle: "/usr".into(),
            rootfs: "/usr/rootfs".into(),
            created: String::new(),
            annotations: Default::default(),
            owner: String::new(),
        }
    }

    /// More than a pipe holds.
    fn large() -> State {
        State { owner: " ".repeat(1 << 20), ..state() }
    }

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".into(), args, env: vec!["PATH=/bin:/usr/bin".into()], timeout }
    }

    #[test]
    fn the_state_is_on_standard_input() {
        let whole = format!("test \"$(cat)\" = '{}'", serde_json::to_string(&state()).unwrap());
        run("prestart", &[hook(&whole, None)], &state(), &Streams::default()).unwrap();
        run("prestart", &[hook("exec 0<&-; exit 0", None)], &large(), &Streams::default()).unwrap();
    }

    #[test]
    fn they_begin_in_the_bundle_on_the_host_alone() {
        let own = std::env::current_dir().unwrap();
        let begins_in = |dir: &Path| [hook(&format!("test \"$(pwd -P)\" = '{}'", dir.display()), None)];
        for name in OF_THE_HOST {
            run(name, &begins_in(Path::new("/usr")), &state(), &Streams::default()).unwrap();
        }
        run("createContainer", &begins_in(&own), &state(), &Streams::default()).unwrap();
        let gone = State { bundle: "/no/such".into(), ..state() };
        run("poststop", &begins_in(&own), &gone, &Streams::default()).unwrap();
    }

    #[test]
    fn one_that_does_not_read_has_its_time_and_no_more() {
        let error = run("prestart", &[hook("exec sleep 60", Some(1))], &large(), &Streams::default());
        assert!(error.unwrap_err().to_string().ends_with("it took longer than 1 s"));
    }

    #[test]
    fn the_environment_is_ferrys_own_where_none_is_named() {
        let own = std::env::var("PATH").unwrap();
        let script = format!("test \"$PATH\" = '{own}'");
        let inheriting = Hook { env: Vec::new(), ..hook(&script, None) };
        run("prestart", &[inheriting], &state(), &Streams::default()).unwrap();
        run("prestart", &[hook("test $PATH = /bin:/usr/bin", None)], &state(), &Streams::default()).unwrap();
    }

    #[test]
    fn failures_are_named() {
        let error = |hook| run("poststop", &[hook], &state(), &Streams::default()).unwrap_err().to_string();
        assert!(error(hook("exit 3", None)).ends_with("hooks.poststop[0] (/bin/sh): it ended with exit status 3"));
        assert!(error(hook("kill -9 $$", None)).ends_with("it was killed by signal 9"));
        assert!(error(hook("kill -SYS $$", None)).contains("killed by signal 31: bad system call"));
        assert!(error(hook("exec sleep 60", Some(1))).ends_with("it took longer than 1 s"));
        assert!(error(hook("echo why >&2; exit 1", None)).ends_with("it ended with exit status 1: why"));
        let missing = Hook { path: "/no/such".into(), ..Hook::default() };
        let wanted = "error running poststop hook #0: cannot run hook hooks.poststop[0] (/no/such): ENOENT";
        assert!(error(missing).starts_with(wanted));
    }
}
