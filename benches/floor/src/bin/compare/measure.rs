//! One command, from just before it is spawned to just after it is reaped.

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::{Error, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::ptr::{null, null_mut};

/// What a command cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Wall clock, in nanoseconds.
    pub wall: u64,
    /// Processor time of the command and the descendants that were waited for, in nanoseconds.
    pub cpu: u64,
    /// The largest resident set of any one of them, in KiB.
    pub peak: u64,
}

/// How the command is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// posix_spawn: the quickest, for times. The peak then holds this program's own, whose memory the child borrows.
    Spawn,
    /// fork: the child's memory is its own and nearly empty until it executes, for peaks.
    Fork,
}

/// A command's words and where its output goes.
pub struct Command {
    words: Vec<CString>,
}

impl Command {
    /// `words[0]` is the path of the program.
    pub fn new<T: AsRef<str>>(words: impl IntoIterator<Item = T>) -> Result<Command, String> {
        let words: Result<_, _> = words.into_iter().map(|word| CString::new(word.as_ref())).collect();
        Ok(Command { words: words.map_err(|_| "an argument holds a zero byte".to_owned())? })
    }

    /// Runs it to its end. Anything but exit code 0 is an error that holds what it printed.
    pub fn run(&self, start: Start, output: &mut Output) -> Result<Cost, String> {
        self.run_to(0, start, output)
    }

    /// The same for another exit code.
    pub fn run_to(&self, code: i32, start: Start, output: &mut Output) -> Result<Cost, String> {
        output.clear()?;
        let mut argv: Vec<*const c_char> = self.words.iter().map(|word| word.as_ptr()).collect();
        argv.push(null());
        let before = now();
        let pid = match start {
            Start::Spawn => spawn(&argv, output),
            Start::Fork => fork(&argv, output),
        }
        .map_err(|why| format!("cannot start {}: {why}", self.text()))?;
        let (status, usage) = reap(pid).map_err(|why| format!("cannot wait for {}: {why}", self.text()))?;
        let wall = now() - before;
        if !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) != code {
            let status = ended(status);
            return Err(format!("{} ended with {status} instead of {code}:\n{}", self.text(), output.text()));
        }
        let cpu = nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime);
        Ok(Cost { wall, cpu, peak: usage.ru_maxrss as u64 })
    }

    fn text(&self) -> String {
        self.words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// Where standard output and error of the commands go: a file, kept until the next one.
pub struct Output {
    file: File,
    nothing: File,
}

impl Output {
    /// An empty one, without a name.
    pub fn new() -> Result<Output, String> {
        let fd = unsafe { libc::memfd_create(c"output".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(format!("cannot make a file for output: {}", Error::last_os_error()));
        }
        let file = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        let nothing = File::open("/dev/null").map_err(|why| format!("cannot open /dev/null: {why}"))?;
        Ok(Output { file, nothing })
    }

    fn clear(&mut self) -> Result<(), String> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.rewind());
        cleared.map_err(|why| format!("cannot clear the output file: {why}"))
    }

    /// What the last command printed.
    pub fn text(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_end(&mut bytes));
        read.map_or_else(|why| format!("(unreadable: {why})"), |_| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Descriptor of ours, descriptor of the command's.
    fn redirections(&self) -> [(i32, i32); 3] {
        [(self.nothing.as_raw_fd(), 0), (self.file.as_raw_fd(), 1), (self.file.as_raw_fd(), 2)]
    }
}

/// No variable but PATH reaches a runtime: several change what they do.
const ENVIRONMENT: &std::ffi::CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn spawn(argv: &[*const c_char], output: &Output) -> Result<i32, Error> {
    let environment = [ENVIRONMENT.as_ptr().cast_mut(), null_mut()];
    let mut pid = 0;
    let answer = unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&mut actions);
        for (ours, theirs) in output.redirections() {
            libc::posix_spawn_file_actions_adddup2(&mut actions, ours, theirs);
        }
        let answer = libc::posix_spawn(&mut pid, argv[0], &actions, null(), argv.as_ptr().cast(), environment.as_ptr());
        libc::posix_spawn_file_actions_destroy(&mut actions);
        answer
    };
    if answer == 0 { Ok(pid) } else { Err(Error::from_raw_os_error(answer)) }
}

fn fork(argv: &[*const c_char], output: &Output) -> Result<i32, Error> {
    let environment = [ENVIRONMENT.as_ptr(), null()];
    match unsafe { libc::fork() } {
        -1 => Err(Error::last_os_error()),
        0 => unsafe {
            for (ours, theirs) in output.redirections() {
                libc::dup2(ours, theirs);
            }
            libc::execve(argv[0], argv.as_ptr(), environment.as_ptr());
            libc::_exit(127)
        },
        pid => Ok(pid),
    }
}

/// Waits for `pid`, reaping the orphans that fall to us meanwhile.
fn reap(pid: i32) -> Result<(i32, libc::rusage), Error> {
    loop {
        let (reaped, status, usage) = reap_any()?;
        if reaped == pid {
            return Ok((status, usage));
        }
    }
}

fn reap_any() -> Result<(i32, i32, libc::rusage), Error> {
    let mut status = 0;
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let reaped = unsafe { libc::wait4(-1, &mut status, 0, &mut usage) };
    if reaped < 0 { Err(Error::last_os_error()) } else { Ok((reaped, status, usage)) }
}

/// Waits until every orphan has ended: the container's program that a `start` set off.
pub fn reap_all() {
    while reap_any().is_ok() {}
}

/// "exit code 1" or "signal 9".
fn ended(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        format!("signal {}", libc::WTERMSIG(status))
    } else {
        format!("exit code {}", libc::WEXITSTATUS(status))
    }
}

fn nanoseconds(time: libc::timeval) -> u64 {
    (time.tv_sec * 1_000_000_000 + time.tv_usec * 1000) as u64
}

/// The monotonic clock.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    (time.tv_sec * 1_000_000_000 + time.tv_nsec) as u64
}
