//! The mount table of a mount namespace. proc_pid_mountinfo(5)
//!
//! Only while `/proc` is the host's.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The mount's id, which is used again once the mount is gone.
    pub id: u64,
    /// The id of the mount that it is mounted on.
    pub parent: u64,
    /// What of the filesystem is mounted: `/` for all of it.
    pub top: PathBuf,
    /// Where, seen from the root of the process whose table it is.
    pub point: PathBuf,
    /// The mount's own options: `ro`, `nosuid`, `idmapped`, …, between commas.
    pub options: String,
    /// The filesystem's type.
    pub kind: String,
    /// The filesystem's options, as it shows them.
    pub data: String,
}

/// Reads this process' table.
///
/// # Errors
/// What open(2) answers.
pub fn read() -> Result<Vec<Row>, Errno> {
    read_of(Path::new("/proc/self"))
}

/// Reads the table of the process with this directory in `/proc`.
///
/// # Errors
/// What open(2) answers.
pub fn read_of(process: &Path) -> Result<Vec<Row>, Errno> {
    super::read(process.join("mountinfo")).map(|table| rows(&table)).map_err(raw)
}

/// The rows of a table, a line each.
pub fn rows(table: &[u8]) -> Vec<Row> {
    table.split(|byte| *byte == b'\n').filter_map(row).collect()
}

/// The id of the mount that a descriptor is on. statx(2) tells it only since Linux 5.8.
///
/// # Errors
/// What open(2) answers; EPROTO for a file without it.
pub fn id_of(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let text = super::text(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).map_err(raw)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.and_then(|id| id.trim().parse().ok()).ok_or(Errno::EPROTO)
}

fn raw(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Fields: id, parent, device, top, mount point, options; any number of optional ones, and a dash; type, source, data.
fn row(line: &[u8]) -> Option<Row> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse().ok();
    let mut fields = line.split(|byte| *byte == b' ');
    let (id, parent) = (number(fields.next()?)?, number(fields.next()?)?);
    let (top, point) = (unescape(fields.nth(1)?), unescape(fields.next()?));
    let options = text(fields.next()?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Row { id, parent, top, point, options, kind: text(fields.next()?), data: text(fields.nth(1)?) })
}

impl Row {
    /// Whether the mount has one of its own options.
    pub fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|word| word == option)
    }
}

/// Blanks and backslashes stand there as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                bytes.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_mount_points() {
        assert_eq!(unescape(b"/mnt/a\\040b\\134"), Path::new("/mnt/a b\\"));
        assert_eq!(unescape(b"/plain\\"), Path::new("/plain\\"));
    }

    #[test]
    fn a_row_with_optional_fields() {
        let line = b"36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let found = row(line).unwrap();
        assert_eq!((found.id, found.parent, found.top.as_path()), (36, 35, Path::new("/mnt1")));
        assert_eq!((found.point.as_path(), found.kind.as_str()), (Path::new("/mnt two"), "ext3"));
        assert_eq!(found.data, "rw,errors=continue");
        assert!(found.has("noatime") && !found.has("ro") && !found.has("errors=continue"));
    }

    #[test]
    fn rows_without_optional_fields_and_what_is_none() {
        assert_eq!(row(b"1 0 0:1 / / ro - tmpfs - rw").unwrap().kind, "tmpfs");
        for line in [&b"1 0 0:1 / / ro - tmpfs -"[..], b"1 0 0:1 / /", b"x 0 0:1 / / ro - tmpfs - rw", b""] {
            assert_eq!(row(line), None);
        }
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(read().unwrap().iter().any(|row| row.point == Path::new("/")));
        assert_eq!(read_of(Path::new("/proc/0")).unwrap_err(), Errno::ENOENT);
    }
}
