//! A container that a verb acts upon while it lives: its record, its status, its cgroup.

use super::Setting;
use crate::cgroup::{self, Cgroup};
use crate::container::record::Init;
use crate::container::store::Entry;
use crate::container::{Id, Record, Status, Store, status};
use crate::error::{Error, Result};
use crate::procfs;

/// A container with a record.
pub(super) struct Live {
    /// Its directory.
    pub entry: Entry,
    /// Its record.
    pub record: Record,
    /// Its status when it was opened.
    pub status: Status,
}

/// Opens a container to look at it.
///
/// # Errors
/// There is none of that id, or it is not complete.
pub(super) fn open(setting: &Setting, id: &str) -> Result<Live> {
    complete(Store::new(&setting.root).open(&Id::new(id)?)?)
}

/// Opens a container to change it: other ferry processes that would change it too wait meanwhile.
///
/// # Errors
/// As [`open`].
pub(super) fn open_locked(setting: &Setting, id: &str) -> Result<Live> {
    let entry = Store::new(&setting.root).open(&Id::new(id)?)?;
    entry.lock()?;
    complete(entry)
}

fn complete(entry: Entry) -> Result<Live> {
    let Some(record) = entry.record()? else {
        return Err(Error::plain(format!("container {:?} is not complete", entry.id.as_str()))
            .hint("it is being created, or creating it was cut off: `ferry delete --force` then removes it"));
    };
    let status = status::of(&entry, &record)?;
    Ok(Live { entry, record, status })
}

impl Live {
    /// Whether it has a process.
    pub fn has_process(&self) -> bool {
        matches!(self.status, Status::Created | Status::Running | Status::Paused)
    }

    /// Its first process, alive when it was opened.
    pub fn init(&self) -> Option<Init> {
        self.record.init.filter(|_| self.has_process())
    }

    /// Whether its first process lives on, and no CRIU has it in its hands that may yet end it, as far as can be seen.
    pub fn goes_on(&self) -> bool {
        self.init().is_some_and(|init| matches!(init.is_ending(), Ok(false)) && is_let_alone(init))
    }

    /// Its cgroup, without which `deed` ("pause") cannot be done.
    ///
    /// # Errors
    /// It was created without one, or the cgroup is gone.
    pub fn cgroup(&self, deed: &'static str) -> Result<Cgroup> {
        match &self.record.cgroup {
            Some(path) => cgroup::fs::open(path),
            None => Err(without_cgroup(deed, &self.record)),
        }
    }
}

fn is_let_alone(init: Init) -> bool {
    matches!(procfs::tracer(init.pid()), Ok(None))
}

fn without_cgroup(deed: &'static str, record: &Record) -> Error {
    let error = Error::said(deed, format!("container {:?}", record.id), "it has no cgroup of its own");
    if record.cgroup_driver == cgroup::Driver::Disabled {
        return error.hint("it was created with --cgroup-manager disabled; create it anew without");
    }
    let owner = record.owner;
    error.hint(format!(
        "user {owner} could not make one when it was created; create it anew as root, or in a delegated cgroup \
         (systemd-run --user --scope -p Delegate=yes …)"
    ))
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
