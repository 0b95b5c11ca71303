//! The streams of a container's process: fifos of containerd's, on whose other ends its clients are.
//!
//! Output into a fifo is not copied: the process writes into it itself. A shim only keeps a reading end open beside it, so that
//! a client that goes away does not end the process by SIGPIPE, and one that comes back finds what was written. Output into a
//! file is copied from a pipe: whoever had a host's file open could change its mode and content. So is that of an exec, which
//! may leave processes behind: its client gets an end all the same, when it deletes it. Input goes through a pipe,
//! since the end of a fifo is wherever nobody has it open to write at the moment, and the end of input is where a client says
//! so. With a terminal both are copied, to and from its master. A log program gets output by pipes of its own (`logger`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::unistd::{pipe2, read, write};

use super::failure::{Code, Failure};
use super::logger;
use crate::error::{Context, Result};
use crate::sys::fd;

/// What a client says of a process' streams; an empty name is a stream to and from nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Streams {
    /// A fifo.
    pub stdin: String,
    /// A fifo, or the address of a file, `file:///path`, or of a log program, `binary:///path?key=value`.
    pub stdout: String,
    /// The same, and the same log program; nothing with a terminal.
    pub stderr: String,
    /// The process has a terminal for all three.
    pub terminal: bool,
}

impl Streams {
    /// Refuses addresses that lead nowhere.
    ///
    /// # Errors
    /// Of a kind that is not known here.
    pub fn check(&self) -> Result<(), Failure> {
        let logged = self.is_logged();
        let others = [&self.stdin, if logged { &self.stdin } else { &self.stdout }];
        // Of a log program there is one for both.
        let stderr = (!logged || self.stderr != self.stdout).then_some(&self.stderr);
        match others.into_iter().chain(stderr).find(|address| path(address).is_none()) {
            Some(unknown) => {
                let message = format!(
                    "cannot use {unknown} as a stream: it is neither a fifo, nor file://, nor binary:// with a path for both outputs"
                );
                Err(Failure::new(Code::InvalidArgument, message))
            }
            None => Ok(()),
        }
    }

    /// Whether a log program reads the outputs.
    pub fn is_logged(&self) -> bool {
        self.stdout.starts_with("binary:///")
    }

    /// Waits until clients have hold of the outputs: what is written before would be lost if it ended early.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn meet(&self) -> Result<[OwnedFd; 2]> {
        let stderr = if self.terminal { "" } else { &self.stderr };
        Ok([output(&self.stdout)?, output(stderr)?])
    }

    /// For a worker: makes `input` and the outputs the standard streams, where `pipes` are in their places.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn arrange(&self, input: Option<BorrowedFd<'_>>, pipes: [Option<BorrowedFd<'_>>; 2]) -> Result<()> {
        let met = self.meet()?;
        let nothing = output("")?;
        let streams = if self.terminal {
            [nothing.as_fd(); 3]
        } else {
            let [stdout, stderr] = &met;
            [input.unwrap_or(nothing.as_fd()), pipes[0].unwrap_or(stdout.as_fd()), pipes[1].unwrap_or(stderr.as_fd())]
        };
        fd::arrange(0, &streams).or_cannot("arrange", "the standard streams")?;
        // What is copied is the server's to write; until it does, these are the ends that keep fifos from one. A file has no
        // end, and whatever waits for its start in the container is to hold none of the host's.
        let is_fifo = |end: &File| end.metadata().is_ok_and(|found| found.file_type().is_fifo());
        met.map(File::from).into_iter().filter(is_fifo).for_each(std::mem::forget);
        Ok(())
    }

    /// Where outputs go that are copied from pipes: those into files, or all.
    pub fn copied(&self, all: bool) -> [Option<&str>; 2] {
        let is_copied = |address: &str| !address.is_empty() && path(address).is_some_and(|path| all || !is_fifo(&path));
        [&self.stdout, &self.stderr]
            .map(|address| Some(address.as_str()).filter(|address| !self.terminal && is_copied(address)))
    }

    /// Reading ends of the outputs, where they are fifos.
    pub fn keepers(&self) -> Vec<OwnedFd> {
        let fifos =
            [&self.stdout, &self.stderr].into_iter().filter_map(|address| path(address)).filter(|path| is_fifo(path));
        // One that has gone has no client to be kept for.
        fifos.filter_map(|path| open(&path, OpenOptions::new().read(true)).ok()).collect()
    }

    /// Writing ends of the outputs for clients that wait for one, so that these have theirs open long before the process ends: some
    /// give up a fifo that is not open when they hear of the end, and lose what it holds.
    pub fn greet(&self) -> Vec<OwnedFd> {
        let fifos =
            [&self.stdout, &self.stderr].into_iter().filter_map(|address| path(address)).filter(|path| is_fifo(path));
        // Where nobody waits yet, whoever makes the process will.
        fifos.filter_map(|path| open(&path, OpenOptions::new().write(true)).ok()).collect()
    }

    /// The fifo for input, where there is one.
    ///
    /// # Errors
    /// It is not there.
    pub fn input(&self) -> Result<Option<OwnedFd>> {
        match path(&self.stdin) {
            Some(path) if path.as_os_str().is_empty() => Ok(None),
            Some(path) => open(&path, OpenOptions::new().read(true)).map(Some),
            None => Ok(None),
        }
    }
}

