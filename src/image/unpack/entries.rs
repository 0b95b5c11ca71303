//! The entries of an archive, one after the other, each with what the headers before it say: GNU's long names and PAX records.
//! POSIX pax(1); GNU tar manual, "Basic Tar Format"
//!
//! The blocks are read here and their fields by the tar crate, whose own reading ends a PAX record at the first newline and skips as
//! many bytes behind a link as the header says: readers agree that there are none, and whatever comes next would not be seen.

use std::io::{self, Error, Read, Result};

use tar::{EntryType, Header};

use super::sparse;
use crate::image::pax::Records;

/// Headers, and what the content of an entry is padded to. Bytes.
const BLOCK: usize = 512;

/// An archive on its way through: reading gives the content of the entry that was met last.
pub struct Entries<R> {
    stream: R,
    /// Bytes of that content which nobody has read.
    left: u64,
    /// Those behind it up to the next header.
    padding: u64,
}

/// One entry.
#[derive(Debug)]
pub struct Entry {
    /// Its header as it stands.
    pub header: Header,
    /// Its name, where that is too long for the header.
    long_name: Option<Vec<u8>>,
    /// Where it leads, the same.
    long_link: Option<Vec<u8>>,
    /// The records for it, to be read as [`Records`].
    pub records: Vec<u8>,
    /// Bytes of it in the archive.
    pub stored: u64,
    /// How its data lies, where GNU's own header of a sparse file says so.
    pub sparse: Option<sparse::Map>,
}

impl Entry {
    /// Its name as it stands.
    pub fn name(&self) -> Vec<u8> {
        let said = said(self.long_name.as_deref(), &self.records, b"path");
        said.unwrap_or_else(|| self.header.path_bytes().into_owned())
    }

    /// Where it leads, as it stands.
    pub fn target(&self) -> Vec<u8> {
        let said = said(self.long_link.as_deref(), &self.records, b"linkpath");
        said.or_else(|| self.header.link_name_bytes().map(Into::into)).unwrap_or_default()
    }

    /// Whether it is a directory as archives had them before there was a type for that: a file whose name ends in a slash.
    fn is_old_directory(&self) -> bool {
        self.header.as_old().linkflag == [0] && self.name().ends_with(b"/")
    }
}

/// A long name of GNU's goes before PAX', and that before the header's. An empty value gives way, the last one counts.
fn said(long: Option<&[u8]>, records: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let ended = |name: &[u8]| name.strip_suffix(b"\0").unwrap_or(name).to_vec();
    let of_key = |(known, value): (&[u8], &[u8])| (known == key && !value.is_empty()).then(|| value.to_vec());
    long.map(ended).or_else(|| Records::of(records).flatten().filter_map(of_key).last())
}

impl<R: Read> Entries<R> {
    /// The entries of an archive.
    pub fn of(archive: R) -> Self {
        Self { stream: archive, left: 0, padding: 0 }
    }

    /// What is behind the last entry.
    pub fn into_inner(self) -> R {
        self.stream
    }

    /// Goes on to the next entry, the content of the one before being read.
    ///
    /// # Errors
    /// The archive is broken, or ends in the middle.
    pub fn advance(&mut self) -> Result<Option<Entry>> {
        let (mut long_name, mut long_link, mut records) = (None, None, None);
        while let Some(header) = self.header()? {
            let kind = header.entry_type();
            let place = match kind {
                EntryType::GNULongName => &mut long_name,
                EntryType::GNULongLink => &mut long_link,
                EntryType::XHeader => &mut records,
                _ => {
                    let records = records.unwrap_or_default();
                    let mut entry = Entry { header, long_name, long_link, records, stored: 0, sparse: None };
                    if entry.is_old_directory() {
                        entry.header.set_entry_type(EntryType::Directory);
                    }
                    entry.stored = stored(&entry)?;
                    if kind.is_gnu_sparse() {
                        let (size, parts) = self.map(&entry.header)?;
                        entry.sparse = Some(sparse::Map::gnu(size, parts, entry.stored).map_err(Error::other)?);
                    }
                    self.content(entry.stored);
                    return Ok(Some(entry));
                }
            };
            self.content(header.entry_size()?);
            let mut body = Vec::new();
            self.read_to_end(&mut body)?;
            if place.replace(body).is_some() {
                return Err(Error::other(format!("an entry has two headers of type {:?}", char::from(kind.as_byte()))));
            }
        }
        match (long_name, long_link, records) {
            (None, None, None) => Ok(None),
            _ => Err(cut_off()),
        }
    }

    fn content(&mut self, size: u64) {
        (self.left, self.padding) = (size, size.wrapping_neg() % BLOCK as u64);
    }

