//! What confines a process beyond namespaces: capabilities and system call filters.

pub mod capabilities;
pub mod jail;
pub mod lsm;
pub mod seccomp;
