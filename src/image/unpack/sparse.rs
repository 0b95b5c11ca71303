//! Files with holes, as GNU tar writes them in PAX archives: formats 0.0 and 0.1 keep the map in the header, 1.0 before the
//! data; GNU's older one has it in the file's own header. GNU tar manual, "Storing Sparse Files"

use std::io::{self, Read};

/// Parts of a file that are no holes, in order, as offset and length. Bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// The file's size, holes included.
    pub size: u64,
    /// Empty before [`Map::read`] where the map stands before the data.
    pub parts: Vec<(u64, u64)>,
    /// Whether it does.
    before_data: bool,
}

/// What a header said of holes, key by key.
#[derive(Debug, Default)]
pub struct Said {
    /// The file's own name: the entry's is a made-up one.
    pub name: Option<Vec<u8>>,
    size: Option<u64>,
    offset: Option<u64>,
    parts: Vec<(u64, u64)>,
    major: Option<u64>,
    any: bool,
}

/// The most parts: each is 16 bytes here, and a few in the archive.
const MOST_PARTS: u64 = 1 << 20;

impl Said {
    /// Takes one key, without `GNU.sparse.`.
    pub fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let number = || {
            let text = std::str::from_utf8(value).ok();
            text.and_then(|text| text.parse::<u64>().ok()).ok_or_else(|| "its map of holes is broken".to_owned())
        };
        self.any = true;
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number()?),
            b"offset" => self.offset = Some(number()?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("its map of holes is broken")?;
                self.parts.push((offset, number()?));
            }
            b"major" => self.major = Some(number()?),
            b"map" => {
                let text = std::str::from_utf8(value).map_err(|_| "its map of holes is broken")?;
                let numbers: Vec<u64> = text
                    .split(',')
                    .map(|word| word.parse().map_err(|_| "its map of holes is broken".to_owned()))
                    .collect::<Result<_, _>>()?;
                self.parts = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
                if !numbers.len().is_multiple_of(2) {
                    return Err("its map of holes is broken".to_owned());
                }
            }
            // numblocks and minor say nothing that is needed.
            _ => (),
        }
        Ok(())
    }

    /// The map, if this is a sparse file; `stored` are the bytes of the entry.
    pub fn map(self, stored: u64) -> Result<Option<Map>, String> {
        if !self.any {
            return Ok(None);
        }
        let size = self.size.ok_or("its map of holes has no size")?;
        let before_data = self.major == Some(1);
        let map = Map { size, parts: self.parts, before_data };
        if !before_data {
            check(&map, stored)?;
        }
        Ok(Some(map))
    }
}

/// Parts in order, inside the file, and as many bytes as there are.
fn check(map: &Map, stored: u64) -> Result<(), String> {
    let mut end = 0;
    let mut sum = 0_u64;
    for (offset, length) in &map.parts {
        let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= map.size);
        end = next.ok_or("its map of holes contradicts itself")?;
        sum += length;
    }
    if sum > stored { Err("its map of holes tells of more data than there is".to_owned()) } else { Ok(()) }
}

impl Map {
    /// The map of GNU's older format. There every part has blocks of its own, which no writer but the last one's fills in part.
    ///
    /// # Errors
    /// It contradicts itself, or what is stored.
    pub fn gnu(size: u64, parts: Vec<(u64, u64)>, stored: u64) -> Result<Self, String> {
        let map = Self { size, parts, before_data: false };
        check(&map, stored)?;
        let filled = map.parts.iter().rev().skip_while(|(_, length)| *length == 0).skip(1);
        match filled.clone().all(|(_, length)| length % 512 == 0) {
            true => Ok(map),
            false => Err("its map of holes has a part that ends inside of a block".to_owned()),
        }
    }

    /// Reads the map that stands before the data, if it does; `stored` are the bytes of the entry.
    ///
    /// # Errors
    /// It is broken.
    pub fn read(&mut self, entry: &mut impl Read, stored: u64) -> io::Result<()> {
        if !self.before_data {
            return Ok(());
        }
        let mut block = [0; 512];
        let (mut at, mut blocks) = (512, 0_u64);
        let mut number = || -> io::Result<u64> {
            let mut value = 0_u64;
            loop {
                if at == 512 {
                    entry.read_exact(&mut block)?;
                    (at, blocks) = (0, blocks + 1);
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'\n' => return Ok(value),
                    b'0'..=b'9' => {
                        let next = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(byte - b'0')));
                        value = next.ok_or_else(|| io::Error::other("its map of holes is broken"))?;
                    }
                    _ => return Err(io::Error::other("its map of holes is broken")),
                }
            }
        };
        let count = number()?;
        if count > MOST_PARTS {
            return Err(io::Error::other("its map of holes is too long"));
        }
        for _ in 0..count {
            let part = (number()?, number()?);
            self.parts.push(part);
        }
        check(self, stored.saturating_sub(blocks * 512)).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pairs: &[(&str, &str)], stored: u64) -> Result<Option<Map>, String> {
        let mut said = Said::default();
        pairs.iter().try_for_each(|(key, value)| said.take(key.as_bytes(), value.as_bytes()))?;
        said.map(stored)
    }

    #[test]
    fn maps_in_the_header() {
        let parts = vec![(0, 5), (4096, 3)];
        let map = Map { size: 9000, parts, before_data: false };
        let old = [("size", "9000"), ("offset", "0"), ("numbytes", "5"), ("offset", "4096"), ("numbytes", "3")];
        assert_eq!(said(&old, 8).unwrap().as_ref(), Some(&map));
        assert_eq!(said(&[("size", "9000"), ("map", "0,5,4096,3")], 8).unwrap(), Some(map));
        assert_eq!(said(&[], 8).unwrap(), None);
        for bad in [&[("map", "0,5")][..], &[("size", "4"), ("map", "0,5")], &[("size", "9"), ("map", "3,5,0,1")]] {
            assert!(said(bad, 8).is_err(), "{bad:?}");
        }
        assert!(said(&[("size", "9000"), ("map", "0,9")], 8).is_err());
        assert!(said(&[("size", "9000"), ("map", "18446744073709551615,9")], 8).is_err());
    }

    #[test]
    fn a_map_before_the_data() {
        let mut block = b"1\n4096\n3\n".to_vec();
        block.resize(512, 0);
        let mut map = said(&[("major", "1"), ("realsize", "9000")], 515).unwrap().unwrap();
        map.read(&mut block.as_slice(), 515).unwrap();
        assert_eq!(map.parts, [(4096, 3)]);
        let mut map = said(&[("major", "1"), ("realsize", "9000")], 515).unwrap().unwrap();
        assert!(map.read(&mut &b"9999999999999\n"[..], 515).is_err());
    }
}
