//! `linux.intelRdt`: cache and memory bandwidth by group of processes, through the resctrl filesystem.
//!
//! It is a tree of its own beside the cgroups, with one level of control groups and, below each, monitoring groups. A
//! group that is the container's own is made before its process is put there and removed with the container; one that
//! `closID` names belongs to whoever manages it. config-linux.md#intelrdt, Documentation/filesystems/resctrl.rst

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::procfs::mountinfo;
use crate::spec::config::IntelRdt;

/// What is done in the resctrl filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The control group's name; empty for the default one.
    pub group: String,
    /// How the group comes about.
    pub origin: Origin,
    /// Lines that an existing group must have already: `l3CacheSchema`, `memBwSchema`.
    pub compared: Vec<String>,
    /// Lines of `schemata` that are written in any case.
    pub written: Vec<String>,
    /// The monitoring group's name.
    pub monitor: Option<String>,
}

/// How the group comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// It is the container's: made, and removed with it.
    Own,
    /// It is made if it is missing, and stays.
    Shared,
    /// It must be there.
    Existing,
}

impl Plan {
    /// What is written to the schemata, in order: `made` says that the group is new.
    fn lines(&self, made: bool) -> impl Iterator<Item = &String> {
        let first: &[String] = if made { &self.compared } else { &[] };
        first.iter().chain(&self.written)
    }
}

/// What a container has in the resctrl filesystem, for its record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Groups {
    /// Every process of the container is put into these, in order.
    pub joined: Vec<PathBuf>,
    /// These are removed with it, in order.
    pub removed: Vec<PathBuf>,
}

/// Plans a container's groups.
///
/// # Errors
/// A name that leads elsewhere, a line that is none.
pub fn plan(configured: Option<&IntelRdt>, id: &str) -> Result<Option<Plan>> {
    let Some(rdt) = configured else { return Ok(None) };
    let fault = |field: &str, why: &str| Error::config(format!("linux.intelRdt.{field}"), why.to_owned());
    let clos = rdt.clos_id.as_str();
    if clos != "/" && (clos.contains('/') || matches!(clos, "." | ".." | "info" | "mon_groups" | "mon_data")) {
        return Err(fault("closID", "must be the name of one directory, or / for the default class"));
    }
    for (field, line) in [("l3CacheSchema", &rdt.l3_cache_schema), ("memBwSchema", &rdt.mem_bw_schema)] {
        if line.contains('\n') {
            return Err(fault(field, "must be one line"));
        }
    }
    if !rdt.mem_bw_schema.is_empty() && !rdt.mem_bw_schema.starts_with("MB:") {
        return Err(fault("memBwSchema", "must start with MB:"));
    }
    if let Some(index) = rdt.schemata.iter().position(|line| line.contains('\n')) {
        return Err(fault(&format!("schemata[{index}]"), "must be one line"));
    }
    let compared: Vec<String> =
        [&rdt.l3_cache_schema, &rdt.mem_bw_schema].into_iter().filter(|line| !line.is_empty()).cloned().collect();
    let origin = match clos {
        "" => Origin::Own,
        "/" => Origin::Existing,
        _ if compared.is_empty() && rdt.schemata.is_empty() => Origin::Existing,
        _ => Origin::Shared,
    };
    let group = if clos.is_empty() { id } else { clos.trim_start_matches('/') };
    Ok(Some(Plan {
        group: group.to_owned(),
        origin,
        compared,
        written: rdt.schemata.clone(),
        monitor: rdt.enable_monitoring.then(|| id.to_owned()),
    }))
}

/// Where the plan's groups are on this host, and which of them will be the container's to remove. Nothing is made yet: the
/// record is to name them first.
///
/// # Errors
/// No resctrl filesystem is mounted.
pub fn locate(plan: &Plan) -> Result<Groups> {
    let mounts = mountinfo::read().or_cannot("read", "/proc/self/mountinfo")?;
    let mount = mounts.into_iter().find(|row| row.kind == "resctrl").map(|row| row.point).ok_or_else(|| {
        Error::config("linux.intelRdt", "cannot be carried out: this host has no resctrl filesystem mounted")
            .hint("where the processor has it: mount -t resctrl resctrl /sys/fs/resctrl")
    })?;
    Ok(groups(plan, &mount, |path| path.exists()))
}

