//! A container whose root is an overlay of its own, saved and made again: `run --image` and `run --rootfs`. See
//! [`crate::checkpoint::root`] for what is kept of it.
//!
//! What it changed is written down while its processes stand still. A restore makes the overlay anew, in the mount namespace that
//! CRIU starts from: the same layers, which must be there, and an upper layer that is unpacked as layers of images are. All of this
//! is called by `ferry-image` alone.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::Value;

use super::checkpoint::KeptRoot;
use super::create::Source;
use super::live::Live;
use super::run_image::Used;
use super::run_rootfs::{self, Options};
use super::{Setting, image};
use crate::checkpoint::root::{CONFIG, DIFF, Image, Origin};
use crate::checkpoint::stage::Upper;
use crate::error::{Context, Error, Result};
use crate::host;
use crate::image::manifest::Descriptor;
use crate::image::merged::Parts;
use crate::image::pack::{self, Elsewhere};
use crate::image::store::Store;
use crate::image::store::uses::User;
use crate::image::unpack::{complete, with_bodies};
use crate::launch::sources::Place;
use crate::namespaces::Kind;
use crate::rootfs::{mount, pivot};
use crate::security::jail::{self, Work};
use crate::spec::{Config, Document};

/// What is written down of the root of a container, into the directory of images, once its processes stand still.
///
/// # Errors
/// The root is one that cannot be made again.
pub(super) fn keep(live: &Live, images: &Path) -> Result<KeptRoot> {
    let changes = Changes::of(live)?;
    let images = images.to_owned();
    Ok(Box::new(move || changes.keep(&images, &|_| false, &mut || Ok(()))))
}

/// What a container changed in its root, and upon what.
pub(super) struct Changes {
    origin: Origin,
    changed: Changed,
    config: PathBuf,
}

impl Changes {
    /// Looks where they are.
    ///
    /// # Errors
    /// The root is one that cannot be made again.
    pub fn of(live: &Live) -> Result<Self> {
        let origin = origin(live)?;
        let config = live.entry.path().join("config.json");
        let changed = match (&origin, &live.record.store, live.init()) {
            (Origin::Image(_), Some(store), _) => {
                let own = User::Container(live.entry.path().to_owned());
                Changed::Upper(store_of(store)?.use_path(&own).join("upper"))
            }
            (Origin::Directory(lower), _, Some(init)) => Changed::Hidden(init.pid(), lower.clone()),
            _ => {
                let id = live.entry.id.as_str();
                return Err(Error::plain(format!("container {id:?} has no root to be looked at")));
            }
        };
        Ok(Self { origin, changed, config })
    }

    /// The directory of an upper layer, where that is what they are in.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn upper(&self) -> Result<Option<OwnedFd>> {
        match &self.changed {
            Changed::Upper(directory) => opened(directory).map(Some),
            Changed::Hidden(..) => Ok(None),
        }
    }

    /// Writes all of it down into the directory of images, without the content of some files. `waiting` is called between two pieces.
    ///
    /// # Errors
    /// Something cannot be read or written; those of `waiting`.
    pub fn keep(
        &self,
        images: &Path,
        is_elsewhere: Elsewhere<'_>,
        waiting: &mut dyn FnMut() -> Result<()>,
    ) -> Result<()> {
        let path = images.join(DIFF);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR).or_cannot("write", path.display())?;
        let mut file = Attended { file: file.into(), waiting, failed: None };
        let out = BufWriter::with_capacity(1 << 17, &mut file);
        let packed = match &self.changed {
            Changed::Upper(directory) => pack::upper_without(&opened(directory)?, out, is_elsewhere),
            Changed::Hidden(pid, lower) => pack::changes(&shown(*pid)?, &opened(lower)?, out),
        };
        file.failed.map_or(packed, Err)?;
        std::fs::copy(&self.config, images.join(CONFIG)).or_cannot("copy", self.config.display())?;
        self.origin.save(images)
    }
}

/// A file, and what is called before each write to it.
struct Attended<'a> {
    file: File,
    waiting: &'a mut dyn FnMut() -> Result<()>,
    failed: Option<Error>,
}