/// Where output that is copied goes: without blocking, and with a reading end of its own.
///
/// # Errors
/// It is not there.
pub fn destination(address: &str) -> Result<OwnedFd> {
    match path(address) {
        Some(path) if is_fifo(&path) => open(&path, OpenOptions::new().read(true).write(true)),
        _ => output(address),
    }
}

/// The path in an address; `None`: it is of another kind.
fn path(address: &str) -> Option<PathBuf> {
    match address.split_once("://") {
        None => Some(PathBuf::from(address)),
        Some(("fifo" | "file", rest)) => {
            Some(PathBuf::from(logger::decoded(rest.split('?').next().unwrap_or(rest), false)))
        }
        Some(_) => None,
    }
}

fn is_fifo(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<OwnedFd> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    options.custom_flags(flags.bits()).open(path).or_cannot("open the stream", path.display()).map(OwnedFd::from)
}

/// Opens an output: a fifo as soon as somebody has it open to read.
fn output(address: &str) -> Result<OwnedFd> {
    let path = path(address).unwrap_or_default();
    let mut options = OpenOptions::new();
    if path.as_os_str().is_empty() {
        return options.read(true).write(true).open("/dev/null").or_cannot("open", "/dev/null").map(OwnedFd::from);
    }
    if address.starts_with("file://") {
        // As other shims have them: what collects logs need not be root.
        if let Some(folder) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
            made.or_cannot("make", folder.display())?;
        }
        options.create(true).mode(0o644);
    }
    let opened = options.append(true).custom_flags(OFlag::O_NOCTTY.bits()).open(&path);
    opened.or_cannot("open the stream", path.display()).map(OwnedFd::from)
}

/// A pipe for input: the process' end, and the shim's, which does not block.
///
/// # Errors
/// No descriptor is left.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
    do_not_block(&ours)?;
    Ok((theirs, ours))
}

/// The same for output.
///
/// # Errors
/// No descriptor is left.
pub fn output_pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
    do_not_block(&ours)?;
    Ok((theirs, ours))
}

/// Has reads and writes answer at once.
///
/// # Errors
/// None in practice.
pub fn do_not_block(fd: &OwnedFd) -> Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).or_cannot("set", "a descriptor not to block")
}

/// How many times a pump reads before others have their turn: enough for as much as a pipe holds.
const AT_ONCE: usize = 64;

/// Bytes on their way from one descriptor to another, neither of which blocks.
#[derive(Debug)]
pub struct Pump {
    from: OwnedFd,
    to: OwnedFd,
    pending: Vec<u8>,
    ending: bool,
}

