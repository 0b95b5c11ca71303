//! An image's documents and layers on their way to a destination that lacks some of them: by digest, before anything else is sent, and
//! each held to its digest before anybody looks into it.
//!
//! ```text
//! source                                     destination
//!   | <--- Reserved{lacks} ------------------ |  of what the request says the image is made of
//!   | ---- Blob{digest, size}, data…  ------> |  hashed, in a directory that nobody else can write
//!   | ---- Content -------------------------> |  unpacked into its store, as an import is
//!   | <--- ContentTaken --------------------- |
//! ```
//!
//! They come as they lie in the source's store, so that the image keeps its digest. What has come stays there, whatever becomes of the
//! migration: it is what its digest says, has no name by which anybody would run it, and need not be sent again. What nothing uses goes
//! with `ferry image prune`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::frame::refused;
use super::link::{Frame, Link};
use super::message::{Blob, Message};
use super::pages::{Packer, Unpacker};
use crate::error::{Context, Error, Result};
use crate::image::digest::{Digest, Hasher};

/// Bytes of a piece.
const PIECE: usize = 1 << 20;

/// Where a blob lies in the directory that it comes to.
pub fn name(digest: &Digest) -> String {
    format!("{}-{}", digest.directory(), digest.hex())
}

/// Sends what the destination lacks, which must be some of `all`. Answers how many bytes it is.
///
/// # Errors
/// It asks for anything else; the store's, the link's.
pub fn send(
    link: &mut Link,
    lacks: &[Digest],
    all: &[Blob],
    packer: &mut Packer,
    open: &mut dyn FnMut(&Digest) -> Result<File>,
) -> Result<u64> {
    let mut bytes = 0;
    for digest in lacks {
        let blob = all.iter().find(|blob| blob.digest == *digest);
        let blob = blob.ok_or_else(|| refused(format!("it asks for {digest}, which is nothing of the image")))?;
        link.send(&Message::Blob(blob.clone())).map_err(|error| why(link, error))?;
        let (mut file, mut left) = (open(digest)?, blob.size);
        let mut piece = vec![0; PIECE];
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            file.read_exact(&mut piece[..wanted]).or_cannot("read", digest)?;
            link.send_data(&packer.bytes(&piece[..wanted])?).map_err(|error| why(link, error))?;
            left -= wanted as u64;
        }
        bytes += blob.size;
    }
    link.send(&Message::Content).map_err(|error| why(link, error))?;
    match link.hear()? {
        Message::ContentTaken => Ok(bytes),
        other => Err(other.out_of_turn()),
    }
}

/// One that has gone may have said why.
pub(super) fn why(link: &mut Link, error: Error) -> Error {
    match link.hear_now() {
        Err(said) if link.failed => said,
        _ => error,
    }
}