impl Write for Attended<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match (self.waiting)() {
            Ok(()) => self.file.write(bytes),
            Err(error) => {
                self.failed = Some(error);
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Where what was changed is.
enum Changed {
    /// In this directory.
    Upper(PathBuf),
    /// In memory that is mounted nowhere any more: it is what the root of this process shows other than this directory.
    Hidden(Pid, PathBuf),
}

/// What the root lies upon.
///
/// # Errors
/// The root is one that cannot be made again.
pub(super) fn origin(live: &Live) -> Result<Origin> {
    let id = live.entry.id.as_str();
    let cannot = |why: &str| Error::plain(format!("container {id:?} cannot be checkpointed: {why}"));
    if !host::probe().privileged || live.record.namespaces.contains(&Kind::User) {
        return Err(cannot("its root is an overlay in a user namespace, which nobody outside of it can make again")
            .hint("run it as root, or from a bundle, whose root filesystem is still there when it is restored"));
    }
    let Some(store) = &live.record.store else {
        let root = live.init().map(|init| shown(init.pid())).transpose()?;
        return match root.is_some_and(|root| is_overlay(&root)) {
            true => Ok(Origin::Directory(live.record.rootfs.clone())),
            false => {
                Err(cannot("its root is put together of several mounts, since there are mounts below the directory")
                    .hint("give `ferry run --rootfs` a directory without mounts below it"))
            }
        };
    };
    let own = User::Container(live.entry.path().to_owned());
    let uses = store_of(store)?.uses()?;
    let used = uses.into_iter().filter_map(|(_, used)| used).find(|used| used.user == own);
    let used = used.ok_or_else(|| cannot("the image store knows nothing of it"))?;
    used.has_upper()?;
    match used.snapshot {
        Some(name) => Err(cannot(&format!("it was rolled back to snapshot {name:?}, and its files lie upon that"))
            .hint("make an image of it with `ferry image commit`, and run that")),
        None => Ok(Origin::Image(Image { name: used.image, manifest: used.manifest, layers: used.layers })),
    }
}

pub(super) fn store_of(path: &Path) -> Result<Store> {
    Store::existing(path)?.ok_or_else(|| Error::plain(format!("the image store {} is gone", path.display())))
}

fn opened(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, directory, flags, Mode::empty()).or_cannot("open directory", directory.display())
}

/// The root of a process without what is mounted below it.
fn shown(pid: Pid) -> Result<OwnedFd> {
    use std::os::fd::AsFd;
    let root = Place::of(pid, None)?.visit(|| {
        let slash = pivot::open_directory(Path::new("/"))?;
        // The container's own mount namespace: nothing is mounted there to look at it.
        mount::detached(slash.as_fd(), Path::new(""), false).or_cannot("look at", "the container's root")
    })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&root, ".", flags, Mode::empty()).or_cannot("open", "the container's root")
}

fn is_overlay(root: &OwnedFd) -> bool {
    const OVERLAY: i64 = 0x794c_7630;
    rustix::fs::fstatfs(root).is_ok_and(|filesystem| filesystem.f_type == OVERLAY)
}

/// The configuration to restore with.
pub(super) enum Configured {
    /// The operator's, from a bundle.
    Bundle(Box<Source>),
    /// The one that was saved, by the operator.
    Saved(PathBuf),
    /// One from an archive or another machine: nothing in it may go beyond what `run` gives.
    Anybodys(PathBuf),
    /// The same, before it is a file; the path is for errors.
    Told(Vec<u8>, PathBuf),
}

