//! The streams that archives are packed in: gzip, zstd, or none.
//!
//! What a stream is, its first bytes say; a media type that says otherwise is believed less, as every engine does. How much
//! comes out is bounded by [`Bounded`], since a small gzip stream can hold any amount.

use std::io::{self, BufReader, Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::manifest::Compression;

/// Read ahead of the decompressor. Bytes.
const AHEAD: usize = 128 << 10;

/// How a stream that begins so is packed. Six bytes tell.
pub fn detect(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // A skippable frame, which eStargz-like writers put first: RFC 8878, 3.1.2.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The content of a packed stream, by its first bytes.
///
/// # Errors
/// What reading it answers; a zstd decoder that cannot be made.
pub fn unpack<'a>(mut stream: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut start = [0; 6];
    let mut filled = 0;
    while filled < start.len() {
        match stream.read(&mut start[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    let kind = detect(&start[..filled]);
    let whole = io::Cursor::new(start).take(filled as u64).chain(stream);
    let whole = BufReader::with_capacity(AHEAD, whole);
    Ok(match kind {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
    })
}

/// A stream that ends in an error once more than so many bytes have come out of it.
pub struct Bounded<R> {
    stream: R,
    left: u64,
    limit: u64,
}

impl<R> Bounded<R> {
    /// `limit` in bytes.
    pub fn new(stream: R, limit: u64) -> Self {
        Self { stream, left: limit, limit }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => {
                return Err(io::Error::other(format!(
                    "it unpacks to more than {} bytes, the limit; --max-size raises it",
                    self.limit
                )));
            }
        }
        Ok(count)
    }
}

/// A packing stream.
pub enum Packer<W: Write> {
    /// As it is.
    None(W),
    /// gzip, without a time or a name: the same bytes every time.
    Gzip(Box<GzEncoder<W>>),
    /// zstd.
    Zstd(Box<zstd::stream::write::Encoder<'static, W>>),
}

impl<W: Write> Packer<W> {
    /// A new one.
    ///
    /// # Errors
    /// A zstd encoder that cannot be made.
    pub fn new(kind: Compression, to: W) -> io::Result<Self> {
        Ok(match kind {
            Compression::None => Self::None(to),
            Compression::Gzip => Self::Gzip(Box::new(
                flate2::GzBuilder::new().operating_system(255).write(to, flate2::Compression::new(6)),
            )),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(to, 3)?;
                encoder.include_checksum(true)?;
                Self::Zstd(Box::new(encoder))
            }
        })
    }

    /// Writes what is left, and answers the stream below.
    ///
    /// # Errors
    /// What writing answers.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(to) => Ok(to),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(to) => to.write(buffer),
            Self::Gzip(to) => to.write(buffer),
            Self::Zstd(to) => to.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(to) => to.flush(),
            Self::Gzip(to) => to.flush(),
            Self::Zstd(to) => to.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(kind: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut packer = Packer::new(kind, Vec::new()).unwrap();
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    }

    #[test]
    fn what_was_packed_comes_out_and_what_was_cut_off_does_not() {
        let text = b"all hands on deck ".repeat(1000);
        for kind in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let bytes = packed(kind, &text);
            let mut out = Vec::new();
            unpack(bytes.as_slice()).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, text);
            let read = |bytes: &[u8]| unpack(bytes).and_then(|mut stream| stream.read_to_end(&mut Vec::new()));
            let cut = read(&bytes[..bytes.len() / 2]);
            assert_eq!(cut.is_err(), kind != Compression::None, "{kind:?}: {cut:?}");
            if kind != Compression::None {
                let mut changed = bytes.clone();
                let end = changed.len() - 3;
                changed[end] ^= 0x55;
                assert!(read(&changed).is_err(), "{kind:?}");
            }
            assert_eq!(packed(kind, &text), bytes, "the same every time");
        }
        assert_eq!(unpack(&b""[..]).unwrap().read(&mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let bomb = packed(Compression::Gzip, &vec![0; 1 << 20]);
        let mut stream = Bounded::new(unpack(bomb.as_slice()).unwrap(), 1000);
        let error = stream.read_to_end(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("more than 1000 bytes"), "{error}");
    }
}
