//! Names of images: one small file, read whole, changed under a lock and replaced whole.
//!
//! Beside it room is kept for one more of its size: on a full disk a name can go all the same, and what it named after it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags, fallocate, openat, renameat};
use serde::{Deserialize, Serialize};

use super::{FORMAT, Store};
use crate::error::{Context, Error, Result};
use crate::image::digest::{self, Digest};
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;

const FILE: &str = "images.json";
const SPARE: &str = "images.spare";
const LOCK: &str = "images.lock";
/// So many bytes hold a hundred thousand names.
const MOST: u64 = 64 << 20;

/// An image that has a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Named {
    /// Its manifest.
    pub manifest: Descriptor,
    /// When it got the name: RFC 3339, UTC.
    pub tagged: String,
}

/// All names.
pub type Names = BTreeMap<String, Named>;

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    images: Names,
}

impl Store {
    /// All names.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn names(&self) -> Result<Names> {
        let Some(bytes) = self.read(FILE, MOST)? else { return Ok(Names::new()) };
        let damaged = |why: String| Error::said("read", self.path(FILE).display().to_string(), why);
        let file: File = serde_json::from_slice(&bytes).map_err(|why| damaged(why.to_string()))?;
        match file.format {
            FORMAT => Ok(file.images),
            other => Err(damaged(format!("it is of format {other}"))),
        }
    }

    /// Changes the names; nobody else does meanwhile.
    ///
    /// # Errors
    /// The file cannot be read or written; what `change` answers.
    pub fn change_names<T>(&self, change: impl FnOnce(&mut Names) -> Result<T>) -> Result<T> {
        let _guard = self.lock_file(LOCK, FlockOperation::LockExclusive)?;
        let before = self.names()?;
        let mut images = before.clone();
        let answer = change(&mut images)?;
        if images != before {
            let fewer = images.len() < before.len();
            let file = File { format: FORMAT, images };
            let bytes = serde_json::to_vec(&file).map_err(|why| Error::said("save", FILE, why.to_string()))?;
            match self.replace(FILE, &bytes) {
                Err(error) if fewer && is_full(&error) => self.replace_by_spare(&bytes).map_err(|_| error)?,
                saved => saved?,
            }
            // Without one, names go as long as there is room.
            self.keep_spare(bytes.len() as u64).ok();
        }
        Ok(answer)
    }

    /// Replaces the names by a file that needs no more room. Nobody reads it before it has its name, nor writes to it after.
    fn replace_by_spare(&self, bytes: &[u8]) -> Result<()> {
        let mut file = self.spare(OFlags::empty())?;
        let written =
            file.write_all(bytes).and_then(|()| file.set_len(bytes.len() as u64)).and_then(|()| file.sync_all());
        written.or_cannot("write", self.path(SPARE).display())?;
        renameat(&self.dir, SPARE, &self.dir, FILE).or_cannot("save", self.path(FILE).display())?;
        self.sync_directory(Path::new(""))
    }

    fn keep_spare(&self, size: u64) -> Result<()> {
        let file = self.spare(OFlags::CREATE)?;
        fallocate(&file, FallocateFlags::empty(), 0, size).or_cannot("reserve", self.path(SPARE).display())
    }

    fn spare(&self, how: OFlags) -> Result<std::fs::File> {
        let flags = how | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.dir, SPARE, flags, Mode::from_raw_mode(0o600));
        Ok(file.or_cannot("open", self.path(SPARE).display())?.into())
    }

    /// The image that is called so: by name, or by the first digits of its manifest's digest, at least four. What stands behind
    /// `sha256:` is no name, whatever a source may have called its image.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(&self, wanted: &str) -> Result<(Option<String>, Descriptor)> {
        find(&self.names()?, wanted).map_err(|error| {
            error.hint(format!(
                "`ferry image list` shows what is in {}; --store before the verb names another",
                self.root.display()
            ))
        })
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::ENOSPC | Errno::EDQUOT))
}

