//! Snapshots of what containers have written: `snapshots/KEY/NAME/` holds `snapshot.json` and `diff/`, a copy of the container's
//! upper layer, which is never written again.
//!
//! A container that was rolled back to a snapshot writes to a new upper layer above it, and a snapshot of that lies above the first:
//! what a snapshot shows is its own layer over those of its ancestors over the image. They go with their container.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno as Answer;
use serde::{Deserialize, Serialize};

use super::session::{NewLayer, Session};
use super::uses::{User, key};
use super::{FORMAT, Store};
use crate::error::{Context, Error, Result};
use crate::image::copy::GoOn;
use crate::image::flatten;
use crate::path::errno;

const RECORD: &str = "snapshot.json";
const DIRECTORY: &str = "snapshots";

/// What is known of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// The store's format.
    pub format: u32,
    /// Its name among those of its container.
    pub name: String,
    /// Which snapshot of the container it was, counted from 1.
    pub number: u64,
    /// The snapshot that it lies upon; the image, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// When it was taken: RFC 3339, UTC.
    pub created: String,
    /// Files and whatever else has a name in its own layer.
    pub entries: u64,
    /// Bytes of files in its own layer.
    pub bytes: u64,
    /// What the processes had in memory, where that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// What is known of the images of a container's processes. See [`super::memories`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Of their directory.
    pub number: u64,
    /// Bytes of memory in them.
    pub bytes: u64,
    /// Bytes of memory that are in the images they build on.
    pub unchanged_bytes: u64,
    /// How long the processes stood still.
    pub frozen_milliseconds: f64,
    /// The flags that going back takes too.
    #[serde(default)]
    pub flags: BTreeSet<String>,
}

/// A container's upper layer, copied, that is not yet a snapshot.
pub struct CopiedUpper {
    layer: NewLayer,
    copied: flatten::Copied,
}

pub(super) fn directory(user: &User) -> String {
    format!("{DIRECTORY}/{}", key(user))
}

fn place(user: &User, name: &str) -> String {
    format!("{}/{name}", directory(user))
}

/// Whether a snapshot can be called so: as files can be, without a path.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with(['.', '-'])
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl Session<'_> {
    /// Keeps a copy of the upper layer of `user` under a name that is not taken; `marks` and `go_on` as in
    /// [`Session::copy_upper`].
    ///
    /// # Errors
    /// The name is taken; a file cannot be copied. Then there is no snapshot.
    pub fn snapshot(
        &self,
        user: &User,
        name: &str,
        parent: Option<String>,
        created: String,
        marks: bool,
        go_on: GoOn<'_>,
    ) -> Result<Snapshot> {
        let copied = self.copy_upper(user, marks, go_on)?;
        self.keep_upper(user, copied, name, parent, created, None)
    }

    /// Copies the upper layer of `user`, for as long as `go_on` says so; `marks` tells whether the layer has the marks of a user
    /// namespace. The copy is nothing yet, and goes with the session.
    ///
    /// # Errors
    /// A file cannot be copied; what `go_on` answers.
    pub fn copy_upper(&self, user: &User, marks: bool, go_on: GoOn<'_>) -> Result<CopiedUpper> {
        let upper = self.store().use_path(user).join("upper");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = openat(rustix::fs::CWD, &upper, flags, Mode::empty()).or_cannot("open", upper.display())?;
        let layer = self.layer()?;
        let copied = flatten::upper(from, layer.diff.as_fd(), marks, go_on)?;
        Ok(CopiedUpper { layer, copied })
    }

    /// Makes a snapshot of a copy.
    ///
    /// # Errors
    /// The name is taken. Then there is no snapshot.
    pub fn keep_upper(
        &self,
        user: &User,
        upper: CopiedUpper,
        name: &str,
        parent: Option<String>,
        created: String,
        memory: Option<Memory>,
    ) -> Result<Snapshot> {
        let store = self.store();
        let CopiedUpper { layer, copied } = upper;
        let snapshot = Snapshot {
            format: FORMAT,
            name: name.to_owned(),
            number: store.snapshots(user)?.last().map_or(1, |last| last.number + 1),
            parent,
            created,
            entries: copied.entries,
            bytes: copied.bytes,
            memory,
        };
        store.make_snapshots(user)?;
        let text = serde_json::to_vec(&snapshot).map_err(|why| Error::said("save", RECORD, why.to_string()))?;
        self.place_layer(&layer, RECORD, &text, &place(user, name)).map_err(|error| match error.errno() {
            Some(nix::errno::Errno::ENOTEMPTY | nix::errno::Errno::EEXIST) => taken(name),
            _ => error,
        })?;
        Ok(snapshot)
    }
}

/// The error for a name that another snapshot has.
fn taken(name: &str) -> Error {
    Error::plain(format!("there is a snapshot {name:?} of this container already")).hint("choose another name")
}

