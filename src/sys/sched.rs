//! Scheduling attributes the crates lack: sched_setattr(2), ioprio_set(2), set_mempolicy(2).

use nix::errno::Errno;

use super::answer;

/// The layout of the kernel's `struct sched_attr`, version 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SchedAttr {
    /// Size of this structure.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value of SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// Priority of SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// Nanoseconds, SCHED_DEADLINE.
    pub runtime: u64,
    /// Nanoseconds, SCHED_DEADLINE.
    pub deadline: u64,
    /// Nanoseconds, SCHED_DEADLINE.
    pub period: u64,
}

/// Sets this thread's scheduling policy.
///
/// # Errors
/// EPERM without CAP_SYS_NICE, EINVAL for a combination the kernel does not take, EBUSY at the deadline admission test.
pub fn sched_setattr(attr: &SchedAttr) -> Result<(), Errno> {
    let attr = SchedAttr { size: size_of::<SchedAttr>() as u32, ..*attr };
    // SAFETY: `attr` has the kernel's layout, says its own size and outlives the call, which only reads it.
    answer(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0u32) }).map(drop)
}

/// Sets this thread's I/O priority: `class << 13 | priority`. ioprio_set(2)
///
/// # Errors
/// EPERM for a class that needs a capability, EINVAL out of range.
pub fn ioprio_set(value: u16) -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: plain integers.
    answer(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, libc::c_int::from(value)) }).map(drop)
}

/// Sets this thread's NUMA policy: `mode` with its flags, over the nodes of `nodes` (one bit a node).
///
/// # Errors
/// EINVAL for a node that is not there or a mode that takes none.
pub fn set_mempolicy(mode: i32, nodes: &[u64]) -> Result<(), Errno> {
    let bits = nodes.len() * 64 + usize::from(!nodes.is_empty());
    // The kernel counts one less than it is given, and 0 is no mask to it only where there is no address either.
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads `bits - 1` bits, which `nodes` has; an empty mask is passed as no mask.
    answer(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}