/// What a container with such a root is restored from: `diff` is what it changed; `rootfs` stands for the directory that its root
/// lay upon.
///
/// # Errors
/// The image or the directory is not there; the configuration is none, or asks for more than it may.
pub(super) fn source(
    setting: &Setting,
    origin: &Origin,
    diff: PathBuf,
    configured: Configured,
    rootfs: Option<&Path>,
) -> Result<Source> {
    let host = host::probe();
    if !host.privileged {
        return Err(Error::plain("only root restores a container whose root is an overlay of its own"));
    }
    let upper = Some(Upper { archive: diff, bodies: None, unpack: fill });
    let image = match origin {
        Origin::Image(wanted) => Some(found(setting, wanted)?),
        Origin::Directory(_) => None,
    };
    let copy_on_write = image.is_none();
    let (path, text, is_anybodys) = match configured {
        Configured::Bundle(source) => return Ok(Source { copy_on_write, image, upper, ..*source }),
        Configured::Saved(path) => (path, None, false),
        Configured::Anybodys(path) => (path, None, true),
        Configured::Told(text, path) => (path, Some(text), true),
    };
    let document = text.map_or_else(|| Document::read(&path), |text| Ok(Document::new(&path, text)));
    let mut config = document?.config()?;
    let bundle = match (origin, &image) {
        (Origin::Directory(_), _) if is_anybodys && rootfs.is_none() => {
            return Err(Error::plain(
                "the container ran with --rootfs, and an archive chooses no directory of this host",
            )
            .hint("name the directory with --rootfs, or give a bundle with --bundle"));
        }
        (Origin::Directory(lower), _) => {
            let lower = rootfs.unwrap_or(lower);
            opened(lower).map_err(|error| error.hint("it must be there as it was; --rootfs names another"))?;
            config.root.get_or_insert_default().path = lower.to_owned();
            lower.to_owned()
        }
        (Origin::Image(_), Some(used)) => used.path.clone(),
        (Origin::Image(_), None) => PathBuf::new(),
    };
    if is_anybodys {
        config = allowed(config, |options| match &image {
            Some(used) => used.config(options, &host),
            None => run_rootfs::config(options, &host),
        })?;
    }
    let text =
        serde_json::to_vec(&config).map_err(|error| Error::said("write", "the configuration", error.to_string()))?;
    Ok(Source { config, text, path, bundle, copy_on_write, image, upper, again: None })
}

/// The image, where it is in the store.
fn found(setting: &Setting, wanted: &Image) -> Result<Used> {
    let path = image::location(setting, &host::probe())?;
    let Image { name, manifest, layers } = wanted;
    let missing = || {
        Error::plain(format!("image {name:?} ({manifest}) is not in the store {}", path.display()))
            .hint(format!("`ferry image pull {name}` brings it there, or `ferry image import`"))
    };
    let store = Store::existing(&path)?.ok_or_else(missing)?;
    // Held from before the layers are looked up until their use is noted: nothing of them is removed in between.
    let guard = store.share()?;
    if store.blob_size(manifest)?.is_none() {
        return Err(missing());
    }
    let image = store.image_of(Some(name.clone()), Descriptor::named(manifest))?;
    if image.chain != *layers {
        return Err(Error::said("restore from", format!("image {name:?}"), "its layers are not those that were saved"));
    }
    Used::of_image(store, guard, image)
}

/// Fills an upper layer.
fn fill(with: &Upper, directory: OwnedFd, lowers: &[PathBuf]) -> Result<()> {
    let archive = &with.archive;
    // Files get the modes they had.
    let mask = rustix::process::umask(Mode::empty());
    let file = File::open(archive).or_cannot("open", archive.display())?;
    let lowers: Parts = lowers.iter().map(|lower| opened(lower).map(Rc::new)).collect::<Result<_>>()?;
    let upper = Rc::new(directory.try_clone().or_cannot("open", "the upper layer")?);
    let how = image::options(None, None, None).how;
    let archive = BufReader::with_capacity(1 << 17, file);
    let bodies = with.bodies.as_deref().map(opened).transpose()?;
    let work = match &bodies {
        Some(bodies) => Work::Places(upper.as_fd(), bodies.as_fd()),
        None => Work::Unpacks(upper.as_fd()),
    };
    let given = bodies.as_ref().map(OwnedFd::try_clone).transpose().or_cannot("open", "what has come of files")?;
    let unpacked = jail::confined(work, || with_bodies(archive, directory, given, DIFF, &how));
    let (_, rest) = unpacked?;
    let completed = complete::complete(rest, &upper, &lowers);
    rustix::process::umask(mask);
    completed.map(drop)
}