fn groups(plan: &Plan, mount: &Path, exists: impl Fn(&Path) -> bool) -> Groups {
    let group = mount.join(&plan.group);
    let monitor = plan.monitor.as_ref().map(|name| group.join("mon_groups").join(name));
    // A directory of that name that was there before is somebody else's.
    let own = (plan.origin == Origin::Own && !exists(&group)).then(|| group.clone());
    let removed = monitor.iter().filter(|monitor| !exists(monitor)).cloned().chain(own).collect();
    Groups { joined: std::iter::once(group).chain(monitor).collect(), removed }
}

/// Makes what is missing, writes the schemata, and puts the process into its groups.
///
/// # Errors
/// A group that must be there and is not, or has other schemata; the kernel's answer, with its own words.
pub fn apply(plan: &Plan, groups: &Groups, pid: Pid) -> Result<()> {
    let Some((group, monitors)) = groups.joined.split_first() else { return Ok(()) };
    let made = match plan.origin {
        Origin::Existing if group.is_dir() => false,
        Origin::Existing => {
            let why = format!("{} does not exist, and no schemata are given to make it with", group.display());
            return Err(Error::config("linux.intelRdt.closID", why));
        }
        Origin::Own | Origin::Shared => make(group)?,
    };
    if !made && !plan.compared.is_empty() {
        let path = group.join("schemata");
        let there = fs::read_to_string(&path).or_cannot("read", path.display())?;
        if let Some(line) = plan.compared.iter().find(|line| !holds(&there, line)) {
            let why = format!("{} exists with other schemata than {line}", group.display());
            return Err(Error::config("linux.intelRdt.closID", why));
        }
    }
    plan.lines(made).try_for_each(|line| write_schemata(group, line))?;
    for monitor in monitors {
        make(monitor)?;
    }
    join(groups, pid)
}

/// Puts a process into the container's groups.
///
/// # Errors
/// The kernel's answer.
pub fn join(groups: &Groups, pid: Pid) -> Result<()> {
    groups.joined.iter().try_for_each(|group| {
        let tasks = group.join("tasks");
        fs::write(&tasks, pid.to_string()).or_cannot("write the process to", tasks.display())
    })
}

/// Other schemata for the container's group; what a line does not name stays as it is.
///
/// # Errors
/// The kernel's answer, with its own words.
pub fn update(groups: &Groups, lines: &[&str]) -> Result<()> {
    let Some(group) = groups.joined.first() else { return Ok(()) };
    lines.iter().try_for_each(|line| write_schemata(group, line))
}

/// Removes what was made for the container. What is gone already is no error.
///
/// # Errors
/// The kernel's answer.
pub fn remove(groups: &Groups) -> Result<()> {
    groups.removed.iter().try_for_each(|group| {
        match rustix::fs::unlinkat(rustix::fs::CWD, group, rustix::fs::AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(answer) => Err(answer).or_cannot("remove", group.display()),
        }
    })
}

/// Whether the directory was made now.
fn make(group: &Path) -> Result<bool> {
    match rustix::fs::mkdirat(rustix::fs::CWD, group, rustix::fs::Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(answer) => Err(answer).or_cannot("make", group.display()).map_err(|error| match error.errno() {
            Some(Errno::ENOSPC) => error.hint("the processor has no more classes or monitors: remove unused groups"),
            _ => error,
        }),
    }
}

/// The kernel says what is wrong with a line in a file beside.
fn write_schemata(group: &Path, line: &str) -> Result<()> {
    fs::write(group.join("schemata"), format!("{line}\n")).or_cannot("write schemata", line).map_err(|error| {
        let status = group.ancestors().find_map(|dir| fs::read_to_string(dir.join("info/last_cmd_status")).ok());
        match status.as_deref().map(str::trim) {
            Some(words) if !words.is_empty() && words != "ok" => error.hint(words.to_owned()),
            _ => error,
        }
    })
}

