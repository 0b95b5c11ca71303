//! Names of images: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, as distribution-spec and the engines write them.
//!
//! A name is kept as it was given, with `:latest` where it has neither tag nor digest. Nothing is put before it: the store
//! holds what somebody put there, and no registry is the default one.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;
use crate::error::{Error, Result};

/// The longest name without tag and digest, as in the distribution's grammar.
const LONGEST_NAME: usize = 255;
const LONGEST_TAG: usize = 128;

/// A name that is well-formed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Host and path.
    pub name: String,
    /// The tag, unless only a digest was given.
    pub tag: Option<String>,
    /// The digest.
    pub digest: Option<Digest>,
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::said("understand image name", format!("{text:?}"), why.to_owned())
                .hint("a name reads [HOST/]NAME[:TAG][@DIGEST], such as debian:12")
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon before the last slash parts host and port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(bad("it is empty or too long"));
        }
        let mut parts = name.split('/').peekable();
        let mut first = true;
        while let Some(part) = parts.next() {
            let host = first && parts.peek().is_some();
            if !(is_path(part) || host && is_host(part)) {
                return Err(bad(
                    "only lower-case letters, digits and single . _ - between them may stand between slashes",
                ));
            }
            first = false;
        }
        if super::digest::resembles(name) {
            return Err(bad("it could be taken for a digest: put a host or a directory before it"));
        }
        if tag.as_deref().is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("a tag has letters, digits, _ . and -, at most 128, and begins with none of the last two"));
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { name: name.to_owned(), tag, digest })
    }
}

fn is_path(part: &str) -> bool {
    let bytes = part.as_bytes();
    let ends = [bytes.first(), bytes.last()].into_iter().flatten().all(|byte| is_alphanumeric(*byte));
    let parted = !part.contains("..") && !part.contains("___");
    !part.is_empty() && ends && parted && bytes.iter().all(|byte| is_alphanumeric(*byte) || b"._-".contains(byte))
}

fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_host(part: &str) -> bool {
    let (host, port) = part.rsplit_once(':').unwrap_or((part, "0"));
    let ends = [host.bytes().next(), host.bytes().last()];
    !host.is_empty()
        && !host.contains("..")
        && ends.into_iter().flatten().all(|byte| byte.is_ascii_alphanumeric())
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte))
        && !port.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= LONGEST_TAG
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart() {
        for (given, whole) in [
            ("debian", "debian:latest"),
            ("debian:12", "debian:12"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("localhost:5000/a/b:V1", "localhost:5000/a/b:V1"),
            ("Host.example/a_b.c-d__e", "Host.example/a_b.c-d__e:latest"),
        ] {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), whole);
        }
        let digest = Digest::of(b"").to_string();
        assert_eq!(format!("a@{digest}").parse::<Reference>().unwrap().tag, None);
    }

    #[test]
    fn what_could_be_a_digest_is_no_name() {
        let hex = Digest::of(b"").hex().to_owned();
        for bad in
            [&hex, &format!("{hex}:1"), &format!("sha256:{hex}"), "sha256", "sha512:1", &format!("sha256@sha256:{hex}")]
        {
            assert!(bad.parse::<Reference>().unwrap_err().to_string().contains("taken for a digest"), "{bad:?}");
        }
        for good in [&format!("localhost/{hex}"), &hex[1..], &format!("{hex}a"), "a/sha256:1", "sha256sum"] {
            assert!(good.parse::<Reference>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "A", "a/", "/a", "a//b", "../a", "a/../b", "a:", "a:-x", "a b", "a:b:c", "a@x", "-a", "a\n"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}
