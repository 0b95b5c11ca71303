//! What an overlay of layers would show, looked up without mounting it: the owner of a directory that an upper layer only passes
//! through, the target of a hard link, the user database.
//!
//! Whiteouts hide, opaque directories hide what is below them, and symbolic links are followed inside. kernel:
//! Documentation/filesystems/overlayfs.rst

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, openat, readlinkat, statat};
use rustix::io::Errno as Answer;

use super::whiteout;
use crate::path::errno;

/// As the kernel's own limit: path_resolution(7).
const MOST_LINKS: u32 = 40;
/// The attribute of a directory that hides the ones below it: as root, and in a user namespace.
pub const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// A merged directory: its parts, the uppermost first. They are shared and not duplicated: an image has up to 500 layers, and a
/// process often 1024 descriptors.
pub type Parts = Vec<Rc<OwnedFd>>;

/// Layers, the uppermost first.
#[derive(Debug)]
pub struct Merged {
    layers: Parts,
}

/// What a path is.
#[derive(Debug)]
pub enum Found {
    /// A directory.
    Directory(Parts),
    /// Anything else: the directory it is in, its name there, and what it is.
    Other(Rc<OwnedFd>, CString, Box<Stat>),
}

/// Whether a directory hides the ones below it.
pub fn is_opaque(dir: impl AsFd) -> bool {
    OPAQUE.iter().any(|name| {
        let mut value = [0; 1];
        fgetxattr(&dir, *name, &mut value).is_ok_and(|length| length == 1 && value[0] == b'y')
    })
}

impl Merged {
    /// `layers`, the uppermost first.
    pub fn new(layers: Parts) -> Self {
        Self { layers }
    }

    /// The root directory.
    pub fn root(&self) -> &[Rc<OwnedFd>] {
        &self.layers
    }

    /// Finds a path; its last link is followed when `follow`.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ELOOP, and what the kernel answers.
    pub fn find(&self, path: &Path, follow: bool) -> Result<Found, Errno> {
        self.walk(path, follow).map(|(found, _)| found)
    }

    /// Where a path leads, all links followed.
    ///
    /// # Errors
    /// As [`Merged::find`].
    pub fn real_path(&self, path: &Path) -> Result<PathBuf, Errno> {
        self.walk(path, true).map(|(_, names)| names.into_iter().collect())
    }

    /// Reads a small regular file.
    ///
    /// # Errors
    /// As [`Merged::find`]; EINVAL for what is no regular file.
    pub fn read(&self, path: &Path, most: u64) -> Result<Vec<u8>, Errno> {
        read(self.find(path, true)?, most)
    }

    /// Reads small regular files of one directory, which is walked to only once.
    ///
    /// # Errors
    /// Of each by itself, as [`Merged::read`].
    pub fn read_of<const N: usize>(
        &self,
        directory: &Path,
        names: [&CStr; N],
        most: u64,
    ) -> [Result<Vec<u8>, Errno>; N] {
        let parts = self.find(directory, true).and_then(|found| match found {
            Found::Directory(parts) => Ok(parts),
            Found::Other(..) => Err(Errno::ENOTDIR),
        });
        names.map(|name| match step(parts.as_ref().map_err(|answer| *answer)?, name)? {
            Found::Other(_, _, stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                self.read(&directory.join(OsStr::from_bytes(name.to_bytes())), most)
            }
            found => read(found, most),
        })
    }

    fn walk(&self, path: &Path, follow: bool) -> Result<(Found, Vec<OsString>), Errno> {
        let mut rest: VecDeque<OsString> = components(path.as_os_str());
        let mut dirs: Vec<Parts> = vec![self.layers.clone()];
        let mut names: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                if dirs.len() > 1 {
                    dirs.pop();
                    names.pop();
                }
                continue;
            }
            let here = dirs.last().ok_or(Errno::ENOENT)?;
            let c_name = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
            match step(here, &c_name)? {
                Found::Directory(parts) => {
                    dirs.push(parts);
                    names.push(name);
                }
                Found::Other(dir, c_name, stat) => {
                    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
                    if is_link && (follow || !rest.is_empty()) {
                        links += 1;
                        if links > MOST_LINKS {
                            return Err(Errno::ELOOP);
                        }
                        let target = readlinkat(&dir, &c_name, Vec::new()).map_err(errno)?.into_bytes();
                        if target.first() == Some(&b'/') {
                            dirs.truncate(1);
                            names.clear();
                        }
                        for part in components(OsStr::from_bytes(&target)).into_iter().rev() {
                            rest.push_front(part);
                        }
                    } else if rest.is_empty() {
                        names.push(name);
                        return Ok((Found::Other(dir, c_name, stat), names));
                    } else {
                        return Err(Errno::ENOTDIR);
                    }
                }
            }
        }
        Ok((Found::Directory(dirs.pop().ok_or(Errno::ENOENT)?), names))
    }
}

