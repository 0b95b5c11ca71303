//! Names of images: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, as distribution-spec and the engines write them.
//!
//! A name is kept as it was given, with `:latest` where it has neither tag nor digest. Nothing is put before it: the store
//! holds what somebody put there, and no registry is the default one.

use std::fmt;
use std::net::Ipv6Addr;
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

/// Runs of letters and digits, and one separator between two of them: a dot, one or two underscores, or dashes.
fn is_path(part: &str) -> bool {
    let mut separators = part.split(is_alphanumeric);
    part.starts_with(is_alphanumeric)
        && part.ends_with(is_alphanumeric)
        && separators.all(|one| matches!(one, "." | "_" | "__") || one.bytes().all(|byte| byte == b'-'))
}

fn is_alphanumeric(letter: char) -> bool {
    letter.is_ascii_lowercase() || letter.is_ascii_digit()
}

fn is_host(part: &str) -> bool {
    // The colons of an IPv6 address are in brackets.
    let (host, port) = part.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).unwrap_or((part, "0"));
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    !port.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && address.map_or_else(|| host.split('.').all(is_label), |address| address.parse::<Ipv6Addr>().is_ok())
}

fn is_label(label: &str) -> bool {
    let ends = [label.bytes().next(), label.bytes().last()];
    !label.is_empty()
        && ends.into_iter().flatten().all(|byte| byte.is_ascii_alphanumeric())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
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
            ("[::1]:5000/a--b", "[::1]:5000/a--b:latest"),
            ("[2001:db8::1]/a:1", "[2001:db8::1]/a:1"),
            ("host-x.y:5000/a", "host-x.y:5000/a:latest"),
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
        for separators in [".-", "._", "_-", "-.", "___", "..", "_.", "-_"] {
            assert!(format!("a{separators}b").parse::<Reference>().is_err(), "{separators}");
        }
        for host in
            ["host-.x:5000", "-x.y", "x..y", "x:y", "X:", "[::1", "::1]", "[]", "[x]:1", "[::1]:", "[::1]x:1", "x_Y"]
        {
            assert!(format!("{host}/a").parse::<Reference>().is_err(), "{host}");
        }
    }
}
