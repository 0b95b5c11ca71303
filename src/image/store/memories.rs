//! What the processes of a container had in memory at a snapshot: directories of CRIU's images, numbered, beside the container's
//! snapshots.
//!
//! Images that were made while the one before them was tracked hold only what was written since, and name that one in a link
//! `parent`, as CRIU makes it. So a directory stays for as long as a snapshot has it, or images do that build on it, and goes with
//! the last of them.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, mkdirat, readlinkat};
use rustix::io::Errno as Answer;

use super::Store;
use super::snapshots::directory;
use super::uses::User;
use crate::error::{Context, Error, Result};
use crate::path::errno;

/// No snapshot is called so.
const DIRECTORY: &str = ".memory";
/// CRIU's name for the link to the images that others build on.
const PARENT: &str = "parent";

fn above(user: &User) -> String {
    format!("{}/{DIRECTORY}", directory(user))
}

impl Store {
    /// The directory of the images with this number.
    pub fn memory_path(&self, user: &User, number: u64) -> PathBuf {
        self.path(above(user)).join(number.to_string())
    }

    /// Makes a directory for images; answers its number, and the one of the images that they can build on: those that the kernel
    /// tracks since, where a snapshot still has them. They are looked for before the directory is made, which may get the number
    /// that images had which are gone. The caller has the container to itself.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn make_memory(&self, user: &User, tracked: Option<u64>) -> Result<(u64, Option<u64>)> {
        self.collect_memories(user)?;
        self.make_snapshots(user)?;
        // In it is everything that was in memory.
        self.make_directory(&above(user), Mode::RWXU)?;
        let kept = self.memories(user)?;
        let parent = tracked.filter(|tracked| kept.contains(tracked));
        let number = kept.last().map_or(1, |last| last + 1);
        let name = format!("{}/{number}", above(user));
        mkdirat(self.dir(), &name, Mode::RWXU).or_cannot("make directory", self.path(&name).display())?;
        Ok((number, parent))
    }

    /// Removes images that no snapshot has, and none that a snapshot has builds on. The caller has the container to itself.
    ///
    /// # Errors
    /// They cannot be looked at or removed.
    pub fn collect_memories(&self, user: &User) -> Result<()> {
        let mut needed = BTreeSet::new();
        for snapshot in self.snapshots(user)? {
            let mut next = snapshot.memory.map(|memory| memory.number);
            while let Some(number) = next.filter(|number| needed.insert(*number)) {
                next = self.parent_of(user, number)?;
            }
        }
        let others = self.memories(user)?.into_iter().filter(|number| !needed.contains(number));
        others.into_iter().try_for_each(|number| self.remove_memory(user, number))
    }

    /// Removes images, of which the caller knows that nobody needs them.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn remove_memory(&self, user: &User, number: u64) -> Result<()> {
        self.remove(&format!("{}/{number}", above(user)))
    }

    /// The numbers there are, in order.
    fn memories(&self, user: &User) -> Result<Vec<u64>> {
        let names: Vec<CString> = match self.names_in(&above(user)) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => return Ok(Vec::new()),
            names => names?,
        };
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.to_str().ok()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The images that these build on.
    fn parent_of(&self, user: &User, number: u64) -> Result<Option<u64>> {
        let name = format!("{}/{number}/{PARENT}", above(user));
        let named = || self.path(&name).display().to_string();
        let target = match readlinkat(self.dir(), &name, Vec::new()) {
            Ok(target) => target,
            Err(Answer::NOENT) => return Ok(None),
            Err(answer) => return Err(Error::kernel("read", named(), errno(answer))),
        };
        let target = Path::new(std::ffi::OsStr::from_bytes(target.to_bytes()));
        let number = target.strip_prefix("..").ok().and_then(|rest| rest.to_str()?.parse().ok());
        number
            .map(Some)
            .ok_or_else(|| Error::said("understand", named(), "it leads elsewhere than to a snapshot's images"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::store::FORMAT;
    use crate::image::store::snapshots::{Memory, Snapshot};

    /// A record of a snapshot that has these images.
    fn record(store: &Store, user: &User, name: &str, number: Option<u64>) {
        let memory = number.map(|number| Memory { number, ..Memory::default() });
        let (name, created) = (name.to_owned(), String::new());
        let snapshot =
            Snapshot { format: FORMAT, name, number: 1, parent: None, created, entries: 0, bytes: 0, memory };
        let directory = store.path(directory(user)).join(&snapshot.name);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("snapshot.json"), serde_json::to_vec(&snapshot).unwrap()).unwrap();
    }

    #[test]
    fn a_chain_stays_whole() {
        let root = std::env::temp_dir().join(format!("ferry-memories-{}", std::process::id()));
        let store = Store::open(&root).unwrap();
        let user = User::Container("/run/ferry/web".into());
        assert_eq!(store.memories(&user).unwrap(), Vec::<u64>::new());
        for number in 1..=4 {
            let before = (number > 1).then(|| number - 1);
            assert_eq!(store.make_memory(&user, before).unwrap(), (number, before));
            let path = store.memory_path(&user, number);
            if number > 1 {
                std::os::unix::fs::symlink(format!("../{}", number - 1), path.join(PARENT)).unwrap();
            }
            record(&store, &user, &format!("s{number}"), Some(number));
        }
        record(&store, &user, "files", None);
        assert_eq!(store.snapshots(&user).unwrap().len(), 5);
        store.remove_snapshot(&user, "s1").unwrap();
        store.remove_snapshot(&user, "s4").unwrap();
        store.collect_memories(&user).unwrap();
        assert_eq!(store.memories(&user).unwrap(), [1, 2, 3], "3 builds on 2, and that on 1");
        assert_eq!(store.make_memory(&user, Some(4)).unwrap(), (4, None), "images do not build on themselves");
        store.remove_snapshot(&user, "s3").unwrap();
        store.remove_snapshot(&user, "s2").unwrap();
        store.collect_memories(&user).unwrap();
        assert_eq!(store.memories(&user).unwrap(), Vec::<u64>::new());
        assert_eq!(store.make_memory(&user, None).unwrap(), (1, None));
        assert_eq!(store.make_memory(&user, Some(1)).unwrap(), (1, None), "what was cut off is nobody's");
        std::os::unix::fs::symlink("../../elsewhere", store.memory_path(&user, 1).join(PARENT)).unwrap();
        record(&store, &user, "odd", Some(1));
        assert!(store.collect_memories(&user).unwrap_err().to_string().contains("it leads elsewhere"));
        store.remove_snapshots(&user).unwrap();
        assert!(!store.has_snapshots(&user).unwrap());
        std::process::Command::new("rm").arg("-r").arg(&root).status().unwrap();
    }
}
