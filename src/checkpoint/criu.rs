//! CRIU as a process: found, started as `criu swrk` at the end of a socket, asked one thing, and heard until it is done.
//!
//! ```text
//! ferry                                     criu swrk 3
//!   | ---- DUMP, PRE_DUMP or RESTORE ------> |
//!   | <--- NOTIFY pre-dump, post-restore … - |  any number, some with a descriptor
//!   | ---- NOTIFY heard, or give up -------> |
//!   | <--- success, or not ----------------- |
//! ```
//!
//! It runs with ferry's own rights and on files that may come from anywhere, so that what it answers is taken for nothing
//! more than an answer. criu/criu/cr-service.c

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, sendmsg, socketpair,
};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, execve};

use super::ending;
use super::rpc::{Deed, Feature, Request, Response};
use crate::cgroup::Cgroup;
use crate::error::{Context, Error, Result};
use crate::host;
use crate::launch::birth::clone_into;
use crate::launch::protocol::{Channel, Message};
use crate::sys::capability;
use crate::sys::clone::{Cloned, Parent, exit_now};
use crate::sys::fd;

/// The oldest CRIU that tells by notification when its page server is ready, joins pid namespaces and knows the freezer
/// of cgroup v2.
pub const OLDEST: u32 = 31500;

/// The first descriptor of CRIU's that is neither a standard stream nor its socket.
pub const FIRST_INHERITED: i32 = 4;
const SOCKET: i32 = 3;

/// CAP_SYS_ADMIN and CAP_CHECKPOINT_RESTORE: linux/capability.h.
const EITHER: u64 = 1 << 21 | 1 << 40;

/// How long CRIU may take to give up by itself.
const GRACE: Duration = Duration::from_secs(2);

/// An answer longer than this is none. Bytes.
const LONGEST: usize = 64 * 1024;

/// CRIU, waiting for a request.
#[derive(Debug)]
pub struct Criu {
    /// As the host counts.
    pub pid: Pid,
    pidfd: OwnedFd,
    socket: OwnedFd,
    channel: Channel,
}

/// How CRIU is started.
#[derive(Default)]
pub struct Start<'a> {
    /// In this cgroup.
    pub cgroup: Option<&'a Cgroup>,
    /// In new namespaces (`CLONE_NEW*`).
    pub namespaces: u64,
    /// With these descriptors, from [`FIRST_INHERITED`] on.
    pub inherited: Vec<OwnedFd>,
    /// With ferry's own standard streams; otherwise with none.
    pub streams: bool,
    /// In ferry's own process group, as one must be that hands the caller's terminal on. Otherwise in one of its own: an
    /// interrupt from the terminal is for ferry, which knows how to stop CRIU in the middle.
    pub shares_terminal: bool,
    /// What the process does before it becomes CRIU.
    pub prepare: Option<&'a dyn Fn() -> Result<()>>,
}

/// What CRIU tells on its way.
#[derive(Debug)]
pub struct Notice {
    /// How far it is: `pre-dump`, `post-restore` and so on. criu/criu/action-scripts.c
    pub script: String,
    /// The first process, where it is told.
    pub pid: Option<Pid>,
    /// A descriptor, where one is handed over.
    pub descriptor: Option<OwnedFd>,
}

/// The word of a notice that is none of CRIU's: it is at work, as it was a second ago. Nothing is answered.
pub const WAITING: &str = "waiting";

/// How often there is one.
const BEAT: Duration = Duration::from_secs(1);

/// Finds CRIU.
///
/// # Errors
/// It is not there.
pub fn find() -> Result<PathBuf> {
    host::program("criu").ok_or_else(|| {
        Error::said("find", "criu", "checkpoint and restore are done by it, and it is not installed")
            .hint("install the package criu, 3.15 or newer; `ferry doctor` says whether it will do")
    })
}

