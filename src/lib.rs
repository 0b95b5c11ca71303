//! ferry: an OCI container runtime. This file is the map.
//!
//! A verb goes from the command line to the kernel in one direction:
//!
//! ```text
//! argv -> cli -> lifecycle verb
//!    spec::load      config.json -> Config      checked once; nothing later asks "is it there?"
//!    host::probe     what this kernel and user may do
//!    launch::plan    (Config, Host, Options) -> Plan      pure data: printable, compared as a value in tests
//!    cgroup, clone3(CLONE_INTO_CGROUP | every new namespace)
//!         child: a table of named steps applies the Plan, answers Ready or Failed{step, errno}
//!    container::record   saved by rename
//! start: opens the gate; the child executes the program
//! ```
//!
//! # Ranks
//!
//! A module imports from lower ranks and from its own folder, never upwards; `tests/tidy.rs` holds it to that.
//!
//! | rank | modules | what they are |
//! |---|---|---|
//! | 0 | `sys` | raw kernel calls the crates lack, the only `unsafe` |
//! | 1 | `error`, `log`, `passwd`, `path`, `procfs`, `host` | what everything stands on |
//! | 2 | `spec` | config.json as checked types |
//! | 3 | `namespaces`, `rootfs`, `security`, `process`, `cgroup`, `network`, `image` | the parts of a container |
//! | 4 | `container` | a container's record on disk |
//! | 5 | `launch` | plan, clone, handshake, steps |
//! | 6 | `checkpoint`, `migrate` | a container's life in a file, and elsewhere |
//! | 7 | `lifecycle` | one file a verb, no printing |
//! | 8 | `cli`, `shim` | one file a verb: arguments, lifecycle, print; and the same verbs for containerd |
//!
//! # Invariants
//!
//! 1. The process that clones is single-threaded.
//! 2. One handshake, in `launch::protocol`: one enum, one diagram. An unknown message is an error.
//! 3. Failure at any point leaves nothing. `kill -9` at any system call is cleaned up by `delete --force`.
//! 4. An error is returned or logged, never both; only `main` prints it.
//! 5. Paths a container controls are only touched through `path::Root`; `/proc` seen by it only through `procfs`.
//! 6. Every vocabulary has one table, from which checks, `features`, `explain`, help and man pages derive.
//! 7. A record is versioned, replaced by rename, locked while changed; liveness is pid and start time.
//! 8. Checkpoints, images, archives, state files and peers are hostile input.
//! 9. A limit that cannot be enforced is an error that names the controller; it is never dropped in silence.
//!
//! # Decisions that are not obvious
//!
//! - A record is replaced by rename and not synced to disk: it describes a process, which ends with the machine
//!   (`container::record`).
//! - The gate of a created container is a socket, so that `start` learns whether the program was executed
//!   (`launch::gate`).
//! - Host and child work at the same time: the record is saved, limits are written and the device program is loaded
//!   while the child mounts (`launch::parent`).
//! - The last program before the container's own is a stub of a few hundred bytes in a sealed memory file, which keeps
//!   the host's binary out of reach for 0.04 ms (`sys::stub`).
//! - Paths inside the root are resolved by openat2 directly: pathrs reopens through procfs where directories are made,
//!   which would cost more than all mounts together (`path`).
//! - The kernel is asked for nothing by way of the C library's databases, which a static program would load at run time
//!   (`passwd`).

pub mod cgroup;
pub mod checkpoint;
pub mod cli;
pub mod container;
pub mod error;
pub mod host;
pub mod image;
pub mod launch;
pub mod lifecycle;
pub mod log;
pub mod migrate;
pub mod namespaces;
pub mod network;
pub mod passwd;
pub mod path;
pub mod process;
pub mod procfs;
pub mod rootfs;
pub mod security;
pub mod shim;
pub mod spec;
pub mod sys;