impl Store {
    /// Makes the directory of a container's snapshots, where there is none.
    pub(super) fn make_snapshots(&self, user: &User) -> Result<()> {
        [DIRECTORY.to_owned(), directory(user)]
            .iter()
            .try_for_each(|name| self.make_directory(name, Mode::from_raw_mode(0o711)))
    }

    /// Makes a directory, where there is none.
    pub(super) fn make_directory(&self, name: &str, mode: Mode) -> Result<()> {
        match mkdirat(self.dir(), name, mode) {
            Ok(()) | Err(Answer::EXIST) => Ok(()),
            Err(answer) => Err(Error::kernel("make directory", self.path(name).display().to_string(), errno(answer))),
        }
    }

    /// A container's snapshots, the oldest first.
    ///
    /// # Errors
    /// They cannot be read, or are of another format.
    pub fn snapshots(&self, user: &User) -> Result<Vec<Snapshot>> {
        let mut found = Vec::new();
        let names = match self.names_in(&directory(user)) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => return Ok(found),
            names => names?,
        };
        for name in names.into_iter().filter(|name| !name.to_bytes().starts_with(b".")) {
            let name = format!("{}/{RECORD}", place(user, &name.to_string_lossy()));
            let damaged = |why: String| Error::said("read", self.path(&name).display().to_string(), why);
            let bytes = self.read(&name, 1 << 20)?.ok_or_else(|| damaged("it is not there".to_owned()))?;
            let snapshot: Snapshot = serde_json::from_slice(&bytes).map_err(|why| damaged(why.to_string()))?;
            if snapshot.format != FORMAT {
                return Err(damaged(format!("it is of format {}", snapshot.format)));
            }
            found.push(snapshot);
        }
        found.sort_by_key(|snapshot| snapshot.number);
        Ok(found)
    }

    /// Whether a container has any.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn has_snapshots(&self, user: &User) -> Result<bool> {
        self.has(directory(user))
    }

    /// A snapshot's own layer.
    pub fn snapshot_path(&self, user: &User, name: &str) -> PathBuf {
        self.path(place(user, name)).join("diff")
    }

    /// The same, open.
    ///
    /// # Errors
    /// It is not there.
    pub fn open_snapshot(&self, user: &User, name: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = format!("{}/diff", place(user, name));
        openat(self.dir(), &name, flags, Mode::empty()).or_cannot("open snapshot", self.path(&name).display())
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove_snapshot(&self, user: &User, name: &str) -> Result<()> {
        self.remove(&place(user, name))
    }

    /// Removes all snapshots of a container.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove_snapshots(&self, user: &User) -> Result<()> {
        self.remove(&directory(user))
    }

    /// Removes the snapshots of containers that are not among these, by key; answers how many containers had some.
    pub(super) fn remove_other_snapshots(&self, keys: &[String]) -> Result<usize> {
        let all: Vec<CString> = match self.names_in(DIRECTORY) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => return Ok(0),
            names => names?,
        };
        let others = all.iter().map(|name| name.to_string_lossy()).filter(|name| !keys.iter().any(|key| key == name));
        let others: Vec<_> = others.collect();
        others.iter().try_for_each(|name| self.remove(&format!("{DIRECTORY}/{name}")))?;
        Ok(others.len())
    }
}

/// A snapshot and those that it lies upon, the uppermost first.
///
/// # Errors
/// There is none of that name.
pub fn line<'a>(all: &'a [Snapshot], name: &str) -> Result<Vec<&'a Snapshot>> {
    let mut line: Vec<&Snapshot> = Vec::new();
    let mut next = Some(name);
    while let Some(name) = next {
        let found = all.iter().find(|snapshot| snapshot.name == name);
        let found = found.filter(|found| !line.iter().any(|other| other.name == found.name)).ok_or_else(|| {
            Error::plain(format!("there is no snapshot {name:?} of this container"))
                .hint("`ferry snapshot list` shows those there are")
        })?;
        line.push(found);
        next = found.parent.as_deref();
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, parent: Option<&str>) -> Snapshot {
        let parent = parent.map(str::to_owned);
        Snapshot {
            format: FORMAT,
            name: name.to_owned(),
            number: 1,
            parent,
            created: String::new(),
            entries: 0,
            bytes: 0,
            memory: None,
        }
    }

    #[test]
    fn a_line_goes_down_to_the_image_and_not_in_circles() {
        let all = [snapshot("a", None), snapshot("b", Some("a")), snapshot("x", Some("y")), snapshot("y", Some("x"))];
        let names = |name| line(&all, name).map(|line| line.iter().map(|one| one.name.clone()).collect::<Vec<_>>());
        assert_eq!(names("b"), Ok(vec!["b".to_owned(), "a".to_owned()]));
        assert!(names("c").is_err() && names("x").is_err());
    }

    #[test]
    fn names_are_no_paths() {
        assert!(is_name("before-upgrade_1.2") && is_name("1"));
        for bad in ["", ".", "..", "a/b", "-x", "a b", "\u{e9}"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
