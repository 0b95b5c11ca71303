//! Who gets an id: of all that try at once one, and whatever the others do meanwhile takes nothing from it.
//!
//! A directory can be made by one process only, but what is made can be taken away before its maker has opened and locked it: to
//! `delete --force` it is one whose making was cut off. What is then found under its name may be another's. So it is the first record
//! that decides, saved where there is none, under the lock.

use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, Mode, RenameFlags, mkdirat, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno as Answer;

use super::{Entry, Id, Record, STATE, STATE_NEW, Store, own};
use crate::error::{Context, Error, Result};
use crate::path::errno;

/// How often another process may take the directory away before it is locked: a filesystem that counts no links would say so for ever.
const TRIES: usize = 64;

impl Store {
    /// Claims `id`: makes its directory, locks it, and saves the first record there, which only one process can. From then on
    /// whatever is cut off can be cleaned up by that record.
    ///
    /// # Errors
    /// The id is taken; the root cannot be made or written.
    pub fn claim(&self, id: &Id, record: &Record) -> Result<Entry> {
        for _ in 0..TRIES {
            self.make(id)?;
            match self.claim_made(id, record) {
                // `delete --force` took the directory for one whose making was cut off, before it was locked.
                Ok(None) => (),
                Ok(Some(entry)) => return Ok(entry),
                Err(error) => {
                    let path = self.root.join(id.as_str());
                    return Err(match unlinkat(CWD, &path, AtFlags::REMOVEDIR) {
                        // What has something in it is somebody else's.
                        Ok(()) | Err(Answer::NOENT | Answer::NOTEMPTY | Answer::EXIST) => error,
                        answer => error.and_then(answer.or_cannot("remove", path.display())),
                    });
                }
            }
        }
        Err(Error::said("claim", id.to_string(), "its directory is taken away as often as it is made"))
    }

    fn make(&self, id: &Id) -> Result<()> {
        let path = self.root.join(id.as_str());
        let mode = Mode::from_raw_mode(0o711);
        let made = mkdirat(CWD, &path, mode).or_else(|answer| match answer {
            Answer::NOENT => self.make_root().and_then(|()| mkdirat(CWD, &path, mode)),
            other => Err(other),
        });
        match made {
            Ok(()) => Ok(()),
            Err(Answer::EXIST) => Err(taken(id)),
            Err(answer) => {
                let hint = "name a directory that this user may write with --root";
                Err(Error::kernel("make state directory", path.display().to_string(), errno(answer)).hint(hint))
            }
        }
    }

    /// None: the directory is gone. The one that is found need not be the one that was made: that may have been deleted since and
    /// another process have made it anew. Whoever saves the first record has it.
    fn claim_made(&self, id: &Id, record: &Record) -> Result<Option<Entry>> {
        let entry = match self.entry(id) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            entry => entry?,
        };
        // Not even root keeps containers where another user can exchange them.
        own("keep containers in", &self.root, statat(&entry.dir, c"..", AtFlags::empty()))?;
        if !entry.lock_if_there()? {
            return Ok(None);
        }
        entry.save_first(record)?;
        Ok(Some(entry))
    }

    fn make_root(&self) -> rustix::io::Result<()> {
        let mut missing: Vec<&Path> = self.root.ancestors().take_while(|path| !path.exists()).collect();
        while let Some(path) = missing.pop() {
            // The containers of one user are nobody else's to look at; a container's own root may search it.
            match mkdirat(CWD, path, Mode::from_raw_mode(0o711)) {
                Ok(()) | Err(Answer::EXIST) => (),
                Err(answer) => return Err(answer),
            }
        }
        Ok(())
    }
}

impl Entry {
    /// As [`Entry::save`], where there is no record yet. Nothing stays of it when it fails.
    ///
    /// # Errors
    /// Also: there is one.
    fn save_first(&self, record: &Record) -> Result<()> {
        let saved = self.write_new(record).and_then(|named| {
            match renameat_with(&self.dir, STATE_NEW, &self.dir, STATE, RenameFlags::NOREPLACE) {
                Err(Answer::EXIST) => Err(taken(&self.id)),
                // A filesystem that knows no such request.
                Err(Answer::INVAL) if crate::path::exists(self.dir(), STATE).or_cannot("look for", &named)? => {
                    Err(taken(&self.id))
                }
                Err(Answer::INVAL) => renameat(&self.dir, STATE_NEW, &self.dir, STATE).or_cannot("save", named),
                answer => answer.or_cannot("save", named),
            }
        });
        saved.map_err(|error| error.and_then(self.unlink(STATE_NEW)))
    }
}

fn taken(id: &Id) -> Error {
    Error::plain(format!("container with given ID already exists: {id}"))
        .hint("choose another id, or `ferry delete` the one that is there")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Driver;
    use crate::container::record::FORMAT;

    fn record(id: &str, created: &str) -> Record {
        Record {
            format: FORMAT,
            id: id.into(),
            oci_version: "1.3.0".into(),
            bundle: "/srv/web".into(),
            rootfs: "/srv/web/rootfs".into(),
            created: created.into(),
            owner: 0,
            init: None,
            cgroup: None,
            unit: None,
            store: None,
            cgroup_driver: Driver::Cgroupfs,
            namespaces: Vec::new(),
            mounted_over: None,
            no_new_keyring: false,
            reads_config: false,
            resctrl: None,
            brought_by: None,
            given_to: None,
        }
    }

    #[test]
    fn the_first_record_decides() {
        let root = std::env::temp_dir().join(format!("ferry-claim-{}", std::process::id()));
        let (store, id) = (Store::new(&root), Id::new("web").unwrap());
        store.make(&id).unwrap();
        // Taken away before it was opened, and made anew by another.
        std::fs::remove_dir(root.join("web")).unwrap();
        assert!(store.claim_made(&id, &record("web", "first")).unwrap().is_none());
        let entry = store.claim(&id, &record("web", "first")).unwrap();
        entry.unlock().unwrap();
        let said = store.claim_made(&id, &record("web", "second")).unwrap_err().to_string();
        assert!(said.starts_with("container with given ID already exists: web"), "{said}");
        assert_eq!(entry.record().unwrap().unwrap().created, "first");
        let names: Vec<_> = std::fs::read_dir(root.join("web")).unwrap().map(|one| one.unwrap().file_name()).collect();
        assert_eq!(names, ["state.json"]);
        assert!(store.claim(&id, &record("web", "third")).is_err());
        entry.remove().unwrap();
        std::fs::remove_dir(&root).unwrap();
    }
}
