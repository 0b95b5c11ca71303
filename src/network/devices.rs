//! `linux.netDevices`: interfaces of the host that are moved into the container's network namespace.
//!
//! An interface loses its addresses on the way and is down after it: the permanent ones of global scope are given again,
//! and it is brought up. Everything that can be known to fail is looked at before the first one is moved. A container that
//! cannot be created gives them back, with what they had. After that nothing is moved back: when the namespace ends,
//! physical interfaces return by themselves and virtual ones end with it. config-linux.md#network-devices

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use serde::Serialize;

use super::netlink::{
    NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK, Socket, attributes, link,
    push_attribute, word,
};
use super::{IFF_UP, socket_in};
use crate::error::{Context, Error, Result};
use crate::spec::config::NetDevice;

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name on the host.
    pub name: String,
    /// Its name inside; `%d` in it is a number that the kernel chooses.
    pub inside: String,
}

/// Plans the interfaces.
///
/// # Errors
/// No network namespace to move them to, a caller that may not, a name that is none or is given twice.
pub fn plan(
    configured: &BTreeMap<String, NetDevice>,
    own_network: impl Fn() -> bool,
    privileged: bool,
) -> Result<Vec<Device>> {
    const AT: &str = "linux.netDevices";
    if configured.is_empty() {
        return Ok(Vec::new());
    }
    if !own_network() {
        return Err(Error::config(AT, "needs a network namespace to move them to, and linux.namespaces has none"));
    }
    if !privileged {
        return Err(Error::config(AT, "only root can take an interface from the host's network namespace"));
    }
    let mut devices: Vec<Device> = Vec::new();
    for (name, device) in configured {
        let inside = if device.name.is_empty() { name } else { &device.name };
        if !is_name(name) || name.contains('%') {
            return Err(Error::config(format!("{AT}.{name}"), "is not the name of an interface"));
        }
        if !is_name(inside) {
            return Err(Error::config(
                format!("{AT}.{name}.name"),
                format!("{inside:?} is not the name of an interface"),
            ));
        }
        if !inside.contains('%') && devices.iter().any(|earlier| earlier.inside == *inside) {
            return Err(Error::config(format!("{AT}.{name}.name"), format!("{inside} is the name of two interfaces")));
        }
        // Which number the kernel chooses depends on what is there when that one is moved.
        let meets = |other: &&Device| may_become(inside, &other.inside) || may_become(&other.inside, inside);
        if let Some(other) = devices.iter().find(meets) {
            let why = format!("{inside} and {} of {} may come to the same name", other.inside, other.name);
            return Err(Error::config(format!("{AT}.{name}.name"), why));
        }
        devices.push(Device { name: name.clone(), inside: inside.clone() });
    }
    Ok(devices)
}

/// Whether the kernel may choose `name` for a template.
fn may_become(template: &str, name: &str) -> bool {
    let number = template.split_once("%d").and_then(|(begin, end)| name.strip_prefix(begin)?.strip_suffix(end));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// As dev_valid_name() in net/core/dev.c, and at most one `%d`.
fn is_name(name: &str) -> bool {
    const LONGEST: usize = 15;
    let template = name.replacen("%d", "", 1);
    (1..=LONGEST).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.bytes().any(|byte| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace())
        && !template.contains('%')
}

/// An address to be given again: `struct ifaddrmsg` without its index, and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

/// Interfaces that were moved, for as long as they may have to be given back. The namespace lasts as long as this.
#[derive(Debug)]
pub struct Moved {
    host: Socket,
    own: File,
    inside: Socket,
    interfaces: Vec<Interface>,
}

/// One of them, as it was on the host.
#[derive(Debug)]
struct Interface {
    name: String,
    index: i32,
    is_up: bool,
    addresses: Vec<Address>,
}

/// Finds all of them in ferry's network namespace.
///
/// # Errors
/// An interface that is not there.
pub fn look_for(devices: &[Device]) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let host = Socket::open().or_cannot("open", "a route socket")?;
    devices.iter().try_for_each(|device| on_host(&host, device).map(drop))
}

fn on_host(host: &Socket, device: &Device) -> Result<(i32, bool)> {
    let found = find(host, &device.name).or_cannot("find network interface", &device.name);
    found.map_err(|error| match error.errno() {
        Some(Errno::ENODEV) => error.hint("linux.netDevices names it, and the host has no such interface"),
        _ => error,
    })
}

