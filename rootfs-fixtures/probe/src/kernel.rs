//! The raw calls, each as a function that answers a value or the kernel's error.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Calls the kernel by number with up to six arguments; the answer as the kernel gave it.
pub fn syscall(number: i64, args: &[u64]) -> Result<i64> {
    let at = |i: usize| args.get(i).copied().unwrap_or(0);
    // SAFETY: the numbers come from the test's author; a pointer argument is never made here, so the kernel is given
    // plain numbers and answers EFAULT where it would have wanted memory.
    let answer = unsafe { libc::syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) };
    check(answer)
}

/// The soft and hard limit of a resource; `u64::MAX` is "unlimited".
pub fn rlimit(resource: u32) -> Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a whole rlimit that outlives the call.
    check(unsafe { libc::getrlimit(resource as _, &mut limit) }.into())?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// `struct sched_attr`, version 0: sched_setattr(2).
#[repr(C)]
#[derive(Default)]
pub struct SchedAttr {
    size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// This thread's scheduling policy.
pub fn sched_attr() -> Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel fills at most the size it is told of one SchedAttr, which outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size_of::<SchedAttr>(), 0) })?;
    Ok(attr)
}

/// The session keyring's description (`type;uid;gid;perm;name`), see keyctl(2).
pub fn session_keyring() -> Result<String> {
    const KEYCTL_DESCRIBE: u64 = 6;
    of_session_keyring(KEYCTL_DESCRIBE)
}

/// The label that a security module has given to the session keyring.
pub fn session_keyring_label() -> Result<String> {
    const KEYCTL_GET_SECURITY: u64 = 17;
    of_session_keyring(KEYCTL_GET_SECURITY)
}

fn of_session_keyring(what: u64) -> Result<String> {
    const KEY_SPEC_SESSION_KEYRING: i64 = -3;
    let mut text = [0u8; 256];
    let keyring = KEY_SPEC_SESSION_KEYRING as u64;
    // SAFETY: both kinds of call write at most `text.len()` bytes into `text`, which outlives them.
    let length =
        check(unsafe { libc::syscall(libc::SYS_keyctl, what, keyring, text.as_mut_ptr(), text.len() as u64, 0u64) })?;
    let end = (length as usize).saturating_sub(1).min(text.len());
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}

/// The rows and columns of the terminal on `fd`.
pub fn window(fd: i32) -> Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ fills one winsize, which outlives the call.
    check(unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) }.into())?;
    Ok((size.ws_row, size.ws_col))
}

/// Sets the rows and columns of the terminal on `fd`.
pub fn set_window(fd: i32, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    check(unsafe { libc::ioctl(fd, libc::TIOCSWINSZ, &size) }.into()).map(drop)
}

/// Has the terminal on `fd` pass on everything as it is.
pub fn make_raw(fd: i32) -> Result<()> {
    // SAFETY: termios is plain integers; all zeros is a value of it.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: each call fills, changes or reads one termios, which outlives it.
    check(unsafe { libc::tcgetattr(fd, &mut modes) }.into())?;
    // SAFETY: as above.
    unsafe { libc::cfmakeraw(&mut modes) };
    // SAFETY: as above.
    check(unsafe { libc::tcsetattr(fd, libc::TCSANOW, &modes) }.into()).map(drop)
}

/// Begins a session of its own with the terminal on descriptor 0 as its controlling terminal.
pub fn own_session() -> Result<()> {
    // SAFETY: setsid takes no arguments; TIOCSCTTY takes a number.
    check(unsafe { libc::setsid() }.into())?;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// Ignores every signal that can be ignored.
pub fn ignore_signals() {
    // The kernel's own structure: the handler, flags, the restorer and the mask.
    let ignore = [libc::SIG_IGN as u64, 0, 0, 0];
    for number in 1..=64 {
        // SAFETY: the kernel reads one sigaction, which outlives the call; it refuses the two signals that cannot be ignored.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, number, ignore.as_ptr(), std::ptr::null::<u64>(), 8_u64) };
    }
}

/// Blocks every signal, so that even the first process of a pid namespace is sent them; see [`next_signal`].
pub fn block_signals() -> Result<()> {
    let set = every_signal();
    // SAFETY: `set` is initialised and outlives the call; the old set is not asked for.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()) }.into()).map(drop)
}

/// Waits for the next of the blocked signals, also across a freezer's thaw, which interrupts the wait.
pub fn next_signal() -> Result<i32> {
    let set = every_signal();
    loop {
        // SAFETY: `set` is initialised and outlives the call; no siginfo is asked for.
        match check(unsafe { libc::sigwaitinfo(&set, std::ptr::null_mut()) }.into()) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            answer => return answer.map(|signal| signal as i32),
        }
    }
}

fn every_signal() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the whole set and cannot fail on a valid pointer.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Forks. 0 in the child.
pub fn fork() -> Result<i32> {
    // SAFETY: the probe is single-threaded, so the child may go on as the parent would.
    check(unsafe { libc::fork() }.into()).map(|pid| pid as i32)
}

/// Has the kernel itself reap the children of this process.
pub fn ignore_children() -> Result<()> {
    // SAFETY: SIG_IGN is no function of ours that could be called.
    let before = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(Error::last_os_error()) } else { Ok(()) }
}

