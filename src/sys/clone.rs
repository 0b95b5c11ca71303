//! clone3(2): a child born in new namespaces and in its cgroup, with a pidfd. clone(2) where that is missing.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::answer;

/// `CLONE_INTO_CGROUP`: linux/sched.h. The libc crate defines it for some targets only.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_PIDFD`: linux/sched.h.
const CLONE_PIDFD: u64 = 0x1000;

/// Which side of the clone this is.
#[derive(Debug)]
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the process that called.
    Parent {
        /// The child's pid as the caller's pid namespace counts.
        pid: Pid,
        /// A descriptor of the child, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Whose child the clone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// The caller's.
    Caller,
    /// The caller's own parent's: the clone is a sibling.
    CallersParent,
}

/// Clones this process with `namespaces` (`CLONE_NEW*` bits), into the cgroup `cgroup` where one is given.
///
/// Memory is copied as by fork. The caller must be the only thread of its process: the child goes on to allocate, and
/// another thread might have held the allocator's lock.
///
/// # Errors
/// What clone3(2) answers: ENOSYS before Linux 5.3, EINVAL or E2BIG where `cgroup` is not understood (before 5.7),
/// EPERM without the right to make a namespace, ENOSPC or EUSERS at a limit on namespaces, EBUSY for an inner cgroup.
pub fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, parent: Parent) -> Result<Cloned, Errno> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone_args is plain integers; all zeros is a valid value of it.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | CLONE_PIDFD;
    args.pidfd = (&raw mut pidfd) as u64;
    match parent {
        Parent::Caller => args.exit_signal = libc::SIGCHLD as u64,
        // The signal is then the one the caller itself was cloned with.
        Parent::CallersParent => args.flags |= libc::CLONE_PARENT as u64,
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a whole clone_args that outlives the call. No CLONE_VM: the child runs on its own copy of this
    // stack and heap, so returning twice is as sound as fork. The kernel writes `pidfd` in the parent only.
    let pid = answer(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is a fresh descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: Pid::from_raw(pid as libc::pid_t), pidfd })
}

/// As [`clone3`] without a cgroup, by clone(2): for kernels before 5.3, and for filters around ferry that hide clone3, whose
/// flags lie behind a pointer that they cannot follow.
///
/// # Errors
/// As [`clone3`]; ENOSYS where there are no pidfds (before Linux 5.2).
pub fn clone(namespaces: u64, parent: Parent) -> Result<Cloned, Errno> {
    // The lowest byte is the exit signal here, where clone3 has CLONE_NEWTIME.
    if namespaces & 0xff != 0 {
        return Err(Errno::EINVAL);
    }
    let mut pidfd: libc::c_int = -1;
    let flags = namespaces
        | CLONE_PIDFD
        | match parent {
            Parent::Caller => libc::SIGCHLD as u64,
            Parent::CallersParent => libc::CLONE_PARENT as u64,
        };
    let (stack, unused) = (0_u64, 0_u64);
    // SAFETY: as `clone3`: no CLONE_VM, so the child runs on its own copy of this stack, which a stack of 0 asks for. With
    // CLONE_PIDFD the third argument is where the kernel writes one int, which outlives the call; the last two are not
    // looked at, so that their order, which differs between machines, does not matter.
    let answered = unsafe { libc::syscall(libc::SYS_clone, flags, stack, &raw mut pidfd, unused, unused) };
    let pid = answer(answered)?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    let pid = Pid::from_raw(pid as libc::pid_t);
    if pidfd < 0 {
        // A kernel that does not know the flag passes over it. The child is of no use to anybody.
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL))?;
        return Err(Errno::ENOSYS);
    }
    // SAFETY: the kernel wrote a fresh descriptor that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid, pidfd })
}

/// A clone without a cgroup, in whichever way there is. A filter may answer EPERM for a call that it does not know.
///
/// # Errors
/// As [`clone3`].
pub fn clone_either_way(namespaces: u64, parent: Parent) -> Result<Cloned, Errno> {
    match clone3(namespaces, None, parent) {
        Err(Errno::ENOSYS | Errno::EPERM) => clone(namespaces, parent),
        cloned => cloned,
    }
}

/// Joins the namespaces `flags` of the process behind `pidfd` in one call. setns(2), since Linux 5.8.
///
/// # Errors
/// What setns(2) answers: EINVAL on older kernels, EPERM without CAP_SYS_ADMIN over them, ESRCH for a dead process.
pub fn setns(pidfd: BorrowedFd<'_>, flags: i32) -> Result<(), Errno> {
    // SAFETY: plain integers; the descriptor is borrowed for the call.
    answer(unsafe { libc::syscall(libc::SYS_setns, pidfd.as_raw_fd(), flags) }).map(drop)
}

/// Which kind of namespace a descriptor is of, by its `CLONE_NEW*` bit. ioctl_ns(2), NS_GET_NSTYPE
///
/// # Errors
/// ENOTTY for what is none.
pub fn namespace_flag(namespace: BorrowedFd<'_>) -> Result<i32, Errno> {
    const NS_GET_NSTYPE: i32 = 0xb703;
    // SAFETY: it takes no argument; the descriptor is borrowed for the call.
    Errno::result(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE as _) })
}

/// Ends this process at once, without running destructors or flushing: what a cloned child must do, since its parent
/// owns everything that a destructor would undo.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}
