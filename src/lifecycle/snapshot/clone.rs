//! A running container once more, under another id: the same processes with the same memory, upon a copy of what it wrote, in
//! namespaces and a cgroup of its own. The first one goes on, and knows nothing of it.
//!
//! It is a checkpoint into a directory for the time, and a restore of that. What only one of two can have, the clone does not get:
//! the host name, the cgroup, addresses, and the other ends of its TCP connections, which it finds closed. All of this is called by
//! `ferry-image` alone.

use std::fs::File;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{Pid, sethostname};

use super::memory::Flags;
use crate::checkpoint::dump::DumpChoice;
use crate::checkpoint::progress::Silent;
use crate::checkpoint::restore::{Moment, RestoreChoice};
use crate::checkpoint::root::{CONFIG, DIFF, Origin};
use crate::container::{Id, Store};
use crate::error::{Context, Error, Result};
use crate::lifecycle::own_root::{self, Configured};
use crate::lifecycle::scratch::{self, Scratch};
use crate::lifecycle::{Setting, archive, checkpoint, create, restore};
use crate::spec::{Config, Document};

/// Clones the container `id` as `new`, whose host name is `hostname`. The clone is detached.
///
/// # Errors
/// There is a container `new`; the container has no root of its own, or cannot be dumped; the clone cannot be restored. The
/// container goes on in any case, and there is no clone then.
pub fn clone(setting: &Setting, id: &str, new: &str, hostname: &str, flags: Flags) -> Result<()> {
    if Store::new(&setting.root).has(&Id::new(new)?) {
        return Err(Error::plain(format!("container {new:?} exists already")).hint("choose another id for the clone"));
    }
    if !checkpoint::has_own_root(setting, id)? {
        return Err(Error::plain(format!(
            "container {id:?} cannot be cloned: its root is a directory, which both would write to"
        ))
        .hint("containers of `ferry run --image` and `ferry run --rootfs` have a root of their own"));
    }
    scratch::sweep();
    let scratch = Scratch::make("checkpoint")?;
    let cloned =
        from(setting, id, &scratch.path, flags).and_then(|()| to(setting, new, hostname, &scratch.path, flags));
    match cloned {
        Ok(()) => scratch.remove(),
        Err(error) => Err(scratch.fail(error)),
    }
}

fn from(setting: &Setting, id: &str, images: &Path, flags: Flags) -> Result<()> {
    let choice = DumpChoice {
        choice: flags.choice(images.to_owned()),
        leave_running: true,
        tcp_skip_in_flight: true,
        ..DumpChoice::default()
    };
    archive::save(setting, id, &choice, &Silent)
}

fn to(setting: &Setting, new: &str, hostname: &str, images: &Path, flags: Flags) -> Result<()> {
    let path = images.join(CONFIG);
    let config = own(Document::read(&path)?.parse()?, hostname);
    let named = config
        .linux
        .namespaces
        .iter()
        .any(|namespace| namespace.kind == "uts" && namespace.path.as_os_str().is_empty());
    let text = serde_json::to_vec(&config).map_err(|why| Error::said("write", "the configuration", why.to_string()))?;
    std::fs::write(&path, text).or_cannot("write", path.display())?;
    let source = own_root::source(setting, &Origin::read(images)?, images.join(DIFF), Configured::Saved(path), None)?;
    let options = restore::Options {
        create: create::Options { id: new.to_owned(), ..create::Options::default() },
        detach: true,
        choice: RestoreChoice { choice: flags.choice(images.to_owned()), ..RestoreChoice::default() },
        ..restore::Options::default()
    };
    // CRIU gives it the name that it had, and nothing of it has run yet.
    let mut held = |moment| match moment {
        Moment::Held if named => name(setting, new, hostname),
        _ => Ok(()),
    };
    restore::bring_back(setting, &options, source, &mut held).map(drop)
}

/// The configuration, without what two cannot have.
fn own(mut config: Config, hostname: &str) -> Config {
    if !config.hostname.is_empty() {
        hostname.clone_into(&mut config.hostname);
    }
    config.linux.cgroups_path.clear();
    config
}

/// Names the host that a container is, from a thread that visits it.
fn name(setting: &Setting, id: &str, hostname: &str) -> Result<()> {
    let record = Store::new(&setting.root).open(&Id::new(id)?)?.record()?;
    let init = record.and_then(|record| record.init).ok_or_else(|| Error::plain("the clone has no process"))?;
    let path = format!("/proc/{}/ns/uts", Pid::from_raw(init.pid));
    let namespace = File::open(&path).or_cannot("open", &path)?;
    let visit = || {
        setns(&namespace, CloneFlags::CLONE_NEWUTS).or_cannot("enter", &path)?;
        sethostname(hostname).or_cannot("name the host", hostname)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, visit).or_cannot("start", "a thread")?;
        thread.join().unwrap_or_else(|_| Err(Error::plain("a thread that names the host has failed")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_has_its_own_name_and_cgroup() {
        let mut config = Config { hostname: "web".into(), ..Config::default() };
        config.linux.cgroups_path = "/web".into();
        let own = own(config, "web2");
        assert_eq!((own.hostname.as_str(), own.linux.cgroups_path.as_str()), ("web2", ""));
        assert_eq!(super::own(Config::default(), "x").hostname, "", "one that has the host's name keeps it");
    }
}
