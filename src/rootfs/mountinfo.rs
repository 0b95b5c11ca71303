//! The mount table of this process' mount namespace, or of another's. proc_pid_mountinfo(5)
//!
//! Only while `/proc` is the host's.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::Pid;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The mount's id, which is used again once the mount is gone.
    pub id: u64,
    /// The id of the mount that it is mounted on.
    pub parent: u64,
    /// Where, seen from this process' root.
    pub point: PathBuf,
}

/// Reads the table.
///
/// # Errors
/// What open(2) answers.
pub fn read() -> Result<Vec<Row>, Errno> {
    read_file("/proc/self/mountinfo")
}

/// Reads the table of another process: places are as seen from its root.
///
/// # Errors
/// What open(2) answers.
pub fn read_of(pid: Pid) -> Result<Vec<Row>, Errno> {
    read_file(&format!("/proc/{pid}/mountinfo"))
}

fn read_file(path: &str) -> Result<Vec<Row>, Errno> {
    let text = std::fs::read(path).map_err(raw)?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(row).collect())
}

/// The id of the mount that a descriptor is on. statx(2) tells it only since Linux 5.8.
///
/// # Errors
/// What open(2) answers; EPROTO for a file without it.
pub fn id_of(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).map_err(raw)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.and_then(|id| id.trim().parse().ok()).ok_or(Errno::EPROTO)
}

fn raw(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Fields: id, parent, device, root, mount point.
fn row(line: &[u8]) -> Option<Row> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    Some(Row { id, parent, point: unescape(fields.nth(2)?) })
}

/// Blanks and backslashes stand there as three octal digits.
pub fn unescape(field: &[u8]) -> PathBuf {
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
    use std::path::Path;

    #[test]
    fn escaped_mount_points() {
        assert_eq!(unescape(b"/mnt/a\\040b\\134"), Path::new("/mnt/a b\\"));
        assert_eq!(unescape(b"/plain\\"), Path::new("/plain\\"));
    }

    #[test]
    fn rows() {
        let line = b"36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(row(line), Some(Row { id: 36, parent: 35, point: "/mnt two".into() }));
        assert_eq!(row(b""), None);
    }
}
