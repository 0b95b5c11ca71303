//! The last steps of a process, the same for the container's first and for one that joins: limits, identity, filter, and
//! the program itself, by way of the stub.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, fchown, fexecve};
use rustix::fs::{fstat, makedev};

use super::plan::ProcessPlan;
use super::protocol::{Channel, Message};
use crate::error::{Context, Error, Result};
use crate::process::{command, identity, limits, memory_merge, scheduling};
use crate::security::capabilities;
use crate::sys::{fd, seccomp, signal, stub};

/// Becomes `process` and executes its program as it `begins`; `procfs` is there when the process has a label. What fails is for the caller
/// to report on `report`, whose stream ends when the program is executed.
///
/// With a `gate` it is there that the stub waits and reports, and the stream of `report` ends before.
///
/// `last`, where there is something, is done with the rights of the process and under its filter: programs of the image that
/// are started for it (startContainer hooks) may do no more than it.
///
/// # Errors
/// The step that failed. On success there is nobody to return to.
pub fn execute(
    process: &ProcessPlan,
    begins: &command::Beginning,
    procfs: Option<&OwnedFd>,
    report: &Channel,
    gate: Option<&OwnedFd>,
    last: Option<&dyn Fn() -> Result<()>>,
) -> Result<Infallible> {
    // As the container's root, who may read its passwd file.
    let env = command::environment(&process.command, process.identity.uid);
    // What needs descriptors, memory or a file is made before the limits on them are in force.
    let last_act = process.identity.no_new_privileges && last.is_none();
    let in_stub = process.seccomp.as_ref().filter(|filter| last_act && filter.notify.is_none());
    // One that lets the last steps through is installed here, where no process of the container can attach: the stub shares
    // its rights, and with CAP_SYS_PTRACE they suffice to keep it from installing anything.
    let in_stub = in_stub
        .filter(|filter| !filter.lets_through(LAST_CALLS) || gate.is_some() && !filter.lets_through(stub::GATE_CALLS));
    let (bytes, flags) = in_stub.map_or((Vec::new(), 0), |filter| (filter.to_bytes(), filter.flags));
    let label = process.label.as_ref().zip(procfs).map(|(label, procfs)| stub::Label {
        procfs: procfs.as_raw_fd(),
        file: label.file,
        text: &label.text,
    });
    let gate = gate.map(|listener| Ok((listener, super::gate::signals()?))).transpose()?;
    let reports = match &gate {
        Some((listener, signals)) => {
            stub::Report::Gate(stub::Gate { listener: listener.as_raw_fd(), signals: signals.as_raw_fd() })
        }
        None => stub::Report::On(report.as_fd().as_raw_fd()),
    };
    let sealed = stub::sealed(reports, label, &bytes, flags)
        .or_cannot("make", "the stub in a memory file")
        .map_err(|error| error.hint("with vm.memfd_noexec=2 no memory file can be executed: set it to 0 or 1"))?;
    let c_path = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
    let mut args = vec![c_path(&begins.program)];
    args.extend(command::c_strings(&process.command.args));
    let env = command::c_strings(&env);
    if process.merge_memory {
        memory_merge::apply()?;
    }
    // Policies need capabilities that the next steps take away.
    scheduling::apply(&process.scheduling)?;
    own_streams(process.identity.uid)?;
    limits::apply(&process.limits)?;
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it is installed while that is still held, and everything up to
    // the program runs under it. With no_new_privs it is left to the stub, and only execve runs under it, unless
    // something of the image's is to run before.
    if !process.identity.no_new_privileges {
        install_filter(process, report)?;
    }
    identity::become_identity(&process.identity, last.is_none())?;
    if let Some(program) = begins.settle(&process.command)? {
        args[0] = c_path(&program);
    }
    if process.identity.no_new_privileges {
        set_no_new_privs().or_cannot("set", "no_new_privs")?;
        if in_stub.is_none() && !last_act {
            install_filter(process, report)?;
        }
    }
    close_others(process.preserve_fds)?;
    if let Some(last) = last {
        last()?;
        capabilities::hide().or_cannot("drop", "capabilities")?;
    }
    // The stub itself closes what is kept before the program is there.
    match &gate {
        // Blocked until the gate is opened: the first process of a pid namespace would not hear them.
        Some((listener, signals)) => {
            signal::set_defaults().or_cannot("restore", "signals")?;
            keep(listener, "the gate")?;
            keep(signals, "the signals at the gate")?;
        }
        None => {
            restore_signals()?;
            keep(report, "the report's descriptor")?;
        }
    }
    if let (Some(_), Some(procfs)) = (label, procfs) {
        keep(procfs, "the private procfs")?;
    }
    if last_act && in_stub.is_none() {
        install_filter(process, report)?;
    }
    fexecve(sealed.as_fd(), &args, &env).or_cannot("execute", "the stub")
}