/// The first message of a stream socket: its bytes and how many descriptors came with them, the first of which is kept.
pub fn receive(socket: &impl AsRawFd) -> Result<(Vec<u8>, usize, Option<OwnedFd>)> {
    let mut bytes = vec![0u8; 64 * 1024];
    let mut control = [0u64; 32];
    let mut slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: a msghdr of zeros is one that names nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut slice;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: `message` names one whole buffer for bytes and one for control, and all of them outlive the call.
    let length = check(unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) } as i64)?;
    bytes.truncate(length as usize);
    // SAFETY: the kernel filled `message`, whose control buffer is still there.
    let header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    // SAFETY: not null, it is a whole header inside `control`, which is aligned for it.
    let Some(header) = (unsafe { header.as_ref() }) else { return Ok((bytes, 0, None)) };
    if header.cmsg_type != libc::SCM_RIGHTS {
        return Ok((bytes, 0, None));
    }
    let count = (header.cmsg_len - size_of::<libc::cmsghdr>()) / size_of::<i32>();
    // SAFETY: the kernel wrote at least one descriptor behind the header, and nothing else owns it.
    let first = unsafe { OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<i32>().read_unaligned()) };
    Ok((bytes, count, Some(first)))
}

/// Waits for a system call that a filter asks about: who called it, and its number. seccomp_unotify(2)
pub fn next_notification(listener: &impl AsRawFd) -> Result<libc::seccomp_notif> {
    const SECCOMP_IOCTL_NOTIF_RECV: u64 = 0xc050_2100;
    // SAFETY: the kernel wants all zeros, which is a value of it.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills one seccomp_notif, which outlives the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_RECV as _, &mut notification) }.into())?;
    Ok(notification)
}

/// Answers that call with an error.
pub fn answer_notification(listener: &impl AsRawFd, id: u64, error: i32) -> Result<()> {
    const SECCOMP_IOCTL_NOTIF_SEND: u64 = 0xc018_2101;
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: -error, flags: 0 };
    // SAFETY: the kernel reads one seccomp_notif_resp, which outlives the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_SEND as _, &mut answer) }.into()).map(drop)
}

/// Makes a character device.
pub fn mknod(path: &str, major: u32, minor: u32) -> Result<()> {
    let path = std::ffi::CString::new(path)?;
    // SAFETY: `path` is a C string that outlives the call.
    check(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor)) }.into()).map(drop)
}

/// Exchanges two names at once. renameat2(2)
pub fn exchange(one: &str, other: &str) -> Result<()> {
    let (one, other) = (std::ffi::CString::new(one)?, std::ffi::CString::new(other)?);
    // SAFETY: both are C strings that outlive the call.
    let answer =
        unsafe { libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, other.as_ptr(), libc::RENAME_EXCHANGE) };
    check(answer.into()).map(drop)
}

/// Attaches to a process and waits until it has stopped. Seized it goes on when it is let go, whatever it stopped for first; the
/// signal of the older request would outlive that, and stop it for good. ptrace(2)
pub fn attach(pid: u32) -> Result<()> {
    let mut status = 0;
    syscall(libc::SYS_ptrace, &[libc::PTRACE_SEIZE as u64, pid.into(), 0, 0])?;
    syscall(libc::SYS_ptrace, &[libc::PTRACE_INTERRUPT as u64, pid.into(), 0, 0])?;
    // SAFETY: the kernel writes one int into `status`, which outlives the call.
    check(unsafe { libc::waitpid(pid.cast_signed(), &mut status, libc::__WALL) }.into()).map(drop)
}

/// Lets it go on.
pub fn detach(pid: u32) -> Result<()> {
    syscall(libc::SYS_ptrace, &[libc::PTRACE_DETACH as u64, pid.into()]).map(drop)
}

/// Makes a bind mount writable.
pub fn remount_writable(path: &str) -> Result<()> {
    let path = std::ffi::CString::new(path)?;
    let flags = libc::MS_REMOUNT | libc::MS_BIND;
    let null = std::ptr::null();
    // SAFETY: the path is a string that ends with NUL and lives until the call returns; the other pointers may be null.
    check(unsafe { libc::mount(null, path.as_ptr(), null, flags, null.cast()) }.into()).map(drop)
}

/// getppid(2).
pub fn call_allowed() {
    // SAFETY: it takes nothing and changes nothing.
    unsafe { libc::syscall(libc::SYS_getppid) };
}

/// personality(2), asked what it is.
pub fn call_with_argument() {
    // SAFETY: a plain integer, with which nothing is changed.
    unsafe { libc::syscall(libc::SYS_personality, 0xffff_ffff_u64) };
}

/// mount(2) of nothing.
pub fn call_refused() {
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: the pointers may be null: the kernel answers EFAULT where a filter does not answer first.
    unsafe { libc::syscall(libc::SYS_mount, none, none, none, 0_u64, none) };
}

/// Whether `fd` is a terminal.
pub fn is_terminal(fd: i32) -> bool {
    // SAFETY: isatty takes a number.
    unsafe { libc::isatty(fd) == 1 }
}

/// Turns the C library's -1 into the error it stands for.
fn check(answer: i64) -> Result<i64> {
    if answer == -1 { Err(Error::last_os_error()) } else { Ok(answer) }
}

/// All of a file as memory that others see: what is written to it is in the file.
pub fn shared(file: &std::fs::File) -> Result<&'static mut [u8]> {
    let length = usize::try_from(file.metadata()?.len()).map_err(Error::other)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel chooses where, so that nothing else is there.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: as many bytes as the file has were mapped there for as long as the process lives; nobody makes the file shorter.
    Ok(unsafe { std::slice::from_raw_parts_mut(at.cast(), length) })
}