/// Whether it can do here what it is there for. It has ferry's own rights, and gives no reason where those are too few.
pub fn is_allowed() -> bool {
    capability::capget().is_ok_and(|sets| sets.effective & EITHER != 0)
}

/// Checks that CRIU is there, of use to this user and not too old; answers its version, as 31500 for 3.15.
///
/// # Errors
/// It is missing, does not run or is too old; this user may not checkpoint.
pub fn check_version(program: &Path) -> Result<u32> {
    if !is_allowed() {
        let why = "it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, and this user has neither";
        return Err(
            Error::said("use", program.display().to_string(), why).hint("checkpoint, restore and migrate as root")
        );
    }
    let answer = Criu::start(program, &Start::default())?.done(&Request::Version)?;
    match answer.version {
        Some(version) if version >= OLDEST => Ok(version),
        Some(version) => Err(Error::said("use", program.display().to_string(), format!("it is {}", shown(version)))
            .hint("install CRIU 3.15 or newer")),
        None => Err(Error::said("use", program.display().to_string(), "it does not tell its version")),
    }
}

/// A version as people write it.
pub fn shown(version: u32) -> String {
    let (major, minor, sub) = (version / 10_000, version / 100 % 100, version % 100);
    if sub == 0 { format!("CRIU {major}.{minor}") } else { format!("CRIU {major}.{minor}.{sub}") }
}

/// Checks that CRIU and the kernel have a feature.
///
/// # Errors
/// They do not, or cannot be asked.
pub fn check_feature(program: &Path, feature: Feature) -> Result<()> {
    let answer = Criu::start(program, &Start::default())?.done(&Request::Feature(feature))?;
    if answer.features.contains(&(feature as u32)) {
        return Ok(());
    }
    Err(match feature {
        Feature::MemoryTracking => Error::plain("this kernel does not tell which pages a process wrote to").hint(
            "pre-dumps need a kernel with CONFIG_MEM_SOFT_DIRTY; checkpoint without --pre-dump and --parent-path",
        ),
        Feature::LazyPages => Error::plain("memory cannot be brought page by page here: no userfaultfd")
            .hint("checkpoint without --lazy-pages"),
    })
}

impl Criu {
    /// Starts CRIU. It is prepared, but has not been executed, when this returns: see [`Criu::executed`].
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn start(program: &Path, start: &Start<'_>) -> Result<Self> {
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .or_cannot("make", "the socket of CRIU")?;
        let (channel, report) = Channel::pair()?;
        // Wherever it is born, it is in the cgroup before it is told to go on.
        match clone_into(start.namespaces, start.cgroup, Parent::Caller)?.0 {
            Cloned::Child => {
                drop((socket, channel));
                let told = match become_criu(program, start, &theirs, &report) {
                    Ok(never) => match never {},
                    Err((error, report)) => report.send(&Message::Failed(error), None),
                };
                exit_now(i32::from(told.is_err()))
            }
            Cloned::Parent { pid, pidfd } => Ok(Self { pid, pidfd, socket, channel }),
        }
    }

    /// Lets the process go on to become CRIU, which it does not before it is told, and waits until it has.
    ///
    /// # Errors
    /// What it could not do before, or that CRIU cannot be executed.
    pub fn executed(&self) -> Result<()> {
        // One that has failed already takes no message; what it said is there to be received. One that is there and was not told waits,
        // and nothing would come of it.
        let told = self.channel.send(&Message::Placed, None);
        if told.as_ref().is_err_and(|error| !matches!(error.errno(), Some(Errno::EPIPE | Errno::ECONNRESET))) {
            return told;
        }
        match self.channel.receive()? {
            None => told,
            Some((Message::Failed(error), _)) => Err(error),
            Some((other, _)) => Err(Error::said("follow", "the handshake", format!("{other:?} came out of turn"))),
        }
    }

