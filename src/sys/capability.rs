//! The five capability sets as masks: read, dropped and set by raw calls, because the child applies data that was
//! decided before it was cloned. capabilities(7), capset(2), prctl(2)

use nix::errno::Errno;

use super::answer;

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Effective, permitted and inheritable sets, one bit a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sets {
    /// What is in force.
    pub effective: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// What a file may pass on.
    pub inheritable: u64,
}

/// This thread's sets. capget(2)
///
/// # Errors
/// None in practice; the kernel's answer is passed on.
pub fn capget() -> Result<Sets, Errno> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 makes the kernel write exactly two Data; both pointers are to whole values that outlive the call.
    answer(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Sets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// Sets this thread's sets. capset(2)
///
/// # Errors
/// EPERM for a capability beyond the permitted set.
pub fn capset(sets: &Sets) -> Result<(), Errno> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 makes the kernel read exactly two Data; both outlive the call.
    answer(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Drops one capability from the bounding set.
///
/// # Errors
/// EPERM without CAP_SETPCAP, EINVAL for an unknown number.
pub fn drop_bounding(capability: u8) -> Result<(), Errno> {
    prctl(libc::PR_CAPBSET_DROP, u64::from(capability), 0).map(drop)
}

/// Whether the bounding set has a capability.
pub fn bounding_has(capability: u8) -> bool {
    prctl(libc::PR_CAPBSET_READ, u64::from(capability), 0) == Ok(1)
}

/// Adds one capability to the ambient set; it must be permitted and inheritable.
///
/// # Errors
/// EPERM where it is not, EINVAL for an unknown number.
pub fn raise_ambient(capability: u8) -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, u64::from(capability)).map(drop)
}

/// Empties the ambient set.
///
/// # Errors
/// EINVAL before Linux 4.3.
pub fn clear_ambient() -> Result<(), Errno> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0).map(drop)
}

/// Whether the permitted set survives the next change away from uid 0.
///
/// # Errors
/// EPERM when the securebits lock it.
pub fn keep_on_setuid(keep: bool) -> Result<(), Errno> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(keep), 0).map(drop)
}

fn prctl(option: i32, second: u64, third: u64) -> Result<i32, Errno> {
    // SAFETY: none of the options used here takes a pointer.
    Errno::result(unsafe { libc::prctl(option, second, third, 0u64, 0u64) })
}
