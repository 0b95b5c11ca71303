//! Attending a process in the foreground: signals are passed on to it, the terminal is carried between it and the
//! caller's, and its exit status is the answer.

use std::io::{IsTerminal, stdin};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{FlowArg, SetArg, Termios, cfmakeraw, tcflow, tcgetattr, tcsetattr};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, getpid, read, write};
use rustix::stdio;

use super::notify::Notify;
use super::parent::wait_for_end;
use super::terminal::{has_window, window_size};
use crate::error::{Context, Result};
use crate::sys::{signal, terminal};

/// Signals that are ferry's own business and not the container's.
const OWN: [Signal; 6] =
    [Signal::SIGCHLD, Signal::SIGPIPE, Signal::SIGURG, Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGWINCH];

/// Signals that ask ferry itself to end, once the program has.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// More than a pty holds, in bytes: the kernel keeps some 20 KiB on their way to its master (drivers/tty/pty.c, n_tty.c).
const MOST_HELD: usize = 64 * 1024;

/// Whom ferry stays for: a child of its own.
#[derive(Debug, Clone, Copy)]
pub struct Attended<'a> {
    /// As the host counts.
    pub pid: Pid,
    /// Its descriptor.
    pub pidfd: BorrowedFd<'a>,
    /// The pty's master, where ferry carries it.
    pub console: Option<BorrowedFd<'a>>,
}

/// Attends the child until it has ended. Signals must be blocked already.
///
/// # Errors
/// The kernel's answer.
pub fn attend(child: &Attended<'_>, notify: Option<Notify>) -> Result<u8> {
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .or_cannot("wait for", "signals")?;
    match child.console {
        None => wait(child, &signals, notify)?,
        Some(master) => Proxy::new(master)?.carry(child, &signals, notify)?,
    }
    wait_for_end(child.pid)
}

