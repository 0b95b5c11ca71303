//! bpf(2) for one kind of program: the device filter of a cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`).
//!
//! Neither nix, rustix nor libc knows `union bpf_attr`, and the loader crates bring C or an ELF reader for what is here
//! three calls: load, attach and query. The attributes are written as structures of the fields that each command reads; the
//! kernel takes a shorter `bpf_attr` than its own and reads the rest as zero.
//!
//! Source: include/uapi/linux/bpf.h, bpf(2).

use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_QUERY: libc::c_int = 16;

const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;

/// A program's name, padded with zeros: at most 15 bytes of letters, digits, `_` and `.` (`BPF_OBJ_NAME_LEN`).
pub type Name = [u8; 16];

/// The kernel runs at most so many programs at one place of a cgroup (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;

/// One instruction, as the kernel reads it (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Class, size or operation, and source.
    pub code: u8,
    /// Destination register in the low four bits, source register in the high four.
    pub registers: u8,
    /// Offset of a jump (in instructions, from the next one) or of a memory access (in bytes).
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}

/// Why a program was not loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The kernel's answer.
    pub errno: Errno,
    /// The verifier's own words; empty where it was not asked (the caller may not load programs at all).
    pub log: String,
}

#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: Name,
}

#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Instruction>() == 8);
const _: () = assert!(offset_of!(LoadAttr, prog_name) == 48);
const _: () = assert!(offset_of!(QueryAttr, prog_ids) == 16);

/// Calls bpf(2) with `attr`. The caller vouches for the addresses inside `attr`.
///
/// # Safety
///
/// `A` must be the attributes that `command` reads, and every address in them must be valid for the length beside it,
/// for writing where the command writes there.
unsafe fn bpf<A>(command: libc::c_int, attr: &mut A) -> Result<libc::c_int, Errno> {
    // SAFETY: `attr` is a live exclusive reference, and the kernel reads and writes at most `size_of::<A>()` bytes of
    // it; what its addresses point to is the caller's promise.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    // The answers are 0 or a descriptor, so they fit.
    Errno::result(answer).map(|value| value as libc::c_int)
}

/// Loads a device filter. It is asked again with the verifier's log only after a refusal that the verifier can explain,
/// because keeping a log costs time that a start does not have.
///
/// # Errors
///
/// `EPERM`: no `CAP_BPF`, or, before Linux 5.11, too low an `RLIMIT_MEMLOCK`. `EINVAL`, `EACCES`: the verifier refused it.
pub fn load_device_filter(program: &[Instruction], name: &Name) -> Result<OwnedFd, Refusal> {
    match load(program, name, &mut []) {
        Ok(program) => Ok(program),
        Err(Errno::EPERM) => Err(Refusal { errno: Errno::EPERM, log: String::new() }),
        Err(errno) => {
            let mut log = vec![0; 64 * 1024];
            match load(program, name, &mut log) {
                Ok(program) => Ok(program),
                Err(_) => {
                    log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or(log.len()));
                    Err(Refusal { errno, log: String::from_utf8_lossy(&log).trim().replace('\n', "; ") })
                }
            }
        }
    }
}

fn load(program: &[Instruction], name: &Name, log: &mut [u8]) -> Result<OwnedFd, Errno> {
    let license = c"Apache-2.0";
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).map_err(|_| Errno::EINVAL)?,
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kern_version: 0,
        prog_flags: 0,
        prog_name: *name,
    };
    // SAFETY: `insns` points to `insn_cnt` instructions of 8 bytes, `license` to a terminated string, `log_buf` to
    // `log_size` writable bytes; all three outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr)? };
    // SAFETY: the kernel has just made this descriptor (close-on-exec, as all of bpf's), and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a device filter to a cgroup beside whatever is attached there.
pub fn attach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut attr = AttachAttr {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes hold no addresses; the descriptors are borrowed, hence open.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// The ids of the device filters attached to this very cgroup (not to those above it), oldest first.
pub fn attached(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>, Errno> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let mut attr = QueryAttr {
        target_fd: number(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS as u32,
        padding: 0,
    };
    // SAFETY: `prog_ids` points to `prog_cnt` writable u32, which outlive the call; the descriptor is borrowed.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr)? };
    Ok(ids[..MAX_PROGRAMS.min(attr.prog_cnt as usize)].to_vec())
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // A borrowed descriptor is never negative.
    fd.as_raw_fd() as u32
}
