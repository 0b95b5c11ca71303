//! A checkpoint in one file: `checkpoint --export`, `restore --import`, `checkpoint inspect`. See [`crate::checkpoint::archive`].
//! And what a container with a root of its own takes, whether in one file or not: see [`super::own_root`].
//!
//! The images are in a directory of their own in between, which goes when it is of no use any more. It stays where it is all
//! there is of a container: when that has been dumped, and its archive could not be written.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use nix::sys::signalfd::SignalFd;
use rustix::fs::{CWD, Mode};

use super::checkpoint::Deeds;
use super::create::{self, Source};
use super::live::{self, Live};
use super::own_root::{self, Configured};
use super::scratch::{self, Part, Scratch};
use super::{Setting, checkpoint, restore};
use crate::checkpoint::archive::encryption::{Identities, Recipients};
use crate::checkpoint::archive::inspect::{self, Inspected};
use crate::checkpoint::archive::manifest::{FORMAT, Host, Manifest};
use crate::checkpoint::archive::{IMAGES, SPEC, pack, unpack};
use crate::checkpoint::criu;
use crate::checkpoint::dump::{Choice, DumpChoice};
use crate::checkpoint::progress::{Counted, Event, Progress, Step};
use crate::checkpoint::root::{self, Origin};
use crate::error::{Context, Error, Result};
use crate::log::rfc3339;

/// What `checkpoint --export` is told.
#[derive(Clone, Copy)]
pub struct Export<'a> {
    /// The archive.
    pub to: &'a Path,
    /// The images stay, in the directory that the choice names.
    pub keep: bool,
    /// Who can read it.
    pub recipients: &'a Recipients,
    /// Hears of it all.
    pub progress: &'a dyn Progress,
}

/// What `restore --import` is told.
#[derive(Clone, Copy)]
pub struct Import<'a> {
    /// The archive.
    pub from: &'a Path,
    /// The keys that it may be encrypted to.
    pub identities: &'a Identities,
    /// The images stay, in the directory that the options name.
    pub keep: bool,
    /// The bundle was named: of an archive with a root of its own, its configuration counts.
    pub has_bundle: bool,
    /// Stands for the directory that the root lay upon.
    pub rootfs: Option<&'a Path>,
    /// Hears of it all.
    pub progress: &'a dyn Progress,
}

/// Where an archive is: `-` is a standard stream.
const STREAM: &str = "-";

/// Whether a flag was given.
type Given = fn(&Choice) -> bool;

/// Flags that are needed at both ends of the way.
const BOTH_ENDS: [(&str, Given); 4] = [
    ("tcp-established", |choice| choice.tcp_established),
    ("ext-unix-sk", |choice| choice.ext_unix_sk),
    ("shell-job", |choice| choice.shell_job),
    ("file-locks", |choice| choice.file_locks),
];

/// `checkpoint` of any container, into a directory of images.
///
/// # Errors
/// As [`checkpoint::checkpoint`].
pub fn save(setting: &Setting, id: &str, choice: &DumpChoice, progress: &dyn Progress) -> Result<()> {
    let deeds = Deeds { keep_root: Some(own_root::keep), complete: &|| Ok(()), after: &mut |_| Ok(()), progress };
    checkpoint::with(setting, id, choice, deeds)
}

/// `checkpoint --export`. Unless they are to be kept, the images themselves go.
///
/// # Errors
/// The container cannot be dumped, and goes on; or the archive cannot be written: then there is none.
pub fn export(setting: &Setting, id: &str, choice: &DumpChoice, export: &Export<'_>) -> Result<()> {
    whole(choice)?;
    let own = Host::own(criu::check_version(&criu::find()?)?)?;
    scratch::sweep();
    let scratch = RefCell::new(if export.keep { None } else { Some(Scratch::make("checkpoint")?) });
    let out = Out::open(export.to)?;
    let mut choice = choice.clone();
    if let Some(scratch) = scratch.borrow().as_ref() {
        choice.choice.images = scratch.path.clone();
    }
    let (mut dumped, saved) = (false, Cell::new(false));
    // From here on until the archive is whole, what is in there is all there is of a container that does not go on.
    let complete = || match scratch.borrow_mut().as_mut().filter(|_| !choice.leave_running) {
        Some(scratch) => scratch.save().inspect(|()| saved.set(true)),
        None => Ok(()),
    };
    let mut after = |live: &Live| {
        dumped = true;
        let images = scratch.borrow().as_ref().map_or_else(|| choice.choice.images.clone(), |own| own.path.clone());
        write(live, &choice.choice, &images, own.clone(), export, &out)
    };
    let deeds =
        Deeds { keep_root: Some(own_root::keep), complete: &complete, after: &mut after, progress: export.progress };
    let done = checkpoint::with(setting, id, &choice, deeds);
    // Before the images go: at any time one of the two is there under a name that says what it is.
    let done = out.finish(done);
    let scratch = scratch.into_inner();
    // CRIU ends the container before it says that it has: what fails in between leaves the images.
    let ends = dumped || saved.get() && !live::open(setting, id).is_ok_and(|live| live.goes_on());
    match (done, scratch) {
        (Err(error), Some(scratch)) if ends && !choice.leave_running => {
            let path = scratch.keep();
            Err(error.hint(format!(
                "the container is saved in {0}: `ferry restore --image-path {0}` brings it back",
                path.display()
            )))
        }
        (Err(error), Some(scratch)) => Err(scratch.fail(error)),
        (done, scratch) => done.and(scratch.map_or(Ok(()), Scratch::remove)),
    }
}

