//! What the two ends say to each other, as values. The order in which they may come is in [`super::source`] and
//! [`super::destination`]; any other is an error.
//!
//! A message is JSON with no room for what is not known, in a frame of bounded length. All of it comes from another machine:
//! names are checked where they are read, texts are cleaned before anybody sees them.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::faults::Faults;
use super::page_server::Pages;
use super::sum::Sum;
use crate::checkpoint::root::Image;
use crate::error::{Context, Error, Result};
use crate::image::digest::Digest;

/// The version of all of this. Another is refused.
pub const PROTOCOL: u32 = 6;

/// The most letters of a text of the far end's that are shown.
const SHOWN: usize = 2000;

/// The name of one migration: 128 random bits, so that no answer to another one fits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(String);

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// The kernel gives no random bits.
    pub fn new() -> Result<Self> {
        let mut bits = [0; 16];
        let source = "/dev/urandom";
        std::fs::File::open(source).and_then(|mut file| file.read_exact(&mut bits)).or_cannot("read", source)?;
        Ok(Self(bits.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// 32 lower-case hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Token {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let good = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(text)) } else { Err("a migration's name has 32 hexadecimal digits".to_owned()) }
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        token.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the source has decided, which is the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The destination has the container.
    Committed,
    /// The source keeps it.
    Aborted,
}

/// How the container is stopped, and so what the destination must be able to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Choices {
    /// Established TCP connections go along.
    pub tcp_established: bool,
    /// They are closed.
    pub tcp_close: bool,
    /// UNIX sockets may lead out.
    pub ext_unix_sk: bool,
    /// File locks go along.
    pub file_locks: bool,
}

/// Some content of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Blob {
    /// What is in it.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// What the destination is asked to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// [`PROTOCOL`].
    pub version: u32,
    /// The migration.
    pub token: Token,
    /// The container's id there.
    pub id: String,
    /// The source's host name, for people.
    pub from: String,
    /// The bundle there. Absolute.
    pub bundle: PathBuf,
    /// config.json, as the container has it.
    pub config: String,
    /// What the source is.
    pub machine: Machine,
    /// Bytes of memory that the container uses.
    pub memory: u64,
    /// Bytes of what it has changed in the files of its image.
    pub files: u64,
    /// The image whose layers its root lies upon; then its configuration is one that `run` makes of it, and it has no bundle.
    pub image: Option<Image>,
    /// What that image is made of: its manifest, its configuration, its layers. Empty where the source cannot send it.
    pub content: Vec<Blob>,
    /// How it is stopped and restored.
    pub choices: Choices,
    /// Some of its memory may come after it has gone on.
    pub leaves: bool,
    /// Nothing is to be held: it is only asked whether it could be.
    pub dry_run: bool,
}

/// What a machine is, as far as a running program depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// As `uname -m` says.
    pub architecture: String,
    /// As `uname -r` says.
    pub kernel: String,
    /// What its processors can, as the kernel names it. Sorted.
    pub cpu_features: Vec<String>,
    /// Bytes of a page.
    pub page_size: u64,
    /// CRIU's version, as 40101 for 4.1.1.
    pub criu: u32,
}

/// What the destination has, once it holds the place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    /// [`PROTOCOL`].
    pub version: u32,
    /// The destination's host name, for people.
    pub host: String,
    /// What it is.
    pub machine: Machine,
    /// Bytes of memory that are free.
    pub memory_free: u64,
    /// Bytes that are free where images are kept.
    pub disk_free: u64,
    /// What of the image it lacks, of the request's content: that is to come first.
    pub lacks: Vec<Digest>,
}

/// What is known once everything stands still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Last {
    /// The round to restore from.
    pub round: u32,
    /// How many pages come only after it has gone on.
    #[serde(default)]
    pub left: u64,
    /// The regular files that the three standard streams lead to outside of the container.
    pub streams: [Option<Stream>; 3],
}

