//! `run --image`: a command in an image of the store, whose layers the container shares with all others of that image.
//!
//! Where the kernel will not stack them, which the container's own process is told when it mounts its root, everything is undone and
//! done again upon a copy of the image's files: a start from layers asks for nothing beforehand.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::create::Source;
use super::run_rootfs::Options;
use super::{Setting, create, image, run, run_copy, run_rootfs};
use crate::container::store::Entry;
use crate::error::{Context, Error, Result};
use crate::host::{self, Host};
use crate::image::bundle;
use crate::image::manifest::Descriptor;
use crate::image::store::copies::NewCopy;
use crate::image::store::uses::{Use, User};
use crate::image::store::{Guard, Store, layers, snapshots};
use crate::namespaces::{id_map, inside};
use crate::rootfs::{Layers, layers as stack};
use crate::spec;
use crate::spec::config::{Config, Root};

/// An image that a container is made from. The store is held until the use is noted.
pub(super) struct Used {
    pub store: Store,
    /// Where the store is.
    pub path: PathBuf,
    pub image: crate::image::Image,
    user_namespace: bool,
    snapshot: Option<Snapshots>,
    /// The copy that stands for the layers, where they cannot be stacked.
    pub copy: Option<NewCopy>,
    /// Whether the layers are EROFS images, which are mounted.
    erofs: bool,
    _guard: Guard,
}

/// The snapshots that a container is rolled back to.
struct Snapshots {
    name: String,
    /// Its layer and those that it lies upon, the uppermost first.
    layers: Vec<PathBuf>,
}

/// The directory of a container that stands for the layers of an image without any.
const NOTHING: &str = "nothing";

/// Capabilities that images are made for: what engines give by default.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// `run --image`. Answers the program's exit status, or 0 when detached.
///
/// # Errors
/// What could not be done; nothing is left of it then.
pub fn run(setting: &Setting, image: &str, options: &Options) -> Result<u8> {
    if options.detach && options.tty {
        return Err(Error::plain("--tty does not go with --detach").hint("give --no-tty"));
    }
    let options_of_run = run::Options {
        create: create::Options {
            id: options.id.clone(),
            pid_file: options.pid_file.clone(),
            ..create::Options::default()
        },
        detach: options.detach,
        ..run::Options::default()
    };
    let ran = run::run_source(setting, &options_of_run, source(setting, image, options)?);
    let ran = ran.map_err(|error| if options.erofs { error.and_then(release(setting, image)) } else { error });
    match ran {
        Err(error) if stack::is_refused(&error) => {
            let source = source(setting, image, &Options { erofs: false, ..options.clone() })?;
            run_copy::run(setting, &options_of_run, source, &error)
        }
        answer => answer,
    }
}

/// Unmounts what was mounted for a container that there is not.
fn release(setting: &Setting, image: &str) -> Result<()> {
    let Some(store) = image::existing(setting)? else { return Ok(()) };
    store.release_erofs(&store.image(image)?.chain)
}

/// What the container is made from.
fn source(setting: &Setting, image: &str, options: &Options) -> Result<Source> {
    let host = host::probe();
    let path = image::location(setting, &host)?;
    let missing = || {
        Error::plain(format!("there is no image {image:?}: {} holds none", path.display()))
            .hint("bring one there with `ferry image import`")
    };
    let store = Store::existing(&path)?.ok_or_else(missing)?;
    // Held from before the layers are looked up until their use is noted: nothing of them is removed in between.
    let guard = store.share()?;
    let image = store.image(image)?;
    let user_namespace = unpacked(&store, &image)?;
    tell_of_labels(setting, &image);
    let config = config(&store, &image, options, &host)?;
    let text = text(&config)?;
    let erofs = options.erofs && mounted(setting, &store, &image, &host)?;
    let used =
        Used { store, path: path.clone(), image, user_namespace, snapshot: None, copy: None, erofs, _guard: guard };
    // The configuration is made from the image: no file is to blame for it but that.
    let file = path.join("config.json");
    Ok(Source {
        config,
        text,
        path: file,
        bundle: path,
        copy_on_write: false,
        image: Some(used),
        upper: None,
        again: None,
    })
}

/// Whether the image's layers could be mounted as EROFS images. Where the kernel would not, they are taken as directories, which hold
/// the same, and a warning says so.
fn mounted(setting: &Setting, store: &Store, image: &crate::image::Image, host: &Host) -> Result<bool> {
    if !host.privileged {
        return Err(Error::plain("only root can use EROFS images: the kernel lets nobody else mount them")
            .hint("run without --erofs: the image's layers are directories then"));
    }
    for chain_id in &image.chain {
        if store.erofs(chain_id)?.is_none() {
            let name = image.name.as_deref().unwrap_or("the image");
            return Err(Error::plain(format!("{name} has no EROFS images: layer {} lacks one", chain_id.short()))
                .hint("import or pull it with --erofs: layers that are there are not unpacked again"));
        }
    }
    match store.mount_erofs(&image.chain) {
        Ok(()) => Ok(true),
        Err(error) => {
            setting.log.warning(format!("{error}: the layers' directories stand in for their EROFS images"));
            Ok(false)
        }
    }
}

