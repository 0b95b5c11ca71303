//! Why a controller is not there, and what to do about it: the words of every refused limit.
//!
//! Read only once something has failed, so it costs a start nothing.

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::error::Error;
use crate::procfs;

use super::file;
use super::location;
use super::resources::Write;

/// Explains why `write` cannot be done in the cgroup at `path`, where the lowest directory that could have given its
/// controller is `above` (its parent, or the ancestor at which enabling failed).
pub(super) fn explain(above: BorrowedFd<'_>, above_path: &Path, write: &Write) -> Error {
    let controller = &*write.controller;
    let field = format!("linux.resources.{}", write.field);
    let refuse = |why: String| Error::said("set", field, why);
    let v1 = procfs::text("/proc/self/cgroup").unwrap_or_default();
    if bound_to_v1(&v1, controller) {
        return refuse(format!("{controller} is bound to cgroup v1 on this host"))
            .hint("boot with systemd.unified_cgroup_hierarchy=1 or cgroup_no_v1=all, or leave the limit out");
    }
    let has = |text: &str| text.split_whitespace().any(|name| name == controller);
    let mount = location::find_tree().ok().flatten().map(|tree| tree.mount).unwrap_or_default();
    let at_root = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    if !has(&at_root) {
        return refuse(format!("this kernel has no {controller} controller, or it was switched off at boot"));
    }
    let offered = file::read(above, "cgroup.controllers").unwrap_or_default();
    let above_path = above_path.display();
    if !has(&offered) {
        return refuse(format!("{controller} is not delegated to {above_path}")).hint(delegation(controller));
    }
    let enabled = file::read(above, "cgroup.subtree_control").unwrap_or_default();
    if !has(&enabled) {
        return refuse(format!("{controller} is not enabled in {above_path}/cgroup.subtree_control"))
            .hint(delegation(controller));
    }
    refuse(format!("the {controller} controller has no file {} on this kernel", write.file))
}

fn delegation(controller: &str) -> String {
    format!("have it delegated: a systemd unit with Delegate={controller}, or run as root")
}

/// Whether a v1 hierarchy holds the controller, from /proc/self/cgroup (`4:memory:/…`). /proc/cgroups would not do: since
/// Linux 6.14 it leaves out what has no v1 side.
fn bound_to_v1(proc_self_cgroup: &str, controller: &str) -> bool {
    let v1_name = if controller == "io" { "blkio" } else { controller };
    let names = proc_self_cgroup.lines().filter_map(|line| line.split(':').nth(1));
    !v1_name.is_empty() && names.flat_map(|names| names.split(',')).any(|name| name == v1_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_v1_holds() {
        let table = "9:name=systemd:/\n7:blkio:/\n5:cpu,cpuacct:/x\n4:memory:/\n0::/\n";
        for (controller, bound) in [("memory", true), ("io", true), ("cpu", true), ("pids", false), ("", false)] {
            assert_eq!(bound_to_v1(table, controller), bound, "{controller}");
        }
    }
}
