//! Log programs: `binary:///path?key=value` in place of a container's outputs. One is started with the container and reads what
//! that writes, for as long as it does.
//!
//! What it is given is containerd's word (core/runtime/v2/README.md, "Logging"): the container's standard output as descriptor 3
//! and its standard error as 4; a pipe as 5, which it closes once it is ready; `CONTAINER_ID` and `CONTAINER_NAMESPACE`; and the
//! keys and values behind the question mark as its arguments. It ends by itself, when nobody has the outputs open any more.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::unistd::{pipe2, read, write};

use crate::error::{Context, Error, Result};
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};
use crate::sys::fd;

/// The first of a log program's descriptors.
const FIRST: i32 = 3;

/// For how many milliseconds a container waits for its log program to be ready.
const PATIENCE: u16 = 10_000;

/// A log program, and the container or process whose outputs it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logger {
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: [(&'static str, String); 2],
}

/// A pipe for each output.
#[derive(Debug)]
pub struct Pipes {
    /// The log program's ends.
    pub read: [OwnedFd; 2],
    /// The ends of whoever is logged.
    pub write: [OwnedFd; 2],
}

impl Pipes {
    /// Makes them.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> Result<Self> {
        let (first, second) = (pipe()?, pipe()?);
        Ok(Self { read: [first.0, second.0], write: [first.1, second.1] })
    }

    /// All ends, for a worker that needs them.
    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.read.iter().chain(&self.write).map(AsFd::as_fd)
    }
}

impl Logger {
    /// The one that an address names; `None`: it names something else.
    pub fn of(address: &str, id: &str, namespace: &str) -> Option<Self> {
        let named = address.strip_prefix("binary://")?;
        let (path, query) = named.split_once('?').unwrap_or((named, ""));
        let path = PathBuf::from(decoded(path, false));
        path.is_absolute().then_some(())?;
        let words = query.split('&').filter(|pair| !pair.is_empty());
        let words = words.flat_map(|pair| pair.split_once('=').map_or([pair, ""], |(key, value)| [key, value]));
        let environment = [("CONTAINER_ID", id.to_owned()), ("CONTAINER_NAMESPACE", namespace.to_owned())];
        Some(Self { path, arguments: words.map(|word| decoded(word, true)).collect(), environment })
    }

    /// For a worker: starts it, and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be executed, or is not ready in time.
    pub fn start(&self, pipes: &Pipes) -> Result<()> {
        let ((ready, is_ready), (told, tells)) = (pipe()?, pipe()?);
        match clone_either_way(0, Parent::Caller).or_cannot("fork", "the shim")? {
            Cloned::Child => {
                let failed = self.execute(pipes, is_ready.as_fd(), tells.as_fd());
                exit_now(i32::from(failed.is_err()))
            }
            Cloned::Parent { .. } => {
                drop((is_ready, tells));
                refusal(&told, &self.path)?;
                in_time(&ready, &self.path)
            }
        }
    }

    /// In the child: becomes the log program, or tells why not.
    fn execute(&self, pipes: &Pipes, is_ready: BorrowedFd<'_>, tells: BorrowedFd<'_>) -> Result<(), Errno> {
        let tells = fd::copy_above(tells, FIRST + 3)?;
        // The shim's are blocked.
        SigSet::empty().thread_set_mask()?;
        fd::arrange(FIRST, &[pipes.read[0].as_fd(), pipes.read[1].as_fd(), is_ready])?;
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env_clear().envs(self.environment.iter().map(|(key, value)| (key, value)));
        let error = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).exec();
        write(&tells, &error.raw_os_error().unwrap_or(libc::EINVAL).to_ne_bytes()).map(drop)
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")
}

/// What the child tells, which ends with the execution.
fn refusal(told: &OwnedFd, path: &Path) -> Result<()> {
    let mut number = [0; 4];
    match read(told, &mut number).or_cannot("start log program", path.display())? {
        4 => Err(Error::kernel(
            "start log program",
            path.display().to_string(),
            Errno::from_raw(i32::from_ne_bytes(number)),
        )),
        _ => Ok(()),
    }
}

/// It is ready when it closes its end, or writes something.
fn in_time(ready: &OwnedFd, path: &Path) -> Result<()> {
    loop {
        match poll(&mut [PollFd::new(ready.as_fd(), PollFlags::POLLIN)], PollTimeout::from(PATIENCE)) {
            Err(Errno::EINTR) => (),
            Ok(0) => {
                let why = format!("it has not said that it is ready for {} s", PATIENCE / 1000);
                return Err(Error::said("start log program", path.display().to_string(), why)
                    .hint("it has to close its descriptor 5"));
            }
            answer => return answer.map(drop).or_cannot("wait for log program", path.display()),
        }
    }
}

/// A part of an address, where `%41` is an A, and in a query a plus sign is a blank. rfc3986, section 2.1
pub fn decoded(part: &str, is_query: bool) -> OsString {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, after @ ..] = rest {
        let code = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%');
        rest = if code.is_some() { &after[2..] } else { after };
        bytes.push(code.unwrap_or(if is_query && *first == b'+' { b' ' } else { *first }));
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_program_and_its_arguments() {
        let logger = Logger::of("binary:///opt/log%20it+?file=%2Ftmp%2fa+b&flag&x=", "web", "k8s.io").unwrap();
        assert_eq!(logger.path, Path::new("/opt/log it+"));
        assert_eq!(logger.arguments, ["file", "/tmp/a b", "flag", "", "x", ""]);
        assert_eq!(logger.environment[0], ("CONTAINER_ID", "web".to_owned()));
        for other in ["/run/fifo", "file:///x", "binary://relative", ""] {
            assert_eq!(Logger::of(other, "web", "k8s.io"), None, "{other}");
        }
        assert_eq!(decoded("100%&%4", true), "100%&%4");
    }
}