/// An archive is whole in itself.
fn whole(choice: &DumpChoice) -> Result<()> {
    let parts = [
        ("pre-dump", choice.pre_dump),
        ("parent-path", choice.parent.is_some()),
        ("lazy-pages", choice.choice.lazy_pages),
        ("page-server", choice.page_server.is_some()),
    ];
    match parts.iter().find(|(_, given)| *given) {
        Some((flag, _)) => {
            Err(Error::plain(format!("--{flag} does not go with --export: an archive has all of the memory")))
        }
        None => Ok(()),
    }
}

fn write(live: &Live, choice: &Choice, images: &Path, host: Host, export: &Export<'_>, out: &Out) -> Result<()> {
    let id = live.entry.id.as_str();
    let flags = BOTH_ENDS.iter().filter(|(_, given)| given(choice)).map(|(flag, _)| (*flag).to_owned());
    let manifest = Manifest {
        format: FORMAT,
        id: id.to_owned(),
        created: rfc3339(SystemTime::now()),
        host,
        flags: flags.collect(),
        root: if Origin::is_in(images) { Some(Origin::read(images)?) } else { None },
        parts: Default::default(),
    };
    let spec = live.entry.path().join("config.json");
    let spec = std::fs::read(&spec).or_cannot("read", spec.display())?;
    let config = serde_json::json!({
        "id": id,
        "name": id,
        "createdTime": live.record.created,
        "checkpointedTime": manifest.created,
        "ociRuntime": "ferry",
    });
    let config = serde_json::to_vec(&config).unwrap_or_default();
    let contents = pack::Contents { images, spec: &spec, config: &config };
    let watch = Watch::new()?;
    let go_on = || watch.go_on();
    pack::pack(manifest, &contents, export.recipients, out, pack::Watch { go_on: &go_on, progress: export.progress })
}

/// Interrupts, seen by whichever thread looks first, and from then on by all.
pub(super) struct Watch {
    signals: SignalFd,
    interrupted: AtomicBool,
}

impl Watch {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { signals: criu::interrupts()?, interrupted: AtomicBool::new(false) })
    }

    pub(super) fn go_on(&self) -> Result<()> {
        if self.signals.read_signal().or_cannot("read", "signals")?.is_some() {
            self.interrupted.store(true, Ordering::Relaxed);
        }
        match self.interrupted.load(Ordering::Relaxed) {
            true => Err(Error::plain("interrupted")),
            false => Ok(()),
        }
    }
}

/// Where an archive is written: under another name until it is whole.
enum Out {
    Stream,
    File { part: Part, shown: PathBuf },
}

impl Out {
    fn open(to: &Path) -> Result<Self> {
        if to == Path::new(STREAM) {
            if std::io::stdout().is_terminal() {
                return Err(Error::plain("an archive is not written to a terminal").hint("name a file, or redirect"));
            }
            return Ok(Self::Stream);
        }
        Ok(Self::File { part: Part::make(to)?, shown: to.to_owned() })
    }

    /// Gives it its name, or takes it away.
    fn finish(self, packed: Result<()>) -> Result<()> {
        let Self::File { part, shown } = self else { return packed };
        let named = packed.and_then(|()| part.name(&shown));
        named.map_err(|error| error.and_then(part.remove(&shown)))
    }
}

impl Write for &Out {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        match self {
            Out::Stream => std::io::stdout().write(buffer),
            Out::File { part, .. } => (&part.file).write(buffer),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Out::Stream => std::io::stdout().flush(),
            Out::File { part, .. } => (&part.file).flush(),
        }
    }
}

/// `restore` from a directory of images that has a root of its own beside them. `has_bundle`: the bundle was named, and its
/// configuration counts.
///
/// # Errors
/// As [`restore::restore`]; what the root lies upon is not there.
pub fn revive(
    setting: &Setting,
    options: &restore::Options,
    has_bundle: bool,
    rootfs: Option<&Path>,
    progress: &dyn Progress,
) -> Result<u8> {
    let images = &options.choice.choice.images;
    let configured = match has_bundle {
        true => Configured::Bundle(Box::new(create::read(&options.create.bundle, options.create.config.as_deref())?)),
        false => Configured::Saved(images.join(root::CONFIG)),
    };
    let source = own_root::source(setting, &Origin::read(images)?, images.join(root::DIFF), configured, rootfs)?;
    restore::restore_source(setting, options, source, progress, &mut || Ok(()))
}

