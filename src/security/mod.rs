//! What confines a process beyond namespaces: capabilities and system call filters.

pub mod capabilities;
pub mod lsm;
pub mod seccomp;