pub(super) fn text(config: &Config) -> Result<Vec<u8>> {
    serde_json::to_vec(config).map_err(|error| Error::said("write", "the configuration", error.to_string()))
}

/// Whether the image's layers were unpacked in a user namespace; of an image without layers, whether they would have been.
///
/// # Errors
/// They are not unpacked.
pub(super) fn unpacked(store: &Store, image: &crate::image::Image) -> Result<bool> {
    let Some(top) = image.chain.last() else {
        return Ok(!rustix::process::geteuid().is_root() || host::in_user_namespace());
    };
    match store.layer(top)? {
        Some(layer) => Ok(layer.user_namespace),
        None => {
            Err(Error::plain("the image's layers are not unpacked").hint("`ferry image check --repair` unpacks them"))
        }
    }
}

/// Tells of labels that are left out.
pub(super) fn tell_of_labels(setting: &Setting, image: &crate::image::Image) {
    let withheld: Vec<String> = bundle::withheld(&image.config).map(|key| format!("{key:?}")).collect();
    if !withheld.is_empty() {
        setting.log.warning(format!(
            "labels of the image are not taken over as annotations, since they ask something of the host: {}",
            withheld.join(", ")
        ));
    }
}

/// What the image says, and over it the flags.
///
/// # Errors
/// The image says nothing of what to run, or names a user that it has not; something breaks a rule.
pub(super) fn config(store: &Store, image: &crate::image::Image, options: &Options, host: &Host) -> Result<Config> {
    let plain = Options { env: Vec::new(), cwd: None, user: None, ..options.clone() };
    let mut config = run_rootfs::config(&plain, host)?;
    config.root = Some(Root { path: PathBuf::from("rootfs"), readonly: options.read_only });
    // As the image says it: without a group, the user's own in the image, and those it is a member of.
    let who = options.user.map(|(uid, gid)| gid.map_or_else(|| uid.to_string(), |gid| format!("{uid}:{gid}")));
    bundle::apply(&mut config, &image.config, &store.merged(&image.chain)?, &options.args, who.as_deref())?;
    let process = config.process.get_or_insert_default();
    let names = || CAPABILITIES.map(str::to_owned).to_vec();
    process.capabilities.bounding = names();
    process.capabilities.effective = names();
    process.capabilities.permitted = names();
    // Images rely on programs that change the user, and on file capabilities.
    process.no_new_privileges = false;
    process.env.extend(options.env.iter().cloned());
    if let Some(cwd) = &options.cwd {
        process.cwd.clone_from(cwd);
    }
    // No file of this configuration was read, and nothing later asks.
    spec::check(&config)?;
    Ok(config)
}

impl Used {
    /// An image that was looked up while the store was held.
    ///
    /// # Errors
    /// Its layers are not unpacked.
    pub fn of_image(store: Store, guard: Guard, image: crate::image::Image) -> Result<Self> {
        let user_namespace = unpacked(&store, &image)?;
        Ok(Self {
            path: store.root().to_owned(),
            store,
            image,
            user_namespace,
            snapshot: None,
            copy: None,
            erofs: false,
            _guard: guard,
        })
    }

    /// What the image says, and over it these flags.
    ///
    /// # Errors
    /// As [`config`].
    pub fn config(&self, options: &Options, host: &Host) -> Result<Config> {
        config(&self.store, &self.image, options, host)
    }

    /// The image that a container runs from, and a snapshot of that container.
    ///
    /// # Errors
    /// There is no such snapshot; the image is damaged.
    pub fn of_snapshot(store: Store, guard: Guard, used: &Use, name: &str) -> Result<Self> {
        let image = store.image_of(Some(used.image.clone()), Descriptor::named(&used.manifest))?;
        let user_namespace = unpacked(&store, &image)?;
        let all = store.snapshots(&used.user)?;
        let line = snapshots::line(&all, name)?;
        let layers = line.iter().map(|snapshot| store.snapshot_path(&used.user, &snapshot.name)).collect();
        let snapshot = Some(Snapshots { name: name.to_owned(), layers });
        let path = store.root().to_owned();
        if used.erofs {
            store.mount_erofs(&image.chain)?;
        }
        let erofs = used.erofs;
        Ok(Self { path, store, image, user_namespace, snapshot, copy: None, erofs, _guard: guard })
    }