/// Moves the interfaces from ferry's network namespace to `namespace`.
///
/// # Errors
/// An interface that is not there, a name that is taken inside, the kernel's answer; none is moved then.
pub fn move_in(devices: &[Device], namespace: &File) -> Result<Moved> {
    let host = Socket::open().or_cannot("open", "a route socket")?;
    let own = File::open("/proc/self/ns/net").or_cannot("open", "/proc/self/ns/net")?;
    let mut moved = Moved { host, own, inside: socket_in(namespace)?, interfaces: Vec::new() };
    let mut found = Vec::new();
    for device in devices {
        let named = &device.name;
        let (index, is_up) = on_host(&moved.host, device)?;
        match find(&moved.inside, &device.inside) {
            Err(Errno::ENODEV) => (),
            Ok(_) => {
                let why = format!("the container's network namespace has an interface {} already", device.inside);
                return Err(
                    Error::said("move network interface", named, why).hint("give it another name, or one with %d")
                );
            }
            Err(answer) => return Err(Error::kernel("find network interface", &device.inside, answer)),
        }
        let addresses = addresses(&moved.host, index).or_cannot("read the addresses of", named)?;
        found.push((device, Interface { name: named.clone(), index, is_up, addresses }));
    }
    for (device, interface) in found {
        if let Err(error) = moved.take(device, interface, namespace) {
            return Err(error.and_then(moved.give_back()));
        }
    }
    Ok(moved)
}

const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;

impl Moved {
    fn take(&mut self, device: &Device, mut interface: Interface, namespace: &File) -> Result<()> {
        let named = || format!("{} to the container", device.name);
        let template = device.inside.contains('%');
        // A name that the kernel chooses could not be asked for afterwards: it is chosen once the interface is found again.
        let name = if template { format!("ferry{}", interface.index) } else { device.inside.clone() };
        let sent = self.host.ask(RTM_NEWLINK, 0, &to(interface.index, &name, namespace));
        sent.or_cannot("move network interface", named()).map_err(|error| match error.errno() {
            Some(Errno::EINVAL) => {
                error.hint("an interface of this kind stays in the network namespace it was made in")
            }
            _ => error,
        })?;
        let (index, _) = find(&self.inside, &name).or_cannot("find network interface", &name)?;
        interface.index = index;
        let addresses = interface.addresses.clone();
        self.interfaces.push(interface);
        if template {
            let mut body = link(index, 0, 0);
            push_attribute(&mut body, IFLA_IFNAME, &terminated(&device.inside));
            self.inside.ask(RTM_NEWLINK, 0, &body).or_cannot("rename network interface to", &device.inside)?;
        }
        equip(&self.inside, index, &device.name, &addresses, true)
    }

    /// Moves them back to where they were, under the names they had, for a container that comes to nothing.
    ///
    /// # Errors
    /// The kernel's answer about the first that could not be given back whole; the others are.
    pub fn give_back(self) -> Result<()> {
        let mut ended = Ok(());
        for interface in &self.interfaces {
            let one = self.give_one_back(interface);
            ended = ended.and(one);
        }
        ended
    }

    fn give_one_back(&self, Interface { name, index, is_up, addresses }: &Interface) -> Result<()> {
        let sent = self.inside.ask(RTM_NEWLINK, 0, &to(*index, name, &self.own));
        sent.or_cannot("move back network interface", name)?;
        let (index, _) = find(&self.host, name).or_cannot("find network interface", name)?;
        equip(&self.host, index, name, addresses, *is_up)
    }
}