    /// What can be polled for its end.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Asks what is answered at once, and waits for the end.
    fn done(self, request: &Request) -> Result<Response> {
        let answer = self.executed().and_then(|()| self.ask(request, &mut |_| Ok(())));
        let ended = self.wait();
        let answer = answer?;
        ended?;
        Ok(answer)
    }

    /// Asks, and hears what CRIU tells until it answers, and [`WAITING`] while it tells nothing. Where `heard` fails, or the user interrupts, CRIU is told to
    /// give up, and that is the error once it has; one that is interrupted and says nothing for long is ended. Signals
    /// must be blocked for an interrupt to be noticed.
    ///
    /// # Errors
    /// `heard`'s own, an interrupt, or CRIU ends without an answer. An answer without success is no error here.
    pub fn ask(&self, request: &Request, heard: &mut dyn FnMut(Notice) -> Result<()>) -> Result<Response> {
        let signals = interrupts()?;
        let mut refused: Option<Error> = None;
        // Until then an interrupted CRIU may come to where it can give up.
        let mut until: Option<Instant> = None;
        self.send(request)?;
        loop {
            let beat = Instant::now() + BEAT;
            match self.wait_for_word(&signals, until.map_or(beat, |until| until.min(beat)))? {
                Heard::Word => (),
                Heard::Interrupt(signal) => {
                    refused.get_or_insert_with(|| Error::plain(format!("interrupted by {signal}")));
                    until.get_or_insert_with(|| Instant::now() + GRACE);
                    continue;
                }
                Heard::Nothing if until.is_none_or(|until| Instant::now() < until) => {
                    if refused.is_none() {
                        refused = heard(Notice { script: WAITING.to_owned(), pid: None, descriptor: None }).err();
                    }
                    continue;
                }
                Heard::Nothing => {
                    ending::end(self.pid, self.pidfd.as_fd())?;
                    until = None;
                    continue;
                }
            }
            if !self.has_word()? {
                return Err(refused.unwrap_or_else(|| self.gone()));
            }
            let (response, descriptor) = self.receive(refused.as_ref())?;
            if response.deed != Some(Deed::Notify) || !response.success {
                return match refused {
                    Some(error) if !response.success => Err(error),
                    _ => Ok(response),
                };
            }
            let notice = Notice { script: response.notified, pid: response.pid.map(Pid::from_raw), descriptor };
            if refused.is_none() {
                refused = heard(notice).err();
            }
            self.send(&Request::Heard(refused.is_none()))?;
        }
    }

    /// Waits for CRIU's next word, or its end. The end of the stream would not do: what CRIU has restored so far holds the
    /// socket too.
    fn wait_for_word(&self, signals: &SignalFd, until: Instant) -> Result<Heard> {
        wait_for(&[self.socket.as_fd(), self.pidfd.as_fd()], signals, Some(until))
    }

    /// Whether there is something to be received: what was said before the end is still there after it.
    fn has_word(&self) -> Result<bool> {
        let mut waited = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let ready = uninterrupted(|| poll(&mut waited, PollTimeout::ZERO));
        ready.map(|ready| ready > 0).or_cannot("wait for", "CRIU")
    }

    fn send(&self, request: &Request) -> Result<()> {
        let bytes = request.encode();
        let slices = [IoSlice::new(&bytes)];
        match sendmsg::<UnixAddr>(self.socket.as_raw_fd(), &slices, &[], MsgFlags::MSG_NOSIGNAL, None) {
            // It has gone, and whether it said anything before is seen by receiving.
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(answer) => Err(Error::kernel("send a request to", "CRIU", answer)),
        }
    }

