//! `containerd-shim-ferry-v2`: containerd's runtime interface, version 2, without a runtime's command line in between.
//!
//! containerd starts the program with `start` in a bundle and reads from it the address of a socket; there it calls the Task
//! service by ttrpc. One process serves all containers of a pod.
//!
//! ```text
//! containerd ── start ──▶ shim ──fork──▶ server ──fork──▶ worker ──clone──▶ the container
//!      │  ◀── address ──┘                  │  ◀── result ───┘ (gone)           │
//!      └──── ttrpc: Create, Start, … ────▶ │ ◀────────── its end ──────────────┘
//! ```
//!
//! **No thread is ever started here**, for two reasons. The process that clones a container must be single-threaded: the
//! clone goes on to allocate, and another thread might have held the allocator's lock. And threads are most of what other
//! shims weigh. So the server is one loop around poll(2) (`server`), and whatever may take its time (making a container,
//! starting it, a checkpoint) is done by a worker: a fork of the server that calls the same function of `lifecycle` as the
//! command line does, answers over a socket, and ends (`work`). It executes nothing, so it costs a fork and no more
//! (0.13 to 0.6 ms under strace on a busy machine), and what a verb changes about its process (blocked signals, limits,
//! namespaces that it enters) ends with it. The server is a subreaper: a container whose worker has gone is its child, and
//! tells its end to nobody else.
//!
//! The protocol is version 2 and 3 of the Task service, which differ in their name alone: containerd 1.6 to 2.x.

mod arguments;
mod console;
mod events;
mod failure;
mod frames;
mod limit;
mod logger;
mod messages;
mod metrics;
mod mounts;
mod process;
mod server;
mod service;
mod settings;
mod start;
mod stdio;
mod work;

pub use arguments::run;
