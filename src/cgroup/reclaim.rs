//! Taking memory back from a cgroup by request: what a hypervisor's balloon does to a machine.
//!
//! The kernel reclaims as it would under pressure: cold pages first, clean page cache before what must be written to swap,
//! nothing below `memory.min`. It stops when it has enough or finds no more.
//!
//! Source: the kernel's admin-guide/cgroup-v2.rst, "memory.reclaim" (Linux 5.19).

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::error::{Context, Error, Result};

use super::file;
use super::fs::Cgroup;

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reclaimed {
    /// Whether it was all that was asked for.
    pub whole: bool,
    /// By how much the cgroup's memory fell meanwhile. Its processes may have taken some anew.
    pub bytes: u64,
}

/// Takes `bytes` back.
///
/// # Errors
///
/// There is no memory controller or no such file, or the kernel refuses.
pub fn reclaim(cgroup: &Cgroup, bytes: u64) -> Result<Reclaimed> {
    let before = current(cgroup)?;
    let whole = match file::write(cgroup.as_fd(), "memory.reclaim", &bytes.to_string()) {
        Ok(()) => true,
        Err(Errno::AGAIN) => false,
        Err(Errno::NOENT) => {
            return Err(Error::said(
                "reclaim memory of",
                cgroup.path.display().to_string(),
                "it has no memory.reclaim",
            )
            .hint("it came with Linux 5.19"));
        }
        Err(errno) => return Err(errno).or_cannot("write", cgroup.path.join("memory.reclaim").display()),
    };
    Ok(Reclaimed { whole, bytes: before.saturating_sub(current(cgroup)?) })
}

/// The memory in use, in bytes.
fn current(cgroup: &Cgroup) -> Result<u64> {
    let object = || cgroup.path.join("memory.current").display().to_string();
    match file::read(cgroup.as_fd(), "memory.current") {
        Ok(text) => text
            .trim_end()
            .parse()
            .map_err(|_| Error::said("understand", object(), format!("it says {:?}", text.trim_end()))),
        Err(Errno::NOENT) => Err(Error::said(
            "reclaim memory of",
            cgroup.path.display().to_string(),
            "the memory controller is not enabled for it",
        )
        .hint("give the container a memory limit, -1 for none, which enables it")),
        Err(errno) => Err(errno).or_cannot("read", object()),
    }
}
