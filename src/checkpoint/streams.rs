//! The standard streams of a container's first process, which lead out of it: kept by name beside the images, in
//! `descriptors.json`, and replaced in a restore by those of the restorer.
//!
//! The file is runc's: a list of what `/proc/PID/fd/0`, `1` and `2` link to. A pipe stands there as `pipe:[INODE]`, which
//! is also the name CRIU gives it. A file of the host's, which is on no mount of the container, is known to CRIU as
//! `file[MOUNT:INODE]`, and stands there with its path behind it, a fifo of the host's as `fifo[MOUNT:INODE]`, and a terminal
//! as `tty[RDEV:DEV]`; runc passes over such names. CRIU opens such a file anew and goes to where it was in it, so that only
//! another file can take its place; `/dev/null` stays what it is. For a fifo, as for a pipe, anything will do.

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::unistd::{Pid, Uid, fchown};
use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat, stat};

use super::criu::FIRST_INHERITED;
use super::images;
use super::rpc::Options;
use crate::error::{Context, Error, Result};
use crate::procfs;
use crate::procfs::mountinfo::Row;

/// The file's name among the images.
pub const FILE: &str = "descriptors.json";

/// The most that is read of it. Bytes.
const LONGEST: u64 = 64 * 1024;

/// What the three streams lead to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Streams {
    /// A name for each, in their order.
    pub names: Vec<String>,
}

impl Streams {
    /// Looks at the first process; `others` are the container's, in whose hands the other end of a pipe may be, and `table`
    /// is what is mounted in it.
    ///
    /// # Errors
    /// The process is gone.
    pub fn of(pid: Pid, others: &[Pid], table: &[Row]) -> Result<Self> {
        let held = others.iter().flat_map(|other| pipe_ends(*other)).collect();
        (0..3).map(|number| name(pid, number, &held, table)).collect::<Result<_>>().map(|names| Self { names })
    }

    /// Names for `--external`.
    pub fn external(&self) -> impl Iterator<Item = String> {
        let key = |name| file(name).map(|(key, _)| key.to_owned()).or_else(|| terminal(name).map(str::to_owned));
        let keys: BTreeSet<String> = self.names.iter().filter_map(|name| key(name).or_else(|| fifo(name))).collect();
        keys.into_iter()
    }

    /// The number of the first that is a terminal from outside.
    pub fn terminal(&self) -> Option<usize> {
        self.names.iter().position(|name| terminal(name).is_some())
    }

    /// Writes them beside the images in `directory`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn save(&self, directory: &Path) -> Result<()> {
        let path = directory.join(FILE);
        let text = serde_json::to_vec(&self.names).unwrap_or_default();
        std::fs::write(&path, text).or_cannot("write", path.display())
    }

    /// Reads those of images. Where there are none, nothing was from outside.
    ///
    /// # Errors
    /// A file that is no such list.
    pub fn load(directory: &Path) -> Result<Self> {
        use std::io::Read;
        let path = directory.join(FILE);
        let mut text = Vec::new();
        match std::fs::File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file.or_cannot("open", path.display())?.take(LONGEST).read_to_end(&mut text),
        }
        .or_cannot("read", path.display())?;
        match serde_json::from_slice::<Vec<String>>(&text) {
            Ok(names) => Ok(Self { names }),
            Err(why) => Err(Error::said("read", path.display().to_string(), why.to_string())
                .hint("a list of three texts is expected there: what the container's standard streams led to")),
        }
    }

    /// Checks that the restorer's own streams can take the place of files of the host's, as the images in `directory` have them:
    /// CRIU takes no file of another size or mode.
    ///
    /// # Errors
    /// A stream of its own that is no file, or one that is not as the file was; images that cannot be read.
    pub fn check(&self, directory: &Path) -> Result<()> {
        let files = (0..3).zip(&self.names).filter_map(|(number, name)| Some((number, file(name)?)));
        for (number, (key, path)) in files.filter(|(_, (_, path))| *path != NULL) {
            let found = replacement(number, path)?;
            let saved = images::read(&directory.join("files.img"), images::Kind::Files)?;
            let is_regular = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
            let own = (found.st_size.cast_unsigned(), found.st_mode & 0o7777);
            let was = saved.iter().find_map(|entry| saved_file(entry, key)).filter(|was| is_regular && *was != own);
            if let Some((size, mode)) = was {
                let (which, (length, other)) = (which(number), own);
                return Err(Error::plain(format!(
                    "standard {which} of the container was the file {path} of {size} bytes and mode {mode:o}, and ferry's own has \
                     {length} and {other:o}"
                ))
                .hint(format!("append to one that is as it was then: `head -c {size} {path}` has it of one that grew")));
            }
        }
        Ok(())
    }

    /// Puts the restorer's own streams in their place, as far as they led out of the container. They are added to
    /// `inherited`, whose numbers begin at [`FIRST_INHERITED`]; files are given to `owner`, who opens them anew. CRIU closes
    /// what it is handed, and goes on to look at its own standard input: so they are copies.
    ///
    /// # Errors
    /// A stream was a file of the host's, and the restorer's own is none.
    pub fn inherit(&self, options: &mut Options, inherited: &mut Vec<OwnedFd>, owner: Option<u32>) -> Result<()> {
        for (number, name) in (0..3).zip(&self.names) {
            let (key, handed) = match file(name) {
                Some((key, NULL)) => {
                    let flags = OFlags::RDWR | OFlags::CLOEXEC;
                    (key.to_owned(), openat(CWD, NULL, flags, Mode::empty()).or_cannot("open", NULL)?)
                }
                Some((key, path)) => {
                    own_file(number, path, owner)?;
                    (key.to_owned(), copy_of_own(number)?)
                }
                None => match taken_as_it_is(name) {
                    Some(key) => (key, copy_of_own(number)?),
                    None => continue,
                },
            };
            options.inherit.push((key, FIRST_INHERITED + inherited.len() as i32));
            inherited.push(handed);
        }
        Ok(())
    }
}

