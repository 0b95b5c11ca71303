//! Who the process runs as: ids, groups, umask, capabilities.
//!
//! Ids are numbers and are never looked up: a name in the image's own passwd file is the image's to choose
//! (CVE-2016-3697).

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::Serialize;

use crate::error::{Context, Error, Result};
use crate::security::capabilities::{self, Capabilities};
use crate::spec::config::Process;
use crate::sys::capability::keep_on_setuid;

/// Who the process runs as, inside its user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups: exactly these, unless the caller's are kept.
    pub groups: Vec<u32>,
    /// Whether the process keeps the supplementary groups of ferry's caller.
    pub keeps_groups: bool,
    /// File mode creation mask.
    pub umask: u32,
    /// The five capability sets.
    pub capabilities: Capabilities,
    /// Whether no exec may gain privileges.
    pub no_new_privileges: bool,
}

/// Plans the identity of a process; `keeps_groups`: with the supplementary groups of ferry's caller.
pub fn plan(process: &Process, keeps_groups: bool, warnings: &mut Vec<String>) -> Identity {
    Identity {
        uid: process.user.uid,
        gid: process.user.gid,
        groups: if keeps_groups { Vec::new() } else { process.user.additional_gids.clone() },
        keeps_groups,
        umask: process.user.umask.unwrap_or(0o022),
        capabilities: capabilities::plan(&process.capabilities, warnings),
        no_new_privileges: process.no_new_privileges,
    }
}

/// Becomes `identity`: the bounding set first, which needs CAP_SETPCAP; then groups and ids, keeping the permitted set
/// across the change; then the planned sets, `hidden` as [`capabilities::apply`] says.
///
/// # Errors
/// EPERM for ids that the user namespace does not map or the caller may not take; EINVAL for unmapped ones.
pub fn become_identity(identity: &Identity, hidden: bool) -> Result<()> {
    const UNMAPPED: &str = "the id is not mapped in the container's user namespace";
    is_somebody(identity)?;
    capabilities::bound(&identity.capabilities).or_cannot("drop from the bounding set", "capabilities")?;
    keep_on_setuid(true).or_cannot("keep", "capabilities")?;
    if !identity.keeps_groups {
        set_groups(&identity.groups)?;
    }
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setresgid(gid, gid, gid).or_cannot("become group", gid).map_err(|error| error.hint(UNMAPPED))?;
    setresuid(uid, uid, uid).or_cannot("become user", uid).map_err(|error| error.hint(UNMAPPED))?;
    keep_on_setuid(false).or_cannot("drop", "capabilities")?;
    capabilities::apply(&identity.capabilities, hidden).or_cannot("set", "capabilities")?;
    umask(Mode::from_bits_truncate(identity.umask));
    Ok(())
}

/// The kernel takes 4294967295 for "leave it as it is": the process would stay who prepared it, which is root.
fn is_somebody(identity: &Identity) -> Result<()> {
    match [identity.uid, identity.gid].iter().chain(&identity.groups).find(|id| **id == u32::MAX) {
        Some(id) => Err(Error::said("become", id.to_string(), "it is nobody's id")),
        None => Ok(()),
    }
}

/// Gives up the caller's supplementary groups. Also before a user namespace is entered: it may deny that, and a container's process
/// would have the groups of the host's root.
///
/// # Errors
/// The kernel's answer, but where an ordinary user's own map denies it: the groups stay the caller's, who has them anyway.
pub fn drop_groups() -> Result<()> {
    match setgroups(&[]) {
        Ok(()) | Err(Errno::EPERM) => Ok(()),
        Err(answer) => Err(Error::kernel("drop", "supplementary groups", answer)),
    }
}

/// Where a user namespace denies setgroups (an ordinary user's map of the own id), no groups can be given; to have none
/// beside those of the caller is all there is.
fn set_groups(groups: &[u32]) -> Result<()> {
    let gids: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match setgroups(&gids) {
        Err(Errno::EPERM) if groups.is_empty() => Ok(()),
        answer => answer
            .or_cannot("set", "supplementary groups")
            .map_err(|error| error.hint("in a user namespace with the own id only, additionalGids cannot be given")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_becomes_whom_the_kernel_would_leave_as_it_is() {
        let identity = plan(&Process::default(), false, &mut Vec::new());
        assert_eq!(is_somebody(&Identity { uid: u32::MAX - 1, gid: 7, groups: vec![8], ..identity.clone() }), Ok(()));
        for bad in [
            Identity { uid: u32::MAX, ..identity.clone() },
            Identity { gid: u32::MAX, ..identity.clone() },
            Identity { groups: vec![0, u32::MAX], ..identity },
        ] {
            assert!(is_somebody(&bad).unwrap_err().to_string().contains("4294967295: it is nobody's id"), "{bad:?}");
        }
    }
}
