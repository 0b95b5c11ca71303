//! How much the container's interfaces may carry, asked for by annotation: what goes out waits in a token bucket (`tbf`),
//! what comes in beyond the rate is dropped (`police`), since it has come already.
//!
//! All interfaces of the container's network namespace but the loopback are held to it, whoever put them there: a namespace
//! joined by path, `linux.netDevices`, or an engine's hook. So it happens after the createRuntime hooks and before anything
//! of the container's runs. A namespace that several containers share has one rate, the one asked for last. A container with
//! CAP_NET_ADMIN over its namespace can take it away again.
//!
//! Source: tc-tbf(8), tc-police(8); include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h.

use std::collections::BTreeMap;
use std::fs::File;

use nix::errno::Errno;
use serde::Serialize;

use super::netlink::{
    NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, RTM_GETLINK, Socket, attributes, link, push_attribute, word,
};
use super::socket_in;
use crate::error::{Context, Error, Result};

/// What the annotations begin with, of which `spec::extensions` has a row each: a rate in bits each second, with `k`, `M` or
/// `G` for thousands, millions or billions.
pub const PREFIX: &str = "dev.ferry.network.";

/// Rates in bits each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bandwidth {
    /// Of what the container sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<u64>,
    /// Of what it receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<u64>,
}

/// Plans the rates, if any is asked for.
///
/// # Errors
/// A value that is no rate, a container on the host's network, a caller that may not.
pub fn plan(
    annotations: &BTreeMap<String, String>,
    own_network: impl Fn() -> bool,
    privileged: bool,
) -> Result<Option<Bandwidth>> {
    let mut bandwidth = Bandwidth { egress: None, ingress: None };
    for (key, value) in annotations {
        let Some(direction) = key.strip_prefix(PREFIX) else { continue };
        let refused = |why: &str| Err(Error::config(format!("annotations.{key}"), format!("{value:?}: {why}")));
        let place = match direction {
            "egress" => &mut bandwidth.egress,
            "ingress" => &mut bandwidth.ingress,
            _ => return refused("there is egress and ingress"),
        };
        let Some(rate) = rate(value) else {
            return refused("it is a number of bits each second, from 8k on, with k, M or G behind it: 10M");
        };
        if !own_network() {
            return refused("the container shares the host's network, which it would limit");
        }
        if !privileged {
            return refused("only root may shape what a network interface carries");
        }
        *place = Some(rate);
    }
    Ok((bandwidth != Bandwidth { egress: None, ingress: None }).then_some(bandwidth))
}

/// Less than a packet each second is no rate to work with.
const LEAST: u64 = 8_000;

fn rate(text: &str) -> Option<u64> {
    let (digits, factor) = match text.strip_suffix(['k', 'M', 'G']) {
        Some(digits) if text.ends_with('k') => (digits, 1_000),
        Some(digits) if text.ends_with('M') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000_000_000),
        None => (text, 1),
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse::<u64>().ok())??.checked_mul(factor).filter(|rate| *rate >= LEAST)
}

/// Holds every interface of a network namespace to the rates.
///
/// # Errors
/// There is none but the loopback; a kernel without what it takes; a shaper of somebody else's.
pub fn limit(bandwidth: &Bandwidth, namespace: &File) -> Result<()> {
    let socket = socket_in(namespace)?;
    let links = socket.ask(RTM_GETLINK, NLM_F_DUMP, &link(0, 0, 0)).or_cannot("list", "network interfaces")?;
    let interfaces: Vec<(i32, String)> = links.iter().filter_map(|message| interface(message)).collect();
    if interfaces.is_empty() {
        let hint = "interfaces come by linux.netDevices, by a namespace that has some, or by a createRuntime hook";
        let why = "it has no network interface but the loopback";
        return Err(Error::said("limit", "the container's network", why).hint(hint));
    }
    for (index, name) in &interfaces {
        if let Some(rate) = bandwidth.egress {
            egress(&socket, *index, rate).or_cannot("limit what goes out by", name).map_err(explained)?;
        }
        if let Some(rate) = bandwidth.ingress {
            ingress(&socket, *index, rate).or_cannot("limit what comes in by", name).map_err(explained)?;
        }
    }
    Ok(())
}

fn explained(error: Error) -> Error {
    match error.errno() {
        Some(Errno::ENOENT) => error.hint(
            "this kernel lacks a queueing discipline, classifier or action: it takes CONFIG_NET_SCH_TBF for what goes out, \
             and CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_MATCHALL and CONFIG_NET_ACT_POLICE for what comes in",
        ),
        Some(Errno::EEXIST) => error.hint("somebody else shapes this interface already: tc qdisc show"),
        _ => error,
    }
}

