//! `bundle create`: an image as a directory that any OCI runtime runs.
//!
//! ```text
//! DIR/config.json   what the image says of how it is run
//! DIR/rootfs/       its layers as one tree, copied: sharing them is what `run --image` is for
//! DIR/volumes/N/    what the image has in each of its volumes, bound over it
//! ```
//!
//! Everything is made in a directory beside DIR, which then becomes DIR: a bundle is whole or not there.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, renameat, syncfs};

use super::Setting;
use crate::error::{Context, Error, Result};
use crate::host;
use crate::image::{bundle, flatten, store, tree};
use crate::lifecycle::{run_image, run_rootfs};
use crate::spec;
use crate::spec::config::Root;
use crate::spec::template;

/// The version of the specification that everything in the configuration is in.
const OLDEST: &str = "1.0.2";

/// What to make.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// The image's name.
    pub image: String,
    /// The bundle: absolute, and not there or empty.
    pub directory: PathBuf,
    /// In place of the image's command.
    pub args: Vec<String>,
}

/// `bundle create`.
///
/// # Errors
/// There is no such image, it does not say what to run, or a file cannot be made. Then there is no bundle.
pub fn create(setting: &Setting, options: &Options) -> Result<()> {
    rustix::process::umask(Mode::empty());
    let host = host::probe();
    let store = super::with_images(setting)?;
    // Held until everything is copied: nothing of the image is removed meanwhile.
    let _guard = store.share()?;
    let image = store.image(&options.image)?;
    run_image::unpacked(&store, &image)?;
    run_image::tell_of_labels(setting, &image);
    let wanted =
        run_rootfs::Options { id: host_name(&options.directory), args: options.args.clone(), ..Default::default() };
    let mut config = run_image::config(&store, &image, &wanted, &host)?;
    // Nothing in it is younger, and some runtimes refuse what they do not know.
    config.oci_version = OLDEST.to_owned();
    config.root = Some(Root { path: PathBuf::from("rootfs"), readonly: false });
    let volumes = bundle::volumes(&image.config);
    for (index, volume) in volumes.iter().enumerate() {
        config.mounts.push(bundle::bind(PathBuf::from(format!("volumes/{index}")), volume));
    }
    spec::check(&config).map_err(|error| error.in_file("the image's Volumes", None))?;
    let text = template::text(&config)?;

    let place = Place::beside(&options.directory)?;
    let part = place.make()?;
    let filled = super::as_root(setting, |inside| {
        let merged = super::with_images(inside)?.merged(&image.chain)?;
        flatten::flatten(&merged, directory(&part, c"rootfs", 0o755)?.as_fd())?;
        if !volumes.is_empty() {
            let all = directory(&part, c"volumes", 0o711)?;
            for (index, volume) in volumes.iter().enumerate() {
                let name = CString::new(index.to_string()).unwrap_or_default();
                flatten::part(&merged, volume, directory(&all, &name, 0o755)?.as_fd())?;
            }
        }
        Ok(0)
    });
    let made = filled.and_then(|_| {
        let file = place.part_path().join("config.json");
        std::fs::write(&file, text).or_cannot("write", file.display())?;
        place.finish()
    });
    made.map_err(|error| match super::as_root(setting, |_| place.remove().map(|()| 0)) {
        Ok(_) => full(error),
        Err(_) => full(error).hint(format!("{} is left", place.part_path().display())),
    })
}

fn full(error: Error) -> Error {
    match error.errno() {
        Some(Errno::ENOSPC) => error.hint("the filesystem is full; nothing of the bundle was kept"),
        _ => error,
    }
}

/// The bundle's own name, where that can be a host's: hostname(7).
fn host_name(directory: &Path) -> String {
    let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    match (1..=63).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with(['-', '.']) {
        true => name,
        false => "container".to_owned(),
    }
}

fn directory(dir: &OwnedFd, name: &std::ffi::CStr, mode: u32) -> Result<OwnedFd> {
    let named = || name.to_string_lossy();
    mkdirat(dir, name, Mode::from_raw_mode(mode)).or_cannot("make directory", named())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty()).or_cannot("open directory", named())
}

/// Where the bundle goes, and where it is made.
struct Place {
    above: OwnedFd,
    directory: PathBuf,
    name: CString,
    part: CString,
}

impl Place {
    fn beside(directory: &Path) -> Result<Self> {
        let bad = || Error::said("make bundle", directory.display().to_string(), "that is no name of a directory");
        let (parent, name) = directory.parent().zip(directory.file_name()).ok_or_else(bad)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let above = openat(CWD, parent, flags, Mode::empty()).or_cannot("open", parent.display())?;
        let part = format!(".bundle-{:016x}", store::session::random());
        let name = CString::new(name.as_bytes()).map_err(|_| bad())?;
        match std::fs::read_dir(directory).map(|mut entries| entries.next().is_some()) {
            Ok(true) => {
                return Err(Error::said("make bundle", directory.display().to_string(), "it is there already")
                    .hint("name a directory that is empty or not there"));
            }
            Ok(false) => (),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
            Err(error) => return Err(error).or_cannot("read", directory.display()),
        }
        Ok(Self { above, directory: directory.to_owned(), name, part: CString::new(part).map_err(|_| bad())? })
    }

    fn part_path(&self) -> PathBuf {
        self.directory.with_file_name(self.part.to_string_lossy().into_owned())
    }

    /// Nobody but the owner may reach what an image brings: a set-user-id program would be one on the host.
    fn make(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        mkdirat(&self.above, &self.part, Mode::RWXU).or_cannot("make directory", self.part_path().display())?;
        openat(&self.above, &self.part, flags, Mode::empty()).or_cannot("open", self.part_path().display())
    }

    fn finish(&self) -> Result<()> {
        // Before it has its name, which the disk may have first otherwise.
        syncfs(&self.above).or_cannot("sync", self.part_path().display())?;
        renameat(&self.above, &self.part, &self.above, &self.name).or_cannot("make bundle", self.directory.display())
    }

    fn remove(&self) -> Result<()> {
        tree::remove(self.above.as_fd(), &self.part).or_cannot("remove", self.part_path().display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_names_the_host_where_it_can() {
        for (path, name) in
            [("/srv/web", "web"), ("/srv/web server", "container"), ("/", "container"), ("/.x", "container")]
        {
            assert_eq!(host_name(Path::new(path)), name);
        }
    }
}
