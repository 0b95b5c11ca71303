//! The list of scenarios, and how they are run: `stage` is what all share, `case` what one test has for itself.

mod annotations;
mod attacks;
mod bad_input;
mod balance;
mod bandwidth;
mod binds;
mod case;
mod cgroup;
mod cgroup_shared;
mod checkpoint;
mod checkpoint_archive;
mod checkpoint_archive_cut_off;
mod checkpoint_config;
mod checkpoint_cut_off;
mod checkpoint_encrypted;
mod checkpoint_flags;
mod checkpoint_freezer;
mod checkpoint_mounts;
mod checkpoint_progress;
mod checkpoint_root;
mod checkpoint_workloads;
mod completion;
mod concurrency;
mod create;
mod cwd;
mod dev;
mod dice;
mod disks;
mod errors;
mod exec;
mod explain;
mod fault_counts;
mod fault_matrix;
mod fault_matrix_checkpoint;
mod fault_matrix_migrate;
mod fault_matrix_store;
mod fault_points;
mod faults;
mod flags;
mod foreground;
mod hook_failures;
mod hooks;
mod hostile_archives;
mod hostile_entries;
mod image;
mod image_bundle;
mod image_commit;
mod image_erofs;
mod image_hostile;
mod image_killed;
mod image_layers;
mod image_root;
mod image_sources;
mod image_store;
mod image_tools;
mod install;
mod jails;
mod leaks;
mod lifecycle;
mod limits;
mod lsm;
mod migrate;
mod migrate_cut_off;
mod migrate_files;
mod migrate_hostile;
mod migrate_image;
mod migrate_post_copy;
mod migrate_rebooted;
mod migrate_settled;
mod migrate_tls;
mod migrate_told;
mod mount_options;
mod mounts;
mod mounts_added;
mod name;
mod namespaces;
mod need;
mod net_devices;
mod old_kernels;
mod output;
mod process;
mod pseudo_terminal;
mod pull;
mod pull_docker;
mod pull_tls;
mod reaper;
mod registry_server;
mod rootfs;
mod row;
mod scenario;
mod scheduling;
mod schema;
mod seccomp_agent;
mod security;
mod shim;
mod shim_client;
mod shim_ends;
mod shim_server;
mod shortages;
mod snapshot;
mod snapshot_cut_off;
mod snapshot_memory;
mod stage;
mod state;
mod stats;
mod swarm;
mod systemd;
mod terminal;
mod updates;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;

use scenario::Scenario;
use stage::Stage;

