//! A tar archive that holds an image, as a set of files: where each begins is noted once, and any of them is read from there.
//!
//! The archive may be packed, or come from a pipe: then it is unpacked into a file of the store's first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tar::EntryType;

use crate::error::{Context, Error, Result};
use crate::image::metered::{Metered, Room};

/// An archive with more entries is no image's. An image of 500 layers in docker's form has 2,000.
const MOST_ENTRIES: usize = 100_000;
/// docker makes links from one layer to its double.
const MOST_LINKS: u32 = 8;

/// An archive that can be read anywhere.
#[derive(Debug)]
pub struct Archive {
    file: Arc<File>,
    entries: BTreeMap<String, Place>,
}

#[derive(Debug, Clone)]
enum Place {
    /// Offset and size.
    Bytes(u64, u64),
    /// Another entry's name.
    Link(String),
}

/// A part of a file.
pub struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        if count == 0 && most > 0 {
            return Err(io::Error::other("the archive ends in the middle of a file"));
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

impl Archive {
    /// Reads where everything is; `named` is the archive in errors.
    ///
    /// # Errors
    /// It is no tar archive, or broken.
    pub fn index(file: File, named: &str) -> Result<Self> {
        let broken = |why: io::Error| Error::said("read archive", named.to_owned(), why.to_string());
        let length = file.metadata().or_cannot("read", named)?.len();
        let mut entries = BTreeMap::new();
        let room = Room::new();
        let mut archive = tar::Archive::new(Metered::new(BufReader::with_capacity(4096, &file), &room));
        let mut walk = archive.entries_with_seek().map_err(broken)?;
        while let Some(entry) = room.of_a_header(|| walk.next()) {
            let entry = entry.map_err(broken)?;
            let name = normal(&String::from_utf8_lossy(&entry.path_bytes()));
            let target = entry.link_name_bytes().map(|target| String::from_utf8_lossy(&target).into_owned());
            let place = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    let (at, size) = (entry.raw_file_position(), entry.size());
                    if at.checked_add(size).is_none_or(|end| end > length) {
                        return Err(broken(io::Error::other(format!("{name:?} goes beyond its end"))));
                    }
                    Place::Bytes(at, size)
                }
                EntryType::Link => Place::Link(normal(&target.unwrap_or_default())),
                EntryType::Symlink => {
                    let above = name.rsplit_once('/').map_or("", |(above, _)| above);
                    Place::Link(normal(&format!("{above}/{}", target.unwrap_or_default())))
                }
                _ => continue,
            };
            entries.insert(name, place);
            if entries.len() > MOST_ENTRIES {
                return Err(broken(io::Error::other("it has too many entries to be an image")));
            }
        }
        Ok(Self { file: Arc::new(file), entries })
    }

    /// A file of it, and its size.
    pub fn open(&self, name: &str) -> Option<(Part, u64)> {
        let mut name = normal(name);
        for _ in 0..MOST_LINKS {
            match self.entries.get(&name)? {
                Place::Bytes(at, size) => {
                    return Some((Part { file: Arc::clone(&self.file), at: *at, left: *size }, *size));
                }
                Place::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

/// A name by its text alone: nothing of it is looked up anywhere but in the archive's own list.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => (),
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_through_links_and_not_beyond() {
        let path = std::env::temp_dir().join(format!("ferry-archive-{}.tar", std::process::id()));
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header.clone(), "./a/layer.tar", &b"bytes"[..]).unwrap();
        header.set_size(0);
        header.set_entry_type(EntryType::Symlink);
        builder.append_link(&mut header.clone(), "b/layer.tar", "../a/layer.tar").unwrap();
        builder.append_link(&mut header.clone(), "loop", "loop").unwrap();
        builder.append_link(&mut header.clone(), "out", "../../../../etc/passwd").unwrap();
        builder.into_inner().unwrap();
        let archive = Archive::index(File::open(&path).unwrap(), "x").unwrap();
        std::fs::remove_file(&path).unwrap();
        let read = |name| archive.open(name).map(|(mut part, _)| io::read_to_string(&mut part).unwrap());
        assert_eq!(read("b/layer.tar").as_deref(), Some("bytes"));
        assert_eq!(read("/a/./layer.tar").as_deref(), Some("bytes"));
        assert_eq!((read("loop"), read("out"), read("c")), (None, None, None));
    }
}
