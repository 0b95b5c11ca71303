//! Which servers are reached by no proxy, beside those that the HTTP library knows by their names in `NO_PROXY`.

use std::net::IpAddr;

use ureq::RequestBuilder;
use ureq::http::Uri;

use super::endpoint::is_loopback;

/// Takes the proxy of the environment from a request that is not for it. This machine is never reached by one: it is spoken to
/// without TLS on the ground that nothing leaves it.
pub fn unless_near<B>(request: RequestBuilder<B>) -> RequestBuilder<B> {
    let excepted = || std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy")).unwrap_or_default();
    let near = |host: &str| is_loopback(host) || is_within(host, &excepted());
    match request.uri_ref().and_then(Uri::host).is_some_and(near) {
        true => request.config().proxy(None).build(),
        false => request,
    }
}

/// Whether an address is of one of the networks in a list: `10.0.0.0/8, fd00::/8`.
fn is_within(host: &str, list: &str) -> bool {
    let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() else { return false };
    let networks = list.split(',').filter_map(|entry| entry.trim().split_once('/'));
    // The bits of both that differ, those of a network first.
    networks.filter_map(|(network, bits)| Some((network.parse().ok()?, bits.parse().ok()?))).any(
        |(network, bits): (IpAddr, u32)| match (address, network) {
            (IpAddr::V4(one), IpAddr::V4(other)) => bits <= (one.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V6(one), IpAddr::V6(other)) => bits <= (one.to_bits() ^ other.to_bits()).leading_zeros(),
            _ => false,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_own_addresses() {
        let list = "example.com, 10.0.0.0/8,192.0.2.7/32,fd00::/8,198.51.100.0/33,nothing/8,203.0.113.0/";
        for (host, expected) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.6", false),
            ("[fd12::1]", true),
            ("[fe80::1]", false),
            ("198.51.100.1", false),
            ("203.0.113.0", false),
            ("example.com", false),
        ] {
            assert_eq!(is_within(host, list), expected, "{host}");
        }
        assert!(is_within("192.0.2.1", "0.0.0.0/0") && is_within("[2001:db8::1]", "::/0"));
        assert!(!is_within("192.0.2.1", "::/0") && !is_within("192.0.2.1", ""));
    }
}