fn find(names: &Names, wanted: &str) -> Result<(Option<String>, Descriptor)> {
    let (algorithm, digits) =
        wanted.split_once(':').filter(|(name, _)| digest::resembles(name)).unwrap_or(("", wanted));
    let reference = wanted.parse::<Reference>();
    if let Ok(reference) = &reference {
        // What was pulled by digest is called so: its manifest may be one of many of the index that the digest is of.
        if let Some((name, named)) = names.get_key_value(&reference.to_string()) {
            return Ok((Some(name.clone()), named.manifest.clone()));
        }
        let tagged = Reference { digest: None, ..reference.clone() };
        let candidates = match (&reference.tag, &reference.digest) {
            (Some(_), _) => names.get_key_value(&tagged.to_string()).into_iter().collect::<Vec<_>>(),
            (None, _) => names.iter().filter(|(name, _)| name.starts_with(&format!("{}:", reference.name))).collect(),
        };
        let fits = |named: &&Named| reference.digest.as_ref().is_none_or(|digest| named.manifest.digest == *digest);
        // podman puts a host before names that have none, and archives carry that.
        let local = Reference { name: format!("localhost/{}", tagged.name), ..tagged };
        let mut candidates = candidates.into_iter().chain(names.get_key_value(&local.to_string()));
        if let Some((name, named)) = candidates.find(|(_, named)| fits(named)) {
            return Ok((Some(name.clone()), named.manifest.clone()));
        }
    }
    if digits.len() >= 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let mut found: Vec<(&Digest, &Descriptor)> = names
            .values()
            .map(|named| (&named.manifest.digest, &named.manifest))
            .filter(|(digest, _)| digest.hex().starts_with(digits) && digest.directory().starts_with(algorithm))
            .collect();
        found.dedup_by(|one, other| one.0 == other.0);
        found.sort_by(|one, other| one.0.cmp(other.0));
        found.dedup_by(|one, other| one.0 == other.0);
        match found[..] {
            [(_, manifest)] => return Ok((None, manifest.clone())),
            [] if reference.is_err() => return Err(Error::plain(format!("there is no image {wanted:?}"))),
            [] => (),
            _ => return Err(Error::plain(format!("more than one image's digest begins with {digits}"))),
        }
    }
    reference?;
    Err(Error::plain(format!("there is no image {wanted:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::Kind;

    #[test]
    fn images_are_found_by_name_and_by_the_beginning_of_their_digest() {
        let (one, other) = (Descriptor::of(b"1", Kind::Manifest), Descriptor::of(b"2", Kind::Manifest));
        let named = |manifest: &Descriptor| Named { manifest: manifest.clone(), tagged: String::new() };
        let names: Names = [("a:latest", &one), ("a:1", &other), ("b:latest", &one)]
            .map(|(name, image)| (name.to_owned(), named(image)))
            .into();
        let find = |wanted: &str| find(&names, wanted).map(|(name, found)| (name.unwrap_or_default(), found.digest));
        assert_eq!(find("a"), Ok(("a:latest".into(), one.digest.clone())));
        assert_eq!(find("a:1"), Ok(("a:1".into(), other.digest.clone())));
        assert_eq!(find(one.digest.short()), Ok((String::new(), one.digest.clone())));
        assert_eq!(find(&one.digest.to_string()), Ok((String::new(), one.digest.clone())));
        assert_eq!(find(&format!("a@{}", other.digest)), Ok(("a:1".into(), other.digest.clone())));
        assert!(find("c").unwrap_err().to_string().starts_with("there is no image \"c\""));
        assert!(find("../x").unwrap_err().to_string().starts_with("cannot understand image name"));
        assert!(find(&format!("a:1@{}", one.digest)).is_err());
    }

    #[test]
    fn no_name_stands_before_a_digest() {
        let (one, other) = (Descriptor::of(b"1", Kind::Manifest), Descriptor::of(b"2", Kind::Manifest));
        let mut long = one.clone();
        long.digest = format!("sha512:{}", one.digest.hex().repeat(2)).parse().unwrap();
        let named = |manifest: &Descriptor| Named { manifest: manifest.clone(), tagged: String::new() };
        // As a store may have them from before such names were refused.
        let (whole, bare) = (one.digest.to_string(), format!("{}:latest", one.digest.hex()));
        let mut names: Names = [(whole.as_str(), &other), (bare.as_str(), &other), ("a:1", &one), ("a:2", &long)]
            .map(|(name, image)| (name.to_owned(), named(image)))
            .into();
        for wanted in [&whole, &whole[..11]] {
            assert_eq!(find(&names, wanted).map(|(name, found)| (name, found.digest)), Ok((None, one.digest.clone())));
        }
        assert!(find(&names, one.digest.hex()).unwrap_err().to_string().starts_with("more than one"));
        assert_eq!(find(&names, &long.digest.to_string()[..11]).map(|found| found.1.digest), Ok(long.digest));
        names.remove("a:2");
        assert_eq!(find(&names, one.digest.hex()).map(|found| found.1.digest), Ok(one.digest.clone()));
        names.remove("a:1");
        for wanted in [&whole, one.digest.hex()] {
            assert_eq!(find(&names, wanted).unwrap_err().to_string(), format!("there is no image {wanted:?}"));
        }
    }
}
