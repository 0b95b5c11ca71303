//! `exec`: another process in a running container.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use super::Setting;
use super::create::{preserved, write_pid_file};
use super::exec_cgroup::{self, Birthplace};
use crate::cgroup;
use crate::container::record::Init;
use crate::container::store::Entry;
use crate::container::{Id, Record, State, Status, Store, status};
use crate::error::{Context, Error, Result};
use crate::host::{self, Host};
use crate::launch::descriptor;
use crate::launch::init::oom_score;
use crate::launch::join::{self, Joining};
use crate::launch::parent::Child;
use crate::launch::protocol::{Channel, Message};
use crate::launch::{ProcessPlan, execute, foreground, plan};
use crate::log::{Log, Milestone};
use crate::namespaces::Kind;
use crate::process::command::Beginning;
use crate::process::{hidden, limits, scheduling};
use crate::security::capabilities;
use crate::spec::config::Process;
use crate::spec::{Config, Document, check_process};
use crate::sys::clone::{Cloned, setns};

/// What to execute.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// The container's id.
    pub id: String,
    /// A process as JSON.
    pub process: Option<PathBuf>,
    /// argv.
    pub args: Vec<String>,
    /// User and group.
    pub user: Option<(u32, Option<u32>)>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Working directory.
    pub cwd: Option<PathBuf>,
    /// Environment.
    pub env: Vec<String>,
    /// Capabilities.
    pub caps: Vec<String>,
    /// A terminal.
    pub tty: bool,
    /// Does not wait.
    pub detach: bool,
    /// Gets the process id.
    pub pid_file: Option<PathBuf>,
    /// Receives the pidfd.
    pub pidfd_socket: Option<PathBuf>,
    /// Receives the terminal.
    pub console_socket: Option<PathBuf>,
    /// Descriptors passed on.
    pub preserve_fds: u32,
    /// No new privileges; where nothing is said, as the container's process.
    pub no_new_privs: Option<bool>,
    /// AppArmor profile.
    pub apparmor: Option<String>,
    /// SELinux label.
    pub process_label: Option<String>,
    /// Cgroup below the container's.
    pub cgroup: Option<String>,
    /// Joins a paused container.
    pub ignore_paused: bool,
}

/// What `exec` fails with before its program runs, as runc's.
const EXIT_EXEC: u8 = 255;

/// `exec`. Answers the program's exit status, or 0 when detached.
///
/// # Errors
/// The container does not run, or the program cannot be executed there.
pub fn exec(setting: &Setting, options: &Options) -> Result<u8> {
    join_container(setting, options).map_err(|error| error.exit(EXIT_EXEC))
}

fn join_container(setting: &Setting, options: &Options) -> Result<u8> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).or_cannot("block", "signals")?;
    let id = Id::new(&options.id)?;
    preserved(options.preserve_fds)?;
    let entry = Store::new(&setting.root).open(&id)?;
    let (record, init, init_fd) = running(&entry, options.ignore_paused)?;
    let config = entry.config()?;
    let mut warnings = Vec::new();
    let process = plan_process(options, &config, &mut warnings)?;
    let host = host::probe();
    if !record.namespaces.contains(&Kind::User) {
        warnings.extend(capabilities::withheld(&process.identity.capabilities, host.permitted));
    }
    warnings.iter().for_each(|warning| setting.log.warning(warning));
    if options.detach || options.console_socket.is_some() {
        super::create::console(process.terminal, options.console_socket.as_deref())?;
    }
    let birthplace =
        exec_cgroup::open(&record, &init, options.cgroup.as_deref()).map_err(|error| or_ended(&init, error))?;
    process.say(&setting.log);
    limits::raise_own(&process.limits)?;
    match &process.scheduling.affinity {
        Some(affinity) if !affinity.first.is_empty() => {
            scheduling::bind_to(&affinity.first)?;
            let mask = scheduling::hexadecimal(&affinity.first);
            setting.log.debug(format_args!("nsexec[{}]: affinity: {mask}", std::process::id()));
        }
        _ => scheduling::unbind(Pid::from_raw(0)),
    }
    let foreground = options.console_socket.is_none();
    let joined = (&record, &host, &process);
    let cloned = clone_joining(joined, &init, init_fd, birthplace.as_ref(), foreground);
    let mut child = cloned.map_err(|error| or_ended(&init, error))?;
    setting.log.milestone(Milestone::Cloned, child.pid);
    let grouped = record.resctrl.as_ref().map_or(Ok(()), |groups| cgroup::resctrl::join(groups, child.pid));
    let state = || {
        status::of(&entry, &record).map(|status| State::new(&record, status, config.annotations.clone(), String::new()))
    };
    setting.log.milestone(Milestone::Prepares, child.pid);
    let told = grouped
        .and_then(|()| let_go(&child, options, &setting.log))
        .and_then(|()| serve(setting, &mut child, &process, options, &state))
        // Of a process that never ran nobody is to read the number, which is soon another's.
        .and_then(|()| options.pid_file.as_ref().map_or(Ok(()), |path| write_pid_file(path, child.pid.as_raw())))
        .map_err(|error| or_ended(&init, error));
    let attended = told.and_then(|()| if options.detach { Ok(0) } else { foreground::attend(&child.attended(), None) });
    // What nobody attends any more is not to go on in the dark.
    attended.map_err(|error| error.and_then(child.kill()))
}