/// Without a terminal there is only to wait.
fn wait(child: &Attended<'_>, signals: &SignalFd, mut notify: Option<Notify>) -> Result<()> {
    loop {
        let mut waited =
            vec![PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        waited.extend(notify.as_ref().map(|notify| PollFd::new(notify.as_fd(), PollFlags::POLLIN)));
        ready(&mut waited)?;
        let (ended, signalled) = (readable(&waited[0]), readable(&waited[1]));
        if waited.get(2).is_some_and(readable) {
            hear_readiness(&mut notify);
        }
        if ended {
            return Ok(());
        }
        if signalled {
            pass_on(child, signals, |_| Ok(()))?;
        }
    }
}

/// Passes on that the container is ready, and closes its socket then: who goes on speaking to one that nobody reads would wait for
/// ever once it is full, and is refused where it is closed.
fn hear_readiness(notify: &mut Option<Notify>) {
    drop(notify.take_if(|notify| notify.take(getpid().as_raw())));
}

fn ready(waited: &mut [PollFd<'_>]) -> Result<()> {
    match poll(waited, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(answer) => Err(answer).or_cannot("wait for", "the container's process"),
    }
}

fn readable(waited: &PollFd<'_>) -> bool {
    waited.revents().is_some_and(|events| !events.is_empty())
}

/// Passes every pending signal on, and tells each to `heard`.
fn pass_on(child: &Attended<'_>, signals: &SignalFd, mut heard: impl FnMut(i32) -> Result<()>) -> Result<()> {
    while let Some(info) = signals.read_signal().or_cannot("read", "signals")? {
        let number = info.ssi_signo as i32;
        heard(number)?;
        if number == Signal::SIGCHLD as i32 {
            reap_others(child.pid)?;
        }
        if OWN.iter().any(|own| *own as i32 == number) {
            continue;
        }
        match signal::pidfd_send(child.pidfd.as_fd(), number) {
            Ok(()) | Err(Errno::ESRCH) => (),
            Err(answer) => return Err(answer).or_cannot("pass on signal", number),
        }
    }
    Ok(())
}

/// Whether one of the pending signals asks ferry to end.
fn asked_to_end(signals: &SignalFd) -> Result<bool> {
    while let Some(info) = signals.read_signal().or_cannot("read", "signals")? {
        if ENDING.iter().any(|ending| *ending as u32 == info.ssi_signo) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reaps what the container has left to ferry, its subreaper. The attended child keeps its status for whoever waits for it: where it
/// comes first in the kernel's list, ferry is about to be gone, and what has ended too goes to the next reaper.
fn reap_others(attended: Pid) -> Result<()> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL;
    loop {
        let ended = match waitid(Id::All, look) {
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => return Ok(()),
            ended => ended.or_cannot("look for", "processes that have ended")?.pid(),
        };
        match ended.filter(|pid| *pid != attended) {
            Some(pid) => drop(waitpid(pid, Some(WaitPidFlag::__WALL)).or_cannot("reap", pid)?),
            None => return Ok(()),
        }
    }
}

/// What may happen while a terminal is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Ended,
    Signalled,
    Told,
    Pty,
    Typed,
    Writable,
}

/// The caller's streams on one side, the pty's master on the other.
struct Proxy {
    master: OwnedFd,
    /// A slave of ferry's own, where the program has closed all of its.
    held: Option<OwnedFd>,
    /// The caller's terminal as it was, to be restored.
    before: Option<Termios>,
    /// Taken from the pty and not yet by standard output.
    shown: Vec<u8>,
    /// Typed and not yet taken by the pty: whoever does not read must not keep ferry from showing what it writes.
    typed: Vec<u8>,
    input_open: bool,
}

impl Proxy {
    fn new(master: BorrowedFd<'_>) -> Result<Self> {
        let master = master.try_clone_to_owned().or_cannot("hold", "the terminal")?;
        let flags = fcntl(&master, FcntlArg::F_GETFL).or_cannot("hold", "the terminal")?;
        let nonblocking = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(&master, FcntlArg::F_SETFL(nonblocking)).or_cannot("hold", "the terminal")?;
        let (shown, typed) = (Vec::new(), Vec::new());
        let proxy = Self { before: raw_mode()?, master, held: None, shown, typed, input_open: true };
        proxy.resize()?;
        Ok(proxy)
    }

    /// Gives the container's terminal the size of the caller's, where the caller has one.
    fn resize(&self) -> Result<()> {
        match window_size() {
            Some((rows, columns)) => {
                terminal::resize(self.master.as_fd(), rows, columns).or_cannot("resize", "the terminal")
            }
            None => Ok(()),
        }
    }

    /// A window that has changed, or ferry brought to the foreground again, where it may read what is typed.
    fn hear(&mut self, number: i32) -> Result<()> {
        match Signal::try_from(number) {
            Ok(Signal::SIGWINCH) => self.resize(),
            Ok(Signal::SIGCONT) => {
                self.input_open = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn carry(mut self, child: &Attended<'_>, signals: &SignalFd, notify: Option<Notify>) -> Result<()> {
        let carried = self.carry_until_end(child, signals, notify);
        let restored = self.restore();
        carried.and(restored)
    }

    fn carry_until_end(&mut self, child: &Attended<'_>, signals: &SignalFd, mut notify: Option<Notify>) -> Result<()> {
        loop {
            let events = self.wait(child, signals, notify.as_ref())?;
            let happened = |event| events.contains(&event);
            if happened(Event::Told) {
                hear_readiness(&mut notify);
            }
            // First: of a program that has ended, signals are not its own any more.
            if happened(Event::Ended) {
                return self.show_rest(signals);
            }
            if happened(Event::Signalled) {
                pass_on(child, signals, |number| self.hear(number))?;
            }
            if happened(Event::Pty) {
                if !self.take()? {
                    self.hold_open()?;
                }
                self.type_on()?;
            }
            if happened(Event::Writable) {
                self.show()?;
            }
            if happened(Event::Typed) {
                self.read_input(stdio::stdin())?;
            }
        }
    }

    /// Waits for what can be gone on with: a stream that is ready and of no use for now would end every wait at once.
    fn wait(&self, child: &Attended<'_>, signals: &SignalFd, notify: Option<&Notify>) -> Result<Vec<Event>> {
        let when = |wanted, flags| if wanted { flags } else { PollFlags::empty() };
        let (reading, writing) = (PollFlags::POLLIN, PollFlags::POLLOUT);
        let on_master = when(self.shown.is_empty(), reading) | when(!self.typed.is_empty(), writing);
        let interests = [
            (Event::Ended, Some(child.pidfd), reading),
            (Event::Signalled, Some(signals.as_fd()), reading),
            (Event::Told, notify.map(AsFd::as_fd), reading),
            (Event::Pty, Some(self.master.as_fd()), on_master),
            (Event::Typed, Some(stdio::stdin()), when(self.input_open && self.typed.is_empty(), reading)),
            (Event::Writable, Some(stdio::stdout()), when(!self.shown.is_empty(), writing)),
        ];
        let (events, mut waited): (Vec<_>, Vec<_>) = interests
            .into_iter()
            .filter(|(.., flags)| !flags.is_empty())
            .filter_map(|(event, fd, flags)| Some((event, PollFd::new(fd?, flags))))
            .unzip();
        ready(&mut waited)?;
        Ok(events.into_iter().zip(&waited).filter(|(_, fd)| readable(fd)).map(|(event, _)| event).collect())
    }

    /// Takes what the pty has, once the last of it is shown, so that who writes faster than it is read waits. False: every slave
    /// is closed, and nothing more will come for now.
    fn take(&mut self) -> Result<bool> {
        if !self.shown.is_empty() {
            return Ok(true);
        }
        // What a pipe has room for when it is ready: more would wait in write(2) for a reader, and signals with it.
        let mut buffer = [0u8; libc::PIPE_BUF];
        match read(&self.master, &mut buffer) {
            Ok(length) => self.shown.extend_from_slice(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => (),
            Err(Errno::EIO) => return Ok(false),
            Err(answer) => return Err(answer).or_cannot("read from", "the terminal"),
        }
        Ok(true)
    }

    /// Opens a slave for as long as the program has none, or a poll would tell at once and for ever that there is none. It may
    /// have one again: `/dev/console` is there to be opened.
    fn hold_open(&mut self) -> Result<()> {
        self.held = Some(terminal::peer(self.master.as_fd()).or_cannot("open", "the other end of the pty")?);
        Ok(())
    }

    /// What was taken, as far as standard output takes it, which need not wait where the caller has made it so.
    fn show(&mut self) -> Result<()> {
        match write(stdio::stdout(), &self.shown) {
            Ok(length) => drop(self.shown.drain(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => (),
            Err(answer) => return Err(answer).or_cannot("write to", "standard output"),
        }
        Ok(())
    }

    /// What is left when the program has ended: no more than the pty held, for what runs on may write for ever. A reader that does
    /// not come is waited for until ferry is asked to end.
    fn show_rest(&mut self, signals: &SignalFd) -> Result<()> {
        let mut left = MOST_HELD;
        while left > 0 {
            self.take()?;
            let before = self.shown.len();
            if before == 0 {
                break;
            }
            let mut waited =
                [PollFd::new(stdio::stdout(), PollFlags::POLLOUT), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            ready(&mut waited)?;
            if readable(&waited[0]) {
                self.show()?;
            } else if asked_to_end(signals)? {
                break;
            }
            left = left.saturating_sub(before - self.shown.len());
        }
        Ok(())
    }

    fn read_input(&mut self, input: BorrowedFd<'_>) -> Result<()> {
        let mut buffer = [0u8; 4096];
        match read(input, &mut buffer) {
            // EIO is the answer in the background, too, where SIGTTIN stops nobody who has it blocked.
            Ok(0) | Err(Errno::EIO) => self.input_open = false,
            Ok(length) => self.typed.extend_from_slice(&buffer[..length]),
            Err(Errno::EAGAIN | Errno::EINTR) => (),
            Err(answer) => return Err(answer).or_cannot("read from", "standard input"),
        }
        self.type_on()
    }

    /// What was typed, as far as the pty takes it.
    fn type_on(&mut self) -> Result<()> {
        if self.typed.is_empty() {
            return Ok(());
        }
        match write(&self.master, &self.typed) {
            Ok(length) => drop(self.typed.drain(..length)),
            Err(Errno::EAGAIN | Errno::EINTR) => (),
            // Nobody has the other end open.
            Err(Errno::EIO) => self.typed.clear(),
            Err(answer) => return Err(answer).or_cannot("write to", "the terminal"),
        }
        Ok(())
    }

    fn restore(&self) -> Result<()> {
        match &self.before {
            Some(before) => tcsetattr(stdin(), SetArg::TCSANOW, before).or_cannot("restore", "the terminal"),
            None => Ok(()),
        }
    }
}

/// The caller's terminal passes everything on as it is typed, and as it is written where that is for the container alone; answers
/// how it was, in the foreground.
fn raw_mode() -> Result<Option<Termios>> {
    if !stdin().is_terminal() || !come_to_foreground()? {
        return Ok(None);
    }
    let before = tcgetattr(stdin()).or_cannot("look at", "the terminal")?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    if !has_window() {
        raw.output_flags = before.output_flags;
    }
    tcsetattr(stdin(), SetArg::TCSANOW, &raw).or_cannot("set", "the terminal")?;
    Ok(Some(before))
}

/// Waits until the caller's terminal is ferry's to set: a job that a shell has in the background is stopped here, by SIGTTOU, until
/// it is brought to the foreground. False: it never is, for its shell is gone.
fn come_to_foreground() -> Result<bool> {
    let stop = SigSet::from(Signal::SIGTTOU);
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&stop), None).or_cannot("unblock", "SIGTTOU")?;
    // To go on with output that is not held up: all that the kernel reserves for the foreground and that changes nothing.
    let answer = tcflow(stdin(), FlowArg::TCOON);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), None).or_cannot("block", "SIGTTOU")?;
    match answer {
        Err(Errno::EIO) => Ok(false),
        answer => answer.map(|()| true).or_cannot("set", "the terminal"),
    }
}