    fn receive(&self, refused: Option<&Error>) -> Result<(Response, Option<OwnedFd>)> {
        let mut bytes = vec![0u8; LONGEST];
        let mut control = nix::cmsg_space!([i32; 4]);
        let (length, cut, descriptor) = loop {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<UnixAddr>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                Err(Errno::EINTR) => (),
                Err(Errno::ECONNRESET) => break (0, false, None),
                Err(answer) => return Err(Error::kernel("receive an answer of", "CRIU", answer)),
                Ok(received) => {
                    let cut = received.flags.contains(MsgFlags::MSG_TRUNC);
                    let fds = received.cmsgs().or_cannot("receive", "a descriptor of CRIU")?;
                    break (received.bytes, cut, fds.flat_map(rights).next());
                }
            }
        };
        if length == 0 {
            return Err(refused.cloned().unwrap_or_else(|| self.gone()));
        }
        match Response::decode(&bytes[..length]) {
            Some(response) if !cut => Ok((response, descriptor)),
            _ => Err(Error::said("understand", "an answer of CRIU", "it is none that ferry knows")),
        }
    }

    /// It ended without an answer.
    fn gone(&self) -> Error {
        let how = match reap(self.pid) {
            Ok(WaitStatus::Exited(_, code)) => format!("exit status {code}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
            _ => "its end is not known".to_owned(),
        };
        Error::said("hear from", "CRIU", format!("it ended without an answer ({how})"))
    }

    /// Ends the conversation, upon which CRIU ends if it has not yet, and waits for that. An interrupt ends one that hangs.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn wait(self) -> Result<()> {
        let Self { pid, socket, channel, pidfd } = self;
        drop((socket, channel));
        let (signals, mut until) = (interrupts()?, None);
        loop {
            match wait_for(&[pidfd.as_fd()], &signals, until)? {
                Heard::Word => break,
                Heard::Interrupt(_) => until = until.or(Some(Instant::now() + GRACE)),
                Heard::Nothing => ending::end(pid, pidfd.as_fd()).map(|()| until = None)?,
            }
        }
        match reap(pid) {
            // It was reaped when it was gone too early.
            Ok(_) | Err(Errno::ECHILD) => Ok(()),
            Err(answer) => Err(Error::kernel("wait for", "CRIU", answer)),
        }
    }
}

/// What came first.
enum Heard {
    /// Something to be received, or the end.
    Word,
    /// The user's signal.
    Interrupt(Signal),
    /// Neither, for as long as was to be waited.
    Nothing,
}

fn wait_for(fds: &[BorrowedFd<'_>], signals: &SignalFd, until: Option<Instant>) -> Result<Heard> {
    loop {
        let mut waited: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        waited.push(PollFd::new(signals.as_fd(), PollFlags::POLLIN));
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut waited, timeout) {
            Err(Errno::EINTR) => continue,
            answer => answer.or_cannot("wait for", "CRIU")?,
        };
        if waited[..fds.len()].iter().any(|fd| fd.any().unwrap_or(false)) {
            return Ok(Heard::Word);
        }
        let signal = signals.read_signal().or_cannot("read", "signals")?;
        if let Some(signal) = signal.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok()) {
            return Ok(Heard::Interrupt(signal));
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(Heard::Nothing);
        }
    }
}

/// Waits for the end of CRIU. Where it was killed, by ferry or by others, what it had started ends too: it looks into what the
/// kernel can do, and waits for a word from CRIU.
fn reap(pid: Pid) -> std::result::Result<WaitStatus, Errno> {
    let ended = uninterrupted(|| waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT))?;
    if matches!(ended, WaitStatus::Signaled(..)) {
        // Until it is reaped no other group can have its number. ESRCH: it had no group of its own, and there is no more to be done.
        killpg(pid, Signal::SIGKILL).ok();
    }
    uninterrupted(|| waitpid(pid, None))
}

fn uninterrupted<T>(mut call: impl FnMut() -> std::result::Result<T, Errno>) -> std::result::Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => (),
            answer => return answer,
        }
    }
}

/// The signals with which a user ends a program, which must be blocked.
pub(crate) fn interrupts() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().for_each(|signal| set.add(signal));
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).or_cannot("wait for", "signals")
}

