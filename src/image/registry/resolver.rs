//! Names of servers, asked of the system's `getent`.
//!
//! ferry is linked statically. The C library's own lookup would load the modules that nsswitch.conf(5) names into such a
//! program at run time, and those are built for the library of the system. `getent` is the system's.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Looks names up as the system's own programs do.
#[derive(Debug)]
pub struct Getent;

impl Resolver for Getent {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or_else(|| ureq::Error::BadUri(uri.to_string()))?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut found = self.empty();
        for address in addresses(host).map_err(ureq::Error::Io)?.into_iter().take(16) {
            found.push(SocketAddr::new(address, port));
        }
        if found.is_empty() { Err(ureq::Error::HostNotFound) } else { Ok(found) }
    }
}

/// The addresses of a host, by name or spelled out.
fn addresses(host: &str) -> std::io::Result<Vec<IpAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    let asked = Command::new("getent").args(["ahosts", "--", bare]).output();
    let output = asked.map_err(|error| {
        std::io::Error::new(error.kind(), format!("getent, which knows the addresses of names: {error}"))
    })?;
    Ok(listed(&String::from_utf8_lossy(&output.stdout)))
}

/// `ADDRESS KIND NAME` a line, an address once for each kind of socket.
fn listed(text: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for address in text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_counts_once() {
        let text = "::1 STREAM localhost\n::1 DGRAM\n::1 RAW\n127.0.0.1 STREAM\nfe80::1%eth0 STREAM\n";
        assert_eq!(listed(text), ["::1".parse::<IpAddr>().unwrap(), "127.0.0.1".parse().unwrap()]);
        assert_eq!(addresses("[::1]").unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
    }
}
