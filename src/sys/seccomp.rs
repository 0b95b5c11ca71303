//! seccomp(2): installing a filter, asking what the kernel knows, and being asked about a system call.
//!
//! Source: man 2 seccomp, man 2 seccomp_unotify, include/uapi/linux/seccomp.h, include/uapi/linux/filter.h.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

/// The most instructions the kernel takes in one filter (`BPF_MAXINSNS`, linux/bpf_common.h).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// One classic BPF instruction, laid out as the kernel's `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Class, size and mode or operation.
    pub code: u16,
    /// How many instructions to skip where the comparison holds.
    pub jt: u8,
    /// How many instructions to skip where it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl Instruction {
    /// The eight bytes the kernel reads, in this machine's byte order.
    pub fn to_ne_bytes(self) -> [u8; 8] {
        let [code0, code1] = self.code.to_ne_bytes();
        let [k0, k1, k2, k3] = self.k.to_ne_bytes();
        [code0, code1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// Installs `filter` on the calling thread, and answers the listener's descriptor (close-on-exec) where `flags`
/// (`SECCOMP_FILTER_FLAG_…`) ask for one.
///
/// # Errors
///
/// EACCES without no_new_privs and without CAP_SYS_ADMIN; EINVAL for an empty, overlong or malformed filter or flags the
/// kernel does not know; EBUSY where a listener is installed already; ENOMEM when all filters together are too long.
pub fn install(flags: u32, filter: &[Instruction]) -> Result<Option<OwnedFd>, Errno> {
    let len = u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: `program` and the `len` instructions it points to are live until the call returns; Instruction has the
    // layout of sock_filter. The kernel copies them and writes nothing, so the shared borrow holds despite `*mut`.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            libc::c_ulong::from(flags),
            &raw const program,
        )
    };
    let fd = Errno::result(answer)?;
    if u64::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: with NEW_LISTENER a success is a descriptor made for this call, and nothing else owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// A system call that waits until it may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    id: u64,
    /// Who calls: the thread's number.
    pub process: i32,
    /// Its first argument.
    pub argument: u64,
}

/// What waits at a listener; blocks where nothing does.
///
/// # Errors
/// ENOENT: who called has ended meanwhile, or was interrupted.
pub fn waiting(listener: BorrowedFd<'_>) -> Result<Waiting, Errno> {
    // SAFETY: plain integers, of which all zeros, which the kernel asks for, is a value.
    let mut told: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one seccomp_notif to `told`, which outlives the call; the descriptor is borrowed for it.
    Errno::result(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut told) })?;
    Ok(Waiting { id: told.id, process: told.pid.cast_signed(), argument: told.data.args[0] })
}

/// Has it done by the kernel.
///
/// # Errors
/// ENOENT as for [`waiting`].
pub fn let_go_on(listener: BorrowedFd<'_>, call: Waiting) -> Result<(), Errno> {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags };
    // SAFETY: the kernel reads one seccomp_notif_resp, which outlives the call; the descriptor is borrowed for it.
    Errno::result(unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) })
        .map(drop)
}

/// Has each close(2) of a program wait, which is spawned next; the listener comes over the socket `tell` before it begins. By a
/// caller that is the only thread of its process, and has CAP_SYS_ADMIN.
pub fn hold_up_close(command: &mut Command, tell: OwnedFd) {
    // Of whichever architecture: a call that is none is done as well.
    let filter = [
        Instruction { code: 0x20, jt: 0, jf: 0, k: 0 },
        Instruction { code: 0x15, jt: 0, jf: 1, k: libc::SYS_close as u32 },
        Instruction { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF },
        Instruction { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let told = move || {
        // Closed by exec: from here on close(2) waits for whoever has the other copy.
        let listener = install(flags as u32, &filter)?.map_or(-1, IntoRawFd::into_raw_fd);
        let rights = [ControlMessage::ScmRights(&[listener])];
        sendmsg::<UnixAddr>(tell.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok::<(), io::Error>(())
    };
    // SAFETY: between fork and exec there are system calls, and one allocation, whose lock no other thread can hold.
    unsafe { command.pre_exec(told) };
}

/// Whether this kernel knows the action `SECCOMP_RET_…` (its data bits left out). Linux 4.14.
pub fn action_available(action: u32) -> bool {
    // SAFETY: the kernel reads four bytes from `action`, which outlives the call, and writes nothing.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_GET_ACTION_AVAIL),
            0 as libc::c_ulong,
            &raw const action,
        )
    };
    answer == 0
}

/// Whether this kernel knows these flags, `SECCOMP_FILTER_FLAG_…`, together. Nothing is installed: a filter at address
/// zero is looked for only once the flags were found good.
pub fn flags_available(flags: u32) -> bool {
    // SAFETY: the kernel copies the filter from address zero, where nothing can be mapped, so it reads nothing of ours.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            libc::c_ulong::from(flags),
            0 as libc::c_ulong,
        )
    };
    Errno::result(answer).err() == Some(Errno::EFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_laid_out_as_the_kernel_reads_it() {
        assert_eq!(size_of::<Instruction>(), size_of::<libc::sock_filter>());
        let bytes = Instruction { code: 0x15, jt: 1, jf: 2, k: 0x0102_0304 }.to_ne_bytes();
        #[cfg(target_endian = "little")]
        assert_eq!(bytes, [0x15, 0, 1, 2, 4, 3, 2, 1]);
        #[cfg(target_endian = "big")]
        assert_eq!(bytes, [0, 0x15, 1, 2, 1, 2, 3, 4]);
    }

    #[test]
    fn the_kernel_knows_errno_and_no_made_up_action() {
        assert!(action_available(libc::SECCOMP_RET_ERRNO));
        assert!(!action_available(0x1234_0000));
    }

    #[test]
    fn the_kernel_knows_the_log_flag_and_no_made_up_one() {
        assert!(flags_available(libc::SECCOMP_FILTER_FLAG_LOG as u32));
        assert!(!flags_available(1 << 31));
    }

    #[test]
    fn an_empty_filter_is_refused() {
        assert_eq!(install(0, &[]).err(), Some(Errno::EINVAL));
    }
}
