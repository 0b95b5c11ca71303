//! What was restored is held against the configuration, while every process still stands where CRIU put it.
//!
//! Images themselves say which capabilities, system call filters, ids, namespaces, cgroups and mounts processes have, and
//! CRIU gives them what stands there. From an archive, or from another machine, that may be anything; so the operator's
//! configuration is the most that its processes may have, and what the kernel shows of them is what counts. Processes that
//! have less are welcome.
//! CVE-2026-94603

use std::path::Path;

use nix::unistd::{Gid, Pid};

use super::held::{self, Among, Status};
use super::images::{self, Kind};
use super::{audit_files, audit_limits, audit_mounts};
use crate::error::{Context, Error, Result};
use crate::launch::Plan;
use crate::namespaces::{self, User};
use crate::path::Root;
use crate::procfs;
use crate::security::capabilities;
use crate::spec::config::IdMapping;

/// Capabilities that let a process change its ids.
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;

/// The filters in the images: which are in force is seen later, what they forbid is not. The first of every chain must be the
/// configuration's own, and those behind it can only forbid more. seccomp(2)
///
/// # Errors
/// Another filter, or images that cannot be read.
pub fn filters(directory: &Path, plan: &Plan) -> Result<()> {
    let Some(program) = plan.process.as_ref().and_then(|process| process.seccomp.as_ref()) else { return Ok(()) };
    let entries = images::read(&directory.join("seccomp.img"), Kind::Filters)?;
    let expected = program.to_bytes();
    let filters = entries.iter().flat_map(|entry| images::all(entry, 1));
    let mut firsts = filters.map(|filter| filter.bytes()).filter(|filter| images::one(filter, 2).is_none());
    // A field that stands there twice would be read by others in another way.
    let is_own = |filter: &[u8]| {
        images::all(filter, 1).count() == 1 && images::one(filter, 1).is_some_and(|bytes| bytes.bytes() == expected)
    };
    match firsts.all(is_own) {
        true => Ok(()),
        false => Err(wider(plan, "the images have another system call filter than linux.seccomp gives")
            .hint("restore with the profile it was created with, by the version of ferry that created it")),
    }
}

/// Everything that `criu` holds, whose root is to be `root`.
///
/// # Errors
/// A process has more than the configuration gives.
pub fn check(plan: &Plan, root: &Root, criu: Pid) -> Result<()> {
    let own = cgroups_of(Path::new(&format!("/proc/{criu}")))?;
    let mut seen = Vec::new();
    let mut any = false;
    for process in held::processes(criu, Among::restored(&plan.namespaces)) {
        let process = process?;
        any = true;
        let pid = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let of_process = |what: String| wider(plan, &format!("process {pid} {what}"));
        for thread in held::threads(&process) {
            rights(plan, &thread?).map_err(of_process)?;
        }
        cgroups(&process, &own).and_then(|whole| whole.map_err(of_process))?;
        separate(plan, &process).and_then(|whole| whole.map_err(of_process))?;
        audit_limits::check(plan, &process).and_then(|whole| whole.map_err(of_process))?;
        audit_files::check(plan, &process).and_then(|whole| whole.map_err(of_process))?;
        let namespace = link(&process.join("ns/mnt"))?;
        if !seen.contains(&namespace) {
            audit_mounts::check(&plan.rootfs, root, &process).and_then(|whole| whole.map_err(of_process))?;
            seen.push(namespace);
        }
    }
    if any { Ok(()) } else { Err(wider(plan, "no process is held back to be looked at")) }
}

fn wider(plan: &Plan, what: &str) -> Error {
    Error::said("restore container", format!("{:?}", plan.id.as_str()), format!("{what}, and nothing of it was run"))
        .hint("what comes from elsewhere gets no more than config.json gives")
}

/// What a thread may do.
fn rights(plan: &Plan, thread: &Status) -> std::result::Result<(), String> {
    let Some(process) = &plan.process else { return Ok(()) };
    let identity = &process.identity;
    let given = identity.capabilities.bounding | identity.capabilities.permitted;
    let more = thread.capabilities & !given;
    if more != 0 {
        return Err(format!("has capabilities that are not in process.capabilities: {}", names(more)));
    }
    if identity.no_new_privileges && !thread.no_new_privileges {
        return Err("lacks process.noNewPrivileges".to_owned());
    }
    if process.seccomp.is_some() && !thread.filtered {
        return Err("lacks the filter of linux.seccomp".to_owned());
    }
    // Without these rights nothing a program does changes who it is.
    let (uid_maps, gid_maps) = match &plan.namespaces.user {
        User::Make { uids, gids } => (Some(uids.as_slice()), Some(gids.as_slice())),
        User::Inherit | User::Join(_) => (None, None),
    };
    let is_fixed = |right| identity.no_new_privileges && given & right == 0;
    let is_joined = matches!(plan.namespaces.user, User::Join(_));
    if !is_joined && is_fixed(SETUID) && thread.uids.iter().any(|uid| Some(*uid) != outside(identity.uid, uid_maps)) {
        return Err("is not the user of process.user".to_owned());
    }
    if !is_joined && is_fixed(SETGID) && thread.gids.iter().any(|gid| Some(*gid) != outside(identity.gid, gid_maps)) {
        return Err("is not of the group of process.user".to_owned());
    }
    // No program that is executed brings any of these along, so that the right alone counts.
    let granted = |gid: u32| {
        let mut of_user = identity.groups.iter().chain([&identity.gid]);
        of_user.any(|group| outside(*group, gid_maps) == Some(gid))
            || identity.keeps_groups && nix::unistd::getgroups().is_ok_and(|own| own.contains(&Gid::from_raw(gid)))
    };
    let may_set = (given | identity.capabilities.inheritable) & SETGID != 0;
    if !is_joined
        && !may_set
        && let Some(group) = thread.groups.iter().find(|group| !granted(**group))
    {
        return Err(format!("has a supplementary group that process.user.additionalGids does not give: {group}"));
    }
    Ok(())
}

