//! User namespaces: whether this user can make one that is of use, how many there may be, and which ids can be mapped.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::Finding;
use super::attempt::{attempt, become_root};
use crate::host::Host;
use crate::namespaces::{Kind, id_map};

/// What was found.
pub(super) fn findings(host: &Host) -> Vec<Finding> {
    let mut findings = vec![usable(host), limit(host)];
    if !host.privileged {
        findings.push(subordinate(host));
        findings.extend(["newuidmap", "newgidmap"].map(map_program));
    }
    findings
}

/// A namespace of one's own is of use only if it comes with its rights: some policies grant the one and not the other.
fn usable(host: &Host) -> Finding {
    let subject = "user namespaces";
    let tried = attempt(&[Kind::User], &|| {
        become_root(host)?;
        unshare(CloneFlags::CLONE_NEWNS)
    });
    let Err(answer) = tried else { return Finding::ok(subject, "available to this user") };
    let fix = match answer {
        Errno::ENOSPC | Errno::EUSERS => "raise the sysctl user.max_user_namespaces",
        _ if is("/proc/sys/kernel/unprivileged_userns_clone", "0") => "sysctl kernel.unprivileged_userns_clone=1",
        _ if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") => {
            "give ferry an AppArmor profile that allows userns, or sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        }
        Errno::EINVAL => "a kernel built with CONFIG_USER_NS",
        _ => "look for a security policy (seccomp, SELinux, AppArmor) that forbids them",
    };
    let found = format!("refused: {}", answer.desc());
    match host.privileged {
        true => Finding::warning(subject, format!("{found}; containers of root without one run all the same"), fix),
        false => Finding::missing(subject, found, fix).needed(),
    }
}

fn is(path: &str, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}

fn limit(host: &Host) -> Finding {
    let subject = "number of user namespaces";
    let text = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    match text.trim().parse::<u64>() {
        Ok(0) if host.privileged => Finding::warning(subject, "none", "sysctl user.max_user_namespaces=15000"),
        Ok(0) => Finding::missing(subject, "none", "sysctl user.max_user_namespaces=15000"),
        Ok(most) => Finding::ok(subject, format!("at most {most}")),
        Err(_) => Finding::ok(subject, "no limit known"),
    }
}

fn subordinate(host: &Host) -> Finding {
    let name = crate::passwd::find(host.uid).map(|user| user.name);
    let found = SUBORDINATE.map(|file| id_map::subordinate(file, name.as_deref().unwrap_or_default(), host.uid));
    match found {
        [Some((_, uids)), Some((_, gids))] => Finding::ok("subordinate ids", format!("{uids} users, {gids} groups")),
        _ => Finding::warning(
            "subordinate ids",
            "none: a container has one user, root, who is this user outside",
            way_to_ids(
                name.as_deref(),
                host.uid,
                &SUBORDINATE.map(|file| fs::read_to_string(file).unwrap_or_default()),
            ),
        ),
    }
}

/// Who has which subordinate ids. subuid(5), subgid(5)
const SUBORDINATE: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

/// How a user gets ids that nobody else has, by what [`SUBORDINATE`] say.
fn way_to_ids(name: Option<&str>, uid: u32, texts: &[String]) -> String {
    /// As many as a user has by default. login.defs(5)
    const COUNT: u32 = 65_536;
    match (name, id_map::free(texts, COUNT)) {
        (None, _) => format!("give user id {uid} a name in /etc/passwd: only a user with a name can be given ids"),
        (Some(name), Some(first)) => {
            let range = format!("{first}-{}", first + (COUNT - 1));
            format!("usermod --add-subuids {range} --add-subgids {range} {name}")
        }
        (Some(_), None) => format!("make room in /etc/subuid and /etc/subgid: no {COUNT} ids are left above theirs"),
    }
}

/// newuidmap or newgidmap: of use only with rights of its own.
fn map_program(name: &'static str) -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).map(|dir| dir.join(name));
    let Some(path) = candidates.into_iter().find(|path| path.is_file()) else {
        return Finding::warning(name, "not found: only the own id can be mapped", "install the package uidmap");
    };
    if has_rights(&path) {
        Finding::ok(name, path.display().to_string())
    } else {
        let found = format!("{} has neither the set-user-id bit nor capabilities", path.display());
        Finding::warning(name, found, format!("chmod u+s {}, or install the package anew", path.display()))
    }
}

fn has_rights(path: &PathBuf) -> bool {
    let set_id = fs::metadata(path).is_ok_and(|data| data.uid() == 0 && data.permissions().mode() & 0o4000 != 0);
    let mut capabilities = [0u8; 64];
    set_id || rustix::fs::getxattr(path, "security.capability", &mut capabilities).is_ok_and(|length| length > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_take_anothers_ids() {
        let way = |name, text: &str| way_to_ids(name, 1000, &[text.to_owned(), String::new()]);
        let theirs = "other:100000:65536\n";
        assert_eq!(way(Some("me"), theirs), "usermod --add-subuids 165536-231071 --add-subgids 165536-231071 me");
        assert!(way(None, theirs).starts_with("give user id 1000 a name"));
        assert!(way(Some("me"), "other:4294900000:65536\n").starts_with("make room"));
    }

    #[test]
    fn an_ordinary_file_has_no_rights() {
        assert!(!has_rights(&"/etc/passwd".into()));
    }
}