/// A regular file, as far as CRIU wants the one in its place to be like it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stream {
    /// Bytes.
    pub length: u64,
    /// Its permissions.
    pub mode: u32,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Message {
    /// Source: hold a place for this.
    Reserve(Box<Request>),
    /// Destination: it is held, or could be.
    Reserved(Box<Place>),
    /// Destination: it cannot be; every reason there is.
    Refused(Vec<String>),
    /// Source: content of the image; its data follows.
    Blob(Blob),
    /// Source: that was all of it that was lacking.
    Content,
    /// Destination: the image is here.
    ContentTaken,
    /// Source: images of this round follow.
    Round(u32),
    /// Source: a file of the round; its data follows.
    File {
        /// Its plain name.
        name: String,
        /// Bytes.
        size: u64,
        /// Whether it is pages, which come in blocks.
        pages: bool,
    },
    /// Source: this much has changed of the content of a file of the upper layer; pieces follow, each with its place before it.
    Body {
        /// Which, at the source.
        number: u64,
        /// Bytes that it has now.
        size: u64,
    },
    /// Source: the file or body is whole, and this is the sum of what came of it.
    FileEnd(Sum),
    /// Source: this body is not there any more.
    Gone(u64),
    /// Source: that was the round, of so many files.
    RoundEnd {
        /// Which.
        round: u32,
        /// How many.
        files: u32,
        /// Whether the container stands still, and this is the last. Then the destination does not wait for its disk before it
        /// begins to restore, but before [`Message::Prepared`].
        still: bool,
    },
    /// Destination: the round is here and verified, and its disk writes it; before the next one it waits for that.
    RoundTaken(u32),
    /// Source: everything is sent; restore it, and hold it.
    Finish(Box<Last>),
    /// Destination: it is restored, and stands still.
    Prepared,
    /// Source: it is yours.
    Commit(Token),
    /// Destination: it runs.
    Active {
        /// Its first process there.
        pid: i32,
        /// Nanoseconds from the order to restore to [`Message::Prepared`].
        prepared: u64,
        /// Nanoseconds from [`Message::Commit`] until it ran.
        resumed: u64,
    },
    /// Destination: it wants these pages, which were left.
    Want(Pages),
    /// Source: here are these of them, in the block that follows.
    Pages(Pages),
    /// Destination: nothing is left any more.
    Whole(Faults),
    /// Destination: it has run there, and what was left of its memory never came. Nothing of it runs there, nor will.
    Lost(String),
    /// Source: what was here of it is gone.
    Released,
    /// Destination: it cannot be restored; nothing of it runs here, nor will.
    Failed(String),
    /// Destination: it was committed, and could not be made to run after all. Nothing of it runs here, nor will.
    Returned(String),
    /// Source: it stays here, for this reason.
    Abort(String),
    /// Destination: nothing of it is left here.
    Aborted,
    /// Source, alone on a new link: this is what became of a migration.
    Settle {
        /// [`PROTOCOL`].
        version: u32,
        /// Which.
        token: Token,
        /// What.
        verdict: Verdict,
    },
    /// Destination: there is no such migration here.
    Unknown,
    /// Either: it is at work, and has nothing to say yet. [`super::link::Link`] keeps it to itself.
    Alive,
}

impl Message {
    /// What goes into a frame.
    ///
    /// # Errors
    /// None in practice.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|why| Error::said("write", "a message", why.to_string()))
    }

    /// Reads what came in a frame.
    ///
    /// # Errors
    /// It is no message.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|why| super::frame::refused(format!("it is no message: {why}")))
    }

    /// Its name, for errors.
    pub fn name(&self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            Ok(serde_json::Value::Object(fields)) => fields.keys().next().cloned().unwrap_or_default(),
            _ => String::new(),
        }
    }

    /// The error of a message that has no place here.
    pub fn out_of_turn(&self) -> Error {
        super::frame::refused(format!("{:?} came out of turn", self.name()))
    }
}

/// A text of the far end's, fit to be shown.
pub fn shown(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(SHOWN).collect()
}

/// Whether a name may be that of a file among images: plain, and none that ferry or CRIU make themselves.
pub fn is_image_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name != "parent" && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Message> {
        let token = Token::new().unwrap();
        vec![
            Message::Round(3),
            Message::Blob(Blob { digest: Digest::of(b"layer"), size: 5 }),
            Message::File { name: "pages-1.img".into(), size: 8192, pages: true },
            Message::FileEnd(Sum::of(b"x")),
            Message::Body { number: 1 << 40, size: 7 },
            Message::Gone(3),
            Message::Prepared,
            Message::Commit(token.clone()),
            Message::Refused(vec!["no".into()]),
            Message::Settle { version: PROTOCOL, token, verdict: Verdict::Aborted },
            Message::Want(Pages { image: 1, address: 4096, count: 9 }),
            Message::Whole(Faults::default()),
            Message::Lost("cut".into()),
            Message::Finish(Box::new(Last {
                round: 1,
                left: 7,
                streams: [None, Some(Stream { length: 7, mode: 0o644 }), None],
            })),
        ]
    }

    #[test]
    fn what_is_said_is_heard() {
        for message in samples() {
            let bytes = message.encode().unwrap();
            assert_eq!(Message::decode(&bytes).unwrap(), message);
            assert!(!message.name().is_empty());
        }
        assert_eq!(Message::Prepared.name(), "prepared");
        assert_eq!(samples()[1].name(), "blob");
    }

    /// Every cut and every flipped bit of real messages: an answer, and no panic.
    #[test]
    fn no_message_is_too_strange() {
        for message in samples() {
            let whole = message.encode().unwrap();
            for at in 0..whole.len() {
                assert!(Message::decode(&whole[..at]).is_err(), "{}", message.name());
                for bit in 0..8 {
                    let mut flipped = whole.clone();
                    flipped[at] ^= 1 << bit;
                    Message::decode(&flipped).ok();
                }
            }
        }
        assert!(Message::decode(br#"{"settle":{"version":1,"token":"../x","verdict":"aborted"}}"#).is_err());
        assert!(Message::decode(br#"{"round":1,"more":2}"#).is_err());
        assert!(Message::decode(br#"{"file":{"name":"a","size":1,"pages":true,"mode":4755}}"#).is_err());
    }

    #[test]
    fn names_that_lead_elsewhere_are_none() {
        for good in ["core-1.img", "pages-12.img", "inventory.img", "descriptors.json"] {
            assert!(is_image_name(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "parent", ".hidden", "a\0", "a b", &"x".repeat(129)] {
            assert!(!is_image_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_text_cannot_speak_to_the_terminal() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a[2Jb");
        assert_eq!(shown(&"x".repeat(9999)).len(), SHOWN);
    }

    #[test]
    fn tokens_differ() {
        let (one, other) = (Token::new().unwrap(), Token::new().unwrap());
        assert_ne!(one, other);
        assert_eq!(Token::try_from(one.to_string()).unwrap(), one);
        assert!(Token::try_from("A".repeat(32)).is_err());
    }
}
