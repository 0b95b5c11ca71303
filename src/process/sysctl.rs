//! Kernel parameters of the container's namespaces.
//!
//! They are written through the host's `/proc/sys`, before the container's mounts can be in the way (CVE-2025-52881): what
//! the files change depends on the namespaces of the process that writes. So only parameters that belong to a namespace
//! which the container has to itself may be given. sysctl is in config-linux.md#sysctl.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;

use nix::errno::Errno;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::namespaces::{Kind, Namespaces};

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sysctl {
    /// Below `/proc/sys`, with slashes.
    pub file: String,
    /// What is written.
    pub value: String,
}

/// Parameters that belong to a namespace: a name or a prefix (with its dot), and the namespace.
const TABLE: [(&str, Kind); 13] = [
    ("fs.mqueue.", Kind::Ipc),
    ("kernel.domainname", Kind::Uts),
    ("kernel.hostname", Kind::Uts),
    ("kernel.msgmax", Kind::Ipc),
    ("kernel.msgmnb", Kind::Ipc),
    ("kernel.msgmni", Kind::Ipc),
    ("kernel.sem", Kind::Ipc),
    ("kernel.shm_rmid_forced", Kind::Ipc),
    ("kernel.shmall", Kind::Ipc),
    ("kernel.shmmax", Kind::Ipc),
    ("kernel.shmmni", Kind::Ipc),
    ("net.", Kind::Network),
    ("user.", Kind::User),
];

/// Plans the parameters.
///
/// # Errors
/// A parameter that is the whole host's, or whose namespace the container shares with the host.
pub fn plan(configured: &BTreeMap<String, String>, namespaces: &Namespaces) -> Result<Vec<Sysctl>> {
    configured.iter().map(|(name, value)| sysctl(name, value, namespaces)).collect()
}

fn sysctl(name: &str, value: &str, namespaces: &Namespaces) -> Result<Sysctl> {
    let fault = |why: String| Error::config(format!("linux.sysctl.{name}"), why);
    let file = file(name);
    let row = TABLE.iter().find(|(known, _)| {
        let known = known.replace('.', "/");
        file == known || known.ends_with('/') && file.starts_with(&known)
    });
    let Some((_, kind)) = row else {
        return Err(fault("belongs to no namespace: it would change the whole host".into()));
    };
    if !namespaces.has_apart(*kind) {
        return Err(fault(format!(
            "needs a {} namespace of its own: without one it would change the host's",
            kind.row().name
        )));
    }
    if file.split('/').any(|part| part.is_empty() || part == ".." || part == ".") {
        return Err(fault("is not the name of a parameter".into()));
    }
    Ok(Sysctl { file, value: value.to_owned() })
}

/// Which of the two separators comes first separates; the other is then part of a name, as a dot after a slash, or stands for a dot, as
/// a slash after a dot: `net/ipv4/conf/eth0.1/x` and `net.ipv4.conf.eth0/1.x` are one. sysctl.d(5)
fn file(name: &str) -> String {
    let swapped = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('.') => name.chars().map(swapped).collect(),
        _ => name.to_owned(),
    }
}

/// Writes the parameters. Called in the container's namespaces, while `/proc` is still the host's.
///
/// # Errors
/// The parameter and the kernel's answer.
pub fn apply(sysctls: &[Sysctl]) -> Result<()> {
    for Sysctl { file, value } in sysctls {
        let path = format!("/proc/sys/{file}");
        let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(|error| {
            let answer = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
            let error = Error::kernel("set sysctl", format!("{file} to {value:?}"), answer);
            if answer == Errno::ENOENT {
                error.hint("this kernel has no such parameter in this namespace")
            } else {
                error
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, make: &[Kind]) -> Result<Vec<Sysctl>> {
        let namespaces = Namespaces { make: make.to_vec(), ..Namespaces::default() };
        plan(&BTreeMap::from([(name.to_owned(), "1".to_owned())]), &namespaces)
    }

    #[test]
    fn only_a_namespaces_own_parameters() {
        let file = |name, kind| planned(name, &[kind]).unwrap().remove(0).file;
        assert_eq!(file("net.ipv4.ip_forward", Kind::Network), "net/ipv4/ip_forward");
        assert_eq!(file("net/ipv4/conf/eth0.1/forwarding", Kind::Network), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(file("net.ipv4.conf.eth0/1.forwarding", Kind::Network), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(file("fs.mqueue.msg_max", Kind::Ipc), "fs/mqueue/msg_max");
        assert_eq!(file("user.max_net_namespaces", Kind::User), "user/max_net_namespaces");
        assert!(planned("user.max_net_namespaces", &[Kind::Network]).is_err());
        assert!(planned("net.ipv4.ip_forward", &[Kind::Ipc]).is_err());
        assert!(planned("kernel.core_pattern", &[Kind::Ipc, Kind::Network]).is_err());
        for name in
            ["net.../../kernel/core_pattern", "net/../kernel/core_pattern", "net.//.kernel.core_pattern", "net.", "net"]
        {
            assert!(planned(name, &[Kind::Network]).is_err(), "{name}");
        }
        assert!(planned("fs/mqueue.msg_max", &[Kind::Ipc]).is_err(), "a name with a dot in it");
    }
}
