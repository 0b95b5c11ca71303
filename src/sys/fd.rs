//! Descriptors by number: what is left open across an exec, and what was handed to ferry by its caller.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::answer;

/// `CLOSE_RANGE_CLOEXEC`: linux/close_range.h.
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// Marks every descriptor from `first` on as close-on-exec. close_range(2), CLOSE_RANGE_CLOEXEC since Linux 5.11.
///
/// # Errors
/// ENOSYS or EINVAL on older kernels.
pub fn cloexec_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: plain integers. No descriptor is closed, so no owner of one is invalidated.
    answer(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Closes every descriptor from `first` on but `kept`. Only for a process in which nothing that owned one of them is ever
/// dropped or used again: a child that executes a program or exits. close_range(2), since Linux 5.9.
///
/// # Errors
/// ENOSYS on older kernels.
pub fn close_from(first: RawFd, kept: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut kept: Vec<RawFd> = kept.iter().map(AsRawFd::as_raw_fd).filter(|number| *number >= first).collect();
    kept.sort_unstable();
    let mut from = first;
    for number in kept {
        if from < number {
            close_range(from, (number - 1).cast_unsigned())?;
        }
        from = number + 1;
    }
    close_range(from, libc::c_uint::MAX)
}

fn close_range(first: RawFd, last: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: plain integers. Owners of what is closed are never dropped, as `close_from` demands, so no number is closed
    // twice; the allocator and the runtime hold no descriptors.
    answer(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Closes a descriptor in a cloned child, whose copy of what owns it is never dropped or used: as [`close_from`].
pub fn close_in_child(descriptor: BorrowedFd<'_>) {
    // SAFETY: the owner is never dropped, so the number is not closed twice. Linux frees it whatever close(2) answers.
    unsafe { libc::close(descriptor.as_raw_fd()) };
}

/// How many bytes of a pipe or fifo nobody has read. ioctl_pipe(2), FIONREAD
///
/// # Errors
/// ENOTTY for what is none.
pub fn unread(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int through the pointer, which outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Whether a descriptor of this number is open.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag; an unopened number answers EBADF.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// Whether the descriptor of this number is open and came from ferry's caller: ferry's own are all close-on-exec, and one that was
/// so could not have come.
pub fn is_inherited(number: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag; an unopened number answers EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Those of the descriptors from 3 up to `behind` that came from ferry's caller.
pub fn inherited(behind: RawFd) -> Vec<BorrowedFd<'static>> {
    // SAFETY: they are open and nobody's in here, so nothing closes them; `handed_down` has its numbers above `behind` or none.
    (3..behind).filter(|number| is_inherited(*number)).map(|number| unsafe { BorrowedFd::borrow_raw(number) }).collect()
}

/// Takes ownership of a descriptor that recvmsg(2) has just made.
pub fn received(number: RawFd) -> OwnedFd {
    // SAFETY: the caller hands over a number that SCM_RIGHTS delivered: the kernel made it for this process, and nothing
    // else has wrapped it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// A copy of a descriptor with a number of at least `lowest`, close-on-exec.
///
/// # Errors
/// EMFILE, EINVAL for a number beyond the limit.
pub fn copy_above(fd: BorrowedFd<'_>, lowest: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers; the descriptor is borrowed for the call.
    let number = Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) })?;
    // SAFETY: F_DUPFD_CLOEXEC has just made it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Puts copies of descriptors at the numbers `first`, `first` + 1 and so on, where they stay open across an exec; whatever was
/// there is closed. Only for a process in which nothing that owned one of those numbers is ever dropped or used again: a
/// child that executes a program or exits.
///
/// # Errors
/// EMFILE, EBADF.
pub fn arrange(first: RawFd, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let behind = first + RawFd::try_from(fds.len()).map_err(|_| Errno::EMFILE)?;
    // All out of the way first: one may have a number that another is to get.
    let copies: Vec<OwnedFd> = fds.iter().map(|fd| copy_above(*fd, behind)).collect::<Result<_, _>>()?;
    for (number, copy) in (first..).zip(&copies) {
        // SAFETY: plain integers. An owner of what is closed is never dropped, as the caller has said.
        Errno::result(unsafe { libc::dup2(copy.as_raw_fd(), number) })?;
    }
    Ok(())
}

/// Takes ownership of a descriptor that ferry's caller left open and named by its number. `None`: none is open there.
/// To be called once for a number, which is none of the standard streams'.
pub fn handed_down(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: it is open and nobody's in here: ferry's own descriptors are made after it was, and get other numbers.
    (number > 2 && is_open(number)).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Marks one descriptor as close-on-exec; one that is not open is no error.
///
/// # Errors
/// None in practice; the kernel's answer is passed on.
pub fn set_cloexec(number: RawFd) -> Result<(), Errno> {
    // SAFETY: sets a flag of a descriptor; none is closed.
    match Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }) {
        Ok(_) | Err(Errno::EBADF) => Ok(()),
        Err(answer) => Err(answer),
    }
}

/// Has the kernel begin to write what a file has in memory to its disk, and does not wait for it: that it is there, fsync(2) alone
/// tells. sync_file_range(2), SYNC_FILE_RANGE_WRITE.
///
/// # Errors
/// EINVAL, ESPIPE: it is no file of a disk; what the disk answers.
pub fn start_writeback(file: impl AsFd) -> Result<(), Errno> {
    let number = file.as_fd().as_raw_fd();
    // SAFETY: plain numbers; the descriptor is borrowed, and open for as long.
    Errno::result(unsafe { libc::sync_file_range(number, 0, 0, libc::SYNC_FILE_RANGE_WRITE) }).map(drop)
}

/// Waits until `length` bytes of a file from `offset` on have been written to its disk, which leaves little for fsync(2) to wait for.
/// sync_file_range(2)
///
/// # Errors
/// As [`start_writeback`]. An error of the disk is told once: fsync(2) by this descriptor does not tell of it again.
pub fn await_writeback(file: impl AsFd, offset: u64, length: u64) -> Result<(), Errno> {
    let number = file.as_fd().as_raw_fd();
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (offset, length) = (offset.cast_signed(), length.cast_signed());
    // SAFETY: plain numbers; the descriptor is borrowed, and open for as long.
    Errno::result(unsafe { libc::sync_file_range(number, offset, length, flags) }).map(drop)
}