    /// The stack of layers for the container whose directory is `state`; none where it has a copy.
    pub fn layers(&self, state: &Path) -> Option<Layers> {
        if self.copy.is_some() {
            return None;
        }
        let own = self.store.use_path(&User::Container(state.to_owned()));
        let lower = |id| match self.erofs {
            true => self.store.erofs_mount(id),
            false => self.store.path(layers::directory(id)).join("diff"),
        };
        // An overlay has a lower layer, and this image has none.
        let none = self.image.chain.is_empty().then(|| own.join(NOTHING));
        let above = self.snapshot.iter().flat_map(|snapshot| snapshot.layers.iter().cloned());
        Some(Layers {
            lowers: above.chain(self.image.chain.iter().rev().map(lower)).chain(none).collect(),
            upper: Some(own.join("upper")),
            work: own.join("work"),
            stage: own,
            userxattr: self.user_namespace,
            xino: self.erofs,
        })
    }

    /// Makes the upper layer of the container, or moves its copy there. Only this value keeps the image for it, until
    /// [`Used::note`].
    pub fn make_upper(&self, entry: &Entry) -> Result<()> {
        let user = User::Container(entry.path().to_owned());
        // One that is made anew has it, and the note of it.
        if entry.before().is_some() {
            return Ok(());
        }
        let own = self.store.make_upper(&user)?;
        if self.image.chain.is_empty() {
            let nothing = own.join(NOTHING);
            std::fs::create_dir(&nothing).or_cannot("make directory", nothing.display())?;
        }
        if let Some(copy) = &self.copy {
            return self.store.place_copy(copy, &user);
        }
        match self.root_as_below(&self.store, entry.path()) {
            // Owners that an ordinary user can give only in a user namespace.
            Err(error) if matches!(error.errno(), Some(Errno::EACCES | Errno::EPERM)) => {
                with_rights(&self.path, |_| Ok(true), |store| self.root_as_below(store, entry.path()))
            }
            answer => answer,
        }
    }

    /// Empties the upper layer that the container has, for this to lie below it.
    pub fn empty_upper(&self, state: &Path) -> Result<()> {
        let user = User::Container(state.to_owned());
        with_rights(
            &self.path,
            |store| store.has_use(&user),
            |store| {
                store.empty_upper(&user)?;
                self.root_as_below(store, state)
            },
        )
    }

    fn root_as_below(&self, store: &Store, state: &Path) -> Result<()> {
        let layers = self.layers(state);
        let below = layers.as_ref().and_then(|layers| layers.lowers.first());
        below.map_or(Ok(()), |below| store.root_as_below(&User::Container(state.to_owned()), below))
    }

    /// Notes that the container uses the image.
    pub fn note(&self, entry: &Entry) -> Result<()> {
        let name = self.image.name.clone().unwrap_or_else(|| self.image.descriptor.digest.to_string());
        let user = User::Container(entry.path().to_owned());
        let used = Use::new(user, name, self.image.descriptor.digest.clone(), self.image.chain.clone());
        let snapshot = self.snapshot.as_ref().map(|snapshot| snapshot.name.clone());
        let used = Use { snapshot, copied: self.copy.is_some(), erofs: self.erofs, ..used };
        match entry.before() {
            Some(_) => self.store.note_use_again(&used),
            None => self.store.note_use(&used),
        }
    }
}

/// Removes what the container whose directory is `state` has in the store at `store`, but for its snapshots.
pub(super) fn end(store: &Path, state: &Path) -> Result<()> {
    let user = User::Container(state.to_owned());
    with_rights(store, |store| store.has_use(&user), |store| store.end_use(&user))
}

/// Removes what it has there, and its snapshots.
pub(super) fn end_all(store: &Path, state: &Path) -> Result<()> {
    let user = User::Container(state.to_owned());
    let is_there = |store: &Store| Ok(store.has_use(&user)? || store.has_snapshots(&user)?);
    with_rights(store, is_there, |store| {
        store.end_use(&user)?;
        store.remove_snapshots(&user)
    })
}

/// Does something to files of a container, where there are any: what it wrote belongs to ids that only a user namespace gives an
/// ordinary user the right to.
fn with_rights(
    path: &Path,
    are_there: impl Fn(&Store) -> Result<bool>,
    deed: impl Fn(&Store) -> Result<()>,
) -> Result<()> {
    let Some(store) = Store::existing(path)? else { return Ok(()) };
    if !are_there(&store)? {
        return Ok(());
    }
    let host = host::probe();
    if host.privileged {
        return deed(&store);
    }
    let (uids, gids) = id_map::of_caller(&host);
    inside::run(&host, &uids, &gids, || deed(&store).map(|()| 0)).map(drop)
}