const NULL: &str = "/dev/null";

/// The name that CRIU has for a file of the host's, and its path.
fn file(name: &str) -> Option<(&str, &str)> {
    let end = name.starts_with("file[").then(|| name.find("]:"))??;
    Some((&name[..=end], &name[end + 2..]))
}

/// The name, if it is a terminal's.
fn terminal(name: &str) -> Option<&str> {
    name.starts_with("tty[").then_some(name)
}

/// The name that CRIU has for a fifo of the host's, which it knows by the file it is.
fn fifo(name: &str) -> Option<String> {
    let end = name.find("]:")?;
    name[..=end].strip_prefix("fifo").map(|place| format!("file{place}"))
}

/// The name that CRIU has in a restore for what it takes as it is handed, without opening it anew: a pipe, a terminal, a fifo.
/// The latter's is a path, which it has relative to the root, without the first letter. `collect_one_regfile` and
/// `inherited_fd`, criu/files-reg.c and criu/files.c
fn taken_as_it_is(name: &str) -> Option<String> {
    let known = name.starts_with("pipe:[") || terminal(name).is_some();
    if known { Some(name.to_owned()) } else { fifo(name).map(|key| key[1..].to_owned()) }
}

fn own(number: i32) -> BorrowedFd<'static> {
    match number {
        0 => rustix::stdio::stdin(),
        1 => rustix::stdio::stdout(),
        _ => rustix::stdio::stderr(),
    }
}

fn copy_of_own(number: i32) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(own(number), FIRST_INHERITED).or_cannot("copy", "a standard stream")
}

/// Size and mode of the file that CRIU calls `key`, if this is its entry in `files.img`. criu/images/regfile.proto
fn saved_file(entry: &[u8], key: &str) -> Option<(u64, u32)> {
    let file = images::one(entry, 3)?.bytes();
    let is_it = images::one(file, 6)?.bytes() == key.as_bytes();
    let mode = images::one(file, 10)?.number() as u32 & 0o7777;
    images::one(file, 8).filter(|_| is_it).map(|size| (size.number(), mode))
}

fn which(number: i32) -> &'static str {
    ["input", "output", "error"].get(number as usize).copied().unwrap_or_default()
}

/// A stream of ferry's own that can take the place of the file at `path`.
fn replacement(number: i32, path: &str) -> Result<Stat> {
    let found = fstat(own(number)).or_cannot("look at", "a standard stream")?;
    if is_reopened(FileType::from_raw_mode(found.st_mode), found.st_rdev) {
        return Ok(found);
    }
    let which = which(number);
    Err(Error::plain(format!("standard {which} of the container was the file {path}, and ferry's own is no file"))
        .hint("redirect it to that file, or to another of the same size"))
}

/// Checks that a stream of ferry's own can take the place of the file at `path`, and gives it to whoever is to open it.
fn own_file(number: i32, path: &str, owner: Option<u32>) -> Result<()> {
    let (stream, found) = (own(number), replacement(number, path)?);
    match owner.filter(|owner| *owner != found.st_uid) {
        Some(owner) => fchown(stream, Some(Uid::from_raw(owner)), None).or_cannot("give away", "a standard stream"),
        None => Ok(()),
    }
}

/// The ends of pipes that a process has in its hands: name, and whether it is the one that is read.
fn pipe_ends(pid: Pid) -> Vec<(String, bool)> {
    let directory = format!("/proc/{pid}/fd");
    let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let link = std::fs::read_link(entry.path()).ok()?;
            let name = link.to_str().filter(|name| name.starts_with("pipe:["))?.to_owned();
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((name, is_read(pid, number)?))
        })
        .collect()
}

/// Whether a descriptor is open for reading alone. proc_pid_fdinfo(5)
fn is_read(pid: Pid, number: i32) -> Option<bool> {
    let flags = fdinfo(pid, number, "flags:")?;
    Some(u32::from_str_radix(&flags, 8).ok()? & libc::O_ACCMODE.cast_unsigned() == libc::O_RDONLY.cast_unsigned())
}

