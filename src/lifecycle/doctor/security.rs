//! What confines processes: system call filters, security modules.

use std::path::Path;

use super::Finding;
use crate::sys::seccomp::action_available;

/// The kernel's actions by name. seccomp(2)
const ACTIONS: [(&str, u32); 8] = [
    ("kill_process", libc::SECCOMP_RET_KILL_PROCESS),
    ("kill_thread", libc::SECCOMP_RET_KILL_THREAD),
    ("trap", libc::SECCOMP_RET_TRAP),
    ("errno", libc::SECCOMP_RET_ERRNO),
    ("user_notif", libc::SECCOMP_RET_USER_NOTIF),
    ("trace", libc::SECCOMP_RET_TRACE),
    ("log", libc::SECCOMP_RET_LOG),
    ("allow", libc::SECCOMP_RET_ALLOW),
];

/// What was found.
pub(super) fn findings() -> Vec<Finding> {
    vec![seccomp(), modules()]
}

fn seccomp() -> Finding {
    let missing: Vec<&str> =
        ACTIONS.iter().filter(|(_, action)| !action_available(*action)).map(|(name, _)| *name).collect();
    match missing.len() {
        0 => Finding::ok("seccomp", format!("every action: {}", ACTIONS.map(|(name, _)| name).join(" "))),
        all if all == ACTIONS.len() => {
            let fix = "a kernel built with CONFIG_SECCOMP_FILTER, or a config.json without linux.seccomp";
            Finding::missing("seccomp", "not in this kernel", fix)
        }
        _ => Finding::warning("seccomp", format!("without {}", missing.join(", ")), "Linux 5.0 or later"),
    }
}

fn modules() -> Finding {
    let apparmor = std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
    let selinux = Path::new("/sys/fs/selinux/enforce").exists();
    let found: Vec<&str> =
        [("AppArmor", apparmor), ("SELinux", selinux)].iter().filter(|row| row.1).map(|row| row.0).collect();
    if found.is_empty() {
        return Finding::ok("security modules", "neither AppArmor nor SELinux is in force");
    }
    Finding::ok("security modules", format!("{}: labels of processes are applied", found.join(" and ")))
}
