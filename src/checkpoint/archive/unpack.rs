//! An archive to images, each part verified as it comes. Nothing is taken on trust: what is not listed, listed otherwise,
//! missing or behind the end is an error, and whoever called removes what was unpacked until then.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstatvfs, mkdirat, openat};
use tar::EntryType;

use super::encryption::Identities;
use super::manifest::{Host, LONGEST, Manifest, Part};
use super::{IMAGES, MANIFEST};
use crate::error::{Context, Error, Result};
use crate::image::compression;
use crate::image::digest::Verified;
use crate::image::metered::{Metered, Room};
use crate::security::jail::{self, Work};

/// Behind the last part there are a few empty blocks. Bytes.
const TRAILER: u64 = 1 << 20;

/// What is done with a part, whose bytes must be read to their end.
type Take<'a> = dyn FnMut(&str, &Part, &mut dyn Read) -> Result<()> + 'a;

/// Reads an archive, decrypted where it is encrypted: hands the manifest to `accept`, then every part to `take`. Whoever calls
/// has confined itself first.
///
/// # Errors
/// The archive is broken or not what its manifest says, no key fits, or one of the two refuses.
pub fn read(
    stream: impl Read + Send,
    identities: &Identities,
    accept: impl FnOnce(&Manifest) -> Result<()>,
    take: &mut Take<'_>,
) -> Result<Manifest> {
    let broken = |why: io::Error| Error::said("read", "the archive", why.to_string());
    let room = Room::new();
    let plain = compression::unpack(identities.decrypt(stream)?).map_err(broken)?;
    let mut archive = tar::Archive::new(Metered::new(plain, &room));
    let mut entries = archive.entries().map_err(broken)?;
    let mut accept = Some(accept);
    let mut manifest: Option<Manifest> = None;
    let mut seen = BTreeSet::new();
    while let Some(entry) = room.of_a_header(|| entries.next()) {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let kind = entry.header().entry_type();
        if kind == EntryType::Directory && name.trim_end_matches('/') == IMAGES {
            continue;
        }
        if kind != EntryType::Regular {
            return Err(unfit(&name, "it is no plain file"));
        }
        let Some(manifest) = &manifest else {
            let read = first(&name, &mut entry)?;
            if let Some(accept) = accept.take() {
                accept(&read)?;
            }
            manifest = Some(read);
            continue;
        };
        let Some(part) = manifest.parts.get(&name) else { return Err(unfit(&name, "the manifest does not list it")) };
        if !seen.insert(name.clone()) {
            return Err(unfit(&name, "it is there twice"));
        }
        if entry.size() != part.size {
            return Err(unfit(&name, &format!("it has {} bytes, and the manifest says {}", entry.size(), part.size)));
        }
        let mut data = Verified::new(&mut entry, &part.digest, Some(part.size));
        take(&name, part, &mut data)?;
        data.finish().map_err(|error| unfit(&name, &error.to_string()))?;
    }
    let mut rest = archive.into_inner().take(TRAILER + 1);
    if io::copy(&mut rest, &mut io::sink()).map_err(broken)? > TRAILER {
        return Err(Error::said("read", "the archive", "something follows its end"));
    }
    let manifest = manifest.ok_or_else(|| Error::said("read", "the archive", "it is empty"))?;
    match manifest.parts.keys().find(|name| !seen.contains(*name)) {
        Some(missing) => Err(unfit(missing, "it is missing: the archive is not whole")),
        None => Ok(manifest),
    }
}

fn unfit(name: &str, why: &str) -> Error {
    Error::said("take", format!("{name:?} of the archive"), why)
}

fn first(name: &str, entry: &mut (impl Read + ?Sized)) -> Result<Manifest> {
    if name != MANIFEST {
        return Err(Error::said("read", "the archive", format!("it begins with {name:?} and not with {MANIFEST}"))
            .hint("`ferry checkpoint --export` makes archives; for images in a directory there is --image-path"));
    }
    let mut text = Vec::new();
    entry.take(LONGEST + 1).read_to_end(&mut text).or_cannot("read", "the archive's manifest")?;
    if text.len() as u64 > LONGEST {
        return Err(Error::said("read", "the archive's manifest", "it is too long"));
    }
    Manifest::parse(&text)
}

/// Unpacks an archive into `directory`, which is empty and nobody else's; images come into the directory [`IMAGES`] in it.
///
/// # Errors
/// As [`read`]; `own` cannot run it, or there is no room.
pub fn unpack(stream: impl Read + Send, identities: &Identities, directory: &Path, own: &Host) -> Result<Manifest> {
    let top = opened(directory)?;
    jail::confined(Work::Unpacks(top.as_fd()), || unpack_into(&top, stream, identities, directory, own))
}

/// `directory` is what the opened one is called in errors.
fn unpack_into(
    top: &OwnedFd,
    stream: impl Read + Send,
    identities: &Identities,
    directory: &Path,
    own: &Host,
) -> Result<Manifest> {
    mkdirat(top, IMAGES, Mode::RWXU).or_cannot("make directory", directory.join(IMAGES).display())?;
    let accept = |manifest: &Manifest| {
        own.can_run(&manifest.host)?;
        let space = fstatvfs(top).or_cannot("look at", directory.display())?;
        let (size, room) = (manifest.size()?, space.f_bavail.saturating_mul(space.f_frsize));
        if size > room {
            let why = format!("it takes {size} bytes, and {} has room for {room}", directory.display());
            return Err(
                Error::said("unpack", "the archive", why).hint("name a larger filesystem with TMPDIR or --image-path")
            );
        }
        Ok(())
    };
    read(stream, identities, accept, &mut |name, _, data| {
        // Names are held to the form of parts by the manifest's check: nothing of them leads out.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // As CRIU makes them: in a user namespace it reads them as another user, whom the directory keeps out otherwise.
        let file = openat(top, name, flags, Mode::from_raw_mode(0o644)).or_cannot("make", name)?;
        io::copy(data, &mut File::from(file)).map(drop).or_cannot("unpack", name)
    })
}

fn opened(directory: &Path) -> Result<OwnedFd> {
    openat(CWD, directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .or_cannot("open directory", directory.display())
}
