//! What an archive says of one entry, GNU's and PAX' additions worked in. POSIX pax(1), GNU tar manual, "Basic Tar Format"

use std::ffi::CString;

use rustix::fs::Timespec;
use tar::EntryType;

use super::entries::Entry;
use super::sparse;
use crate::error::{Error, Result};
use crate::image::pack::{BODY, LONGEST_NAME};
use crate::image::pax::{self, Records};

/// One entry.
#[derive(Debug)]
pub struct Header {
    /// Where, from the layer's root on; empty for the root itself. Without `.` and `..`.
    pub path: Vec<u8>,
    /// What.
    pub kind: EntryType,
    /// Where a link leads: as it stands for a symbolic one, cleaned like `path` for a hard one.
    pub target: Vec<u8>,
    /// Permissions, with the set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification.
    pub mtime: Timespec,
    /// Bytes that it has, holes included.
    pub size: u64,
    /// Device number.
    pub device: (u32, u32),
    /// Extended attributes, all of them.
    pub xattrs: Vec<(CString, Vec<u8>)>,
    /// How a sparse file's data lies, where PAX says so.
    pub sparse: Option<sparse::Map>,
    /// The number of its content, where that comes otherwise.
    pub body: Option<u64>,
}

impl Header {
    /// Reads the header of `entry`; `None` for what is no file: a comment of the archive.
    ///
    /// # Errors
    /// It is broken, or leads out of the layer.
    pub fn read(entry: Entry) -> Result<Option<Self>> {
        let (mut path, mut target) = (entry.name(), entry.target());
        let Entry { header, records, stored, sparse, .. } = entry;
        let kind = header.entry_type();
        if matches!(kind, EntryType::XGlobalHeader) || kind.as_byte() == b'V' {
            return Ok(None);
        }
        let records: Vec<(&[u8], &[u8])> = Records::of(&records).collect::<Result<_, _>>().map_err(unreadable)?;
        let named = String::from_utf8_lossy(&path).into_owned();
        let bad = |why: String| Error::said("unpack", format!("{named:?}"), why);
        let broken = |why: std::io::Error| bad(why.to_string());
        let field =
            |bytes: &[u8], value: std::io::Result<u64>| if is_blank(bytes) { Ok(0) } else { value.map_err(broken) };
        let old = header.as_old();
        let mut mode = field(&old.mode, header.mode().map(u64::from))? as u32 & 0o7777;
        let (mut uid, mut gid) = (field(&old.uid, header.uid())?, field(&old.gid, header.gid())?);
        // Negative times are base-256 numbers that the parser gives as they stand.
        let mut mtime = Timespec { tv_sec: field(&old.mtime, header.mtime())?.cast_signed(), tv_nsec: 0 };
        let device = match kind {
            EntryType::Char | EntryType::Block => {
                let number = |field: std::io::Result<Option<u32>>| field.map_err(broken).map(Option::unwrap_or_default);
                (number(header.device_major())?, number(header.device_minor())?)
            }
            _ => (0, 0),
        };
        let mut size = stored;
        let mut xattrs = Vec::new();
        let mut holes = sparse::Said::default();
        let mut body = None;
        for (key, value) in &records {
            let text = || std::str::from_utf8(value).map_err(|why| bad(why.to_string()));
            let number = |what: &str| text()?.parse::<u64>().map_err(|_| bad(format!("its {what} is no number")));
            match *key {
                b"uid" | b"gid" | b"mtime" if value.is_empty() => (),
                b"uid" => uid = number("uid")?,
                b"gid" => gid = number("gid")?,
                _ if *key == BODY.as_bytes() => body = Some(number("body")?),
                b"mtime" => mtime = timestamp(text()?).ok_or_else(|| bad("its time is no number".to_owned()))?,
                _ => {
                    if let Some(name) = pax::attribute_name(key) {
                        let name = CString::new(name);
                        let name = name.map_err(|_| bad("an attribute's name has a NUL byte".to_owned()))?;
                        xattrs.push((name, value.to_vec()));
                    } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        holes.take(key, value).map_err(&bad)?;
                    }
                }
            }
        }
        if let Some(name) = holes.name.take() {
            path = name;
        }
        let sparse = holes.map(size).map_err(&bad)?.or(sparse);
        if let Some(map) = &sparse {
            size = map.size;
        }
        // What an archive says of a link's permissions means nothing: it has none.
        if kind.is_symlink() {
            mode = 0o777;
        }
        let id = |id: u64, what: &str| u32::try_from(id).map_err(|_| bad(format!("its {what} {id} is out of range")));
        let (uid, gid) = (id(uid, "uid")?, id(gid, "gid")?);
        if kind.is_hard_link() {
            target = clean(&target).map_err(|why| bad(format!("its target {why}")))?;
        }
        if target.contains(&0) {
            return Err(bad("its target has a NUL byte".to_owned()));
        }
        let path = clean(&path).map_err(|why| bad(why.to_owned()))?;
        Ok(Some(Self { path, kind, target, mode, uid, gid, mtime, size, device, xattrs, sparse, body }))
    }

    /// The entry's name as people read it.
    pub fn named(&self) -> String {
        format!("{:?}", String::from_utf8_lossy(&self.path))
    }
}

