//! Who may look into ferry's own process while it is on its way into a container.
//!
//! Whoever may attach to it, or follow its links in /proc, has what it has: the host's files through its root, and the file that it
//! executes, which is the host's ferry (CVE-2016-9962, CVE-2019-5736). The credentials alone do not keep a container's processes from
//! that: of a child that has the rights of the container's own, one that shares its pid namespace has as many (`__ptrace_may_access`
//! in kernel/ptrace.c), and over a user namespace that is entered its root has all of them. What does is the memory's flag: without
//! it, it takes CAP_SYS_PTRACE in the namespace that *ferry* was executed in: what was given that, and sees the host's processes,
//! has the host. A clone inherits it, and executing the program ends it.
//!
//! It has a price: files in /proc/self that are written to, as the OOM score, then belong to root, and an ordinary user cannot
//! write them any more, nor look at the child's namespaces as hooks of his do. So it is paid as late as it can be: before anybody who
//! is not the caller can see the process, and in any case before it has no more rights than the container's own.

use nix::sys::prctl::set_dumpable;

use crate::error::{Context, Result};

/// Hides this process, and those that are cloned from it, until they execute something.
///
/// # Errors
/// The kernel's answer.
pub fn hide() -> Result<()> {
    set_dumpable(false).or_cannot("hide", "ferry's process")
}
