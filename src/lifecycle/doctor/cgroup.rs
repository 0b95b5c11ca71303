//! Control groups: which version, which controllers, which of them this user may give to a container, the device filter.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{Access, access};

use super::{Finding, kernel};
use crate::cgroup::location::{self, Tree};
use crate::cgroup::resources::ROWS;
use crate::error::Result;
use crate::host::Host;
use crate::sys::bpf::{self, Instruction};

/// What was found.
pub(super) fn findings(host: &Host) -> Result<Vec<Finding>> {
    let Some(tree) = location::find_tree()? else {
        let fix = "mount -t cgroup2 none /sys/fs/cgroup; until then --cgroup-manager disabled, and no cgroup mount in \
                   config.json";
        return Ok(vec![Finding::missing("cgroup", "no cgroup v2 tree is mounted", fix)]);
    };
    let offered = words(&tree.mount.join("cgroup.controllers"));
    let mut findings = vec![version(&tree), controllers(&offered), place(&tree, &offered, host)];
    findings.push(kill(&tree.mount));
    findings.push(device_filter(host));
    Ok(findings)
}

fn words(path: &Path) -> BTreeSet<String> {
    std::fs::read_to_string(path).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn version(tree: &Tree) -> Finding {
    let mount = tree.mount.display();
    if !tree.hybrid {
        return Finding::ok("cgroup", format!("version 2 at {mount}"));
    }
    let found = format!("hybrid: version 2 at {mount}, beside version 1, whose controllers cannot be used");
    Finding::warning("cgroup", found, "boot with systemd.unified_cgroup_hierarchy=1 or cgroup_no_v1=all")
}

/// The controllers that limits of a config.json can need.
fn known() -> BTreeSet<&'static str> {
    ROWS.iter().map(|row| row.controller).filter(|controller| !controller.is_empty()).collect()
}

/// Huge pages and adaptors are seldom limited, and not every kernel can; without one of the others people notice.
fn is_usual(controller: &str) -> bool {
    !matches!(controller, "hugetlb" | "rdma")
}

fn joined<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words.into_iter().collect();
    if words.is_empty() { "none".to_owned() } else { words.join(" ") }
}

fn controllers(offered: &BTreeSet<String>) -> Finding {
    let (there, missing): (Vec<&str>, Vec<&str>) = known().into_iter().partition(|name| offered.contains(*name));
    let found = format!("{} (missing: {})", joined(there), joined(missing.iter().copied()));
    match missing.iter().any(|name| is_usual(name)) {
        false => Finding::ok("controllers", found),
        true => Finding::warning(
            "controllers",
            found,
            "see cgroup above, or a kernel built with them; until then limits that need them are refused",
        ),
    }
}

/// The directory in which a container's cgroup is made unless cgroupsPath says otherwise.
fn place(tree: &Tree, offered: &BTreeSet<String>, host: &Host) -> Finding {
    let subject = "place for cgroups";
    let Ok(own) = location::own_path() else {
        return Finding::warning(subject, "ferry is in no cgroup of this tree", "give an absolute linux.cgroupsPath");
    };
    let below = own.parent().unwrap_or(&own).components().skip(1);
    let dir: PathBuf = tree.mount.components().chain(below).collect();
    let writable = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    if !writable(&dir) || !writable(&dir.join("cgroup.procs")) {
        let fix = if host.privileged {
            "mount the cgroup tree writable"
        } else {
            "systemd-run --user --scope -p Delegate=yes ferry …"
        };
        let found = format!("{} is not this user's: containers run without a cgroup", dir.display());
        return Finding::warning(subject, found, fix);
    }
    let here = words(&dir.join("cgroup.controllers"));
    let all: Vec<&str> = known().into_iter().filter(|name| offered.contains(*name)).collect();
    let missing: Vec<&str> = all.iter().copied().filter(|name| !here.contains(*name)).collect();
    if missing.is_empty() {
        return Finding::ok(subject, format!("{}, with every controller of this host", dir.display()));
    }
    let without = format!("{}, without {}", dir.display(), joined(missing.iter().copied()));
    if !missing.iter().any(|name| is_usual(name)) {
        return Finding::ok(subject, without);
    }
    if writable(&tree.mount.join("cgroup.subtree_control")) {
        let found = format!("{}; {} can be enabled, and are when a limit needs them", dir.display(), joined(missing));
        return Finding::ok(subject, found);
    }
    Finding::warning(
        subject,
        without,
        format!("systemctl edit user@.service: [Service] Delegate={}; then log in again", joined(all)),
    )
}

/// The root has no such file; any cgroup below it does.
fn kill(mount: &Path) -> Finding {
    let entries = std::fs::read_dir(mount).into_iter().flatten().flatten();
    let below = entries.map(|entry| entry.path()).find(|path| path.join("cgroup.procs").exists());
    match below {
        Some(below) if below.join("cgroup.kill").exists() => Finding::ok("cgroup.kill", "available"),
        None if kernel::is_at_least((5, 14)) => Finding::ok("cgroup.kill", "available, by the kernel's version"),
        Some(_) | None => Finding::warning(
            "cgroup.kill",
            "not in this kernel: processes are killed one by one, frozen",
            "Linux 5.14 or later",
        ),
    }
}

/// Loads the shortest filter there is, `r0 = 1; exit`, and lets go of it.
fn device_filter(host: &Host) -> Finding {
    let subject = "device filter";
    let instruction = |code, immediate| Instruction { code, registers: 0, offset: 0, immediate };
    match bpf::load_device_filter(&[instruction(0xb7, 1), instruction(0x95, 0)], b"ferry_doctor\0\0\0\0") {
        Ok(_) => Finding::ok(subject, "available"),
        Err(refusal) if refusal.errno == Errno::EPERM && !host.privileged => {
            Finding::ok(subject, "not this user's to load; the kernel lets its containers make no device nodes either")
        }
        Err(refusal) => Finding::missing(
            subject,
            format!("refused: {}", refusal.errno.desc()),
            "a kernel built with CONFIG_CGROUP_BPF, and CAP_BPF; else allow all devices in config.json",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::location::Tree;

    #[test]
    fn the_controllers_are_those_of_the_table() {
        assert_eq!(
            known().into_iter().collect::<Vec<_>>(),
            ["cpu", "cpuset", "hugetlb", "io", "memory", "pids", "rdma"]
        );
    }

    #[test]
    fn missing_controllers_are_named() {
        let offered = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let found = controllers(&offered(&["cpu", "cpuset", "io", "memory", "pids"]));
        assert_eq!(found, Finding::ok("controllers", "cpu cpuset io memory pids (missing: hugetlb rdma)"));
        let found = controllers(&offered(&["hugetlb"]));
        assert!(found.fix.is_some() && found.found == "hugetlb (missing: cpu cpuset io memory pids rdma)", "{found:?}");
    }

    #[test]
    fn a_hybrid_tree_is_a_warning_with_a_fix() {
        let tree = |hybrid| Tree { mount: "/sys/fs/cgroup".into(), hybrid };
        assert_eq!(version(&tree(false)).fix, None);
        assert!(version(&tree(true)).fix.is_some_and(|fix| fix.contains("cgroup_no_v1=all")));
    }
}
