//! The container's cgroup: where it is, what it limits, and what can be done to it as a whole.
//!
//! ferry governs cgroup v2 alone. On a hybrid host (controllers in v1, a v2 tree beside them) a container without limits
//! runs in the v2 tree, which still gives it freezing, killing and device rules; one with limits is refused, with the
//! controller and the reason, because a limit that is dropped in silence is worse than none.
//!
//! ```text
//! location::find        linux.cgroupsPath -> Place          where (a value)
//! resources::plan       linux.resources   -> Limits         what (a value: file, text, JSON path)
//! fs::create            Location, Limits  -> Cgroup         mkdir, enable controllers; clone into it after this
//!   or systemd::start   Unit, pid, Limits -> its path       clone before this; then fs::open
//! controllers::offer    Location, Cgroup                    enable every other controller
//! fs::apply             Cgroup, Limits                      write the files
//! delegation::delegate  Cgroup, Uid                         give it to the container's root
//! previous::read        Cgroup, Limits    -> Previous       what an update that fails goes back to
//! devices::install      Cgroup, Limits.devices              a BPF program on the cgroup
//! life::freeze, thaw, kill, wait_empty, procs, remove       the cgroup as a whole
//! stats::read           Cgroup            -> Stats          what it uses
//! ```

pub mod balance;
pub mod controllers;
mod dbus;
pub mod delegation;
mod device_program;
pub mod devices;
mod file;
pub mod fs;
pub mod life;
pub mod location;
pub mod missing;
pub mod previous;
pub mod properties;
pub mod reclaim;
pub mod resctrl;
pub mod resources;
pub mod stats;
pub mod systemd;

pub use fs::Cgroup;
pub use location::{Driver, Location, Place};
pub use resources::Limits;

#[cfg(test)]
pub(crate) mod trial;