/// Index and name of an interface that is not the loopback.
fn interface(message: &[u8]) -> Option<(i32, String)> {
    const IFLA_IFNAME: u16 = 3;
    let (index, flags) = (word(message, 4)?, word(message, 8)?);
    let named = attributes(message.get(16..)?).into_iter().find(|(kind, _)| *kind == IFLA_IFNAME);
    let name = String::from_utf8_lossy(named.map_or(b"?\0".as_slice(), |(_, name)| name));
    let loopback = flags & libc::IFF_LOOPBACK as u32 != 0;
    (!loopback).then(|| Some((i32::try_from(index).ok()?, name.trim_end_matches('\0').to_owned())))?
}

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// Ours among the queueing disciplines (as major number) and filters (as priority) of an interface.
const OURS: u32 = 0xfe77;

/// A token bucket as the root discipline. One that ferry made before is changed; the kernel's default gives way by itself.
fn egress(socket: &Socket, index: i32, rate: u64) -> std::result::Result<(), Errno> {
    const TC_H_ROOT: u32 = 0xffff_ffff;
    const TCA_TBF_PARMS: u16 = 1;
    const TCA_TBF_RATE64: u16 = 4;
    const TCA_TBF_BURST: u16 = 6;
    let rate = rate / 8;
    // Tokens of a twentieth of a second, so that a host whose timers come late loses none, and some packets at least; twice as
    // much may wait before any is dropped.
    let burst = short(rate / 20).max(16 << 10);
    let limit = short(rate / 10).max(64 << 10);
    let mut parameters = rate_specification(rate, 0);
    parameters.extend_from_slice(&[0; 12]); // no peak rate
    [limit, 0, 0].iter().for_each(|number| parameters.extend_from_slice(&number.to_ne_bytes()));
    let mut options = Vec::new();
    push_attribute(&mut options, TCA_TBF_PARMS, &parameters);
    push_attribute(&mut options, TCA_TBF_RATE64, &rate.to_ne_bytes());
    push_attribute(&mut options, TCA_TBF_BURST, &burst.to_ne_bytes());
    let body = traffic_control(index, OURS << 16, TC_H_ROOT, 0, "tbf", &options);
    match socket.ask(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &body) {
        Err(Errno::EEXIST) => match socket.ask(RTM_NEWQDISC, 0, &body) {
            Err(Errno::ENOENT | Errno::EINVAL) => Err(Errno::EEXIST),
            answer => answer.map(drop),
        },
        answer => answer.map(drop),
    }
}

/// A filter for all packets that drops those beyond the rate, at the interface's entrance. Filters of others stay.
fn ingress(socket: &Socket, index: i32, rate: u64) -> std::result::Result<(), Errno> {
    const TC_H_CLSACT: u32 = 0xffff_fff1;
    const CLSACT_HANDLE: u32 = 0xffff_0000;
    const CLSACT_INGRESS: u32 = 0xffff_fff2;
    let entrance = traffic_control(index, CLSACT_HANDLE, TC_H_CLSACT, 0, "clsact", &[]);
    match socket.ask(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &entrance) {
        Err(Errno::EEXIST) | Ok(_) => (),
        Err(answer) => return Err(answer),
    }
    let information = OURS << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
    let filter = traffic_control(index, 0, CLSACT_INGRESS, information, "matchall", &police(rate / 8));
    let add = || socket.ask(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &filter);
    match add() {
        Err(Errno::EEXIST) => {
            let named = traffic_control(index, 0, CLSACT_INGRESS, information, "matchall", &[]);
            socket.ask(RTM_DELTFILTER, 0, &named)?;
            add().map(drop)
        }
        answer => answer.map(drop),
    }
}