    /// The next header; none where the archive ends, with a block of zeros or without.
    fn header(&mut self) -> Result<Option<Header>> {
        io::copy(&mut self.stream.by_ref().take(self.padding), &mut io::sink())?;
        let Some(block) = self.block()?.filter(|block| block.iter().any(|byte| *byte != 0)) else { return Ok(None) };
        let header = Header::from_byte_slice(&block).clone();
        // The sum is of the header with blanks in its place.
        let sum: u32 = block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
        if header.cksum()? != sum + 8 * u32::from(b' ') {
            return Err(Error::other("archive header checksum mismatch"));
        }
        Ok(Some(header))
    }

    /// The next block; none at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut read = 0;
        while read < BLOCK {
            match self.stream.read(&mut block[read..])? {
                0 if read == 0 => return Ok(None),
                0 => return Err(cut_off()),
                count => read += count,
            }
        }
        Ok(Some(block))
    }

    /// The map of GNU's first format, in the header of the file and blocks behind it.
    fn map(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>)> {
        let gnu = header.as_gnu().ok_or_else(|| Error::other("its map of holes is in no GNU header"))?;
        let mut parts = Vec::new();
        let mut take = |some: &[tar::GnuSparseHeader]| -> Result<()> {
            for part in some.iter().filter(|part| !part.is_empty()) {
                parts.push((part.offset()?, part.length()?));
            }
            Ok(())
        };
        take(&gnu.sparse)?;
        let mut goes_on = gnu.is_extended();
        while goes_on {
            let mut more = tar::GnuExtSparseHeader::new();
            *more.as_mut_bytes() = self.block()?.ok_or_else(cut_off)?;
            take(more.sparse())?;
            goes_on = more.is_extended();
        }
        Ok((gnu.real_size()?, parts))
    }
}

/// How many bytes of an entry there are. Links, devices, directories and pipes have none, whatever is said of them.
fn stored(entry: &Entry) -> Result<u64> {
    let mut size = match entry.header.entry_type().as_byte() {
        b'1'..=b'6' => return Ok(0),
        _ => entry.header.entry_size()?,
    };
    for record in Records::of(&entry.records) {
        let (key, value) = record.map_err(Error::other)?;
        if key == b"size" && !value.is_empty() {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            size = number.ok_or_else(|| Error::other("the size of an entry is no number"))?;
        }
    }
    Ok(size)
}

fn cut_off() -> Error {
    Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle")
}

impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.stream.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            return Err(cut_off());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::pax;

    fn block(kind: u8, name: &str, size: u64) -> Vec<u8> {
        let mut header = Header::new_ustar();
        header.as_old_mut().linkflag = [kind];
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn names(archive: &[u8]) -> Result<Vec<String>> {
        let mut entries = Entries::of(archive);
        let mut names = Vec::new();
        while let Some(entry) = entries.advance()? {
            io::copy(&mut entries, &mut io::sink())?;
            names.push(String::from_utf8_lossy(&entry.header.path_bytes()).into_owned());
        }
        Ok(names)
    }

    #[test]
    fn only_files_have_content_and_the_last_size_counts() {
        let end = [block(b'0', "last", 0), vec![0; 1024]].concat();
        for kind in b'1'..=b'6' {
            let archive = [block(kind, "link", 700), end.clone()].concat();
            assert_eq!(names(&archive).unwrap(), ["link", "last"], "{kind}");
        }
        let mut records = Vec::new();
        pax::add(&mut records, b"comment", b"\n12 size=1024\n");
        pax::add(&mut records, b"size", b"5");
        pax::add(&mut records, b"size", b"600");
        let size = records.len() as u64;
        records.resize(BLOCK, 0);
        let archive = [block(b'x', "", size), records.clone(), block(b'0', "file", 0), vec![1; 1024], end.clone()];
        assert_eq!(names(&archive.concat()).unwrap(), ["file", "last"]);
        let header = block(b'x', "", size);
        let twice = [header.clone(), records.clone(), header.clone(), records.clone(), end];
        assert!(names(&twice.concat()).unwrap_err().to_string().contains("two headers"));
        assert!(names(&block(b'0', "file", 5)).is_err(), "it ends in the middle");
        assert!(names(&[header, records].concat()).is_err());
        // A directory of old is one, and a file with the type that it has since then is none, whatever it is called.
        let kind = |archive: &[u8]| Entries::of(archive).advance().unwrap().unwrap().header.entry_type();
        let end = [block(b'0', "last", 0), vec![0; 1024]].concat();
        let old = [block(0, "old/", 700), end.clone()].concat();
        assert_eq!(
            (kind(&old), names(&old).unwrap()),
            (EntryType::Directory, vec!["old/".to_owned(), "last".to_owned()])
        );
        for (number, name) in [(0, "old"), (b'0', "old/")] {
            assert_eq!(kind(&[block(number, name, 0), end.clone()].concat()), EntryType::Regular, "{name}");
        }
    }
}