/// Scenarios by the noun they are about.
const NOUNS: &[(&str, &[Scenario])] = &[
    ("install", install::SCENARIOS),
    ("leaks", leaks::SCENARIOS),
    ("lifecycle", lifecycle::SCENARIOS),
    ("concurrency", concurrency::SCENARIOS),
    ("create", create::SCENARIOS),
    ("state", state::SCENARIOS),
    ("exec", exec::SCENARIOS),
    ("name", name::SCENARIOS),
    ("namespaces", namespaces::SCENARIOS),
    ("net_devices", net_devices::SCENARIOS),
    ("mounts", mounts::SCENARIOS),
    ("mount_options", mount_options::SCENARIOS),
    ("binds", binds::SCENARIOS),
    ("dev", dev::SCENARIOS),
    ("disks", disks::SCENARIOS),
    ("process", process::SCENARIOS),
    ("cwd", cwd::SCENARIOS),
    ("scheduling", scheduling::SCENARIOS),
    ("schema", schema::SCENARIOS),
    ("cgroup", cgroup::SCENARIOS),
    ("cgroup_shared", cgroup_shared::SCENARIOS),
    ("limits", limits::SCENARIOS),
    ("stats", stats::SCENARIOS),
    ("balance", balance::SCENARIOS),
    ("bandwidth", bandwidth::SCENARIOS),
    ("systemd", systemd::SCENARIOS),
    ("swarm", swarm::SCENARIOS),
    ("updates", updates::SCENARIOS),
    ("shim", shim::SCENARIOS),
    ("shim_ends", shim_ends::SCENARIOS),
    ("shim_server", shim_server::SCENARIOS),
    ("shortages", shortages::SCENARIOS),
    ("security", security::SCENARIOS),
    ("lsm", lsm::SCENARIOS),
    ("seccomp_agent", seccomp_agent::SCENARIOS),
    ("attacks", attacks::image::SCENARIOS),
    ("attacks", attacks::processes::SCENARIOS),
    ("attacks", attacks::races::SCENARIOS),
    ("attacks", attacks::input::SCENARIOS),
    ("attacks", attacks::neighbours::SCENARIOS),
    ("pull", pull::SCENARIOS),
    ("pull_docker", pull_docker::SCENARIOS),
    ("pull_tls", pull_tls::SCENARIOS),
    ("terminal", terminal::SCENARIOS),
    ("hooks", hooks::SCENARIOS),
    ("hook_failures", hook_failures::SCENARIOS),
    ("annotations", annotations::SCENARIOS),
    ("mounts_added", mounts_added::SCENARIOS),
    ("flags", flags::SCENARIOS),
    ("foreground", foreground::SCENARIOS),
    ("completion", completion::SCENARIOS),
    ("errors", errors::SCENARIOS),
    ("bad_input", bad_input::SCENARIOS),
    ("rootfs", rootfs::SCENARIOS),
    ("image", image::SCENARIOS),
    ("checkpoint", checkpoint::SCENARIOS),
    ("checkpoint_archive", checkpoint_archive::SCENARIOS),
    ("checkpoint_archive_cut_off", checkpoint_archive_cut_off::SCENARIOS),
    ("checkpoint_config", checkpoint_config::SCENARIOS),
    ("checkpoint_cut_off", checkpoint_cut_off::SCENARIOS),
    ("checkpoint_encrypted", checkpoint_encrypted::SCENARIOS),
    ("checkpoint_flags", checkpoint_flags::SCENARIOS),
    ("checkpoint_freezer", checkpoint_freezer::SCENARIOS),
    ("checkpoint_mounts", checkpoint_mounts::SCENARIOS),
    ("checkpoint_progress", checkpoint_progress::SCENARIOS),
    ("checkpoint_root", checkpoint_root::SCENARIOS),
    ("migrate", migrate::SCENARIOS),
    ("migrate_cut_off", migrate_cut_off::SCENARIOS),
    ("migrate_files", migrate_files::SCENARIOS),
    ("migrate_hostile", migrate_hostile::SCENARIOS),
    ("migrate_image", migrate_image::SCENARIOS),
    ("migrate_post_copy", migrate_post_copy::SCENARIOS),
    ("migrate_rebooted", migrate_rebooted::SCENARIOS),
    ("migrate_settled", migrate_settled::SCENARIOS),
    ("migrate_tls", migrate_tls::SCENARIOS),
    ("migrate_told", migrate_told::SCENARIOS),
    ("image_commit", image_commit::SCENARIOS),
    ("image_bundle", image_bundle::SCENARIOS),
    ("image_tools", image_tools::SCENARIOS),
    ("image_erofs", image_erofs::SCENARIOS),
    ("image_hostile", image_hostile::SCENARIOS),
    ("jails", jails::SCENARIOS),
    ("image_killed", image_killed::SCENARIOS),
    ("image_root", image_root::SCENARIOS),
    ("image_layers", image_layers::SCENARIOS),
    ("image_sources", image_sources::SCENARIOS),
    ("image_store", image_store::SCENARIOS),
    ("snapshot", snapshot::SCENARIOS),
    ("snapshot_cut_off", snapshot_cut_off::SCENARIOS),
    ("snapshot_memory", snapshot_memory::SCENARIOS),
    ("checkpoint_workloads", checkpoint_workloads::SCENARIOS),
    ("explain", explain::SCENARIOS),
    ("faults", faults::SCENARIOS),
    ("fault_matrix", fault_matrix::SCENARIOS),
    ("fault_matrix_store", fault_matrix_store::SCENARIOS),
    ("fault_matrix_checkpoint", fault_matrix_checkpoint::SCENARIOS),
    ("fault_matrix_migrate", fault_matrix_migrate::SCENARIOS),
    ("old_kernels", old_kernels::SCENARIOS),
];

/// Runs what the arguments ask for, and says last what was skipped and why.
pub fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    if let Some(code) = reaper::run()? {
        return Ok(code);
    }
    scenario::keep_panics_for_the_end();
    let stage = Arc::new(if arguments.list { Stage::empty() } else { Stage::prepare()? });
    let trials = NOUNS.iter().flat_map(|(noun, scenarios)| {
        let stage = &stage;
        scenarios.iter().map(move |scenario| scenario.trial(noun, stage))
    });
    let conclusion = libtest_mimic::run(arguments, trials.collect());
    if !arguments.list {
        stage.print_skipped();
        stage.leave()?;
    }
    Ok(conclusion.exit_code())
}
