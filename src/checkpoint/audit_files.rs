//! Of [`super::audit`]: the files that a process has open or mapped. CRIU opens them as root, whoever has them then.
//!
//! A process may have opened a file while it had the right, and have given that up since. So this is about those that never had
//! any: what such a process could not open now it could not have opened before.

use std::ffi::OsStr;
use std::fs::{Metadata, metadata, symlink_metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{PROC_SUPER_MAGIC, fstat, getxattr, statfs};

use super::held::{self, Status};
use crate::error::{Context, Result};
use crate::launch::Plan;
use crate::namespaces::User;

/// Capabilities by which a process opens what is not its own, or comes to be somebody else: CAP_CHOWN, CAP_DAC_OVERRIDE,
/// CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_SETGID, CAP_SETUID, CAP_SYS_PTRACE and CAP_SYS_ADMIN.
const OPENERS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 19 | 1 << 21;

/// Files of procfs for which open(2) asks for a capability, whoever they belong to: CAP_SYSLOG and CAP_SYS_RAWIO.
const GUARDED: [(&str, u64); 2] = [("kmsg", 1 << 34), ("kcore", 1 << 17)];

/// Looks at one process; `Ok(Err(…))`: it has a file that the plan does not let it open.
///
/// # Errors
/// It cannot be looked at.
pub fn check(plan: &Plan, process: &Path) -> Result<std::result::Result<(), String>> {
    let Some(planned) = &plan.process else { return Ok(Ok(())) };
    let identity = &planned.identity;
    let sets = &identity.capabilities;
    // What is permitted grows with an exec, within the bounding set, unless that is ruled out.
    let reach =
        if identity.no_new_privileges { sets.permitted } else { sets.permitted | sets.bounding | sets.inheritable };
    let is_bare = identity.no_new_privileges && reach & OPENERS == 0 && !matches!(plan.namespaces.user, User::Join(_));
    let Some(first) = held::threads(process).next().transpose()? else { return Ok(Ok(())) };
    for directory in ["fd", "map_files"] {
        let directory = process.join(directory);
        for entry in std::fs::read_dir(&directory).or_cannot("read", directory.display())? {
            let path = entry.or_cannot("read", directory.display())?.path();
            let Ok(name) = std::fs::read_link(&path) else { continue };
            // What has no name any more came with the images, as has what never had one.
            if !name.is_absolute() || name.as_os_str().as_bytes().ends_with(b" (deleted)") {
                continue;
            }
            let found = match metadata(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                found => found.or_cannot("look at", name.display())?,
            };
            // The link has the bits with which it was opened. proc_pid_fd(5)
            let wanted = symlink_metadata(&path).or_cannot("look at", path.display())?.mode() >> 6 & 0o6;
            // A program that may only be executed is mapped by the kernel.
            let wanted =
                if wanted == 0o4 && directory.ends_with("map_files") { &[0o4, 0o1][..] } else { &[wanted][..] };
            let may_open = || {
                wanted.iter().any(|wanted| may(&first, *wanted, &path, &found)) && may_come_to(&first, process, &name)
            };
            let is_guarded = is_guarded(&path, &name, reach).or_cannot("look at", name.display())?;
            if is_guarded || is_bare && !is_own(&found, &name) && !may_open() {
                return Ok(Err(format!("has {} open, which process.user may not open", name.display())));
            }
        }
    }
    Ok(Ok(()))
}

fn is_guarded(path: &Path, name: &Path, reach: u64) -> rustix::io::Result<bool> {
    let lacks = |(guarded, right): &(&str, u64)| name.file_name() == Some(OsStr::new(guarded)) && reach & right == 0;
    Ok(GUARDED.iter().any(lacks) && statfs(path)?.f_type == PROC_SUPER_MAGIC)
}

/// What ferry hands on itself, a terminal of the container's own, and what procfs has of a process, which is its owner's only while it
/// can be dumped.
fn is_own(found: &Metadata, name: &Path) -> bool {
    const UNIX98_SLAVES: std::ops::RangeInclusive<u32> = 136..=143;
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let is_stream = |stream| fstat(stream).is_ok_and(|own| (own.st_dev, own.st_ino) == (found.dev(), found.ino()));
    let is_terminal = found.file_type().is_char_device() && UNIX98_SLAVES.contains(&rustix::fs::major(found.rdev()));
    let mut parts = name.iter();
    let of_process = parts.nth(1) == Some(OsStr::new("proc"))
        && parts.next().is_some_and(|part| part.as_bytes().iter().all(u8::is_ascii_digit));
    is_terminal || of_process || streams.into_iter().any(is_stream)
}

/// Whether it may search every directory on the way.
fn may_come_to(process: &Status, directory: &Path, name: &Path) -> bool {
    let root = directory.join("root");
    name.ancestors().skip(1).all(|above| {
        let path = root.join(above.strip_prefix("/").unwrap_or(above));
        metadata(&path).is_ok_and(|found| may(process, 0o1, &path, &found))
    })
}

/// Whether a process without capabilities may do this with a file, by its mode or its access control list.
fn may(process: &Status, wanted: u32, path: &Path, found: &Metadata) -> bool {
    let uid = process.uids.last().copied();
    let is_of = |gid: u32| process.gids.last() == Some(&gid) || process.groups.contains(&gid);
    let given = if is_of(found.gid()) { found.mode() >> 3 } else { found.mode() };
    // An owner gives itself what it lacks.
    uid == Some(found.uid()) || given & wanted == wanted || is_listed(path, wanted, uid, &is_of)
}

/// Whether the file's access control list has an entry for this user, or a group that it is of. acl(5), linux/posix_acl_xattr.h
fn is_listed(path: &Path, wanted: u32, uid: Option<u32>, is_of: &dyn Fn(u32) -> bool) -> bool {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    const MASK: u16 = 0x10;
    let mut list = [0; 4096];
    let Ok(length) = getxattr(path, "system.posix_acl_access", &mut list) else { return false };
    let entries = list.get(4..length).unwrap_or_default().chunks_exact(8).map(|entry| {
        let (tag, bits) = (u16::from_le_bytes([entry[0], entry[1]]), u16::from_le_bytes([entry[2], entry[3]]));
        (tag, u32::from(bits), u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]))
    });
    let mask = entries.clone().find(|(tag, ..)| *tag == MASK).map_or(0o7, |(_, bits, _)| bits);
    let mut entries = entries;
    entries.any(|(tag, bits, id)| {
        let is_about = tag == USER && uid == Some(id) || tag == GROUP && is_of(id);
        is_about && bits & mask & wanted == wanted
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown};

    #[test]
    fn files_that_somebody_may_open_or_not() {
        let path = std::env::temp_dir().join(format!("ferry-audit-files-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let is_root = chown(&path, Some(5), Some(6)).is_ok();
        let may = |mode: u32, uid: u32, groups: &[u32], wanted: u32| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let process = Status { uids: vec![uid; 4], gids: vec![7; 4], groups: groups.to_vec(), ..Status::default() };
            super::may(&process, wanted, &path, &metadata(&path).unwrap())
        };
        if is_root {
            assert!(may(0o400, 5, &[], 0o6), "its owner");
            assert!(may(0o640, 1, &[6], 0o4) && !may(0o640, 1, &[6], 0o6), "its group");
            assert!(!may(0o604, 1, &[6], 0o4) && may(0o604, 1, &[], 0o4), "others");
            assert!(!may(0o600, 0, &[0], 0o2), "root without capabilities");
            let entry = |tag: u16, bits: u16, id: u32| {
                [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat()
            };
            let list = [
                2_u32.to_le_bytes().to_vec(),
                entry(1, 6, u32::MAX),
                entry(2, 6, 1),
                entry(4, 0, u32::MAX),
                entry(8, 4, 9),
                entry(16, 6, u32::MAX),
                entry(32, 0, u32::MAX),
            ]
            .concat();
            match rustix::fs::setxattr(&path, "system.posix_acl_access", &list, rustix::fs::XattrFlags::empty()) {
                Err(rustix::io::Errno::OPNOTSUPP) => (),
                set => {
                    set.unwrap();
                    let found = metadata(&path).unwrap();
                    let of = |uid, groups: &[u32], wanted| {
                        let groups = groups.to_vec();
                        let process = Status { uids: vec![uid; 4], gids: vec![7; 4], groups, ..Status::default() };
                        super::may(&process, wanted, &path, &found)
                    };
                    assert!(of(1, &[], 0o6) && !of(2, &[], 0o4) && of(2, &[9], 0o4) && !of(2, &[9], 0o2));
                }
            }
        }
        std::fs::remove_file(&path).unwrap();
    }
}