/// `restore --import`. The images go into the options' directory where one was given (`keep`), and into one that goes
/// otherwise.
///
/// # Errors
/// The archive is not whole, this host cannot run it, or as [`restore::restore`]; nothing is left then.
pub fn import(setting: &Setting, options: &restore::Options, import: &Import<'_>) -> Result<u8> {
    let Import { from, keep, .. } = *import;
    if options.choice.choice.lazy_pages {
        return Err(Error::plain("--lazy-pages does not go with --import: an archive has all of the memory"));
    }
    let own = Host::own(criu::check_version(&criu::find()?)?)?;
    scratch::sweep();
    let scratch = directory(if keep { Some(&options.choice.choice.images) } else { None })?;
    let mut options = options.clone();
    let size = std::fs::metadata(from).ok().filter(std::fs::Metadata::is_file).map(|found| found.len());
    import.progress.event(Event::Step(Step::Unpack, size));
    let unpacked = open(from)
        .map(|stream| Counted::new(stream, import.progress))
        .and_then(|stream| unpack::unpack(stream, import.identities, &scratch.path, &own));
    let manifest = match unpacked {
        Ok(manifest) => manifest,
        Err(error) => return Err(error.and_then(scratch.remove())),
    };
    if let Err(error) = same_flags(&manifest, &options.choice.choice) {
        return Err(error.and_then(scratch.remove()));
    }
    if options.create.id.is_empty() {
        options.create.id.clone_from(&manifest.id);
    }
    let source = match source(setting, &options, import, &manifest, &scratch.path) {
        Ok(source) => source,
        Err(error) => return Err(error.and_then(scratch.remove())),
    };
    options.choice.audited = true;
    options.choice.choice.images = scratch.path.join(IMAGES);
    // What went wrong stands there, and is to be read afterwards.
    let logs = match &options.choice.choice.work {
        Some(_) => None,
        None => Some(Scratch::make("restore")?),
    };
    options.choice.choice.work = options.choice.choice.work.or(logs.as_ref().map(|logs| logs.path.clone()));
    let mut scratch = Some(scratch).filter(|_| !keep);
    let mut logs = logs;
    let mut restored = || {
        // Restored: neither is needed any more, for as long as the container runs.
        [scratch.take(), logs.take()].into_iter().flatten().try_for_each(Scratch::remove)
    };
    let done = restore::restore_source(setting, &options, source, import.progress, &mut restored);
    let removed = scratch.map_or(Ok(()), Scratch::remove);
    if done.is_err()
        && let Some(logs) = logs
    {
        // Unless there is nothing in it: then that is no failure of CRIU's, and only the directory goes.
        std::fs::remove_dir(logs.keep()).ok();
    }
    match done {
        Ok(code) => removed.map(|()| code),
        Err(error) => Err(error.and_then(removed)),
    }
}

/// What the container is made from: the bundle, or where the archive has a root of its own, that.
fn source(
    setting: &Setting,
    options: &restore::Options,
    import: &Import<'_>,
    manifest: &Manifest,
    unpacked: &Path,
) -> Result<Source> {
    let bundle = || create::read(&options.create.bundle, options.create.config.as_deref());
    if import.rootfs.is_some() && !matches!(manifest.root, Some(Origin::Directory(_))) {
        return Err(Error::plain("--rootfs is for a container that ran with --rootfs, and this archive is not of one"));
    }
    let Some(origin) = &manifest.root else { return bundle() };
    let configured = match import.has_bundle {
        true => Configured::Bundle(Box::new(bundle()?)),
        false => Configured::Anybodys(unpacked.join(SPEC)),
    };
    own_root::source(setting, origin, unpacked.join(root::DIFF), configured, import.rootfs)
}

fn same_flags(manifest: &Manifest, choice: &Choice) -> Result<()> {
    for flag in &manifest.flags {
        match BOTH_ENDS.iter().find(|(known, _)| known == flag) {
            Some((_, given)) if given(choice) => (),
            Some(_) => return Err(Error::plain(format!("the archive was made with --{flag}: give it here too"))),
            None => {
                return Err(Error::said(
                    "restore",
                    "the archive",
                    format!("it was made with a flag --{flag:?} that is not known here"),
                ));
            }
        }
    }
    Ok(())
}

/// `checkpoint inspect`.
///
/// # Errors
/// The archive is not whole.
pub fn inspect(from: &Path, identities: &Identities) -> Result<Inspected> {
    inspect::inspect(open(from)?, identities)
}

fn open(from: &Path) -> Result<Box<dyn Read + Send>> {
    const AHEAD: usize = 1 << 20;
    if from == Path::new(STREAM) {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = File::open(from).or_cannot("open", from.display())?;
    Ok(Box::new(BufReader::with_capacity(AHEAD, file)))
}

/// The empty directory that was named, made where it is missing; or a new one.
fn directory(named: Option<&Path>) -> Result<Scratch> {
    let Some(path) = named else { return Scratch::make("restore") };
    match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            rustix::fs::mkdirat(CWD, path, Mode::RWXU).or_cannot("make directory", path.display())?;
        }
        entries => {
            if entries.or_cannot("read", path.display())?.next().is_some() {
                return Err(Error::plain(format!("--image-path {} is not empty", path.display()))
                    .hint("an archive is unpacked into a directory of its own"));
            }
        }
    }
    Ok(Scratch::named(path))
}