/// The options of a `matchall` filter with one action, `police`; `rate` in bytes each second.
fn police(rate: u64) -> Vec<u8> {
    const TCA_MATCHALL_ACT: u16 = 2;
    const FIRST: u16 = 1;
    const TCA_ACT_KIND: u16 = 1;
    const TCA_ACT_OPTIONS: u16 = 2;
    const TCA_POLICE_TBF: u16 = 1;
    const TCA_POLICE_RATE: u16 = 2;
    const TCA_POLICE_RATE64: u16 = 8;
    const TC_ACT_SHOT: u32 = 2;
    /// Of the table of old, which must be there and is not read: TC_RTAB_SIZE.
    const TABLE: [u8; 1024] = [0; 1024];
    /// Cells so wide that 255 of them hold what an interface may have gathered from several packets.
    const CELL_LOG: u8 = 10;
    /// The kernel's tick in nanoseconds: 1 << PSCHED_SHIFT.
    const TICK: u64 = 64;
    // A twentieth of a second, and two gathered packets at least.
    let burst = (rate / 20).max(128 << 10);
    let ticks = u128::from(burst) * 1_000_000_000 / u128::from(rate.max(1)) / u128::from(TICK);
    let mut parameters = Vec::new();
    [0, TC_ACT_SHOT, 0, u32::try_from(ticks).unwrap_or(u32::MAX), 0]
        .iter()
        .for_each(|number| parameters.extend_from_slice(&number.to_ne_bytes()));
    parameters.extend_from_slice(&rate_specification(rate, CELL_LOG));
    parameters.extend_from_slice(&[0; 12 + 3 * 4]); // no peak rate; what the kernel fills in
    let mut options = Vec::new();
    push_attribute(&mut options, TCA_POLICE_TBF, &parameters);
    push_attribute(&mut options, TCA_POLICE_RATE, &TABLE);
    push_attribute(&mut options, TCA_POLICE_RATE64, &rate.to_ne_bytes());
    let mut action = Vec::new();
    push_attribute(&mut action, TCA_ACT_KIND, b"police\0");
    push_attribute(&mut action, TCA_ACT_OPTIONS, &options);
    let mut actions = Vec::new();
    push_attribute(&mut actions, FIRST, &action);
    let mut filter = Vec::new();
    push_attribute(&mut filter, TCA_MATCHALL_ACT, &actions);
    filter
}

/// `struct tc_ratespec` of an Ethernet-like link; `rate` in bytes each second, or as much as it can say.
fn rate_specification(rate: u64, cell_log: u8) -> Vec<u8> {
    const TC_LINKLAYER_ETHERNET: u8 = 1;
    let mut specification = vec![cell_log, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    specification.extend_from_slice(&short(rate).to_ne_bytes());
    specification
}

fn short(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `struct tcmsg`, the kind, and its options.
fn traffic_control(index: i32, handle: u32, parent: u32, information: u32, kind: &str, options: &[u8]) -> Vec<u8> {
    let mut body = vec![0; 4]; // family, padding
    body.extend_from_slice(&index.to_ne_bytes());
    [handle, parent, information].iter().for_each(|number| body.extend_from_slice(&number.to_ne_bytes()));
    push_attribute(&mut body, TCA_KIND, &[kind.as_bytes(), &[0]].concat());
    if !options.is_empty() {
        push_attribute(&mut body, TCA_OPTIONS, options);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(direction: &str, value: &str) -> Result<Option<Bandwidth>> {
        plan(&BTreeMap::from([(format!("{PREFIX}{direction}"), value.into())]), || true, true)
    }

    #[test]
    fn rates() {
        let egress = |rate| Ok(Some(Bandwidth { egress: Some(rate), ingress: None }));
        assert_eq!(planned("egress", "8000"), egress(8_000));
        assert_eq!(planned("egress", "64k"), egress(64_000));
        assert_eq!(planned("egress", "10M"), egress(10_000_000));
        assert_eq!(planned("ingress", "40G"), Ok(Some(Bandwidth { egress: None, ingress: Some(40_000_000_000) })));
        for nonsense in ["", "M", "7999", "0", "-1", "+9000", "1.5M", "10m", "10 M", "10Mbit", "99999999999999G"] {
            let error = planned("egress", nonsense).unwrap_err().to_string();
            assert!(error.contains("dev.ferry.network.egress") && error.contains("bits each second"), "{error}");
        }
        assert!(planned("outgress", "10M").unwrap_err().to_string().contains("egress and ingress"));
    }

    #[test]
    fn who_and_where() {
        let asked = BTreeMap::from([("dev.ferry.network.egress".into(), "1M".into())]);
        assert!(plan(&asked, || false, true).unwrap_err().to_string().contains("shares the host's network"));
        assert!(plan(&asked, || true, false).unwrap_err().to_string().contains("only root"));
        assert_eq!(plan(&BTreeMap::new(), || false, false), Ok(None));
    }

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(rate_specification(u64::MAX, 3), [3, 1, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
        let filter = police(1_000_000);
        let nested = |bytes: &[u8], kind: u16| -> Vec<u8> {
            attributes(bytes).into_iter().find(|(found, _)| *found == kind).map(|(_, value)| value.to_vec()).unwrap()
        };
        let action = nested(&nested(&filter, 2), 1);
        assert_eq!(nested(&action, 1), b"police\0");
        let parameters = nested(&nested(&action, 2), 1);
        assert_eq!(parameters.len(), 56, "struct tc_police");
        assert_eq!(word(&parameters, 12), Some(2_048_000), "131072 bytes at a megabyte each second, in ticks of 64 ns");
    }
}