fn stopped() -> Error {
    Error::plain("cannot exec in a stopped container")
}

/// What is said when the container's process has ended since it was looked at, or is on its way out: then it has no cgroup to be
/// found nor namespaces to be joined, and in its pid namespace no process is cloned (ENOMEM: alloc_pid in kernel/pid.c).
fn or_ended(init: &Init, error: Error) -> Error {
    match error.errno() {
        Some(Errno::ESRCH | Errno::ENOMEM | Errno::ENOENT) if matches!(init.is_ending(), Ok(true)) => stopped(),
        _ => error,
    }
}

/// The container's process, by a descriptor that stays its own.
fn running(entry: &Entry, ignore_paused: bool) -> Result<(Record, Init, OwnedFd)> {
    let record = entry.record()?.ok_or_else(stopped)?;
    let init = record.init.ok_or_else(stopped)?;
    let pid = rustix::process::Pid::from_raw(init.pid).ok_or_else(stopped)?;
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Err(stopped()),
        answer => answer.or_cannot("find", "the container's process")?,
    };
    match status::of(entry, &record)? {
        Status::Stopped | Status::Creating => Err(stopped()),
        Status::Paused if !ignore_paused => {
            Err(Error::plain("cannot exec in a paused container").hint("resume it first, or use --ignore-paused"))
        }
        _ if is_being_made(entry, &init)? => {
            Err(Error::plain(format!("cannot exec in container {}: it is being created", record.id))
                .hint("wait until `create`, `run` or `restore` has made it"))
        }
        _ => Ok((record, init, pidfd)),
    }
}

/// Whether the container's process has not got all of its walls yet: who joined it now would stand in the host's root filesystem.
/// Whoever makes a container has it locked until then, and after that others may for a moment; so it is asked what the process
/// executes. One that cannot be looked at is one of ferry's that nobody may look into.
fn is_being_made(entry: &Entry, init: &Init) -> Result<bool> {
    // CRIU is another program, and may outlive the ferry that has it locked.
    if entry.is_being_restored()? {
        return Ok(true);
    }
    if entry.is_at_rest()? {
        return Ok(false);
    }
    let executed =
        |process: &str| rustix::fs::stat(format!("/proc/{process}/exe")).map(|file| (file.st_dev, file.st_ino));
    match (executed(&init.pid.to_string()), executed("self")) {
        (Ok(theirs), Ok(ours)) => Ok(theirs == ours),
        (Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM), _) => Ok(true),
        // It has ended.
        (Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH), _) => Ok(false),
        (Err(answer), _) | (_, Err(answer)) => {
            Err(answer).or_cannot("look at", "what the container's process executes")
        }
    }
}

fn plan_process(options: &Options, config: &Config, warnings: &mut Vec<String>) -> Result<ProcessPlan> {
    let plan_options = plan::Options { preserve_fds: options.preserve_fds, ..plan::Options::default() };
    match &options.process {
        Some(path) => {
            let document = Document::read(path)?;
            let mut process: Process = document.parse()?;
            // An empty object is none of them, and no object those of the container.
            let own_sets = !document.parse::<serde_json::Value>()?["capabilities"].is_null();
            bind(&mut process, config.process.as_ref(), own_sets);
            check_process(&process, "process").map_err(|error| document.locate(strip(error)))?;
            plan::plan_process(&process, Some(config), "process", &plan_options, warnings)
                .map_err(|error| document.locate(strip(error)))
        }
        None => {
            let process = process(options, config)?;
            check_process(&process, "process")?;
            plan::plan_process(&process, Some(config), "process", &plan_options, warnings)
        }
    }
}

