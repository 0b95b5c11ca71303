//! Archives that only whoever has a key can read: the format of age, <https://age-encryption.org/v1>, around the packed stream.
//!
//! The keys are age's own, X25519, as `age-keygen` makes them, so that `age` and `rage` encrypt and decrypt what ferry reads and
//! writes. What is encrypted is also whole: each 64 KiB bears a tag, and so does the end. It says nothing of who made an archive,
//! since anybody can encrypt to a recipient: what comes out is as hostile as any other.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use age::stream::{StreamReader, StreamWriter};
use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};

use crate::error::{Context, Error, Result};

/// How every stream of age begins.
const MAGIC: &[u8] = b"age-encryption.org/";
/// How one does that was put into letters for the mail.
const ARMOR: &[u8] = b"-----BEGIN AGE";
/// How a recipient's text begins.
const RECIPIENT: &str = "age1";
/// A file of keys that is longer is none. Bytes.
const LONGEST: u64 = 1 << 20;
/// Read ahead of the decryption. Bytes.
const AHEAD: usize = 1 << 17;

/// To whom archives are encrypted; to nobody where there is none.
#[derive(Default)]
pub struct Recipients(Vec<Recipient>);

impl Recipients {
    /// `given`: each the text of a recipient, or a file with one a line, as `age --recipients-file` reads them.
    ///
    /// # Errors
    /// A text that is none; a file that cannot be read, or has none.
    pub fn read(given: &[String]) -> Result<Self> {
        let mut all = Vec::new();
        for one in given {
            if one.starts_with(RECIPIENT) {
                all.push(
                    recipient(one)
                        .map_err(|why| Error::plain(format!("invalid value {one:?} for --recipient: {why}")))?,
                );
                continue;
            }
            let cannot = |why| Error::said("read recipients from", one.clone(), why);
            let text = String::from_utf8(bounded(Path::new(one))?).map_err(|_| cannot("it is not UTF-8".to_owned()))?;
            let before = all.len();
            for (number, line) in text.lines().map(str::trim).enumerate() {
                if !line.is_empty() && !line.starts_with('#') {
                    let why = |why| cannot(format!("line {}: {why}", number + 1));
                    all.push(recipient(line).map_err(why)?);
                }
            }
            if all.len() == before {
                return Err(cannot("there are none in it".to_owned()));
            }
        }
        Ok(Self(all))
    }

    /// What is written to it comes encrypted to `out`.
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn encrypt<W: Write>(&self, out: W) -> Result<Encrypted<W>> {
        if self.0.is_empty() {
            return Ok(Encrypted::No(out));
        }
        let all = self.0.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor =
            Encryptor::with_recipients(all).map_err(|why| Error::said("encrypt", "the archive", why.to_string()))?;
        encryptor.wrap_output(out).map(|out| Encrypted::Yes(Box::new(out))).or_cannot("write", "the archive")
    }
}

fn recipient(text: &str) -> std::result::Result<Recipient, String> {
    let other =
        ["age1tag1", "age1tagpq1", "age1pq1", "age1yubikey1", "ssh-"].iter().find(|start| text.starts_with(**start));
    text.parse().map_err(|why| match other {
        Some(start) => {
            format!("keys of the kind {start:?} are not known here, only those that age-keygen makes by default")
        }
        None => format!("{why}; a recipient is what age-keygen calls the public key, and begins with {RECIPIENT}"),
    })
}

fn bounded(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).or_cannot("open", path.display())?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).or_cannot("read", path.display())?;
    match bytes.len() as u64 {
        0..=LONGEST => Ok(bytes),
        _ => Err(Error::said("read", path.display().to_string(), "it is too long to be a file of keys")),
    }
}

/// A stream, encrypted or not.
pub enum Encrypted<W: Write> {
    /// As it is.
    No(W),
    /// Encrypted.
    Yes(Box<StreamWriter<W>>),
}

impl<W: Write> Encrypted<W> {
    /// Writes the end, without which nobody takes what was encrypted for whole.
    ///
    /// # Errors
    /// What writing answers.
    pub fn finish(self) -> io::Result<()> {
        match self {
            Self::No(mut out) => out.flush(),
            Self::Yes(out) => out.finish()?.flush(),
        }
    }
}

impl<W: Write> Write for Encrypted<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::No(out) => out.write(buffer),
            Self::Yes(out) => out.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::No(out) => out.flush(),
            Self::Yes(out) => out.flush(),
        }
    }
}

/// The keys that archives may be encrypted to, and where they are from.
#[derive(Default)]
pub struct Identities {
    keys: Vec<Identity>,
    files: Vec<String>,
}

