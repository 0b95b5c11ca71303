//! The kernel calls, each of which must succeed: the floor has no error handling beyond saying what failed.
//!
//! Safety, for the whole file: every pointer handed to the kernel comes from a reference or a `CStr` that outlives the
//! call, and every size is that of the value pointed to.

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong};
use std::mem::size_of;
use std::ptr::{null, null_mut};

/// Says what failed with the kernel's answer, and ends the process with 1.
pub fn fail(what: &str) -> ! {
    eprintln!("floor: {what}: {}", std::io::Error::last_os_error());
    unsafe { libc::_exit(1) }
}

/// The answer of a call that must not be negative.
pub fn must<T: Copy + Into<i64>>(answer: T, what: &str) -> T {
    if answer.into() < 0 { fail(what) } else { answer }
}

pub fn errno() -> c_int {
    unsafe { *libc::__errno_location() }
}

/// clone3 with `flags`, into the cgroup `cgroup`. 0 in the child.
pub fn clone_into(flags: c_int, cgroup: c_int) -> c_int {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64 | CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = cgroup as u64;
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<libc::clone_args>()) };
    must(pid, "clone3") as c_int
}

pub fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: c_ulong, data: &CStr) {
    let (source, target, kind) = (source.as_ptr(), target.as_ptr(), kind.as_ptr());
    must(unsafe { libc::mount(source, target, kind, flags, data.as_ptr().cast()) }, "mount");
}

/// Nothing where there is nothing at `path`.
pub fn is_directory(path: &CStr) -> Option<bool> {
    let mut answer: libc::stat = unsafe { std::mem::zeroed() };
    if unsafe { libc::stat(path.as_ptr(), &mut answer) } == 0 {
        return Some(answer.st_mode & libc::S_IFMT == libc::S_IFDIR);
    }
    if errno() == libc::ENOENT { None } else { fail("stat") }
}

/// Makes the one mount at `target` read-only, its other attributes untouched.
pub fn read_only(target: &CStr, flags: c_int) {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let size = size_of::<libc::mount_attr>();
    let call = libc::SYS_mount_setattr;
    must(unsafe { libc::syscall(call, libc::AT_FDCWD, target.as_ptr(), flags, &attributes, size) }, "mount_setattr");
}

pub fn mkdir(path: &CStr, mode: libc::mode_t) {
    must(unsafe { libc::mkdir(path.as_ptr(), mode) }, "mkdir");
}

pub fn symlink(target: &CStr, path: &CStr) {
    must(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }, "symlink");
}

pub fn open(path: &CStr, flags: c_int) -> c_int {
    must(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o600) }, "open")
}

pub fn close(fd: c_int) {
    must(unsafe { libc::close(fd) }, "close");
}

pub fn write(fd: c_int, bytes: &[u8]) {
    must(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as c_long, "write");
}

/// Reads at most `buffer.len()` bytes, once.
pub fn read(fd: c_int, buffer: &mut [u8]) -> usize {
    must(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } as c_long, "read") as usize
}

pub fn prctl(option: c_int, argument: c_ulong, second: c_ulong, what: &str) {
    must(unsafe { libc::prctl(option, argument, second, 0, 0) }, what);
}

/// pivot_root into the current directory, the old root out of sight and gone.
pub fn pivot_here() {
    let here = c".".as_ptr();
    must(unsafe { libc::syscall(libc::SYS_pivot_root, here, here) }, "pivot_root");
    must(unsafe { libc::umount2(here, libc::MNT_DETACH) }, "umount2 of the old root");
}

pub fn chdir(path: &CStr) {
    must(unsafe { libc::chdir(path.as_ptr()) }, "chdir");
}

/// Executes `argv` (a vector that ends in null) with the environment of `runc spec`.
pub fn execute(argv: *const *const c_char) -> ! {
    let environment =
        [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(), c"TERM=xterm".as_ptr(), null()];
    unsafe { libc::execve(*argv, argv, environment.as_ptr()) };
    fail("execve")
}

/// Waits for a child; its exit code.
pub fn wait(pid: c_int) -> c_int {
    let mut status = 0;
    must(unsafe { libc::wait4(pid, &mut status, 0, null_mut()) }, "wait4");
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}

/// Nothing where the process is gone.
pub fn pidfd_open(pid: c_int) -> Option<c_int> {
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as c_int;
    if pidfd < 0 && errno() == libc::ESRCH { None } else { Some(must(pidfd, "pidfd_open")) }
}

/// SIGKILL to a process that is no child of ours, and its end.
pub fn kill_and_wait(pidfd: c_int) {
    let signal = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, 0, 0) };
    must(signal, "pidfd_send_signal");
    wait_readable(pidfd, libc::POLLIN);
}

pub fn wait_readable(fd: c_int, events: i16) {
    let mut poll = libc::pollfd { fd, events, revents: 0 };
    must(unsafe { libc::poll(&mut poll, 1, -1) }, "poll");
}
