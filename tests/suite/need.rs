//! What a scenario needs of the machine, the user and the runtime, and the reason given where it is not there.

use super::stage::Stage;

/// One need. A scenario without any runs everywhere.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// To be root.
    Root,
    /// Not to be root.
    OrdinaryUser,
    /// A cgroup v2 tree with these controllers; with none, the tree alone.
    CgroupV2(&'static [&'static str]),
    /// ferry itself: no other runtime has this.
    Ferry,
    /// A program on this machine.
    Tool(&'static str),
    /// A runtime (the first word) known to differ here, and how. It is tried all the same: if it fails, that is counted
    /// as skipped.
    Peer(&'static str, &'static str),
}

impl Need {
    /// Why this cannot be had, or none.
    pub fn missing(&self, stage: &Stage) -> Option<String> {
        let root = nix::unistd::geteuid().is_root();
        match *self {
            Self::Root => (!root).then(|| "needs root".into()),
            Self::OrdinaryUser => root.then(|| "needs an ordinary user".into()),
            Self::CgroupV2(wanted) => missing_controllers(stage, wanted),
            Self::Ferry => (stage.runtime.name != "ferry").then(|| format!("{} has no such verb", stage.runtime.name)),
            Self::Tool(name) => (!on_path(name)).then(|| format!("needs the program {name}")),
            Self::Peer(..) => None,
        }
    }

    /// How this runtime is known to differ.
    pub fn known_difference(&self, stage: &Stage) -> Option<String> {
        match *self {
            Self::Peer(name, how) if stage.runtime.name == name => Some(format!("{name}: {how}")),
            _ => None,
        }
    }
}

fn missing_controllers(stage: &Stage, wanted: &[&str]) -> Option<String> {
    let Some(tree) = &stage.cgroup_v2 else { return Some("needs a cgroup v2 tree".into()) };
    let there = std::fs::read_to_string(tree.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<_> = wanted.iter().filter(|name| !there.split_whitespace().any(|word| word == **name)).collect();
    (!missing.is_empty()).then(|| format!("needs cgroup v2 controllers: {missing:?}"))
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}