impl Identities {
    /// From files as `age-keygen` makes them.
    ///
    /// # Errors
    /// A file that cannot be read, or has anything but keys in it. No error tells what is in there.
    pub fn read(files: &[std::path::PathBuf]) -> Result<Self> {
        let mut all = Self::default();
        for path in files {
            let shown = path.display().to_string();
            let bytes = bounded(path)?;
            if bytes.starts_with(MAGIC) || bytes.starts_with(ARMOR) {
                return Err(Error::said("read keys from", shown, "it is encrypted itself")
                    .hint("`age --decrypt` decrypts it; /dev/stdin and <(...) are files too"));
            }
            let text = String::from_utf8(bytes).unwrap_or_default();
            let before = all.keys.len();
            for (number, line) in text.lines().map(str::trim).enumerate() {
                if !line.is_empty() && !line.starts_with('#') {
                    let why = format!("line {} is no key of the kind AGE-SECRET-KEY-1", number + 1);
                    all.keys.push(line.parse().map_err(|_| Error::said("read keys from", shown.clone(), why))?);
                }
            }
            if all.keys.len() == before {
                return Err(Error::said("read keys from", shown, "there are none in it"));
            }
            all.files.push(shown);
        }
        Ok(all)
    }

    /// What is in a stream, decrypted where it is encrypted.
    ///
    /// # Errors
    /// It is encrypted and no key fits; it is not, though keys were given.
    pub fn decrypt<'a>(&self, stream: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
        let mut stream = BufReader::with_capacity(AHEAD, stream);
        let start = stream.fill_buf().or_cannot("read", "the archive")?;
        if start.starts_with(ARMOR) {
            return Err(Error::said("read", "the archive", "it is encrypted and in letters, as for the mail")
                .hint("`age --decrypt --identity KEY FILE | ferry restore --import -`"));
        }
        match (start.starts_with(MAGIC), self.keys.is_empty()) {
            (false, true) => Ok(Box::new(stream)),
            (false, false) => Err(Error::said("decrypt", "the archive", "it is not encrypted")
                .hint("leave --identity out if it is not meant to be")),
            (true, true) => Err(Error::said("read", "the archive", "it is encrypted")
                .hint("--identity names the file with a key that it was encrypted to")),
            (true, false) => self.unlock(stream),
        }
    }

    fn unlock<'a>(&self, stream: impl BufRead + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
        let cannot = |why: String| Error::said("decrypt", "the archive", why);
        let decryptor = Decryptor::new_buffered(stream).map_err(|why| cannot(damage(&why)))?;
        if decryptor.is_scrypt() {
            return Err(cannot("it is encrypted with a passphrase, and not to a key".to_owned())
                .hint("`age --decrypt FILE | ferry restore --import -`"));
        }
        match decryptor.decrypt(self.keys.iter().map(|key| key as &dyn age::Identity)) {
            Ok(stream) => Ok(Box::new(Decrypted { stream })),
            Err(DecryptError::NoMatchingKeys) => {
                Err(cannot(format!("it is encrypted to none of the keys in {}", self.files.join(", "))))
            }
            Err(why) => Err(cannot(damage(&why))),
        }
    }
}

/// What is wrong with an encrypted stream, in words that need no other line.
fn damage(why: &DecryptError) -> String {
    match why {
        DecryptError::InvalidHeader | DecryptError::InvalidMac => "its first lines were changed".to_owned(),
        DecryptError::UnknownFormat => "it is of a version of the format that is not known here".to_owned(),
        DecryptError::Io(why) if why.kind() == io::ErrorKind::UnexpectedEof => "it is cut off".to_owned(),
        other => other.to_string(),
    }
}

/// A stream that says in which way it is broken.
struct Decrypted<R> {
    stream: StreamReader<R>,
}

