//! The container's terminal: a pty of its own devpts, its slave at `/dev/console` and on the standard streams, its master
//! with whoever started the container.
//!
//! Both ends are had by descriptor: `/dev/ptmx` inside could be anything, and so could `/dev/pts/0` by the time it is
//! opened by name (CVE-2025-52565).

use std::io::{IsTerminal, stdin, stdout};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::fs::{FileType, Mode, OFlags, fstat, fstatfs, makedev, openat};
use rustix::stdio;

use super::protocol::{Channel, Message};
use crate::error::{Context, Error, Result};
use crate::path::{Links, Root};
use crate::rootfs::mount::{clone_tree, place};
use crate::spec::config::ConsoleSize;
use crate::sys::terminal;

/// `DEVPTS_SUPER_MAGIC`: linux/magic.h.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Whether ferry's caller types at a terminal and sees what is written on one. That is then a window on the container's and passes
/// everything on as it is: which carriage returns are added, the program says of its own terminal.
#[must_use]
pub fn has_window() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

/// The rows and columns of the terminal that ferry's caller types at, or else of the one that is written to; nothing where nobody
/// has told them, as over a serial line.
pub(super) fn window_size() -> Option<(u16, u16)> {
    let size = |stream| terminal::size(stream).ok().filter(|size| *size != (0, 0));
    [stdio::stdin(), stdio::stdout()].into_iter().find_map(size)
}

/// Opens a pty of the container's devpts and sends its master to the parent; answers the slave. Where `carried` is set, by ferry
/// itself, it has the size of the caller's window, and where the caller has no window, a newline stays one: what is carried then
/// goes to a terminal that adds its own carriage returns, or to a file or a pipe, where there should be none. Set here, before
/// the program can look, or anything is written.
///
/// # Errors
/// No devpts at `/dev/pts`, or the kernel's answer.
pub fn open(root: &Root, size: Option<ConsoleSize>, carried: bool, parent: &Channel) -> Result<OwnedFd> {
    let master = root
        .open_inside(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY, Links::Refuse)
        .or_cannot("open", "/dev/pts/ptmx in the container")
        .map_err(|error| error.hint("process.terminal needs a mount of type devpts, with newinstance, at /dev/pts"))?;
    let on_devpts = fstatfs(&master).or_cannot("look at", "/dev/pts/ptmx")?.f_type == DEVPTS_MAGIC;
    if !on_devpts || fstat(&master).or_cannot("look at", "/dev/pts/ptmx")?.st_rdev != makedev(5, 2) {
        return Err(Error::said("open", "/dev/pts/ptmx in the container", "it is not on a devpts"));
    }
    let slave = terminal::peer(master.as_fd()).or_cannot("open", "the other end of the pty")?;
    let asked = size.map(|ConsoleSize { height, width }| (height, width));
    if let Some((rows, columns)) = window_size().filter(|_| carried).or(asked) {
        terminal::resize(slave.as_fd(), rows, columns).or_cannot("resize", "the terminal")?;
    }
    if carried && !has_window() {
        let mut mode = tcgetattr(&slave).or_cannot("look at", "the terminal")?;
        mode.output_flags.remove(OutputFlags::ONLCR);
        tcsetattr(&slave, SetArg::TCSANOW, &mode).or_cannot("set", "the terminal")?;
    }
    parent.send(&Message::Console, Some(master.as_fd()))?;
    Ok(slave)
}

/// Binds the slave to `/dev/console`. The file is made, or found, without following a link that the image may have there.
///
/// # Errors
/// A link in the way, or the kernel's answer.
pub fn bind_console(root: &Root, slave: &OwnedFd) -> Result<()> {
    let dev = root.make_dirs(Path::new("/dev"), 0o755, Links::Follow)?;
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = match openat(&dev, "console", flags | OFlags::PATH, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            let made = openat(
                &dev,
                "console",
                flags | OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY,
                Mode::from_raw_mode(0o600),
            );
            made.or_cannot("make", "/dev/console")?
        }
        answer => answer.or_cannot("open", "/dev/console")?,
    };
    if FileType::from_raw_mode(fstat(&target).or_cannot("look at", "/dev/console")?.st_mode) == FileType::Symlink {
        return Err(Error::said("bind the terminal to", "/dev/console", "the image has a symbolic link there"));
    }
    let copy = clone_tree(slave.as_fd(), Path::new(""), false).or_cannot("bind the terminal to", "/dev/console")?;
    place(copy.as_fd(), target.as_fd()).or_cannot("bind the terminal to", "/dev/console")
}

/// Puts the slave on the standard streams and makes it the controlling terminal of this session, which this process leads.
///
/// # Errors
/// The kernel's answer.
pub fn attach(slave: &OwnedFd) -> Result<()> {
    terminal::control(slave.as_fd()).or_cannot("control", "the terminal")?;
    dup2_stdin(slave)
        .and_then(|()| dup2_stdout(slave))
        .and_then(|()| dup2_stderr(slave))
        .or_cannot("put the terminal on", "the standard streams")
}