/// Whether the schemata of a group say what `line` says: the same resource, and for each of its domains the same value.
fn holds(schemata: &str, line: &str) -> bool {
    let parse = |line: &str| {
        let (resource, domains) = line.split_once(':')?;
        let domain = |domain: &str| {
            let (id, value) = domain.split_once('=')?;
            let value = value.trim().trim_start_matches('0').to_ascii_lowercase();
            Some((id.trim().to_owned(), value))
        };
        Some((resource.trim().to_owned(), domains.split(';').map(domain).collect::<Option<Vec<_>>>()?))
    };
    let Some((resource, wanted)) = parse(line) else { return false };
    let there = schemata.lines().filter_map(parse).find(|(name, _)| *name == resource);
    there.is_some_and(|(_, there)| wanted.iter().all(|domain| there.contains(domain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rdt(clos: &str, l3: &str, schemata: &[&str]) -> IntelRdt {
        IntelRdt {
            clos_id: clos.into(),
            l3_cache_schema: l3.into(),
            schemata: schemata.iter().map(|line| (*line).to_owned()).collect(),
            ..IntelRdt::default()
        }
    }

    fn planned(rdt: &IntelRdt) -> Plan {
        plan(Some(rdt), "box").unwrap().unwrap()
    }

    #[test]
    fn whose_the_group_is() {
        let of = |rdt: IntelRdt| {
            let plan = planned(&rdt);
            (plan.group, plan.origin)
        };
        assert_eq!(of(rdt("", "", &[])), ("box".into(), Origin::Own));
        assert_eq!(of(rdt("gold", "", &[])), ("gold".into(), Origin::Existing));
        assert_eq!(of(rdt("gold", "L3:0=f", &[])), ("gold".into(), Origin::Shared));
        assert_eq!(of(rdt("gold", "", &["MB:0=20"])), ("gold".into(), Origin::Shared));
        assert_eq!(of(rdt("/", "L3:0=f", &[])), (String::new(), Origin::Existing));
        assert_eq!(plan(None, "box"), Ok(None));
    }

    #[test]
    fn only_what_was_made_for_the_container_is_removed() {
        let mut own = planned(&rdt("", "", &[]));
        own.monitor = Some("box".into());
        let (group, monitor) = (PathBuf::from("/r/box"), PathBuf::from("/r/box/mon_groups/box"));
        let expected =
            Groups { joined: vec![group.clone(), monitor.clone()], removed: vec![monitor.clone(), group.clone()] };
        assert_eq!(groups(&own, Path::new("/r"), |_| false), expected);
        assert_eq!(groups(&own, Path::new("/r"), |path| path == group).removed, [monitor]);
        let shared = planned(&rdt("gold", "L3:0=f", &[]));
        assert!(groups(&shared, Path::new("/r"), |_| false).removed.is_empty());
    }

    #[test]
    fn faults() {
        let error = |rdt: IntelRdt| plan(Some(&rdt), "box").unwrap_err().to_string();
        for clos in ["a/b", "..", "info", "/a"] {
            assert!(error(rdt(clos, "", &[])).starts_with("linux.intelRdt.closID: must be the name"), "{clos}");
        }
        assert_eq!(error(rdt("", "", &["L3:0=f", "a\nb"])), "linux.intelRdt.schemata[1]: must be one line");
        let bandwidth = IntelRdt { mem_bw_schema: "L3:0=f".into(), ..IntelRdt::default() };
        assert_eq!(error(bandwidth), "linux.intelRdt.memBwSchema: must start with MB:");
        let bandwidth = IntelRdt { mem_bw_schema: "MB:0=1\nL3:0=f".into(), ..IntelRdt::default() };
        assert_eq!(error(bandwidth), "linux.intelRdt.memBwSchema: must be one line");
        assert_eq!(error(rdt("", "L3:0=f\nMB:0=1", &[])), "linux.intelRdt.l3CacheSchema: must be one line");
    }

    #[test]
    fn schemata_are_written_in_their_order() {
        let written = |rdt: &IntelRdt, made| planned(rdt).lines(made).cloned().collect::<Vec<_>>();
        let mut all = rdt("gold", "L3:0=f", &["L2:0=1", "MB:0=30"]);
        all.mem_bw_schema = "MB:0=20".into();
        assert_eq!(written(&all, true), ["L3:0=f", "MB:0=20", "L2:0=1", "MB:0=30"]);
        assert_eq!(written(&all, false), ["L2:0=1", "MB:0=30"]);
        assert_eq!(written(&rdt("", "L3:0=f", &[]), true), ["L3:0=f"]);
        let bandwidth = IntelRdt { mem_bw_schema: "MB:0=20".into(), ..IntelRdt::default() };
        assert_eq!(written(&bandwidth, true), ["MB:0=20"]);
        assert_eq!(written(&rdt("", "", &[]), true), [""; 0]);
    }

    #[test]
    fn schemata_are_compared_by_value() {
        let there = "    MB:0=100;1=100\n    L3:0=00ff;1=0f\n";
        assert!(holds(there, "L3:0=ff;1=F"));
        assert!(holds(there, "L3:1=f"));
        assert!(!holds(there, "L3:0=fe"));
        assert!(!holds(there, "L2:0=ff"));
        assert!(!holds(there, "nonsense"));
    }

    /// The same calls on a plain directory: what is made, written and removed, apart from the processor.
    #[test]
    fn groups_are_made_joined_and_removed() {
        let mount = std::env::temp_dir().join(format!("ferry-resctrl-{}", std::process::id()));
        fs::create_dir_all(&mount).unwrap();
        let plan = planned(&rdt("", "", &["L3:0=f"]));
        let groups = groups(&plan, &mount, |path| path.exists());
        apply(&plan, &groups, Pid::from_raw(7)).unwrap();
        assert_eq!(fs::read_to_string(mount.join("box/schemata")).unwrap(), "L3:0=f\n");
        assert_eq!(fs::read_to_string(mount.join("box/tasks")).unwrap(), "7");
        update(&groups, &["L3:0=3"]).unwrap();
        assert_eq!(fs::read_to_string(mount.join("box/schemata")).unwrap(), "L3:0=3\n");
        let existing = planned(&rdt("gold", "", &[]));
        let missing = super::groups(&existing, &mount, |path| path.exists());
        let error = apply(&existing, &missing, Pid::from_raw(7)).unwrap_err().to_string();
        assert!(error.starts_with("linux.intelRdt.closID: ") && error.contains("gold does not exist"), "{error}");
        let other = planned(&rdt("box", "L3:0=1", &[]));
        let there = super::groups(&other, &mount, |path| path.exists());
        assert!(apply(&other, &there, Pid::from_raw(7)).unwrap_err().to_string().contains("with other schemata than"));
        // The default class is there whatever happens.
        let default = planned(&rdt("/", "", &[]));
        let groups_of_default = super::groups(&default, &mount, |path| path.exists());
        apply(&default, &groups_of_default, Pid::from_raw(8)).unwrap();
        assert_eq!(fs::read_to_string(mount.join("tasks")).unwrap(), "8");
        assert!(groups_of_default.removed.is_empty() && !mount.join("schemata").exists());
        rustix::fs::unlink(mount.join("tasks")).unwrap();
        // Of a real group the files go with the directory.
        ["schemata", "tasks"].iter().for_each(|file| {
            rustix::fs::unlinkat(rustix::fs::CWD, mount.join("box").join(file), rustix::fs::AtFlags::empty()).unwrap();
        });
        remove(&groups).unwrap();
        remove(&groups).unwrap();
        assert!(!mount.join("box").exists());
        rustix::fs::unlinkat(rustix::fs::CWD, &mount, rustix::fs::AtFlags::REMOVEDIR).unwrap();
    }

    #[test]
    fn a_monitoring_group_is_made_and_removed_or_is_an_error() {
        let mount = std::env::temp_dir().join(format!("ferry-resctrl-mon-{}", std::process::id()));
        fs::create_dir_all(mount.join("gold")).unwrap();
        let mut plan = planned(&rdt("gold", "", &[]));
        plan.monitor = Some("box".into());
        let groups = groups(&plan, &mount, |path| path.exists());
        // A real group has this directory from the beginning.
        let error = apply(&plan, &groups, Pid::from_raw(7)).unwrap_err().to_string();
        assert!(error.contains("mon_groups/box"), "{error}");
        fs::create_dir(mount.join("gold/mon_groups")).unwrap();
        apply(&plan, &groups, Pid::from_raw(7)).unwrap();
        assert_eq!(fs::read_to_string(mount.join("gold/mon_groups/box/tasks")).unwrap(), "7");
        rustix::fs::unlink(mount.join("gold/mon_groups/box/tasks")).unwrap();
        remove(&groups).unwrap();
        assert!(!mount.join("gold/mon_groups/box").exists() && mount.join("gold").exists());
        rustix::fs::unlink(mount.join("gold/tasks")).unwrap();
        for dir in ["gold/mon_groups", "gold", ""] {
            rustix::fs::rmdir(mount.join(dir)).unwrap();
        }
    }
}