fn unreadable(why: String) -> Error {
    Error::said("read", "an entry of the archive", why)
}

/// A number that is left out, which is 0 to tar and Go alike.
fn is_blank(field: &[u8]) -> bool {
    field.iter().all(|byte| matches!(byte, 0 | b' '))
}

/// A path from the layer's root on. A leading `/` means that root.
fn clean(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    if path.len() > LONGEST_NAME {
        return Err("has a name that is too long");
    }
    let mut cleaned = Vec::with_capacity(path.len());
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err("leads out of the layer with \"..\""),
            _ if part.contains(&0) => return Err("has a NUL byte in its name"),
            _ => {
                if !cleaned.is_empty() {
                    cleaned.push(b'/');
                }
                cleaned.extend_from_slice(part);
            }
        }
    }
    Ok(cleaned)
}

/// Seconds with a fraction, such as `1700000000.123456789`; more digits are cut off.
fn timestamp(text: &str) -> Option<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    match (text.starts_with('-'), nanoseconds) {
        (true, 1..) => Some(Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: (1_000_000_000 - nanoseconds) as _ }),
        _ => Some(Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::unpack::entries::Entries;

    #[test]
    fn paths_begin_at_the_layers_root_and_stay_below() {
        assert_eq!(clean(b"./a//b/./c/").unwrap(), b"a/b/c");
        assert_eq!(clean(b"/etc/passwd").unwrap(), b"etc/passwd");
        assert_eq!(clean(b"./").unwrap(), b"");
        for bad in [&b".."[..], b"a/../b", b"/../x", b"a\0b", &[b'a'; 5000]] {
            assert!(clean(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_number_may_be_left_out() {
        let mut header = tar::Header::new_ustar();
        header.set_path("a").unwrap();
        header.set_size(0);
        header.as_old_mut().uid.copy_from_slice(b"       \0");
        header.set_cksum();
        let bytes = [header.as_bytes().to_vec(), vec![0; 1024]].concat();
        let entry = Entries::of(bytes.as_slice()).advance().unwrap().unwrap();
        let read = Header::read(entry).unwrap().unwrap();
        assert_eq!((read.uid, read.gid, read.mode, read.mtime.tv_sec), (0, 0, 0, 0));
    }

    #[test]
    fn times_have_nanoseconds() {
        let of = |text| timestamp(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(of("12"), Some((12, 0)));
        assert_eq!(of("12.5"), Some((12, 500_000_000)));
        assert_eq!(of("12.1234567899"), Some((12, 123_456_789)));
        assert_eq!(of("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(of("-0.5"), Some((-1, 500_000_000)));
        assert_eq!(of("x"), None);
        assert_eq!(of("1.x"), None);
    }
}
