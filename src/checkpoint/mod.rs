//! A container's life in files: dumped and restored by CRIU, which ferry tells what is the container's own and what is
//! from outside.
//!
//! ```text
//! external::…        config.json, the container's mounts, its streams -> what CRIU is told to leave to ferry
//! dump::dump_then    container -> images                  lifecycle::checkpoint
//! restore::restore   bundle, images -> container          lifecycle::restore
//!   obstacles        what CRIU cannot dump, found before anything is stopped
//!   criu             the process and the conversation
//!     rpc, wire      its messages
//!     ending         its end in the middle, which leaves the container running
//!   freezer          the container stands still when it begins, and goes on afterwards
//!   shared           what it writes in namespaces that are a pod's, and ferry takes back
//!   lazy             its daemon that puts memory in its place when it comes later
//!   lazy_keeper      what processes wait at when that daemon dies
//!   cause            its log -> why it failed
//! stage              the root of a restore, where CRIU takes it from
//! progress           what either tells while it works
//! root               where the root is an overlay of the container's own: what it lies upon, and what was changed
//! archive::…         images <-> one file                  lifecycle::archive
//!   audit            what was restored from it, against config.json, before any of it runs
//! ```
//!
//! The directory of images is CRIU's own, with one file beside: `descriptors.json`, what the standard streams led to. That
//! is also runc's layout, so that each restores what the other dumped. What a root of its own takes beside them, see [`root`].

pub mod archive;
mod audit;
mod audit_files;
mod audit_limits;
mod audit_mounts;
pub mod cause;
pub mod criu;
pub mod dump;
mod ending;
pub mod external;
pub mod freezer;
mod held;
pub(crate) mod images;
pub mod lazy;
mod lazy_keeper;
pub mod obstacles;
pub mod progress;
pub mod restore;
pub mod root;
pub mod rpc;
pub mod saved;
mod shared;
pub mod stage;
pub mod streams;
pub(crate) mod wire;