/// Takes what was asked for, and nothing else, into an empty directory.
///
/// # Errors
/// It is not what was asked for; the disk is full; the link's.
pub fn take(link: &mut Link, directory: &Path, wanted: &[Blob]) -> Result<()> {
    let mut unpacker = Unpacker::new()?;
    for blob in wanted {
        match link.hear()? {
            Message::Blob(comes) if comes == *blob => (),
            other => return Err(other.out_of_turn()),
        }
        let path = directory.join(name(&blob.digest));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::from_raw_mode(0o600)).or_cannot("make", path.display())?;
        let (mut file, mut hasher, mut left) = (File::from(file), Hasher::new(blob.digest.algorithm()), blob.size);
        while left > 0 {
            let data = match link.receive()? {
                Frame::Data(data) => data,
                Frame::Message(Message::Abort(why)) => {
                    return Err(Error::plain(format!("the source gave up: {}", super::message::shown(&why))));
                }
                Frame::Message(other) => return Err(other.out_of_turn()),
            };
            let bytes = unpacker.unpack(&data, PIECE)?;
            left = left
                .checked_sub(bytes.len() as u64)
                .filter(|_| !bytes.is_empty())
                .ok_or_else(|| refused(format!("{} is longer than it was said to be", blob.digest)))?;
            hasher.update(&bytes);
            file.write_all(&bytes).or_cannot("write", path.display())?;
            link.alive()?;
        }
        let is = hasher.finish();
        if is != blob.digest {
            return Err(refused(format!("what it sends as {} is {is}", blob.digest)));
        }
    }
    match link.hear()? {
        Message::Content => Ok(()),
        other => Err(other.out_of_turn()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::journal::tests::Scratch;
    use super::super::link::tests::pair;
    use super::*;

    fn blob(bytes: &[u8]) -> Blob {
        Blob { digest: Digest::of(bytes), size: bytes.len() as u64 }
    }

    #[test]
    fn what_is_lacking_comes_by_its_digest() {
        let (from, to) = (Scratch::new("content-from"), Scratch::new("content-to"));
        let bodies = [b"manifest".to_vec(), vec![7; 3 << 20], Vec::new()];
        for body in &bodies {
            std::fs::write(from.0.join(name(&Digest::of(body))), body).unwrap();
        }
        let all: Vec<Blob> = bodies.iter().map(|body| blob(body)).collect();
        let (mut one, mut other) = pair(Duration::from_secs(30));
        let (sent, directory) = (all.clone(), from.0.clone());
        let sending = std::thread::spawn(move || {
            let mut open = |digest: &Digest| File::open(directory.join(name(digest))).or_cannot("open", digest);
            let lacks: Vec<Digest> = sent[1..].iter().map(|blob| blob.digest.clone()).collect();
            send(&mut one, &lacks, &sent, &mut Packer::new(Some(1)).unwrap(), &mut open).unwrap()
        });
        take(&mut other, &to.0, &all[1..]).unwrap();
        other.send(&Message::ContentTaken).unwrap();
        assert_eq!(sending.join().unwrap(), 3 << 20);
        assert!(std::fs::read(to.0.join(name(&all[1].digest))).unwrap() == bodies[1]);
        assert_eq!(std::fs::read_dir(&to.0).unwrap().count(), 2, "what was there is not sent");
    }

    #[test]
    fn only_what_the_image_is_made_of_is_given() {
        let (mut one, mut other) = pair(Duration::from_secs(30));
        let mut open = |_: &Digest| panic!("it is opened");
        let (lacks, all) = ([Digest::of(b"shadow")], [blob(b"layer")]);
        let error = send(&mut one, &lacks, &all, &mut Packer::new(Some(1)).unwrap(), &mut open).unwrap_err();
        assert!(error.to_string().contains("nothing of the image"), "{error}");
        assert!(other.hear_now().unwrap().is_none(), "nothing is sent");
    }

    #[test]
    fn another_layer_than_was_named_is_refused() {
        let wanted = blob(b"layer");
        let data = |bytes: &[u8]| Frame::Data(Packer::new(Some(0)).unwrap().bytes(bytes).unwrap());
        let says = |blob: &Blob| Frame::Message(Message::Blob(blob.clone()));
        let cases: [(&str, Vec<Frame>, &str); 7] = [
            ("other", vec![says(&wanted), data(b"lAyer"), Frame::Message(Message::Content)], "what it sends as"),
            ("name", vec![says(&blob(b"other"))], "out of turn"),
            ("size", vec![says(&Blob { size: 4, ..wanted.clone() })], "out of turn"),
            ("long", vec![says(&wanted), data(b"layer and more")], "longer than"),
            ("short", vec![says(&wanted), data(b"lay"), Frame::Message(Message::Content)], "out of turn"),
            ("idle", vec![says(&wanted), data(b"")], "longer than"),
            ("more", vec![says(&wanted), data(b"layer"), says(&wanted)], "out of turn"),
        ];
        for (case, frames, expected) in cases {
            let to = Scratch::new(&format!("content-{case}"));
            let (mut one, mut other) = pair(Duration::from_secs(30));
            for frame in frames {
                match frame {
                    Frame::Data(data) => one.send_data(&data).unwrap(),
                    Frame::Message(message) => one.send(&message).unwrap(),
                }
            }
            let error = take(&mut other, &to.0, std::slice::from_ref(&wanted)).unwrap_err().to_string();
            assert!(error.contains(expected), "{case}: {error}");
        }
    }
}