fn keep(fd: &impl AsFd, what: &str) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).or_cannot("keep", what)
}

/// What is still called under a filter that is installed before the stub is executed: by ferry, and by the stub.
const LAST_CALLS: &[i64] = &[
    libc::SYS_execveat,
    libc::SYS_fcntl,
    libc::SYS_openat,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_execve,
    libc::SYS_exit_group,
];

fn install_filter(process: &ProcessPlan, report: &Channel) -> Result<()> {
    match &process.seccomp {
        None => Ok(()),
        Some(filter) if filter.notify.is_some() => notify(filter, report),
        Some(filter) => {
            seccomp::install(filter.flags, &filter.instructions).map(drop).or_cannot("install", "the seccomp filter")
        }
    }
}

/// Installs a filter with a listener, whose descriptor goes to the host side, which passes it to the agent. Until then there is
/// nobody to answer for a call that the filter asks about, which sending a descriptor may be.
fn notify(filter: &crate::security::seccomp::Program, report: &Channel) -> Result<()> {
    let sends = filter.lets_through(&[libc::SYS_sendmsg]);
    if !sends {
        report.name_sender()?;
    }
    let listener = seccomp::install(filter.flags, &filter.instructions).or_cannot("install", "the seccomp filter")?;
    match &listener {
        Some(listener) if !sends => report.show_listener(listener.as_fd()),
        listener => report.send(&Message::Listener, listener.as_ref().map(AsFd::as_fd)),
    }
}

/// Standard streams that the engine opened as root would be closed to the process when it opens `/dev/stdout` anew.
/// `/dev/null` is everybody's and stays as it is.
fn own_streams(uid: u32) -> Result<()> {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        own_stream(stream, uid)?;
    }
    Ok(())
}

fn own_stream(stream: BorrowedFd<'_>, uid: u32) -> Result<()> {
    let stat = match fstat(stream) {
        // A stream that is closed stays closed.
        Err(rustix::io::Errno::BADF) => return Ok(()),
        answer => answer.or_cannot("look at", "a standard stream")?,
    };
    if stat.st_uid == uid || stat.st_rdev == makedev(1, 3) {
        return Ok(());
    }
    match fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>) {
        // Where it cannot be given (an unmapped owner, a read-only filesystem) the open descriptor still works.
        Ok(()) | Err(Errno::EPERM | Errno::EINVAL | Errno::EROFS | Errno::EOPNOTSUPP) => Ok(()),
        Err(answer) => Err(Error::kernel("give away", "a standard stream", answer)),
    }
}

/// The program starts with no signal ignored or blocked. Only now, for ferry itself is to ignore SIGPIPE up to here.
fn restore_signals() -> Result<()> {
    signal::reset().or_cannot("restore", "signals")
}

/// Everything beyond the standard streams and those that were asked for is closed by the exec. What ferry itself opened
/// is so already, wherever its number lies.
fn close_others(preserve: u32) -> Result<()> {
    let first = i32::try_from(preserve).unwrap_or(i32::MAX - 3) + 3;
    match fd::cloexec_from(first) {
        Ok(()) => Ok(()),
        Err(Errno::ENOSYS | Errno::EINVAL) => close_each(first),
        Err(answer) => Err(Error::kernel("close", "other descriptors", answer)),
    }
}

/// For kernels before 5.11: by the descriptor table itself.
fn close_each(first: i32) -> Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd").or_cannot("read", "/proc/self/fd")? {
        let name = entry.or_cannot("read", "/proc/self/fd")?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.parse::<i32>().ok()).filter(|number| *number >= first)
        {
            fd::set_cloexec(number).or_cannot("close", number)?;
        }
    }
    Ok(())
}

/// What a message of the handshake says about the exec that failed; `name` is the program's.
pub fn failure(stage: stub::Stage, errno: Errno, name: &str) -> Error {
    match stage {
        stub::Stage::Exec => command::not_executed(name, errno),
        stub::Stage::Seccomp => Error::kernel("install", "the seccomp filter", errno),
        stub::Stage::Label => {
            let error = Error::kernel("apply", "the process' AppArmor profile or SELinux label", errno);
            match errno {
                Errno::ENOENT => error.hint("the profile is not loaded: see aa-status, apparmor_parser"),
                Errno::EINVAL => error.hint("the policy that is loaded does not know this label"),
                _ => error,
            }
        }
    }
}
