//! Raw kernel calls that neither nix nor rustix has. The only `unsafe` in ferry: each file is one family of calls, and
//! each `SAFETY` line argues about memory and descriptors.

#![allow(unsafe_code)]

pub mod bpf;
pub mod capability;
pub mod clone;
pub mod entry;
pub mod environment;
pub mod fd;
pub mod keyring;
pub mod loop_device;
pub mod memory;
pub mod mount;
pub mod sched;
pub mod seccomp;
pub mod signal;
pub mod stub;
pub mod terminal;

use nix::errno::Errno;

/// The kernel's answer as a result: -1 becomes the errno.
fn answer(returned: libc::c_long) -> Result<libc::c_long, Errno> {
    Errno::result(returned)
}
