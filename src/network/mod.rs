//! Network interfaces of the container's own namespace: the loopback interface is brought up, interfaces of the host are
//! moved in, and what they carry is limited. rtnetlink(7)

pub mod bandwidth;
pub mod devices;
pub mod netlink;

use std::fs::File;

use nix::sched::{CloneFlags, setns};

use crate::error::{Context, Result};
use netlink::{RTM_NEWLINK, Socket, link};

/// A new network namespace has its loopback interface at this index, down.
const LOOPBACK: i32 = 1;
/// `IFF_UP`: linux/if.h.
const IFF_UP: u32 = libc::IFF_UP as u32;

/// Brings the loopback interface of this network namespace up.
///
/// # Errors
/// EPERM without CAP_NET_ADMIN over the namespace.
pub fn loopback_up() -> Result<()> {
    let socket = Socket::open().or_cannot("open", "a route socket")?;
    let up = socket.ask(RTM_NEWLINK, 0, &link(LOOPBACK, IFF_UP, IFF_UP));
    up.map(drop).or_cannot("bring up", "the loopback interface")
}

/// A socket stays in the namespace it was made in, so ferry enters the other one only for that.
fn socket_in(namespace: &File) -> Result<Socket> {
    let own = File::open("/proc/self/ns/net").or_cannot("open", "/proc/self/ns/net")?;
    setns(namespace, CloneFlags::CLONE_NEWNET).or_cannot("enter", "the container's network namespace")?;
    let socket = Socket::open();
    setns(own, CloneFlags::CLONE_NEWNET).or_cannot("return to", "ferry's own network namespace")?;
    socket.or_cannot("open", "a route socket")
}
