//! CRIU's lazy-pages daemon: it puts a restored process' memory in its place when that is touched, and the rest as it comes. It asks
//! ferry for it at a socket, in the words of CRIU's page server.
//!
//! What a process would find when that daemon dies is zeros: the kernel lets those who wait for a page go on without it once nobody
//! has the descriptor by which they are answered (`userfaultfd`). So a keeper has each of them too, until the daemon is done with it
//! ([`super::lazy_keeper`]), and as long as it has, who waits goes on waiting, until ferry ends it. And when ferry dies, the daemon
//! must not take that for the end of the page server, upon which it would end: it has the other end of the socket too.
//!
//! ```text
//! ferry ---- socket ---- daemon ---- userfaultfd ---- process
//!                          |              |
//!                          +- ferry's end |   so that it never hears an end
//!               keeper -------------------+   so that nobody is ever let go without his memory
//! ```

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::cause;
use super::lazy_keeper::{Keeper, heed};
use crate::container::record::Init;
use crate::error::{Context, Error, Result};
use crate::{host, procfs};

/// What it is called.
pub(super) const DAEMON: &str = "CRIU's lazy-pages daemon";

/// The name of its log.
const LOG: &str = "lazy-pages.log";

/// Where a restore finds it, in the directory of logs that the two share. criu/criu/uffd.c
const SOCKET: &str = "lazy-pages.socket";

/// How long it may take to begin, and then to be handed every descriptor.
const PATIENCE: Duration = Duration::from_secs(20);

/// The daemon, from before the restore until everything is in its place.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pidfd: OwnedFd,
    /// Who has those by which processes are answered, too.
    keeper: Keeper,
    work: std::path::PathBuf,
}

impl Daemon {
    /// Starts it for a directory of images; `work` is that of the restore's logs. Answers the socket at which it asks.
    ///
    /// # Errors
    /// It does not begin.
    pub fn start(program: &Path, images: &Path, work: &Path) -> Result<(Self, OwnedFd)> {
        std::fs::create_dir_all(work).or_cannot("make directory", work.display())?;
        let (near, far) = UnixStream::pair().or_cannot("make", "a socket")?;
        let kept: OwnedFd = near.try_clone().or_cannot("make", "a socket")?.into();
        let (told, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
        let mut command = Command::new(program);
        command.args(["lazy-pages", "--page-server", "--ps-socket", "0", "--status-fd", "2", "-v2", "-o", LOG]);
        command.arg("-D").arg(images).arg("-W").arg(work).env("PATH", host::search_path());
        // Of the three streams one is where it asks, one is never written to, and one tells that it has begun.
        command.stdin(Stdio::from(OwnedFd::from(far))).stdout(Stdio::from(kept)).stderr(Stdio::from(tell));
        let told_of_closing = heed(&mut command)?;
        let child = command.process_group(0).spawn().or_cannot("start", DAEMON)?;
        drop(command);
        let pidfd = rustix::process::Pid::from_raw(child.id().cast_signed())
            .ok_or_else(|| Error::plain("a daemon without a process"))
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).or_cannot("find", DAEMON));
        // From its first close on it waits for a keeper.
        let kept = pidfd.and_then(|pidfd| Ok((Keeper::start(&told_of_closing, &child, &pidfd)?, pidfd)));
        let (keeper, pidfd) = match kept {
            Ok(kept) => kept,
            Err(error) => return Err(error.and_then(ended(child))),
        };
        let daemon = Self { child, pidfd, keeper, work: work.to_owned() };
        match daemon.has_begun(told) {
            Ok(()) => Ok((daemon, near.into())),
            Err(error) => Err(error.and_then(daemon.end())),
        }
    }

    /// Waits for its word, a NUL.
    fn has_begun(&self, told: OwnedFd) -> Result<()> {
        let (end, mut told) = (Instant::now() + PATIENCE, File::from(told));
        let mut said = Vec::new();
        loop {
            let left =
                PollTimeout::try_from(end.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(told.as_fd(), PollFlags::POLLIN)], left) {
                Ok(0) => return Err(Error::said("start", DAEMON, "it says nothing")),
                Ok(_) => (),
                Err(nix::errno::Errno::EINTR) => continue,
                Err(answer) => return Err(Error::kernel("hear from", DAEMON, answer)),
            }
            let mut bytes = [0; 512];
            match told.read(&mut bytes).or_cannot("hear from", DAEMON)? {
                0 => return Err(self.failed("start")),
                count if bytes[..count].contains(&0) => return Ok(()),
                count => said.extend_from_slice(&bytes[..count]),
            }
            if said.len() > 1 << 16 {
                return Err(self.failed("start"));
            }
        }
    }

    /// Who it is.
    ///
    /// # Errors
    /// It has ended.
    pub fn identity(&self) -> Result<Init> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let stat = procfs::stat(pid).or_cannot("look at process", pid)?;
        Ok(Init { pid: pid.as_raw(), start_time: stat.start_time })
    }

    /// Has a copy kept of each descriptor by which it answers the processes of these images, which the restore has sent it by now.
    ///
    /// # Errors
    /// It has not got them all, and does not get them.
    pub fn hold(&mut self, images: &Path) -> Result<()> {
        let count = processes(images)?;
        let end = Instant::now() + PATIENCE;
        loop {
            if self.keeper.hold()? >= count {
                return Ok(());
            }
            // It has them in its socket, and is about to take them. Nothing tells when it has.
            if self.is_gone(Duration::from_millis(1))? || Instant::now() > end {
                return Err(self.failed("use"));
            }
        }
    }

    fn is_gone(&self, time: Duration) -> Result<bool> {
        let limit = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], limit) {
            Ok(count) => Ok(count > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(answer) => Err(Error::kernel("wait for", DAEMON, answer)),
        }
    }

    fn failed(&self, deed: &'static str) -> Error {
        cause::error(deed, DAEMON, &self.work.join(LOG), None)
    }

    /// Waits for its end, once it has said that everything is in its place.
    ///
    /// # Errors
    /// It does not end, or not well.
    pub fn wait(mut self) -> Result<()> {
        if !self.is_gone(PATIENCE)? {
            return Err(Error::said("wait for", DAEMON, "it does not end"));
        }
        let status = self.child.wait().or_cannot("wait for", DAEMON)?;
        if !status.success() {
            return Err(self.failed("use"));
        }
        self.sweep();
        self.keeper.end()
    }

    /// Ends it. What it answered must have ended before, or goes on without its memory.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn end(self) -> Result<()> {
        self.sweep();
        ended(self.child)?;
        self.keeper.end()
    }

    fn sweep(&self) {
        // It makes the socket anew where there is one.
        std::fs::remove_file(self.work.join(SOCKET)).ok();
    }
}

fn ended(mut child: Child) -> Result<()> {
    // One that has ended by itself takes no signal.
    child.kill().or_cannot("end", DAEMON)?;
    child.wait().map(drop).or_cannot("wait for", DAEMON)
}

/// How many processes of these images have memory.
fn processes(images: &Path) -> Result<usize> {
    let entries = std::fs::read_dir(images).or_cannot("read", images.display())?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name.starts_with("mm-")).count())
}
