//! A container's process: who it runs as, within which limits, and what it executes. Planned as data, applied in the child
//! in the order that the steps of `launch` give.

pub mod command;
pub mod hidden;
pub mod identity;
pub mod limits;
pub mod memory_merge;
pub mod scheduling;
pub mod signal;
pub mod sysctl;

pub use command::Command;
pub use identity::Identity;
