//! Network interfaces of the container's own namespace: the loopback interface is brought up, and interfaces of the host
//! are moved in. rtnetlink(7)

pub mod devices;
pub mod netlink;

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