/// Reads a small regular file.
fn read(found: Found, most: u64) -> Result<Vec<u8>, Errno> {
    use std::io::Read;
    let Found::Other(dir, name, stat) = found else { return Err(Errno::EISDIR) };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::EINVAL);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(openat(&dir, &name, flags, Mode::empty()).map_err(errno)?);
    // Room for what it was said to have, or it would be read in pieces of 32 bytes and more.
    let mut bytes = Vec::with_capacity(usize::try_from(stat.st_size.unsigned_abs().min(most)).unwrap_or(0) + 1);
    let read = file.take(most).read_to_end(&mut bytes);
    read.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(bytes)
}

fn components(path: &OsStr) -> VecDeque<OsString> {
    let parts = path.as_bytes().split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(|part| OsString::from_vec(part.to_vec())).collect()
}

/// Every name in the parts of a merged directory, sorted; those that are removed too, which [`step`] tells.
///
/// # Errors
/// What getdents(2) answers.
pub fn names(parts: &[Rc<OwnedFd>]) -> Result<BTreeSet<CString>, Errno> {
    let mut names = BTreeSet::new();
    for part in parts {
        for entry in Dir::read_from(part).map_err(errno)? {
            let entry = entry.map_err(errno)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.insert(entry.file_name().to_owned());
            }
        }
    }
    Ok(names)
}

/// One name in a merged directory.
///
/// # Errors
/// ENOENT, and what the kernel answers.
pub fn step(parts: &[Rc<OwnedFd>], name: &CStr) -> Result<Found, Errno> {
    let mut found = Parts::new();
    for part in parts {
        let stat = match statat(part, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Answer::NOENT) => continue,
            Err(answer) => return Err(errno(answer)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            if found.is_empty() && !whiteout::is_one(part, name, &stat) {
                return Ok(Found::Other(Rc::clone(part), name.to_owned(), Box::new(stat)));
            }
            break;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(part, name, flags, Mode::empty()).map_err(errno)?;
        let opaque = is_opaque(&dir);
        found.push(Rc::new(dir));
        if opaque {
            break;
        }
    }
    if found.is_empty() { Err(Errno::ENOENT) } else { Ok(Found::Directory(found)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, mknodat};
    use std::os::unix::fs::symlink;

    #[test]
    fn upper_layers_hide_lower_ones_and_links_stay_inside() {
        let base = std::env::temp_dir().join(format!("ferry-merged-{}", std::process::id()));
        let (low, up) = (base.join("low"), base.join("up"));
        for dir in ["low/etc", "low/usr/lib", "up/etc"] {
            std::fs::create_dir_all(base.join(dir)).unwrap();
        }
        for (file, text) in
            [("low/etc/passwd", "low"), ("low/etc/gone", "x"), ("low/usr/lib/so", "so"), ("up/etc/passwd", "up")]
        {
            std::fs::write(base.join(file), text).unwrap();
        }
        symlink("/usr/lib", low.join("lib")).unwrap();
        symlink("../../../../etc/passwd", low.join("etc/alias")).unwrap();
        symlink("loop", low.join("loop")).unwrap();
        let whiteout = mknodat(CWD, up.join("etc/gone"), FileType::CharacterDevice, Mode::empty(), 0).is_ok();
        let open = |path: &Path| openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let merged = Merged::new(vec![Rc::new(open(&up)), Rc::new(open(&low))]);
        let read = |path: &str| merged.read(Path::new(path), 99).map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!(read("etc/passwd").as_deref(), Ok("up"));
        assert_eq!(read("/etc/alias").as_deref(), Ok("up"));
        assert_eq!(read("lib/so").as_deref(), Ok("so"));
        let [one, linked, missing] = merged.read_of(Path::new("/etc"), [c"passwd", c"alias", c"none"], 99);
        assert_eq!((one, linked, missing), (Ok(b"up".to_vec()), Ok(b"up".to_vec()), Err(Errno::ENOENT)));
        assert_eq!(merged.read_of(Path::new("/none"), [c"passwd"], 99), [Err(Errno::ENOENT)]);
        assert_eq!(merged.read_of(Path::new("/etc/passwd"), [c"passwd"], 99), [Err(Errno::ENOTDIR)]);
        assert_eq!(merged.real_path(Path::new("lib/so")), Ok("usr/lib/so".into()));
        assert_eq!(read("loop"), Err(Errno::ELOOP));
        assert_eq!(read("etc/passwd/x"), Err(Errno::ENOTDIR));
        assert!(matches!(merged.find(Path::new("lib"), false), Ok(Found::Other(..))));
        assert!(matches!(merged.find(Path::new("etc"), true), Ok(Found::Directory(parts)) if parts.len() == 2));
        if whiteout {
            assert_eq!(read("etc/gone"), Err(Errno::ENOENT));
        }
        std::process::Command::new("rm").arg("-r").arg(&base).status().unwrap();
    }
}
