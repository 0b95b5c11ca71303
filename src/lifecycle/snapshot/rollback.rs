//! Going back to a snapshot: the container ends, what it wrote since goes, and it is made anew upon the snapshot's files; with the
//! processes that it had where their memory was kept, and else with its program from the beginning.

use std::path::Path;

use super::{memory, of_container, used};
use crate::container::{Id, Record};
use crate::error::{Error, Result};
use crate::image::store::Store;
use crate::image::store::snapshots;
use crate::image::store::uses::Use;
use crate::lifecycle::live::{self, Live};
use crate::lifecycle::run_image::{self, Used};
use crate::lifecycle::{Setting, create, delete, restore, run};

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
    let memory = snapshots::line(&all, name)?[0].memory.clone().filter(|_| !files_only);
    let choice = memory.map(|memory| memory::restored(&store, &used.user, &memory)).transpose()?;
    // Held from here on: nothing of the container's is removed as left over while there is none.
    let guard = store.share()?;
    let below = Used::of_snapshot(store, guard, &used, name)?;
    let Live { entry, record, .. } = container;
    let path = match &choice {
        Some(choice) => choice.choice.images.join(crate::checkpoint::root::CONFIG),
        None => entry.path().join("config.json"),
    };
    let (config, document) = crate::spec::load(&path)?;
    create::console(config.process.as_ref().is_some_and(|process| process.terminal), None)?;
    let (state, store) = (entry.path().to_owned(), below.path.clone());
    let ended = Ended { text: document.text.clone(), used: Use { snapshot: Some(name.to_owned()), ..used }, record };
    // Its storage is not the deletion's affair.
    delete::clean_up(setting, &entry, Some(&Record { store: None, ..ended.record.clone() }))?;
    drop(entry);
    run_image::end(&store, &state)?;
    let source = create::Source {
        config,
        text: document.text,
        path,
        bundle: ended.record.bundle.clone(),
        copy_on_write: false,
        image: Some(below),
        upper: None,
    };
    let create = create::Options { id: id.to_owned(), ..create::Options::default() };
    let begun = match choice {
        Some(choice) => {
            let options = restore::Options { create, detach: true, choice, ..restore::Options::default() };
            restore::restore_source(setting, &options, source, &mut || Ok(()))
        }
        None => run::run_source(setting, &run::Options { create, detach: true, ..run::Options::default() }, source),
    };
    begun.map(drop).map_err(|error| {
        error.and_then(ended.keep(setting, &store).and_then(|()| -> Result<()> {
            Err(Error::plain("the container has ended, and its snapshots are there: roll back to another one"))
        }))
    })
}

/// A container that could not be brought back.
struct Ended {
    record: Record,
    text: Vec<u8>,
    used: Use,
}

impl Ended {
    /// Makes it a container that has ended, upon the files of the snapshot: what belongs to nobody would be removed.
    fn keep(&self, setting: &Setting, store: &Path) -> Result<()> {
        let entry = crate::container::Store::new(&setting.root).claim(&Id::new(&self.record.id)?)?;
        entry.save(&self.record)?;
        entry.keep_config(&self.text)?;
        entry.make_stage()?;
        let store = Store::existing(store)?.ok_or_else(|| Error::plain("the image store is gone"))?;
        let _guard = store.share()?;
        store.begin_use(&self.used).map(drop)
    }
}
