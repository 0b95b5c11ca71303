//! What is in use, and by whom: one directory a container or mount, which prune respects as long as the user is there.
//!
//! A container's directory also holds its upper layer and overlay's work directory.

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, mkdirat, openat, utimensat};
use rustix::io::Errno as Answer;
use serde::{Deserialize, Serialize};

use super::{FORMAT, Store};
use crate::error::{Context, Error, Result};
use crate::image::copy;
use crate::image::digest::Digest;
use crate::path::errno;
use crate::procfs;

const RECORD: &str = "use.json";
const RECORD_NEW: &str = "use.json.new";

/// A container's upper layer, and overlay's directory beside it.
const LAYERS: [&str; 2] = ["upper", "work"];

/// Who uses layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum User {
    /// A container: its directory below `--root`.
    Container(PathBuf),
    /// A mount on the host: its mount point.
    Mount(PathBuf),
}

impl User {
    /// The last name of its path: a container's id.
    fn name(&self) -> String {
        let (Self::Container(path) | Self::Mount(path)) = self;
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container(_) => write!(f, "container {:?}", self.name()),
            Self::Mount(path) => write!(f, "the mount at {}", path.display()),
        }
    }
}

/// One use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// The store's format.
    pub format: u32,
    /// By whom.
    pub user: User,
    /// The image as it was asked for.
    pub image: String,
    /// Its manifest.
    pub manifest: Digest,
    /// Its layers' chain ids, the lowest first.
    pub layers: Vec<Digest>,
    /// Of a mount: the number of the mount namespace that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u64>,
    /// Of a container that was rolled back: the snapshot that its upper layer lies upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Of a container whose layers could not be stacked: it has a copy of their files in place of an upper layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copied: bool,
    /// Whether its lower layers are EROFS images.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub erofs: bool,
}

impl Use {
    /// A use of the current format.
    pub fn new(user: User, image: String, manifest: Digest, layers: Vec<Digest>) -> Self {
        let namespace = matches!(user, User::Mount(_)).then(|| namespace_of("self")).flatten();
        Self { format: FORMAT, user, image, manifest, layers, namespace, snapshot: None, copied: false, erofs: false }
    }

    /// Its upper layer has to be there for what is about to be done.
    ///
    /// # Errors
    /// It has a copy of the image in its place, which does not tell what the container changed.
    pub fn has_upper(&self) -> Result<()> {
        if !self.copied {
            return Ok(());
        }
        let name = self.user.name();
        Err(Error::plain(format!(
            "container {name:?} runs on a copy of its image, which tells nothing of what the container changed"
        ))
        .hint("it was told why when the container was made: the image's layers could not be stacked"))
    }

    /// Whether the user is still there.
    pub fn is_live(&self) -> bool {
        match &self.user {
            // Nobody's layers are taken away because the kernel did not say.
            User::Container(state) => state.try_exists().unwrap_or(true),
            User::Mount(point) => match self.namespace {
                // A mount of elsewhere is not to be seen here: it is there as long as somebody lives there.
                Some(noted) if namespace_of("self") != Some(noted) => is_inhabited(noted),
                _ => crate::image::mounted(point),
            },
        }
    }
}

/// The number of the mount namespace of a process.
fn namespace_of(process: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{process}/ns/mnt")).ok().map(|metadata| metadata.ino())
}

/// Whether any process that may be looked at is in this mount namespace.
fn is_inhabited(namespace: u64) -> bool {
    let processes = procfs::numbers("/proc").unwrap_or_default();
    processes.into_iter().any(|pid| namespace_of(&pid.to_string()) == Some(namespace))
}

/// The name of a user's directory: the same user has the same name, and no two share one.
pub fn key(user: &User) -> String {
    let (word, path) = match user {
        User::Container(path) => ("container", path),
        User::Mount(path) => ("mount", path),
    };
    let whole = format!("{word} {}", path.display());
    format!("{}-{}", user.name().chars().take(80).collect::<String>(), Digest::of(whole.as_bytes()).short())
}

impl Store {
    /// Makes the directories of an upper layer for a use, and notes the use. The caller holds the store shared, from before it
    /// looked the layers up.
    ///
    /// # Errors
    /// The directory cannot be made, or not written.
    pub fn begin_use(&self, used: &Use) -> Result<PathBuf> {
        let path = self.make_upper(&used.user)?;
        self.note_use(used)?;
        Ok(path)
    }

