//! Going back to a snapshot: the container ends, what it wrote since goes, and it is made anew upon the snapshot's files; with the
//! processes that it had where their memory was kept, and else with its program from the beginning.
//!
//! It keeps its directory, its record and its use of the image all the while, each of which is only ever replaced as a whole. So
//! whenever this is cut off, there is a container with all of its snapshots: one that runs, or one that has ended and can be rolled
//! back again.

use super::{can_be_stacked, memory, of_container, used};
use crate::checkpoint::progress::Silent;
use crate::checkpoint::root::CONFIG;
use crate::error::{Error, Result};
use crate::image::store::snapshots;
use crate::lifecycle::live::{self, Live};
use crate::lifecycle::run_image::Used;
use crate::lifecycle::{Setting, create, delete, restore, run, scratch};

/// Goes back to a snapshot; to its files alone where `files_only`, with a program that begins anew.
///
/// # Errors
/// There is no such snapshot, or what it takes is not there: then the container is as it was. It cannot be brought back: then it is
/// a container that has ended, with all of its snapshots.
pub fn rollback(setting: &Setting, id: &str, name: &str, files_only: bool) -> Result<()> {
    let container = live::open_locked(setting, id)?;
    let setting = &of_container(setting, &container.record)?;
    let (store, used) = used(setting, &container)?;
    let all = store.snapshots(&used.user)?;
    let line = snapshots::line(&all, name)?;
    can_be_stacked(&used, line.len())?;
    let memory = line[0].memory.clone().filter(|_| !files_only);
    let choice = memory.map(|memory| memory::restored(&store, &used.user, &memory)).transpose()?;
    // Held from here on: nothing of what is gone back to is removed as unused.
    let guard = store.share()?;
    let below = Used::of_snapshot(store, guard, &used, name)?;
    let Live { entry, record, .. } = container;
    let path = match &choice {
        Some(choice) => choice.choice.images.join(CONFIG),
        None => entry.path().join("config.json"),
    };
    let (config, document) = crate::spec::load(&path)?;
    create::console(config.process.as_ref().is_some_and(|process| process.terminal), None)?;
    // Of one that was cut off.
    if let Some(worker) = entry.worker() {
        worker.end_criu()?;
        scratch::sweep();
    }
    let former = delete::config(setting, &entry, &record);
    delete::take_down(setting, &entry, &record)?;
    delete::tell(setting, &record, &former);
    below.empty_upper(entry.path())?;
    let bundle = record.bundle.clone();
    let source = create::Source {
        config,
        path,
        bundle,
        copy_on_write: false,
        image: Some(below),
        upper: None,
        again: Some(entry.renew(record, &document.text)?),
        text: document.text,
    };
    let create = create::Options { id: id.to_owned(), ..create::Options::default() };
    let begun = match choice {
        Some(choice) => {
            let options = restore::Options { create, detach: true, choice, ..restore::Options::default() };
            restore::restore_source(setting, &options, source, &Silent, &mut || Ok(()))
        }
        None => run::run_source(setting, &run::Options { create, detach: true, ..run::Options::default() }, source),
    };
    begun.map(drop).map_err(|error| {
        error.and_then::<()>(Err(Error::plain(
            "the container has ended, and its snapshots are there: roll back to another one",
        )))
    })
}
