//! Names of content: `sha256:` and 64 hexadecimal digits, or `sha512:` and 128. OCI image-spec, descriptor.md#digests
//!
//! A [`Digest`] is always well-formed, so that it can be a file's name without another look at it. What is read or written
//! goes through [`Verified`], which ends in an error unless size and digest are the ones that were said.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use crate::error::{Error, Result};

/// The functions that are understood, with the length of their value in hexadecimal digits.
const ALGORITHMS: [(Algorithm, &str, usize); 2] =
    [(Algorithm::Sha256, "sha256", 64), (Algorithm::Sha512, "sha512", 128)];

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// What everybody uses.
    Sha256,
    /// The other one that is registered.
    Sha512,
}

/// A digest: the function and its value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The function's name: the directory that the content is kept in.
    pub fn directory(&self) -> &'static str {
        ALGORITHMS.iter().find(|(algorithm, ..)| *algorithm == self.algorithm).map_or("", |(_, name, _)| name)
    }

    /// The value, in lower-case hexadecimal digits: the content's file name.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// The first twelve digits, for people.
    pub fn short(&self) -> &str {
        &self.hex[..12]
    }

    /// The sha256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The sha256 digest of a stream, and how many bytes it had.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_stream(mut stream: impl Read) -> io::Result<(Self, u64)> {
        let (mut hasher, mut size, mut buffer) = (Hasher::new(Algorithm::Sha256), 0, vec![0; 1 << 17]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok((hasher.finish(), size)),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    size += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether these are the bytes it names.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

/// Whether a name without a tag could be taken for a digest, or for what stands before the colon of one.
pub fn resembles(name: &str) -> bool {
    let is_value = |length| name.len() == length && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    ALGORITHMS.iter().any(|(_, algorithm, length)| name == *algorithm || is_value(*length))
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Err(Error::said("understand digest", format!("{text:?}"), why.to_owned()));
        let Some((name, hex)) = text.split_once(':') else { return bad("it has no algorithm before a colon") };
        let Some((algorithm, _, length)) = ALGORITHMS.iter().find(|(_, known, _)| *known == name) else {
            return bad("only sha256 and sha512 are understood");
        };
        if hex.len() != *length || !hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return bad(&format!("its value must be {length} lower-case hexadecimal digits"));
        }
        Ok(Self { algorithm: *algorithm, hex: hex.to_owned() })
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.directory(), self.hex)
    }
}

/// A digest that is being computed.
#[derive(Clone)]
pub enum Hasher {
    /// sha256.
    Sha256(Sha256),
    /// sha512.
    Sha512(Sha512),
}

impl Hasher {
    /// A new one.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Takes bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> Digest {
        let (algorithm, value): (_, Vec<u8>) = match self {
            Self::Sha256(state) => (Algorithm::Sha256, state.finalize().to_vec()),
            Self::Sha512(state) => (Algorithm::Sha512, state.finalize().to_vec()),
        };
        Digest { algorithm, hex: value.iter().map(|byte| format!("{byte:02x}")).collect() }
    }
}

/// A stream that must turn out to have this size and this digest: more bytes than said are an error as soon as the first of
/// them comes, and [`Verified::finish`] tells of fewer or others.
pub struct Verified<S> {
    stream: S,
    hasher: Hasher,
    digest: Digest,
    size: Option<u64>,
    seen: u64,
}

impl<S> Verified<S> {
    /// `size` in bytes; `None` where only the digest is known.
    pub fn new(stream: S, digest: &Digest, size: Option<u64>) -> Self {
        Self { stream, hasher: Hasher::new(digest.algorithm()), digest: digest.clone(), size, seen: 0 }
    }

    /// Judges what went through. Answers the stream, and how many bytes there were.
    ///
    /// # Errors
    /// Another size or another digest than said.
    pub fn finish(self) -> Result<(S, u64)> {
        if let Some(size) = self.size.filter(|size| *size != self.seen) {
            return Err(Error::said(
                "verify",
                self.digest.to_string(),
                format!("it has {} bytes and not {size}", self.seen),
            ));
        }
        let found = self.hasher.finish();
        if found != self.digest {
            return Err(Error::said("verify", self.digest.to_string(), format!("its content is that of {found}")));
        }
        Ok((self.stream, self.seen))
    }

    fn take_in(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.seen += bytes.len() as u64;
        match self.size {
            Some(size) if self.seen > size => {
                Err(io::Error::other(format!("{} has more than the {size} bytes it should have", self.digest)))
            }
            _ => {
                self.hasher.update(bytes);
                Ok(())
            }
        }
    }
}

impl<S: Read> Read for Verified<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.take_in(&buffer[..count])?;
        Ok(count)
    }
}

impl<S: Write> Write for Verified<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(buffer)?;
        self.take_in(&buffer[..count])?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digests_are_well_formed_or_refused() {
        assert_eq!(Digest::of(b"abc").to_string(), ABC);
        assert_eq!(ABC.parse::<Digest>().unwrap().short(), "ba7816bf8f01");
        for bad in ["", "abc", "md5:00", "sha256:", "sha256:../../etc/passwd", &ABC.to_uppercase(), &ABC[..70]] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_stream_of_another_size_or_content_is_refused() {
        let digest: Digest = ABC.parse().unwrap();
        let read = |bytes: &'static [u8], size| {
            let mut stream = Verified::new(bytes, &digest, size);
            io::copy(&mut stream, &mut io::sink()).map_err(|error| error.to_string())?;
            stream.finish().map(|(_, seen)| seen).map_err(|error| error.to_string())
        };
        assert_eq!(read(b"abc", Some(3)), Ok(3));
        assert_eq!(read(b"abc", None), Ok(3));
        assert!(read(b"ab", Some(3)).unwrap_err().ends_with("it has 2 bytes and not 3"));
        assert!(read(b"abcd", Some(3)).unwrap_err().contains("more than the 3 bytes"));
        assert!(read(b"abd", Some(3)).unwrap_err().contains("its content is that of sha256:a52d159f"));
    }
}
