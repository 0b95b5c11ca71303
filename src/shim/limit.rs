//! How many descriptors a server may have open: as many as its hard limit lets it. A pod's clients, containers and their streams
//! can be more than the soft limit of most hosts, 1024, which daemons leave to those whom they start.
//!
//! What the workers make begins with the limit that the shim was started with: programs that use select(2) rely on it.

use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use crate::error::{Context, Result};

/// The soft limit as it was, where it was raised.
static GIVEN: OnceLock<rlim_t> = OnceLock::new();

/// For a server, before it has workers.
pub fn raise() {
    // Where it is refused, fewer are served at once.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok()
    {
        GIVEN.set(soft).ok();
    }
}

/// For a worker.
///
/// # Errors
/// What a filter around the shim answers.
pub fn give_back() -> Result<()> {
    let Some(soft) = GIVEN.get() else { return Ok(()) };
    let limits = getrlimit(Resource::RLIMIT_NOFILE);
    limits.and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, *soft, hard)).or_cannot("set", "RLIMIT_NOFILE")
}