/// What bounds the container's process bounds one from a file too, where the file has nothing of its own: to leave a profile out is no
/// way out of it. As with runc; no_new_privs is the file's to say.
fn bind(process: &mut Process, container: Option<&Process>, own_sets: bool) {
    let Some(container) = container else { return };
    if !own_sets {
        process.capabilities.clone_from(&container.capabilities);
    }
    if process.apparmor_profile.is_empty() {
        process.apparmor_profile.clone_from(&container.apparmor_profile);
    }
    if process.selinux_label.is_empty() {
        process.selinux_label.clone_from(&container.selinux_label);
    }
    if process.rlimits.is_empty() {
        process.rlimits.clone_from(&container.rlimits);
    }
    process.scheduler = process.scheduler.take().or_else(|| container.scheduler.clone());
    process.io_priority = process.io_priority.take().or_else(|| container.io_priority.clone());
    process.exec_cpu_affinity = process.exec_cpu_affinity.take().or_else(|| container.exec_cpu_affinity.clone());
}

/// A process file is the process itself: its JSON paths begin inside.
fn strip(error: Error) -> Error {
    error.without_prefix("process.")
}

/// The container's own process, with what the flags change.
fn process(options: &Options, config: &Config) -> Result<Process> {
    let mut process = config.process.clone().ok_or_else(|| {
        Error::config("process", "is missing, so there is nothing to take the process from")
            .hint("give one with --process")
    })?;
    process.args.clone_from(&options.args);
    process.terminal = options.tty;
    process.console_size = None;
    process.env.extend(options.env.iter().cloned());
    if let Some(cwd) = &options.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some((uid, gid)) = options.user {
        process.user.uid = uid;
        if let Some(gid) = gid {
            process.user.gid = gid;
        }
    }
    process.user.additional_gids.extend(&options.additional_gids);
    let sets = &mut process.capabilities;
    for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
        set.extend(options.caps.iter().cloned());
    }
    // Never made inheritable: a file could pass them on to a program that was not meant to have them (CVE-2022-29162).
    // What the configuration has made so can be ambient.
    let inheritable = |name: &&String| sets.inheritable.iter().any(|other| other.eq_ignore_ascii_case(name));
    sets.ambient.extend(options.caps.iter().filter(inheritable).cloned());
    if let Some(given) = options.no_new_privs {
        process.no_new_privileges = given;
    }
    if let Some(profile) = &options.apparmor {
        process.apparmor_profile.clone_from(profile);
    }
    if let Some(label) = &options.process_label {
        process.selinux_label.clone_from(label);
    }
    Ok(process)
}

/// Enters what holds for children, and clones. An ordinary user has the right to the pid namespace only inside the user
/// namespace, which ferry then enters first; nothing it still has to do needs the one it leaves.
fn clone_joining(
    (record, host, process): (&Record, &Host, &ProcessPlan),
    first: &Init,
    init: OwnedFd,
    birthplace: Option<&Birthplace>,
    foreground: bool,
) -> Result<Child> {
    let flag = |kind: Kind| kind.row().flag;
    let mut kinds = record.namespaces.clone();
    let user_namespace = kinds.contains(&Kind::User);
    let mut early = CloneFlags::empty();
    let mut enter_early = |kind: Kind, kinds: &mut Vec<Kind>| {
        if kinds.contains(&kind) {
            early |= CloneFlags::from_bits_retain(flag(kind));
            kinds.retain(|other| *other != kind);
        }
    };
    enter_early(Kind::Pid, &mut kinds);
    if !host.privileged {
        enter_early(Kind::User, &mut kinds);
    }
    let root = if kinds.contains(&Kind::Mount) { None } else { Some(open_root(&record.rootfs)?) };
    let (channel, theirs) = Channel::pair()?;
    // An ordinary user's child is in sight of the container, and of one that has every right over it, from its first moment. It
    // inherits what ferry could not give it any more.
    let own_score = if host.privileged { None } else { lend_score(process)? };
    if !host.privileged {
        hidden::hide()?;
    }
    if !early.is_empty() {
        setns(init.as_fd(), early.bits()).or_cannot("join", "the container's namespaces").map_err(
            |error| match error.errno() {
                Some(Errno::EPERM) => error.hint("the container belongs to another user"),
                _ => error,
            },
        )?;
    }
    let keyring = (!record.no_new_keyring).then(|| format!("_ses.{}", record.id));
    match exec_cgroup::clone_into(birthplace, first)? {
        Cloned::Child => {
            // ferry's end: the stream would otherwise not end with ferry.
            drop(channel);
            join::main(Joining {
                process,
                channel: theirs,
                init,
                namespaces: &kinds,
                root,
                user_namespace,
                is_scored: own_score.is_some(),
                keyring,
                procfs: None,
                foreground,
                terminal: None,
                begins: Beginning::default(),
            })
        }
        Cloned::Parent { pid, pidfd } => {
            if let Some((file, own)) = own_score {
                file.write_all_at(&own, 0).or_cannot("set back", "ferry's own OOM score")?;
            }
            Ok(Child { pid, pidfd, channel, console: None, moved: None })
        }
    }
}