/// The configuration that `run` would have made of what `theirs` says about the program; an error, where that is not the same.
/// What images choose, an archive chooses too: the program, its environment, directory and user. So do limits and the host's name,
/// and a root that is read-only: they take away, or give nothing.
fn allowed(theirs: Config, made: impl FnOnce(&Options) -> Result<Config>) -> Result<Config> {
    let program = theirs.process.clone().unwrap_or_default();
    let (root, resources) = (theirs.root.clone().unwrap_or_default(), &theirs.linux.resources);
    let mut own = made(&Options {
        rootfs: root.path.clone(),
        args: program.args.clone(),
        hostname: Some(theirs.hostname.clone()),
        memory: resources.memory.limit,
        pids_limit: resources.pids.limit,
        read_only: root.readonly,
        tty: program.terminal,
        ..Options::default()
    })?;
    own.linux.resources.cpu.quota = resources.cpu.quota;
    own.linux.resources.cpu.period = resources.cpu.period;
    if let Some(process) = &mut own.process {
        process.args.clone_from(&program.args);
        process.env.clone_from(&program.env);
        process.cwd.clone_from(&program.cwd);
        process.user.clone_from(&program.user);
    }
    let json = |config: &Config| {
        serde_json::to_value(config).map_err(|error| Error::said("compare", "configurations", error.to_string()))
    };
    match difference(&json(&own)?, &json(&theirs)?, "") {
        None => Ok(own),
        Some(place) => Err(Error::plain(format!(
            "its configuration is not one that `ferry run` makes of this: {place} differs, and nothing was run"
        ))
        .hint("look at its spec.dump, and give a bundle with --bundle whose config.json says what it may have")),
    }
}

/// The first place where two values differ.
fn difference(one: &Value, other: &Value, place: &str) -> Option<String> {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let keys = one.keys().chain(other.keys().filter(|key| !one.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let value = |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                difference(&value(one), &value(other), &place)
            })
        }
        _ => (one != other).then(|| place.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;

    /// Whoever waits for it is told that it goes on, within a large file too, and may end it.
    #[test]
    fn what_was_changed_is_written_down_piece_by_piece() {
        let path = std::env::temp_dir().join(format!("ferry-changes-{}", std::process::id()));
        let images = path.join("images");
        [&path.join("upper"), &images].into_iter().for_each(|path| std::fs::create_dir_all(path).unwrap());
        std::fs::write(path.join("config.json"), "{}").unwrap();
        std::fs::write(path.join("upper/large"), vec![7; 4 << 20]).unwrap();
        let changes = Changes {
            origin: Origin::Directory("/srv/tree".into()),
            changed: Changed::Upper(path.join("upper")),
            config: path.join("config.json"),
        };
        let mut waited = 0;
        let mut count = || {
            waited += 1;
            Ok(())
        };
        changes.keep(&images, &|_| false, &mut count).unwrap();
        assert!(waited >= 16, "{waited}");
        let mut fails = || Err(Error::plain("the far end is gone"));
        let said = changes.keep(&images, &|_| false, &mut fails).unwrap_err().to_string();
        assert_eq!(said, "the far end is gone");
        let name = std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
        crate::image::tree::remove(CWD, &name).unwrap();
    }

    fn plain(options: &Options) -> Result<Config> {
        run_rootfs::config(options, &Host { uid: 0, gid: 0, privileged: true, permitted: u64::MAX })
    }

    fn ran() -> Config {
        let options = Options {
            id: "web".into(),
            rootfs: "/srv/tree".into(),
            args: vec!["serve".into()],
            env: vec!["A=1".into()],
            cwd: Some("/data".into()),
            user: Some((1000, None)),
            memory: Some(64 << 20),
            cpus: Some(0.5),
            pids_limit: Some(10),
            read_only: true,
            ..Options::default()
        };
        plain(&options).unwrap()
    }

    #[test]
    fn what_run_makes_is_allowed() {
        assert_eq!(allowed(ran(), plain).unwrap(), ran());
    }

    #[test]
    fn whatever_goes_beyond_is_named() {
        type Change = fn(&mut Config);
        let cases: [(Change, &str); 6] = [
            (|config| config.linux.namespaces.clear(), "linux.namespaces"),
            (|config| config.linux.masked_paths.clear(), "linux.maskedPaths"),
            (|config| config.mounts.push(config.mounts[0].clone()), "mounts"),
            (|config| config.process.as_mut().unwrap().no_new_privileges = false, "process.noNewPrivileges"),
            (
                |config| config.process.as_mut().unwrap().capabilities.bounding.push("CAP_SYS_ADMIN".into()),
                "process.capabilities.bounding",
            ),
            (|config| drop(config.annotations.insert("a".into(), "b".into())), "annotations"),
        ];
        for (change, place) in cases {
            let mut config = ran();
            change(&mut config);
            let error = allowed(config, plain).unwrap_err().to_string();
            assert!(error.contains(&format!(": {place} differs")), "{error}");
        }
    }
}
