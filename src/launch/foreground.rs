//! Attending a process in the foreground: signals are passed on to it, the terminal is carried between it and the
//! caller's, and its exit status is the answer.

use std::fs::File;
use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpid};

use super::notify::Notify;
use super::parent::wait_for_end;
use crate::error::{Context, Result};
use crate::sys::{signal, terminal};

/// Signals that are ferry's own business and not the container's.
const OWN: [Signal; 6] =
    [Signal::SIGCHLD, Signal::SIGPIPE, Signal::SIGURG, Signal::SIGTTIN, Signal::SIGTTOU, Signal::SIGWINCH];

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
pub fn attend(child: &Attended<'_>, notify: Option<&Notify>) -> Result<u8> {
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .or_cannot("wait for", "signals")?;
    match child.console {
        None => wait(child, &signals, notify)?,
        Some(master) => Proxy::new(master)?.carry(child, &signals, notify)?,
    }
    wait_for_end(child.pid)
}

/// Without a terminal there is only to wait.
fn wait(child: &Attended<'_>, signals: &SignalFd, mut notify: Option<&Notify>) -> Result<()> {
    loop {
        let mut waited =
            vec![PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        waited.extend(notify.map(|notify| PollFd::new(notify.as_fd(), PollFlags::POLLIN)));
        ready(&mut waited)?;
        if waited.get(2).is_some_and(readable) {
            notify = notify.filter(|notify| !notify.take(getpid().as_raw()));
        }
        if readable(&waited[0]) {
            return Ok(());
        }
        if readable(&waited[1]) {
            pass_on(child, signals, || Ok(()))?;
        }
    }
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

/// Passes every pending signal on; a change of the caller's window is told to `resized`.
fn pass_on(child: &Attended<'_>, signals: &SignalFd, resized: impl Fn() -> Result<()>) -> Result<()> {
    while let Some(info) = signals.read_signal().or_cannot("read", "signals")? {
        let number = info.ssi_signo as i32;
        if number == Signal::SIGWINCH as i32 {
            resized()?;
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

/// The caller's streams on one side, the pty's master on the other.
struct Proxy {
    master: File,
    /// The caller's terminal as it was, to be restored.
    before: Option<Termios>,
    /// Typed and not yet taken by the pty: whoever does not read must not keep ferry from showing what it writes.
    typed: Vec<u8>,
    input_open: bool,
}

impl Proxy {
    fn new(master: BorrowedFd<'_>) -> Result<Self> {
        let master = File::from(master.try_clone_to_owned().or_cannot("hold", "the terminal")?);
        let flags = fcntl(&master, FcntlArg::F_GETFL).or_cannot("hold", "the terminal")?;
        let nonblocking = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(&master, FcntlArg::F_SETFL(nonblocking)).or_cannot("hold", "the terminal")?;
        let proxy = Self { before: raw_mode()?, master, typed: Vec::new(), input_open: true };
        proxy.resize()?;
        Ok(proxy)
    }

    /// Gives the container's terminal the size of the caller's, where the caller has one.
    fn resize(&self) -> Result<()> {
        match terminal::size(stdin().as_fd()).or_else(|_| terminal::size(stdout().as_fd())) {
            Ok((rows, columns)) => {
                terminal::resize(self.master.as_fd(), rows, columns).or_cannot("resize", "the terminal")
            }
            Err(_) => Ok(()),
        }
    }

    fn carry(mut self, child: &Attended<'_>, signals: &SignalFd, notify: Option<&Notify>) -> Result<()> {
        let carried = self.carry_until_end(child, signals, notify);
        let restored = self.restore();
        carried.and(restored)
    }

    fn carry_until_end(&mut self, child: &Attended<'_>, signals: &SignalFd, mut notify: Option<&Notify>) -> Result<()> {
        loop {
            let input = stdin();
            let take_input = self.input_open && self.typed.is_empty();
            let on_master =
                PollFlags::POLLIN | if self.typed.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            let (ended, signalled, output, typed, told) = {
                let mut waited = vec![
                    PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN),
                    PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                    PollFd::new(self.master.as_fd(), on_master),
                ];
                if take_input {
                    waited.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
                }
                let last = waited.len();
                waited.extend(notify.map(|notify| PollFd::new(notify.as_fd(), PollFlags::POLLIN)));
                ready(&mut waited)?;
                let [ended, signalled, output] = [0, 1, 2].map(|at| readable(&waited[at]));
                (ended, signalled, output, take_input && readable(&waited[3]), waited.get(last).is_some_and(readable))
            };
            if told {
                notify = notify.filter(|notify| !notify.take(getpid().as_raw()));
            }
            if signalled {
                pass_on(child, signals, || self.resize())?;
            }
            if output {
                self.show()?;
                self.type_on()?;
            }
            if typed {
                self.read_input(input.as_fd())?;
            }
            if ended {
                return self.show();
            }
        }
    }

    /// Everything the pty has, to standard output. EIO: every slave is closed, and nothing more will come for now.
    fn show(&mut self) -> Result<()> {
        let mut buffer = [0u8; 8192];
        loop {
            match self.master.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    let mut out = stdout().lock();
                    out.write_all(&buffer[..length])
                        .and_then(|()| out.flush())
                        .or_cannot("write to", "standard output")?;
                }
                Err(error) => {
                    return match error.raw_os_error().map(Errno::from_raw) {
                        Some(Errno::EAGAIN | Errno::EIO | Errno::EINTR) => Ok(()),
                        _ => Err(error).or_cannot("read from", "the terminal"),
                    };
                }
            }
        }
    }

    fn read_input(&mut self, input: BorrowedFd<'_>) -> Result<()> {
        let mut buffer = [0u8; 4096];
        match nix::unistd::read(input, &mut buffer) {
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
        match self.master.write(&self.typed) {
            Ok(length) => drop(self.typed.drain(..length)),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN | Errno::EINTR) => (),
                // Nobody has the other end open.
                Some(Errno::EIO) => self.typed.clear(),
                _ => return Err(error).or_cannot("write to", "the terminal"),
            },
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

/// The caller's terminal passes everything on as it is typed; answers how it was.
fn raw_mode() -> Result<Option<Termios>> {
    if !stdin().is_terminal() {
        return Ok(None);
    }
    let before = tcgetattr(stdin()).or_cannot("look at", "the terminal")?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    tcsetattr(stdin(), SetArg::TCSANOW, &raw).or_cannot("set", "the terminal")?;
    Ok(Some(before))
}