fn rights(message: ControlMessageOwned) -> Vec<OwnedFd> {
    match message {
        ControlMessageOwned::ScmRights(fds) => fds.into_iter().map(fd::received).collect(),
        _ => Vec::new(),
    }
}

/// In the child: to CRIU. On failure, the end of the channel that is still there comes with the error.
fn become_criu(
    program: &Path,
    start: &Start<'_>,
    socket: &OwnedFd,
    report: &Channel,
) -> std::result::Result<Infallible, (Error, Channel)> {
    // Out of the way of the numbers that CRIU's descriptors are about to get.
    let lowest = FIRST_INHERITED + i32::try_from(start.inherited.len()).unwrap_or(0);
    let report = match fd::copy_above(report.as_fd(), lowest) {
        Ok(copy) => Channel::from_socket(copy),
        Err(_) => exit_now(1),
    };
    become_criu_reporting(program, start, socket, &report, lowest).map_err(|error| (error, report))
}

fn become_criu_reporting(
    program: &Path,
    start: &Start<'_>,
    socket: &OwnedFd,
    report: &Channel,
    lowest: i32,
) -> Result<Infallible> {
    if let Some(prepare) = start.prepare {
        prepare()?;
    }
    match report.receive()? {
        Some((Message::Placed, _)) => (),
        // Whoever started this has gone.
        _ => exit_now(1),
    }
    if !start.streams {
        no_streams()?;
    }
    if !start.shares_terminal {
        nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).or_cannot("make", "a process group for CRIU")?;
    }
    let handed: Vec<BorrowedFd<'_>> =
        std::iter::once(socket.as_fd()).chain(start.inherited.iter().map(AsFd::as_fd)).collect();
    fd::arrange(SOCKET, &handed).or_cannot("hand over", "CRIU's descriptors")?;
    match fd::cloexec_from(lowest) {
        // Before Linux 5.11: ferry's own are so already.
        Ok(()) | Err(Errno::ENOSYS | Errno::EINVAL) => (),
        Err(answer) => return Err(Error::kernel("close", "other descriptors", answer)),
    }
    // SIGPIPE stays ignored: CRIU must outlive ferry for as long as it takes to let the processes go on.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).or_cannot("unblock", "signals")?;
    let args = [c"criu", c"swrk", c"3"];
    let path = crate::path::c_path(program)?;
    execve(&path, &args, &environment()).or_cannot("execute", program.display())
}

/// CRIU writes to its log; what it would say elsewhere is for nobody.
fn no_streams() -> Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null").or_cannot("open", "/dev/null")?;
    nix::unistd::dup2_stdin(&null)
        .and_then(|()| nix::unistd::dup2_stdout(&null))
        .and_then(|()| nix::unistd::dup2_stderr(&null))
        .or_cannot("leave", "the caller's standard streams")
}

fn environment() -> Vec<CString> {
    let others = std::env::vars_os().filter(|(name, _)| name != "PATH");
    let all = others.chain([("PATH".into(), host::search_path())]);
    all.filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", &value.into_vec()].concat()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_people_write_them() {
        assert_eq!(shown(40101), "CRIU 4.1.1");
        assert_eq!(shown(31500), "CRIU 3.15");
    }

    #[test]
    fn what_a_killed_one_had_started_ends_with_it() {
        use std::io::BufRead as _;
        use std::os::unix::process::CommandExt as _;
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]).process_group(0).stdout(std::process::Stdio::piped());
        let mut leader = command.spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(leader.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let started = rustix::process::Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let pidfd = rustix::process::pidfd_open(started, rustix::process::PidfdFlags::empty()).unwrap();
        leader.kill().unwrap();
        let ended = reap(Pid::from_raw(i32::try_from(leader.id()).unwrap())).unwrap();
        assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{ended:?}");
        assert_eq!(poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::from(20_000u16)), Ok(1));
        assert!(leader.wait().is_err(), "nothing of it is left");
    }
}
