//! One file a verb: orchestration, no printing.

use std::path::PathBuf;

use crate::cgroup::Driver;
use crate::log::Log;

pub mod archive;
pub mod balance;
pub mod checkpoint;
mod content;
pub mod create;
pub mod delete;
pub mod doctor;
pub mod events;
pub mod exec;
mod exec_cgroup;
pub mod explain;
pub mod features;
pub mod image;
pub mod install;
pub mod kill;
mod lent;
pub mod list;
mod live;
pub mod matching;
pub mod migrate;
pub mod mounts;
mod outlive;
mod own_root;
pub mod pause;
pub mod ps;
pub mod receive;
pub mod restore;
pub mod resume;
pub mod run;
mod run_copy;
pub mod run_image;
pub mod run_rootfs;
mod scratch;
pub mod snapshot;
pub mod start;
pub mod state;
pub mod stats;
pub mod update;

/// What holds for every verb of one run.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// Where records are.
    pub root: PathBuf,
    /// Who makes cgroups.
    pub cgroup_manager: Driver,
    /// Whether refused cgroups are borne with; `None`: find out.
    pub rootless: Option<bool>,
    /// Where images are; `None`: where the user's are.
    pub store: Option<PathBuf>,
    /// Where warnings go.
    pub log: Log,
}

/// A finding for a program and for a person.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// For a program.
    pub json: serde_json::Value,
    /// For a person, lines.
    pub text: String,
}