impl<R: Read> Read for Decrypted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).map_err(|why| match why.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
                io::Error::new(why.kind(), "it is cut off, or was changed: what is encrypted is not whole")
            }
            _ => why,
        })
    }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    fn encrypted(recipients: &Recipients, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut stream = recipients.encrypt(&mut out).unwrap();
        stream.write_all(text).unwrap();
        stream.finish().unwrap();
        out
    }

    fn to(key: &Identity) -> Recipients {
        Recipients::read(&[key.to_public().to_string()]).unwrap()
    }

    fn with(key: &Identity) -> Identities {
        Identities { keys: vec![key.clone()], files: vec!["key.txt".into()] }
    }

    fn decrypted(identities: &Identities, bytes: &[u8]) -> std::result::Result<Vec<u8>, String> {
        let mut text = Vec::new();
        let mut stream = identities.decrypt(bytes).map_err(|error| error.to_string())?;
        stream.read_to_end(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    }

    #[test]
    fn only_who_has_a_key_reads_it() {
        let (key, other) = (Identity::generate(), Identity::generate());
        let text = b"all hands on deck ".repeat(10_000);
        let bytes = encrypted(&to(&key), &text);
        assert!(bytes.starts_with(MAGIC));
        assert_eq!(decrypted(&with(&key), &bytes), Ok(text.clone()));
        let refused = |identities: &Identities, bytes: &[u8]| decrypted(identities, bytes).unwrap_err();
        assert!(refused(&with(&other), &bytes).contains("encrypted to none of the keys in key.txt"));
        let said = refused(&Identities::default(), &bytes);
        assert!(said.contains("it is encrypted (hint: --identity"), "{said}");
        assert!(refused(&with(&key), &text).contains("it is not encrypted"));
        assert_eq!(decrypted(&Identities::default(), &text), Ok(text.clone()), "what is not is read as it is");
        assert_eq!(encrypted(&Recipients::default(), &text), text);
        assert!(refused(&with(&key), b"-----BEGIN AGE ENCRYPTED FILE-----\n").contains("in letters"));
        let mut passphrase = age::scrypt::Recipient::new("sesame".to_owned().into());
        passphrase.set_work_factor(2);
        let mut locked = Vec::new();
        let encryptor = Encryptor::with_recipients([&passphrase as &dyn age::Recipient].into_iter()).unwrap();
        encryptor.wrap_output(&mut locked).unwrap().finish().unwrap();
        assert!(refused(&with(&key), &locked).contains("encrypted with a passphrase"));
    }

    #[test]
    fn what_was_cut_off_or_changed_anywhere_is_not_whole() {
        const CHUNK: usize = (64 << 10) + 16;
        let key = Identity::generate();
        let bytes = encrypted(&to(&key), &vec![7; 3 * (64 << 10)]);
        let payload = bytes.len() - 3 * CHUNK;
        // Where one chunk ends and the next begins, too.
        for end in [3, 40, payload - 20, payload, payload + CHUNK, payload + 2 * CHUNK, bytes.len() - 1] {
            assert!(decrypted(&with(&key), &bytes[..end]).is_err(), "cut off at {end}");
        }
        for place in [25, 60, payload - 1, payload + 5, payload + CHUNK + 5, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            assert!(decrypted(&with(&key), &changed).is_err(), "changed at {place}");
        }
        let swapped =
            [&bytes[..payload], &bytes[payload + CHUNK..payload + 2 * CHUNK], &bytes[payload..payload + CHUNK]];
        assert!(decrypted(&with(&key), &[&swapped.concat(), &bytes[payload + 2 * CHUNK..]].concat()).is_err());
        assert!(decrypted(&with(&key), &[&bytes[..], b"x"].concat()).is_err(), "something behind its end");
    }

    #[test]
    fn keys_are_read_from_files() {
        let directory = std::env::temp_dir().join(format!("ferry-keys-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(directory.join(name), text).unwrap();
            directory.join(name)
        };
        let (key, other) = (Identity::generate(), Identity::generate());
        let secret = key.to_string().expose_secret().to_owned();
        let keys = file("keys", &format!("# made today\n\n{secret}\n"));
        let public = file("public", &format!("# two\n{}\n{}\n", key.to_public(), other.to_public()));
        let recipients = Recipients::read(&[public.display().to_string()]).unwrap();
        let bytes = encrypted(&recipients, b"text");
        for identities in [Identities::read(&[keys]).unwrap(), with(&other)] {
            assert_eq!(decrypted(&identities, &bytes), Ok(b"text".to_vec()));
        }
        for (name, text, said) in [
            ("none", "# nothing\n".to_owned(), "there are none in it"),
            ("bad", format!("{secret}x\n"), "line 1 is no key"),
            ("locked", "age-encryption.org/v1\n".to_owned(), "it is encrypted itself"),
            ("long", "#".repeat(LONGEST as usize + 1), "too long"),
        ] {
            let error = Identities::read(&[file(name, &text)]).err().unwrap().to_string();
            assert!(error.contains(said) && !error.contains(&secret[20..40]), "{error}");
        }
        for (text, said) in [
            ("age1xyz", "a recipient is what age-keygen calls the public key"),
            ("age1yubikey1abc", "are not known here"),
            ("/nowhere/keys", "ENOENT"),
        ] {
            let error = Recipients::read(&[text.to_owned()]).err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
        std::process::Command::new("rm").arg("-r").arg(&directory).status().unwrap();
    }
}