    /// Makes the directories of an upper layer. Until its use is noted only the caller's hold on the store keeps them.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn make_upper(&self, user: &User) -> Result<PathBuf> {
        let name = format!("containers/{}", key(user));
        let path = self.path(&name);
        let make = |name: &str, mode| mkdirat(&self.dir, name, Mode::from_raw_mode(mode)).map_err(errno);
        match mkdirat(&self.dir, &name, Mode::from_raw_mode(0o711)) {
            // Of a container that was cut off, and whose record is gone: this one has its place now.
            Err(Answer::EXIST) => {
                self.remove(&name)?;
                make(&name, 0o711).or_cannot("make directory", path.display())?;
            }
            answer => answer.or_cannot("make directory", path.display())?,
        }
        self.make_layers(&name)?;
        Ok(path)
    }

    fn make_layers(&self, name: &str) -> Result<()> {
        LAYERS.iter().map(|layer| format!("{name}/{layer}")).try_for_each(|layer| {
            mkdirat(&self.dir, &layer, Mode::from_raw_mode(0o755))
                .or_cannot("make directory", self.path(&layer).display())
        })
    }

    /// Empties the upper layer of a use that stays noted: each directory goes and comes as a whole, whoever may be cut off.
    ///
    /// # Errors
    /// As [`Store::end_use`].
    pub fn empty_upper(&self, user: &User) -> Result<()> {
        let name = format!("containers/{}", key(user));
        LAYERS.iter().try_for_each(|layer| self.remove(&format!("{name}/{layer}")))?;
        self.make_layers(&name)
    }

    /// Gives the upper layer of a use what belongs to the root of the uppermost layer below it: mode, owner, times, attributes. An
    /// overlay shows the upper's own, whatever lies below. Nothing may be in it yet that would change its times.
    ///
    /// # Errors
    /// EACCES or EPERM where the layer below belongs to ids of a user namespace that the caller is not in.
    pub fn root_as_below(&self, user: &User, below: &Path) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let upper = self.use_path(user).join(LAYERS[0]);
        let (from, to) = (openat(CWD, below, flags, Mode::empty()), openat(CWD, &upper, flags, Mode::empty()));
        let (from, to) = (from.or_cannot("open", below.display())?, to.or_cannot("open", upper.display())?);
        let given = fstat(&from).map_err(errno).and_then(|stat| {
            copy::directory(from.as_fd(), &stat, to.as_fd(), c".")?;
            utimensat(&to, c".", &copy::times(&stat), AtFlags::empty()).map_err(errno)
        });
        given.or_cannot("give what belongs to the root to", upper.display())
    }

    /// Notes a use whose directories are there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note_use(&self, used: &Use) -> Result<()> {
        let record = self.use_path(&used.user).join(RECORD);
        let bytes = serde_json::to_vec(used).map_err(|why| Error::said("save", RECORD, why.to_string()))?;
        // Not synced: after a crash of the host there is no container, and a record that is torn is nobody's.
        std::fs::write(&record, bytes).or_cannot("write", record.display())
    }

    /// Notes a use in place of one that is noted.
    ///
    /// # Errors
    /// It cannot be written; then the former note stands.
    pub fn note_use_again(&self, used: &Use) -> Result<()> {
        let record = self.use_path(&used.user).join(RECORD);
        let beside = record.with_file_name(RECORD_NEW);
        let bytes = serde_json::to_vec(used).map_err(|why| Error::said("save", RECORD, why.to_string()))?;
        std::fs::write(&beside, bytes).or_cannot("write", beside.display())?;
        std::fs::rename(&beside, &record).or_cannot("write", record.display())
    }

    /// Ends a use: its directory goes, the upper layer with it.
    ///
    /// # Errors
    /// EACCES or EPERM where files belong to ids of a user namespace that the caller is not in.
    pub fn end_use(&self, user: &User) -> Result<()> {
        let name = key(user);
        let used = self.noted(&name)?.filter(|used| used.erofs);
        self.remove(&format!("containers/{name}"))?;
        used.map_or(Ok(()), |used| self.release_erofs(&used.layers))
    }

    /// Whether there is a use of this user's, or what is left of one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn has_use(&self, user: &User) -> Result<bool> {
        self.has(format!("containers/{}", key(user)))
    }

    /// The directory of a use.
    pub fn use_path(&self, user: &User) -> PathBuf {
        self.path(Path::new("containers").join(key(user)))
    }

    /// Every use that is noted, with its directory's name. What cannot be read is answered as `None`.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn uses(&self) -> Result<Vec<(String, Option<Use>)>> {
        let mut uses = Vec::new();
        for name in self.names_in("containers")? {
            let name = name.to_string_lossy().into_owned();
            let found = self.noted(&name)?;
            uses.push((name, found));
        }
        Ok(uses)
    }

    /// The use that is noted in this directory, if it can be read.
    fn noted(&self, name: &str) -> Result<Option<Use>> {
        let bytes = self.read(format!("containers/{name}/{RECORD}"), 1 << 20)?;
        let found = bytes.and_then(|bytes| serde_json::from_slice::<Use>(&bytes).ok());
        Ok(found.filter(|found| found.format == FORMAT))
    }
}