fn names(mask: u64) -> String {
    let names = capabilities::names(mask);
    if names.is_empty() { format!("{mask:#x}") } else { names.join(", ") }
}

/// An id as the host counts.
fn outside(id: u32, maps: Option<&[IdMapping]>) -> Option<u32> {
    let Some(maps) = maps else { return Some(id) };
    maps.iter().find_map(|map| {
        let offset = id.checked_sub(map.container_id).filter(|offset| *offset < map.size)?;
        map.host_id.checked_add(offset)
    })
}

/// CRIU was born in the container's cgroups, which are `own`; what it restores is there or below.
fn cgroups(process: &Path, own: &[Vec<u8>]) -> Result<std::result::Result<(), String>> {
    let is_inside = |line: &Vec<u8>| own.iter().any(|own| is_at_or_below(line, own));
    Ok(match cgroups_of(process)?.iter().all(is_inside) {
        true => Ok(()),
        false => Err("is not in the container's cgroup".to_owned()),
    })
}

/// Lines of `hierarchy:controllers:path`. proc_pid_cgroup(5)
fn cgroups_of(process: &Path) -> Result<Vec<Vec<u8>>> {
    let path = process.join("cgroup");
    let table = procfs::read(&path).or_cannot("read", path.display())?;
    Ok(table.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
}

fn is_at_or_below(line: &[u8], own: &[u8]) -> bool {
    let Some(rest) = line.strip_prefix(own.strip_suffix(b"/").unwrap_or(own)) else { return false };
    (rest.is_empty() || rest.starts_with(b"/")) && !rest.split(|byte| *byte == b'/').any(|part| part == b"..")
}

/// Namespaces that are to be the container's own are not ferry's, and those it joins are the ones it names.
fn separate(plan: &Plan, process: &Path) -> Result<std::result::Result<(), String>> {
    let made_user = matches!(plan.namespaces.user, User::Make { .. });
    for row in namespaces::TABLE {
        let is_made = plan.namespaces.makes(row.kind) || made_user && row.kind == namespaces::Kind::User;
        if is_made && link(&process.join("ns").join(row.file))? == link(&Path::new("/proc/self/ns").join(row.file))? {
            return Ok(Err(format!("is in the host's {} namespace", row.name)));
        }
        let Some(join) = plan.namespaces.join.iter().find(|join| join.kind == row.kind) else { continue };
        let (theirs, wanted) = (identity(&process.join("ns").join(row.file))?, identity(&join.path)?);
        if theirs != wanted {
            return Ok(Err(format!("is not in the {} namespace that linux.namespaces names", row.name)));
        }
    }
    if let User::Make { uids, gids } = &plan.namespaces.user {
        for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
            if map(&process.join(file))? != maps.iter().map(triple).collect::<Vec<_>>() {
                return Ok(Err("has other ids than linux.uidMappings and linux.gidMappings give".to_owned()));
            }
        }
    }
    Ok(Ok(()))
}

fn triple(map: &IdMapping) -> [u32; 3] {
    [map.container_id, map.host_id, map.size]
}

fn map(path: &Path) -> Result<Vec<[u32; 3]>> {
    let text = procfs::text(path).or_cannot("read", path.display())?;
    let numbers: Vec<u32> = text.split_whitespace().map_while(|number| number.parse().ok()).collect();
    Ok(numbers.chunks_exact(3).map(|chunk| [chunk[0], chunk[1], chunk[2]]).collect())
}

fn link(path: &Path) -> Result<std::path::PathBuf> {
    std::fs::read_link(path).or_cannot("read", path.display())
}

fn identity(path: &Path) -> Result<(u64, u64)> {
    let found = rustix::fs::stat(path).or_cannot("look at namespace", path.display())?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_inside_or_not() {
        for (line, own, inside) in [
            ("0::/a", "0::/a", true),
            ("0::/a/b", "0::/a", true),
            ("0::/ab", "0::/a", false),
            ("0::/", "0::/a", false),
            ("0::/a/../b", "0::/a", false),
            ("0::/x", "0::/", true),
            ("4:cpu:/a", "0::/a", false),
        ] {
            assert_eq!(is_at_or_below(line.as_bytes(), own.as_bytes()), inside, "{line} in {own}");
        }
    }

    #[test]
    fn ids_as_the_host_counts() {
        let maps = [IdMapping { container_id: 0, host_id: 100_000, size: 10 }];
        assert_eq!(
            (outside(3, Some(&maps)), outside(10, Some(&maps)), outside(3, None)),
            (Some(100_003), None, Some(3))
        );
    }
}
