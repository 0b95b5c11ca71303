//! A terminal that a test plays the person at, and the socket a container manager receives one on.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use libtest_mimic::Failed;
use nix::pty::{OpenptyResult, Winsize, openpty};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::output::{self, Lines};

/// Both ends of a pseudo terminal.
#[derive(Debug)]
pub struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
    probe: PathBuf,
}

impl Terminal {
    /// A new terminal of that size. `probe` does for the test what must be done in a process of its own.
    pub fn open(probe: &Path, rows: u16, columns: u16) -> Result<Self, Failed> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None)?;
        Ok(Self { master, slave, probe: probe.to_owned() })
    }

    /// Starts a program with this as its three standard streams, and as the controlling terminal of a session of its
    /// own, as in a terminal window.
    pub fn spawn(&self, command: &Command) -> Result<Child, Failed> {
        let mut session = Command::new(&self.probe);
        session.arg("session").arg(command.get_program()).args(command.get_args());
        session.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        session.stdin(self.slave.try_clone()?).stdout(self.slave.try_clone()?).stderr(self.slave.try_clone()?);
        Ok(session.spawn()?)
    }

    /// Its end for a program to be started with, which it does not control.
    pub fn slave(&self) -> Result<OwnedFd, Failed> {
        Ok(self.slave.try_clone()?)
    }

    /// What appears on the screen.
    pub fn lines(&self, limit: Duration) -> Result<Lines, Failed> {
        Ok(Lines::new(self.master.try_clone()?, limit))
    }

    /// Changes the window's size.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), Failed> {
        resize(&self.probe, &self.master, rows, columns)
    }

    /// The terminal's modes, to compare.
    pub fn modes(&self) -> Result<nix::sys::termios::Termios, Failed> {
        Ok(nix::sys::termios::tcgetattr(&self.slave)?)
    }

    /// Types on the keyboard.
    pub fn type_in(&self, text: &str) -> Result<(), Failed> {
        Ok(File::from(self.master.try_clone()?).write_all(text.as_bytes())?)
    }
}

/// Changes the size of the window of a terminal by its master.
pub fn resize(probe: &Path, master: &OwnedFd, rows: u16, columns: u16) -> Result<(), Failed> {
    let mut command = Command::new(probe);
    command.arg("set-window").args([rows, columns].map(|number| number.to_string())).stdin(master.try_clone()?);
    if command.status()?.success() { Ok(()) } else { Err("the window cannot be resized".into()) }
}

/// The listening end of `--console-socket`.
#[derive(Debug)]
pub struct ConsoleSocket(UnixListener);

impl ConsoleSocket {
    /// Listens at `path`.
    pub fn bind(path: &Path) -> Result<Self, Failed> {
        Ok(Self(UnixListener::bind(path)?))
    }

    /// The terminal's master that was sent.
    pub fn receive(&self, limit: Duration) -> Result<OwnedFd, Failed> {
        if !output::readable(&self.0, limit)? {
            return Err("nobody called at the console socket".into());
        }
        let (stream, _) = self.0.accept()?;
        let mut name = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let received = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        received.ok_or_else(|| "no descriptor came".into())
    }
}