/// Takes the OOM score of a process that is to inherit it, where it has one. Answers the file, and ferry's own score in it.
fn lend_score(process: &ProcessPlan) -> Result<Option<(File, Vec<u8>)>> {
    const SCORE: &str = "/proc/self/oom_score_adj";
    if process.oom_score_adj.is_none() {
        return Ok(None);
    }
    let mut own = Vec::new();
    let mut file = File::options().read(true).write(true).open(SCORE).or_cannot("open", SCORE)?;
    file.read_to_end(&mut own).or_cannot("read", SCORE)?;
    oom_score("self", Some(process))?;
    Ok(Some((file, own)))
}

fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::openat(rustix::fs::CWD, path, flags, rustix::fs::Mode::empty())
        .or_cannot("open root filesystem", path.display())
}

fn let_go(child: &Child, options: &Options, log: &Log) -> Result<()> {
    if let Some(path) = &options.pidfd_socket {
        descriptor::send(path, b"pidfd", child.pidfd.as_fd())?;
    }
    log.milestone(Milestone::LetGo, child.pid);
    // A child that has failed already takes no message; what it said is read next.
    match child.go() {
        Err(error) if error.errno() != Some(Errno::EPIPE) => Err(error),
        _ => Ok(()),
    }
}

/// Serves the child until its program is executed; `state` is the container's, for an agent.
fn serve(
    setting: &Setting,
    child: &mut Child,
    process: &ProcessPlan,
    options: &Options,
    state: &dyn Fn() -> Result<State>,
) -> Result<()> {
    let name = process.command.args.first().map_or("", String::as_str);
    loop {
        match child.channel.receive()? {
            None => {
                setting.log.milestone(Milestone::StreamEnds, child.pid);
                return Ok(());
            }
            Some((Message::Warning(text), _)) => setting.log.warning(text),
            Some((Message::Console, Some(master))) => match &options.console_socket {
                Some(path) => descriptor::send(path, b"console", master.as_fd())?,
                None => child.console = Some(master),
            },
            Some((Message::Listener, Some(listener))) => {
                if let Some(notify) = process.seccomp.as_ref().and_then(|program| program.notify.as_ref()) {
                    descriptor::tell_agent(notify, child.pid.as_raw(), &state()?, listener.as_fd())?;
                }
            }
            Some((Message::Failed(error), _)) => return Err(error),
            Some((Message::NotExecuted(stage, errno), _)) => return Err(execute::failure(stage, errno, name)),
            Some((other, _)) => {
                return Err(Error::said("follow", "the handshake", format!("{other:?} came out of turn")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_leaves_no_profile_out() {
        let process = |json: serde_json::Value| serde_json::from_value::<Process>(json).unwrap();
        let container = process(json!({
            "cwd": "/", "apparmorProfile": "box", "selinuxLabel": "a:b:c:s0", "noNewPrivileges": true,
            "scheduler": {"policy": "SCHED_BATCH"}, "execCPUAffinity": {"initial": "0", "final": "1"},
            "capabilities": {"bounding": ["CAP_KILL"]},
        }));
        let mut bare = process(json!({"cwd": "/"}));
        bind(&mut bare, Some(&container), false);
        assert_eq!(bare, Process { no_new_privileges: false, ..container.clone() });
        let own = process(json!({"cwd": "/", "apparmorProfile": "other", "selinuxLabel": "x:y:z:s0"}));
        let mut bound = own.clone();
        bind(&mut bound, Some(&container), true);
        assert_eq!(
            bound,
            Process { scheduler: container.scheduler, exec_cpu_affinity: container.exec_cpu_affinity, ..own }
        );
    }
}
