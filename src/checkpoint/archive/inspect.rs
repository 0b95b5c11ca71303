//! What is in an archive: processes, memory, mounts and sockets, told by its images without restoring anything.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use super::encryption::Identities;
use super::manifest::Manifest;
use super::{IMAGES, unpack};
use crate::checkpoint::images::{Kind, all, messages, one};
use crate::error::{Context, Error, Result};
use crate::security::jail::{self, Work};

/// An image of interest that is larger than this is none. Bytes.
const LARGEST: u64 = 64 << 20;

/// As much as all of them may have together: they are held in memory, and an archive of nothing but zeros is small. Bytes.
const MOST: u64 = 256 << 20;

/// What is in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspected {
    /// What it says of itself.
    #[serde(flatten)]
    pub manifest: Manifest,
    /// Its processes, parents first.
    pub processes: Vec<Process>,
    /// Its mounts.
    pub mounts: Vec<Mount>,
    /// Its sockets.
    pub sockets: Vec<String>,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// As the container counts.
    pub pid: u64,
    /// Its parent.
    pub parent: u64,
    /// Its name.
    pub name: String,
    /// How many.
    pub threads: usize,
    /// Bytes of it in the archive.
    pub memory: u64,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where.
    pub point: String,
    /// Its device, or a name.
    pub source: String,
    /// Whether it is from outside.
    pub external: bool,
}

/// Reads an archive to its end, and verifies every part of it.
///
/// # Errors
/// As [`unpack::read`]; its images are too large to be looked into.
pub fn inspect(stream: impl Read + Send, identities: &Identities) -> Result<Inspected> {
    jail::confined(Work::Reads, || look(stream, identities))
}

fn look(stream: impl Read + Send, identities: &Identities) -> Result<Inspected> {
    let mut left = MOST;
    let mut images: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let manifest = unpack::read(stream, identities, |_| Ok(()), &mut |name, part, data| {
        let file = name.strip_prefix(IMAGES).map_or("", |rest| rest.trim_start_matches('/'));
        let wanted = ["pstree", "core-", "pagemap-", "mountpoints-", "files"];
        if !wanted.iter().any(|start| file.starts_with(start)) || part.size > LARGEST {
            return std::io::copy(data, &mut std::io::sink()).map(drop).or_cannot("read", name);
        }
        left = left.checked_sub(part.size).ok_or_else(|| {
            let why = format!("what tells of processes, mounts and sockets is larger than {MOST} bytes");
            Error::said("inspect", "the archive", why)
        })?;
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes).or_cannot("read", name)?;
        images.insert(file.to_owned(), bytes);
        Ok(())
    })?;
    let read = |file: &str, kind| match images.get(file) {
        Some(bytes) => messages(bytes, kind)
            .ok_or_else(|| Error::said("understand", format!("{file:?} of the archive"), "it is no image of its kind")),
        None => Ok(Vec::new()),
    };
    let mut processes = Vec::new();
    for entry in read("pstree.img", Kind::Processes)? {
        let number = |field| one(&entry, field).map_or(0, |value| value.number());
        let pid = number(1);
        let core = read(&format!("core-{pid}.img"), Kind::Core)?;
        let name = core.first().and_then(|core| one(one(core, 3)?.bytes(), 6)).map(|name| clean(&name.text()));
        let rows = read(&format!("pagemap-{pid}.img"), Kind::Pages)?;
        let pages = rows.iter().skip(1).map(|entry| present(entry)).fold(0, u64::saturating_add);
        processes.push(Process {
            pid,
            parent: number(2),
            name: name.unwrap_or_default(),
            threads: all(&entry, 5).count(),
            memory: pages.saturating_mul(manifest.host.page_size),
        });
    }
    let mut mounts = Vec::new();
    for file in images.keys().filter(|file| file.starts_with("mountpoints-")) {
        mounts.extend(read(file, Kind::Mounts)?.iter().map(|entry| mount(entry)));
    }
    let sockets = read("files.img", Kind::Files)?.iter().filter_map(|entry| socket(entry)).collect();
    Ok(Inspected { manifest, processes, mounts, sockets })
}

/// Names are the container's own choice.
fn clean(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(200).collect()
}

/// Pages of a row of memory that are in the archive. `pagemap_entry`
fn present(entry: &[u8]) -> u64 {
    const IN_PARENT: u64 = 1;
    let number = |field| one(entry, field).map(|value| value.number());
    let flags = number(4).unwrap_or(0) | number(3).unwrap_or(0);
    if flags & IN_PARENT != 0 { 0 } else { number(5).or(number(2)).unwrap_or(0) }
}

fn mount(entry: &[u8]) -> Mount {
    let text = |field| one(entry, field).map(|value| clean(&value.text())).unwrap_or_default();
    let point = text(7);
    let point = point.trim_start_matches('.');
    Mount {
        point: if point.is_empty() { "/".to_owned() } else { point.to_owned() },
        source: text(8),
        external: one(entry, 18).is_some() || one(entry, 13).is_some_and(|value| value.number() != 0),
    }
}

/// A socket in words. `file_entry`
fn socket(entry: &[u8]) -> Option<String> {
    const LISTENING: u64 = 10;
    if let Some(inet) = one(entry, 4) {
        let number = |field| one(inet.bytes(), field).map_or(0, |value| value.number());
        let address = |field, port| {
            let words: Vec<u32> = all(inet.bytes(), field).map(|word| word.number() as u32).collect();
            format!("{}:{}", address(&words), number(port))
        };
        let protocol = match number(5) {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            other => format!("protocol {other}"),
        };
        return Some(match number(6) {
            LISTENING => format!("{protocol} {} listening", address(11, 7)),
            _ => format!("{protocol} {} to {}", address(11, 7), address(12, 8)),
        });
    }
    let unix = one(entry, 16)?;
    let name = one(unix.bytes(), 11).map(|name| name.text()).unwrap_or_default();
    Some(format!("unix {}", clean(&name.replacen('\0', "@", 1))).trim_end().to_owned())
}

/// An address, whose words stand as they are in memory.
fn address(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => Some(IpAddr::from(Ipv4Addr::from(four))),
        Err(_) => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|bytes| IpAddr::from(Ipv6Addr::from(bytes))),
    };
    match address {
        Some(IpAddr::V6(address)) => format!("[{address}]"),
        Some(address) => address.to_string(),
        None => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::wire::Message;

    #[test]
    fn sockets_in_words() {
        let mut inet = Message::default();
        inet.number(5, 6).number(6, 10).number(7, 8080).number(11, u64::from(u32::from_le_bytes([127, 0, 0, 1])));
        let mut entry = Message::default();
        entry.number(1, 4).message(4, &inet);
        assert_eq!(socket(&entry.into_bytes()).unwrap(), "tcp 127.0.0.1:8080 listening");
        let mut unix = Message::default();
        unix.bytes(11, "\0name\u{1b}");
        let mut entry = Message::default();
        entry.message(16, &unix);
        assert_eq!(socket(&entry.into_bytes()).unwrap(), "unix @name");
        assert_eq!(socket(&[]), None);
        assert_eq!(address(&[0, 0, 0, u32::from_le_bytes([0, 0, 0, 1])]), "[::1]");
    }

    #[test]
    fn pages_that_are_there() {
        let row = |flags, count| {
            let mut entry = Message::default();
            entry.number(2, count).number(4, flags);
            present(&entry.into_bytes())
        };
        assert_eq!((row(4, 7), row(1, 7)), (7, 0));
    }
}
