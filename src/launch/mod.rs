//! From a plan to a process: the clone, the handshake, and the steps that the child takes.
//!
//! `plan` is pure. `parent` clones and does, beside the child and at the same time, what only the host side can: id maps,
//! limits, the device program, the record. `init` is the child of `create` and `run`, `join` that of `exec`: each a table
//! of named steps over one plan.

pub mod attach;
pub mod birth;
pub mod descriptor;
pub mod enter;
pub mod execute;
pub mod foreground;
pub mod gate;
pub mod hooks;
pub mod init;
pub mod join;
mod limits;
pub mod notify;
mod ownership;
pub mod parent;
pub mod plan;
pub mod protocol;
pub mod sources;
pub mod terminal;

pub use plan::{Options, Plan, ProcessPlan};