/// The body of a message that moves an interface, and names it.
fn to(index: i32, name: &str, namespace: &File) -> Vec<u8> {
    let mut body = link(index, 0, 0);
    push_attribute(&mut body, IFLA_IFNAME, &terminated(name));
    push_attribute(&mut body, IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
    body
}

/// Gives an interface what it has lost on the way.
fn equip(socket: &Socket, index: i32, name: &str, addresses: &[Address], up: bool) -> Result<()> {
    for address in addresses {
        let given = socket.ask(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &address.body(index));
        given.or_cannot("give back an address of network interface", name)?;
    }
    if !up {
        return Ok(());
    }
    let up = socket.ask(RTM_NEWLINK, 0, &link(index, IFF_UP, IFF_UP));
    up.map(drop).or_cannot("bring up network interface", name)
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// The index of an interface, and whether it is up.
fn find(socket: &Socket, name: &str) -> std::result::Result<(i32, bool), Errno> {
    let mut body = link(0, 0, 0);
    push_attribute(&mut body, IFLA_IFNAME, &terminated(name));
    let answers = socket.ask(RTM_GETLINK, 0, &body)?;
    let told = answers.first().and_then(|answer| Some((word(answer, 4)?, word(answer, 8)?)));
    let found = told.and_then(|(index, flags)| Some((i32::try_from(index).ok()?, flags & IFF_UP != 0)));
    found.ok_or(Errno::EPROTO)
}

fn addresses(socket: &Socket, index: i32) -> std::result::Result<Vec<Address>, Errno> {
    // struct ifaddrmsg, all zeros: every family.
    let answers = socket.ask(RTM_GETADDR, NLM_F_DUMP, &[0; 8])?;
    Ok(answers.iter().filter_map(|answer| address(answer, index)).collect())
}

/// An address of this interface, if it is to be kept: permanent and of global scope.
fn address(message: &[u8], index: i32) -> Option<Address> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_BROADCAST: u16 = 4;
    const IFA_FLAGS: u16 = 8;
    const IFA_RT_PRIORITY: u16 = 9;
    const IFA_F_PERMANENT: u32 = 0x80;
    /// IFA_F_NODAD, _HOMEADDRESS, _MANAGETEMPADDR, _NOPREFIXROUTE, _MCAUTOJOIN: those that are set from outside.
    const KEPT: u32 = 0x02 | 0x10 | 0x100 | 0x200 | 0x400;
    let [family, prefix, flags, scope] = *message.get(..4)? else { return None };
    let all = attributes(message.get(8..)?);
    let wide = all.iter().find(|(kind, _)| *kind == IFA_FLAGS).and_then(|(_, value)| word(value, 0));
    let flags = wide.unwrap_or(u32::from(flags));
    if word(message, 4)? != index as u32 || scope != 0 || flags & IFA_F_PERMANENT == 0 {
        return None;
    }
    let copied = |kind: &u16| matches!(*kind, IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST | IFA_RT_PRIORITY);
    let mut attributes: Vec<(u16, Vec<u8>)> =
        all.iter().filter(|(kind, _)| copied(kind)).map(|(kind, value)| (*kind, value.to_vec())).collect();
    attributes.push((IFA_FLAGS, (flags & KEPT).to_ne_bytes().to_vec()));
    Some(Address { family, prefix, attributes })
}

impl Address {
    /// The body of a message that gives it to an interface.
    fn body(&self, index: i32) -> Vec<u8> {
        let mut body = vec![self.family, self.prefix, 0, 0];
        body.extend_from_slice(&index.to_ne_bytes());
        self.attributes.iter().for_each(|(kind, value)| push_attribute(&mut body, *kind, value));
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, inside: &str) -> Result<Vec<Device>> {
        plan(&BTreeMap::from([(name.into(), NetDevice { name: inside.into() })]), || true, true)
    }

    #[test]
    fn names() {
        let device = |name: &str, inside: &str| Ok(vec![Device { name: name.into(), inside: inside.into() }]);
        assert_eq!(planned("eth0", ""), device("eth0", "eth0"));
        assert_eq!(planned("eth0", "net%d"), device("eth0", "net%d"));
        let error = |name, inside| planned(name, inside).unwrap_err().to_string();
        assert_eq!(error("eth/0", ""), "linux.netDevices.eth/0: is not the name of an interface");
        for inside in ["a%s", "a%d%d", "sixteen-letters-", "a b", "..", "a:1"] {
            assert!(error("eth0", inside).starts_with("linux.netDevices.eth0.name: "), "{inside}");
        }
        assert!(error("eth%d", "x").starts_with("linux.netDevices.eth%d: "));
        let both = |inside: &str| {
            let device = || NetDevice { name: inside.into() };
            plan(&BTreeMap::from([("a".into(), device()), ("b".into(), device())]), || true, true)
        };
        assert!(both("x").unwrap_err().to_string().ends_with("x is the name of two interfaces"));
        assert_eq!(both("x%d").unwrap().len(), 2);
        let pair = |first: &str, second: &str| {
            let device = |inside: &str| NetDevice { name: inside.into() };
            plan(&BTreeMap::from([("a".into(), device(first)), ("b".into(), device(second))]), || true, true)
        };
        for (first, second) in [("x%d", "x0"), ("x12", "x%d"), ("%dx", "7x")] {
            let error = pair(first, second).unwrap_err().to_string();
            assert!(
                error.starts_with("linux.netDevices.b.name: ") && error.ends_with("come to the same name"),
                "{error}"
            );
        }
        assert!(pair("x%d", "x").is_ok() && pair("x%d", "xy").is_ok() && pair("x%d", "y0").is_ok());
    }

    #[test]
    fn who_and_where() {
        let devices = BTreeMap::from([("eth0".into(), NetDevice::default())]);
        assert!(plan(&devices, || false, true).unwrap_err().to_string().contains("needs a network namespace"));
        assert!(plan(&devices, || true, false).unwrap_err().to_string().contains("only root"));
        assert_eq!(plan(&BTreeMap::new(), || false, false), Ok(Vec::new()));
    }

    #[test]
    fn only_permanent_addresses_of_global_scope_are_kept() {
        let message = |flags: u8, scope: u8, index: i32| {
            let mut message = vec![2, 24, flags, scope];
            message.extend_from_slice(&index.to_ne_bytes());
            push_attribute(&mut message, 2, &[10, 0, 0, 1]);
            push_attribute(&mut message, 3, b"eth0\0");
            message
        };
        let kept = address(&message(0x80, 0, 5), 5).unwrap();
        assert_eq!(kept.attributes, [(2, vec![10, 0, 0, 1]), (8, vec![0; 4])]);
        assert_eq!(kept.body(7)[..8], [&[2, 24, 0, 0][..], &7i32.to_ne_bytes()].concat());
        assert_eq!(address(&message(0x80, 0, 5), 6), None, "another interface's");
        assert_eq!(address(&message(0x80, 253, 5), 5), None, "link scope");
        assert_eq!(address(&message(0, 0, 5), 5), None, "one with a lifetime");
    }
}
