//! Writing the id maps of a new user namespace, from its parent.
//!
//! With CAP_SETUID over the parent namespace the maps are written directly. An ordinary user may write only a map of the
//! own id, after giving up setgroups; for more there are newuidmap and newgidmap, which check /etc/subuid and
//! /etc/subgid. user_namespaces(7), newuidmap(1)

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::host::Host;
use crate::spec::config::IdMapping;

/// Writes both maps of the user namespace that `pid` is in.
///
/// # Errors
/// EPERM where a mapping is not the caller's to give; newuidmap missing or refusing.
pub fn write(host: &Host, pid: Pid, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    if host.privileged {
        return write_directly(pid, uids, gids);
    }
    if own_only(uids, host.uid) {
        write_file(pid, "uid_map", uids)?
    } else {
        through("newuidmap", pid, uids)?
    }
    if own_only(gids, host.gid) {
        let path = format!("/proc/{pid}/setgroups");
        fs::write(&path, "deny").or_cannot("write", &path)?;
        write_file(pid, "gid_map", gids)
    } else {
        through("newgidmap", pid, gids)
    }
}

/// Writes both maps of the user namespace that `pid` is in, with CAP_SETUID and CAP_SETGID over the one around it.
///
/// # Errors
/// EPERM without them; EINVAL for overlapping ranges.
pub fn write_directly(pid: Pid, uids: &[IdMapping], gids: &[IdMapping]) -> Result<()> {
    write_file(pid, "uid_map", uids)?;
    write_file(pid, "gid_map", gids)
}

/// Whether a map holds only the caller's own id: the only one an ordinary user may write.
pub fn own_only(mappings: &[IdMapping], own: u32) -> bool {
    matches!(mappings, [IdMapping { host_id, size: 1, .. }] if *host_id == own)
}

fn write_file(pid: Pid, file: &'static str, mappings: &[IdMapping]) -> Result<()> {
    let path = format!("/proc/{pid}/{file}");
    // One write: the kernel takes a map once, whole.
    fs::write(&path, text(mappings)).or_cannot("write id map", &path)
}

fn text(mappings: &[IdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, IdMapping { container_id, host_id, size }| {
        // Writing to a string cannot fail.
        writeln!(text, "{container_id} {host_id} {size}").unwrap_or_default();
        text
    })
}

fn through(program: &'static str, pid: Pid, mappings: &[IdMapping]) -> Result<()> {
    const HINT: &str = "more ids than the own one need the package uidmap, and a line for this user in /etc/subuid and \
                        /etc/subgid";
    let mut command = Command::new(program);
    command.arg(pid.to_string());
    for mapping in mappings {
        command.args([mapping.container_id, mapping.host_id, mapping.size].map(|number| number.to_string()));
    }
    let output = command.output().or_cannot("run", program).map_err(|error| error.hint(HINT))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::said("map ids with", program, said).hint(HINT))
}

/// The ids that /etc/subuid or /etc/subgid (`file`) gives a user, by name or number: first id and count.
pub fn subordinate(file: &str, name: &str, uid: u32) -> Option<(u32, u32)> {
    let text = fs::read_to_string(file).ok()?;
    find_subordinate(&text, name, uid)
}

fn find_subordinate(text: &str, name: &str, uid: u32) -> Option<(u32, u32)> {
    let is_theirs = |owner: &str| owner == name || owner.parse() == Ok(uid);
    ranges(text).find(|(owner, ..)| is_theirs(owner)).map(|(_, first, count)| (first, count))
}

/// The lines of such a file: whose they are, first id and count.
fn ranges(text: &str) -> impl Iterator<Item = (&str, u32, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        Some((owner, fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?))
    })
}

/// The first of `count` ids above all that files such as /etc/subuid, of these texts, give to anybody. Where two users have the same,
/// the containers of the one are the other's to enter. `None`: there are not so many.
pub fn free(texts: &[String], count: u32) -> Option<u32> {
    /// SUB_UID_MIN and SUB_GID_MIN of login.defs(5), unless the administrator says otherwise.
    const LOWEST: u32 = 100_000;
    let given = texts.iter().flat_map(|text| ranges(text));
    let first = given.map(|(_, first, count)| first.saturating_add(count)).fold(LOWEST, u32::max);
    // The last id of all is nobody's: it says "none" to the kernel.
    (u32::MAX - first >= count).then_some(first)
}

/// The caller as root, and subordinate ids behind it where there are some and the programs that map them.
pub fn of_caller(host: &Host) -> (Vec<IdMapping>, Vec<IdMapping>) {
    let own = |host_id| IdMapping { container_id: 0, host_id, size: 1 };
    let name = crate::passwd::find(host.uid).map_or_else(String::new, |user| user.name);
    let programs = ["newuidmap", "newgidmap"].iter().all(|program| on_path(program));
    let behind_own = |file| subordinate(file, &name, host.uid).filter(|_| programs);
    match (behind_own("/etc/subuid"), behind_own("/etc/subgid")) {
        (Some(uids), Some(gids)) => {
            let behind = |(host_id, size)| IdMapping { container_id: 1, host_id, size };
            (vec![own(host.uid), behind(uids)], vec![own(host.gid), behind(gids)])
        }
        _ => (vec![own(host.uid)], vec![own(host.gid)]),
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_own_id_may_be_written() {
        let own = IdMapping { container_id: 0, host_id: 1000, size: 1 };
        assert!(own_only(&[own], 1000));
        assert!(!own_only(&[own], 1001));
        assert!(!own_only(&[IdMapping { size: 2, ..own }], 1000));
        assert!(!own_only(&[own, own], 1000));
    }

    #[test]
    fn map_text() {
        let mapping = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        assert_eq!(text(&[mapping(0, 1000, 1), mapping(1, 100_000, 65536)]), "0 1000 1\n1 100000 65536\n");
    }

    #[test]
    fn subordinate_ids_by_name_or_number() {
        let text = "root:1:2\nu:300000:65536\n1001:5:6\nbroken\n";
        assert_eq!(find_subordinate(text, "u", 1), Some((300_000, 65_536)));
        assert_eq!(find_subordinate(text, "v", 1001), Some((5, 6)));
        assert_eq!(find_subordinate(text, "nobody", 65534), None);
    }

    #[test]
    fn free_ids_are_nobodys_in_either_file() {
        let free = |texts: [&str; 2]| free(&texts.map(str::to_owned), 65_536);
        assert_eq!(free(["", "broken\n"]), Some(100_000));
        assert_eq!(free(["u:100000:65536\n", "u:100000:65536\n"]), Some(165_536));
        assert_eq!(free(["u:100000:65536\nv:165536:65536", "u:400000:1"]), Some(400_001));
        assert_eq!(free(["u:1:5", "u:4294967290:65536"]), None);
    }
}
