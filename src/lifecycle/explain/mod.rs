//! `explain`: what `run` would do for a bundle, on this host, as this user. Nothing is made, changed or asked of anybody
//! but the kernel: planning has no effects, and this shows the plan.

mod check;
mod json;
mod text;

use std::path::Path;

use super::{Report, Setting, create};
use crate::container::Id;
use crate::error::Result;
use crate::host;
use crate::launch::init::Init;
use crate::launch::plan::{self, Plan};
use crate::spec::{Config, Document};

/// What would be done with the bundle in the directory `bundle`; `config` is the file that stands for its config.json.
///
/// # Errors
/// What `run` would fail with, as far as that can be told before anything is made.
pub fn explain(setting: &Setting, bundle: &Path, config: Option<&Path>) -> Result<Report> {
    let source = create::read(bundle, config)?;
    let document = Document::new(&source.path, source.text);
    let Setting { cgroup_manager: cgroup_driver, rootless, .. } = *setting;
    let options = plan::Options { cgroup_driver, rootless, ..plan::Options::default() };
    let mut plan = plan::plan(&example_id(&source.bundle)?, &source.config, &source.bundle, &host::probe(), &options)
        .map_err(|error| document.locate(error))?;
    check::run_begins(setting, &mut plan)?;
    report(&plan, &source.config)
}

fn report(plan: &Plan, config: &Config) -> Result<Report> {
    Ok(Report { json: json::of(plan)?, text: text::of(plan, config) })
}

/// The id is given only when the container is run; until then the bundle's name stands for it.
fn example_id(bundle: &Path) -> Result<Id> {
    let name = bundle.file_name().unwrap_or_default().to_string_lossy();
    Id::new(&name).or_else(|_| Id::new("container"))
}

/// The steps of the container's first process, by name.
fn steps() -> Vec<&'static str> {
    Init::STEPS.iter().map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::template;

    /// The template's container, with something in every part of the plan.
    fn explained() -> Report {
        let mut config = template::config(false);
        config.hostname = "web".into();
        config.linux.resources = serde_json::from_str(
            r#"{"memory": {"limit": 1000}, "devices": [{"allow": false, "access": "rwm"}], "pids": {"limit": 7}}"#,
        )
        .unwrap();
        config.linux.sysctl.insert("net.ipv4.ip_forward".into(), "1".into());
        config.linux.seccomp = serde_json::from_str(r#"{"defaultAction": "SCMP_ACT_LOG"}"#).unwrap();
        config.hooks.poststop = serde_json::from_str(r#"[{"path": "/bin/over", "timeout": 3}]"#).unwrap();
        let host = host::Host { uid: 0, gid: 0, privileged: true, permitted: u64::MAX };
        let options = plan::Options { cgroup_driver: crate::cgroup::Driver::Systemd, ..plan::Options::default() };
        config.linux.cgroups_path = "system.slice:ferry:web".into();
        let id = Id::new("web").unwrap();
        let plan = plan::plan(&id, &config, Path::new("/srv/web"), &host, &options).unwrap();
        report(&plan, &config).unwrap()
    }

    #[test]
    fn for_a_person_every_part_is_told_in_order() {
        let text = explained().text;
        let mut rest = text.as_str();
        for expected in [
            "1. namespaces",
            "new: pid, network, ipc, uts",
            "cgroup\n",
            "systemd scope ferry-web.scope in system.slice",
            "pids.max = 7   (linux.resources.pids.limit)",
            "memory.max = 1000   (linux.resources.memory.limit)",
            "deny everything: rwm",
            "root filesystem\n",
            "/srv/web/rootfs",
            "mounts\n",
            "proc on /proc",
            "masked paths\n",
            "/proc/kcore",
            "kernel parameters\n",
            "net/ipv4/ip_forward = 1",
            "hooks\n",
            "poststop: /bin/over (at most 3 s)",
            "process\n",
            "sh",
            "system call filter:",
            "steps of the first process\n",
            "session, oom score, ",
        ] {
            let at = rest.find(expected).unwrap_or_else(|| panic!("{expected:?} is not in its place in:\n{text}"));
            rest = &rest[at..];
        }
    }

    #[test]
    fn for_a_program_nothing_is_left_out() {
        let json = explained().json;
        assert_eq!(json["cgroup"]["unit"], "ferry-web.scope");
        assert_eq!(json["cgroup"]["writes"][1]["file"], "memory.max");
        assert_eq!(json["cgroup"]["writes"][1]["field"], "linux.resources.memory.limit");
        assert_eq!(json["cgroup"]["devices"][0]["allow"], false);
        assert_eq!(json["hooks"]["poststop"][0]["path"], "/bin/over");
        assert_eq!(json["process"]["identity"]["capabilities"]["bounding"][0], "CAP_KILL");
        assert!(json["process"]["seccomp"]["instructions"].as_u64().unwrap() > 0);
        assert_eq!(json["rootfs"]["mounts"][0]["type"], "proc");
        assert_eq!(json["rootfs"]["mounts"][1]["options"][0], "nosuid");
        assert_eq!(json["rootfs"]["propagation"], "rslave");
        assert_eq!(json["steps"][0], "session");
    }

    #[test]
    fn the_bundle_lends_its_name() {
        assert_eq!(example_id(Path::new("/srv/web")).unwrap().as_str(), "web");
        assert_eq!(example_id(Path::new("/")).unwrap().as_str(), "container");
        assert_eq!(example_id(Path::new("/srv/my web")).unwrap().as_str(), "container");
    }
}