fn fdinfo(pid: Pid, number: i32, key: &str) -> Option<String> {
    let text = procfs::text(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

fn name(pid: Pid, number: i32, held: &BTreeSet<(String, bool)>, table: &[Row]) -> Result<String> {
    let path = format!("/proc/{pid}/fd/{number}");
    let link = match std::fs::read_link(&path) {
        // It was closed.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        link => link.or_cannot("read", &path)?.display().to_string(),
    };
    if link.starts_with("pipe:[") {
        // A pipe of which the container has both ends is its own, and is not replaced.
        let own = is_read(pid, number).is_some_and(|read| held.contains(&(link.clone(), !read)));
        return Ok(if own { String::new() } else { link });
    }
    Ok(outside_file(pid, number, &path, table).unwrap_or(link))
}

/// Whether CRIU opens such a file anew: a regular one, or a device that is no terminal. linux/major.h
fn is_reopened(kind: FileType, device: u64) -> bool {
    let is_terminal = matches!(rustix::fs::major(device), 2..=5 | 136..=143 | 188 | 204 | 229);
    kind == FileType::RegularFile || kind == FileType::CharacterDevice && !is_terminal
}

/// The name of a file, a fifo or a terminal on a mount that the container does not have.
fn outside_file(pid: Pid, number: i32, path: &str, table: &[Row]) -> Option<String> {
    let found = stat(path).ok()?;
    let kind = FileType::from_raw_mode(found.st_mode);
    let is_file = is_reopened(kind, found.st_rdev) || kind == FileType::Directory;
    if !is_file && kind != FileType::CharacterDevice && kind != FileType::Fifo {
        return None;
    }
    let mount: u64 = fdinfo(pid, number, "mnt_id:")?.parse().ok()?;
    if table.iter().any(|row| row.id == mount) {
        return None;
    }
    if kind == FileType::CharacterDevice && !is_file {
        return Some(format!("tty[{:x}:{:x}]", found.st_rdev, found.st_dev));
    }
    let target = std::fs::read_link(path).ok()?;
    let what = if is_file { "file" } else { "fifo" };
    Some(format!("{what}[{mount:x}:{:x}]:{}", found.st_ino, target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leads_out_is_replaced() {
        let names = ["pipe:[7]", "file[1f:2]:/dev/null", "tty[8800:1b]", "/dev/pts/0"].map(str::to_owned).to_vec();
        let (mut options, mut inherited) = (Options::default(), Vec::new());
        let streams = Streams { names };
        streams.inherit(&mut options, &mut inherited, None).unwrap();
        let named = |name: &str, number| (name.to_owned(), number);
        let expected = ["pipe:[7]", "file[1f:2]", "tty[8800:1b]"].into_iter().zip(FIRST_INHERITED..);
        assert_eq!(options.inherit, expected.map(|(name, number)| named(name, number)).collect::<Vec<_>>());
        assert_eq!(inherited.len(), 3);
        assert_eq!(streams.external().collect::<Vec<_>>(), ["file[1f:2]", "tty[8800:1b]"]);
        assert_eq!(streams.terminal(), Some(2));
    }

    #[test]
    fn a_fifo_is_left_out_as_a_file_and_replaced_as_it_is() {
        let (mut options, mut inherited) = (Options::default(), Vec::new());
        let streams = Streams { names: vec!["fifo[1f:2]:/run/out".into(), "fifo[1f".into(), "fifo:[7]".into()] };
        streams.inherit(&mut options, &mut inherited, None).unwrap();
        assert_eq!(options.inherit, [("ile[1f:2]".to_owned(), FIRST_INHERITED)]);
        assert_eq!(streams.external().collect::<Vec<_>>(), ["file[1f:2]"]);
    }

    #[test]
    fn names_of_files() {
        assert_eq!(file("file[1f:2]:/a]:b"), Some(("file[1f:2]", "/a]:b")));
        for name in ["file[1f:2]", "/file[1]:x", "pipe:[1]:", ""] {
            assert_eq!(file(name), None, "{name}");
        }
    }

    #[test]
    fn a_pipe_with_both_ends_inside_is_the_containers_own() {
        let own = nix::unistd::getpid();
        let (read, write) = std::io::pipe().unwrap();
        let ends = pipe_ends(own);
        use std::os::fd::AsRawFd;
        for (fd, reads) in [(read.as_raw_fd(), true), (write.as_raw_fd(), false)] {
            let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
            assert!(ends.contains(&(link.display().to_string(), reads)));
            let held: BTreeSet<_> = ends.iter().cloned().collect();
            assert_eq!(name(own, fd, &held, &[]).unwrap(), "");
            assert_eq!(name(own, fd, &BTreeSet::new(), &[]).unwrap(), link.display().to_string());
        }
    }
}
