//! Memory that a process lets the kernel merge: prctl(2), PR_SET_MEMORY_MERGE.

use nix::errno::Errno;

use super::answer;

/// linux/prctl.h, Linux 6.4.
const PR_SET_MEMORY_MERGE: libc::c_int = 67;

/// Lets the kernel merge every anonymous page of this process, of its children, and of what they execute, with pages of the
/// same content.
///
/// # Errors
/// EINVAL: the kernel is older than Linux 6.4, or was built without KSM.
pub fn set_memory_merge() -> Result<(), Errno> {
    // SAFETY: this prctl takes plain numbers.
    answer(unsafe { libc::prctl(PR_SET_MEMORY_MERGE, 1usize, 0usize, 0usize, 0usize) }.into()).map(drop)
}