impl Pump {
    /// From one descriptor to another.
    pub fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self { from, to, pending: Vec::new(), ending: false }
    }

    /// Ends when it has run dry, without waiting for more.
    pub fn end(&mut self) {
        self.ending = true;
    }

    /// What it waits for.
    pub fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        if self.pending.is_empty() {
            (self.from.as_fd(), PollFlags::POLLIN)
        } else {
            (self.to.as_fd(), PollFlags::POLLOUT)
        }
    }

    /// Moves what can be moved, and not all of what never ends; false: nothing will come any more, or nobody takes it.
    pub fn step(&mut self) -> bool {
        for _ in 0..AT_ONCE {
            while !self.pending.is_empty() {
                match write(&self.to, &self.pending) {
                    Ok(count) => drop(self.pending.drain(..count)),
                    Err(Errno::EINTR) => (),
                    Err(Errno::EAGAIN) => return true,
                    // A full disk does not end whoever writes a log.
                    Err(Errno::ENOSPC | Errno::EDQUOT) => self.pending.clear(),
                    Err(_) => return false,
                }
            }
            let mut chunk = [0; 16384];
            match read(&self.from, &mut chunk) {
                // A terminal that nobody has open any more answers EIO.
                Ok(0) | Err(Errno::EIO) => return false,
                Ok(count) => self.pending.extend(&chunk[..count]),
                Err(Errno::EINTR) => (),
                Err(Errno::EAGAIN) => {
                    self.pending = Vec::new();
                    return !self.ending;
                }
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_paths_fifos_or_files() {
        assert_eq!(path("/run/x"), Some("/run/x".into()));
        assert_eq!(path("file:///var/log/x?y=z"), Some("/var/log/x".into()));
        assert_eq!(path("file:///var/log/a%20b"), Some("/var/log/a b".into()));
        assert_eq!(path("/run/a%20b"), Some("/run/a%20b".into()));
        assert_eq!(path("fifo:///run/x"), Some("/run/x".into()));
        let log = "binary:///bin/logger?a=b";
        let check = |stdout: &str, stderr: &str| {
            Streams { stdout: stdout.into(), stderr: stderr.into(), ..Streams::default() }.check()
        };
        for (stdout, stderr) in [("", ""), (log, log), (log, ""), ("/run/a", "file:///b")] {
            assert_eq!(check(stdout, stderr), Ok(()), "{stdout} {stderr}");
        }
        for (stdout, stderr, unknown) in
            [("http://a", "", "http://a"), (log, "binary:///b", "binary:///b"), ("", log, log)]
        {
            assert!(check(stdout, stderr).unwrap_err().status().message.contains(unknown), "{stdout} {stderr}");
        }
    }

    #[test]
    fn a_pump_keeps_what_nobody_takes_yet_and_ends_when_it_is_dry() {
        let (source, feed) = pipe().unwrap();
        let (sink, to) = pipe().unwrap();
        do_not_block(&source).unwrap();
        do_not_block(&sink).unwrap();
        let mut pump = Pump::new(source, to);
        let (mut fed, mut got) = (0, 0);
        while let Ok(count) = write(&feed, &[1; 8192]) {
            fed += count;
            assert!(pump.step());
        }
        pump.end();
        assert_eq!(pump.interest().1, PollFlags::POLLOUT);
        let mut chunk = [0; 4096];
        loop {
            let more = pump.step();
            while let Ok(count @ 1..) = read(&sink, &mut chunk) {
                got += count;
            }
            if !more {
                break;
            }
        }
        assert_eq!(got, fed);
        assert!(fed > 65536);
    }

    #[test]
    fn a_pump_goes_on_where_a_disk_is_full_and_leaves_others_a_turn() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (source, feed) = pipe().unwrap();
        do_not_block(&source).unwrap();
        write(&feed, b"lost").unwrap();
        let mut pump = Pump::new(source, full.into());
        assert!(pump.step());
        assert_eq!(pump.interest().1, PollFlags::POLLIN);
        drop(feed);
        assert!(!pump.step());

        let [zero, null] =
            ["/dev/zero", "/dev/null"].map(|path| OpenOptions::new().read(true).write(true).open(path).unwrap());
        let mut endless = Pump::new(zero.into(), null.into());
        assert!(endless.step());
        // Its turn comes again without more to be read.
        assert_eq!(endless.interest().1, PollFlags::POLLOUT);
    }

    #[test]
    fn a_pump_ends_with_whoever_feeds_it() {
        let (source, feed) = pipe().unwrap();
        let (sink, to) = pipe().unwrap();
        write(&feed, b"last").unwrap();
        drop(feed);
        assert!(!Pump::new(source, to).step());
        let mut chunk = [0; 9];
        assert_eq!(read(&sink, &mut chunk), Ok(4));
    }
}
