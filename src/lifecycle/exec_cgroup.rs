//! The cgroup that a process of `exec` is born in: the container's own, one below it that is named, or the one its first
//! process has gone to.

use std::path::{Component, Path};

use nix::errno::Errno;

use crate::cgroup::{self, Cgroup};
use crate::container::record::{Init, Record};
use crate::error::{Error, Result};
use crate::launch::birth;
use crate::sys::clone::{Cloned, Parent};

/// Where a process is to be born.
#[derive(Debug)]
pub struct Birthplace {
    cgroup: Cgroup,
    /// Whether it was asked for by name: no other serves then.
    named: bool,
}

/// Opens the cgroup to be born in; `below` names one inside the container's. None: the container has no cgroup.
///
/// # Errors
/// The name leads out of the container's cgroup, or there is none of that name.
pub fn open(record: &Record, init: &Init, below: Option<&str>) -> Result<Option<Birthplace>> {
    let Some(path) = &record.cgroup else {
        return match below {
            None => Ok(None),
            Some(below) => Err(Error::said("join cgroup", below.to_owned(), "the container has no cgroup of its own")),
        };
    };
    let path = match below {
        Some(below) => path.join(inside(below)?),
        None => path.clone(),
    };
    let named = below.is_some();
    match cgroup::fs::open(&path) {
        // The container moved to another one, and somebody removed this.
        Err(error) if !named && error.errno() == Some(Errno::ENOENT) => {
            Ok(of_init(init)?.map(|cgroup| Birthplace { cgroup, named }))
        }
        cgroup => Ok(Some(Birthplace { cgroup: cgroup?, named })),
    }
}

/// The name of a cgroup below the container's, which stays below it.
fn inside(below: &str) -> Result<&Path> {
    let path = Path::new(below.trim_start_matches('/'));
    if path.components().all(|component| matches!(component, Component::Normal(_) | Component::CurDir)) {
        return Ok(path);
    }
    Err(Error::said(
        "exec in cgroup",
        format!("{below:?}"),
        "bad sub cgroup path: it leads out of the container's cgroup",
    ))
}

fn of_init(init: &Init) -> Result<Option<Cgroup>> {
    cgroup::location::of_process(init.pid())?.map(|path| cgroup::fs::open(&path)).transpose()
}

/// Clones into the cgroup. One that gives controllers to those below takes no process: where the container moved its own
/// into one of them (as a service manager does), that of its first process serves.
///
/// # Errors
/// The kernel's answer: EBUSY for a cgroup that was named and takes none.
pub fn clone_into(place: Option<&Birthplace>, init: &Init) -> Result<Cloned> {
    let born = |cgroup: Option<&Cgroup>| birth::clone_into(0, cgroup, Parent::Caller);
    let cloned = match (born(place.map(|place| &place.cgroup)), place) {
        (Err(error), Some(Birthplace { named: false, .. })) if error.errno() == Some(Errno::EBUSY) => {
            born(of_init(init)?.as_ref())
        }
        (cloned, _) => cloned,
    };
    // One that was moved is there by now, and waits for its Go before it does anything that this could matter to.
    cloned.map(|(cloned, _)| cloned).map_err(|error| match (error.errno(), place) {
        (Some(answer @ (Errno::EBUSY | Errno::EOPNOTSUPP)), Some(place)) => {
            let named = format!("adding pid 0 to cgroups: {}", place.cgroup.path.display());
            Error::kernel("clone a process", named, answer)
                .hint("it gives controllers to cgroups below it: name one of those with --cgroup")
        }
        _ => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_named_below_the_containers() {
        assert_eq!(inside("/").unwrap(), Path::new(""));
        assert_eq!(inside("/a/b").unwrap(), Path::new("a/b"));
        assert_eq!(inside("a/./b").unwrap(), Path::new("a/./b"));
        for out in ["..", "/..", "a/../..", "a/../b"] {
            assert!(inside(out).unwrap_err().to_string().contains("bad sub cgroup path"), "{out}");
        }
    }
}
