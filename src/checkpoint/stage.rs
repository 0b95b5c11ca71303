//! The root of a container that is about to be restored, put on its stage by the process that becomes CRIU, in a mount namespace of
//! its own: a directory is bound there, and an overlay is mounted, its upper layer as it was.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::error::{Context, Error, Result};
use crate::launch::sources;
use crate::namespaces::User;
use crate::path::{Links, Root};
use crate::rootfs::plan::{Mount, What};
use crate::rootfs::{Base, Rootfs, layers, mount, overlay, pivot};

/// What the upper layer of an overlay is filled with before it is mounted; only where the root is one.
#[derive(Debug, Clone)]
pub struct Upper {
    /// The archive of a layer.
    pub archive: PathBuf,
    /// A directory that has the content of some of its files, by their numbers.
    pub bodies: Option<PathBuf>,
    /// Unpacks it into a directory, upon these layers, the uppermost first. By its address: a program that restores no such
    /// container has no use for an unpacker.
    pub unpack: fn(&Self, OwnedFd, &[PathBuf]) -> Result<()>,
}

impl Upper {
    /// Fills this upper directory.
    ///
    /// # Errors
    /// The archive is broken, or the kernel's answer.
    pub fn fill(&self, directory: OwnedFd, lowers: &[PathBuf]) -> Result<()> {
        (self.unpack)(self, directory, lowers)
    }
}

/// Where the root comes to be, of what is on this stage.
pub(super) fn place(rootfs: &Rootfs, stage: &Path) -> PathBuf {
    if rootfs.is_mapped() { stage.join(overlay::ROOT) } else { built(rootfs, stage) }
}

/// Where it is built.
fn built(rootfs: &Rootfs, stage: &Path) -> PathBuf {
    match rootfs.base {
        Base::CopyOnWrite { .. } => stage.join(overlay::ROOT),
        Base::Directory(_) | Base::Layers(_) => stage.to_owned(),
    }
}

/// Where CRIU finds the source of the id-mapped mount of this index: beside the root.
pub(super) fn mapped_source(root: &Path, index: usize) -> PathBuf {
    root.with_file_name(format!("source-{index}"))
}

/// Puts the root on the stage, in a mount namespace of its own, and the sources of id-mapped mounts beside it.
pub(super) fn put(rootfs: &Rootfs, user: &User, stage: &Path, upper: Option<&Upper>) -> Result<()> {
    build(rootfs, stage, upper)?;
    let sources = sources::mapped(rootfs, user)?;
    if sources.is_empty() { Ok(()) } else { put_beside(rootfs, stage, sources) }
}

/// CRIU binds by path and knows of no mapping: what is bound has it already. All of it stands in memory, which covers the stage, since
/// CRIU wants the mount around the root to be covered by nothing.
fn put_beside(rootfs: &Rootfs, stage: &Path, sources: Vec<(usize, OwnedFd)>) -> Result<()> {
    let root = Root::open(&built(rootfs, stage))?;
    let root = mount::clone_tree(root.dir(), Path::new(""), true).or_cannot("bind root filesystem", stage.display())?;
    let memory = overlay::tmpfs().or_cannot("mount tmpfs for", stage.display())?;
    let covered = Root::open(stage)?;
    mount::place(memory.as_fd(), covered.dir()).or_cannot("mount tmpfs on", stage.display())?;
    let memory = Root::from_dir(memory, stage);
    let name = |path: PathBuf| path.file_name().map(PathBuf::from).unwrap_or_default();
    let place = place(rootfs, stage);
    let roots = [(name(place.clone()), root)].into_iter();
    for (name, tree) in roots.chain(sources.into_iter().map(|(index, tree)| (name(mapped_source(&place, index)), tree)))
    {
        let target = match is_directory(&tree, &name)? {
            true => memory.make_dirs(&name, 0o755, Links::Refuse)?,
            false => memory.make_file(&name)?,
        };
        mount::place(tree.as_fd(), target.as_fd()).or_cannot("bind", memory.name(&name))?;
    }
    Ok(())
}

/// What an overlay lacks to mount upon is made here, where it can be seen.
fn build(rootfs: &Rootfs, stage: &Path, upper: Option<&Upper>) -> Result<()> {
    let root = match &rootfs.base {
        Base::Directory(directory) => return pivot::bind_at(rootfs, directory, stage),
        Base::CopyOnWrite { lower, .. } => {
            pivot::isolate(rootfs)?;
            let lowers = [lower.clone()];
            let fill = |directory| upper.map_or(Ok(()), |upper| upper.fill(directory, &lowers));
            overlay::build(lower, stage, false, Some(&fill), &mut Vec::new())?
        }
        Base::Layers(stack) => {
            pivot::isolate(rootfs)?;
            layers::mount(stack)?
        }
    };
    complete(rootfs, &root)?;
    match rootfs.read_only_root {
        true => mount::read_only(root.dir(), false).or_cannot("make read-only", "the root"),
        false => Ok(()),
    }
}

/// Makes what a root lacks for CRIU, and may not get any more once it is read-only.
pub(super) fn complete(rootfs: &Rootfs, root: &Root) -> Result<()> {
    make_mount_points(rootfs, root)?;
    if rootfs.read_only_root {
        // CRIU enters the root by way of its `tmp`, or of a directory that it makes there for a moment.
        root.make_dirs(Path::new("tmp"), 0o755, Links::Follow)?;
    }
    Ok(())
}

/// Works for as long as the caller lives: what is mounted and written here is not known to anybody else yet, and a process that went
/// on alone would be in the way of whoever cleans up.
pub(super) fn with_caller(caller: Pid, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let cannot = |answer: std::result::Result<(), Errno>| answer.or_cannot("bind", "this process' life to ferry's");
    cannot(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL))?;
    if nix::unistd::getppid() != caller {
        return Err(Error::plain("ferry has ended"));
    }
    work()?;
    cannot(nix::sys::prctl::set_pdeathsig(None))
}

/// The root, as the process that becomes CRIU sees it.
pub(super) fn seen(pid: Pid, root: &Path) -> Result<Root> {
    let mut seen = PathBuf::from(format!("/proc/{pid}/root"));
    seen.push(root.strip_prefix("/").unwrap_or(root));
    Root::open(&seen)
}

/// Makes what the configuration's mounts are mounted upon and the root filesystem lacks, as a launch does. What is below a
/// filesystem of the container's own comes with its content.
fn make_mount_points(rootfs: &Rootfs, root: &Root) -> Result<()> {
    let mut sources: Vec<(&Path, Root)> = Vec::new();
    for (index, mount) in rootfs.mounts.iter().enumerate() {
        let place = mount.destination.as_path();
        let is_dir = match &mount.what {
            What::Bind(source) => source_is_directory(source, mount)?,
            What::Filesystem { .. } | What::Cgroup => true,
            // What lies on a filesystem of the container's own is there again, and so is what it is mounted on.
            What::Inside(source) => match root.resolve(source, Links::Follow) {
                Ok(found) => is_directory(&found, source)?,
                Err(_) => continue,
            },
            What::Remount => continue,
        };
        let covering = rootfs.mounts[..index]
            .iter()
            .rev()
            .find(|earlier| is_below(place, &earlier.destination) && earlier.what != What::Remount);
        match covering.map(|earlier| (&earlier.what, earlier.destination.as_path())) {
            Some((What::Filesystem { .. } | What::Inside(_) | What::Cgroup | What::Remount, _)) => (),
            Some((What::Bind(_), above)) => {
                if let Some((_, source)) = sources.iter().rev().find(|(destination, _)| *destination == above) {
                    make_mount_point(source, place.strip_prefix(above).unwrap_or(place), is_dir)?;
                }
            }
            None => make_mount_point(root, place, is_dir)?,
        }
        if let (What::Bind(source), true) = (&mount.what, is_dir) {
            sources.push((place, Root::from_dir(view(source, mount)?, source)));
        }
    }
    Ok(())
}

/// What a bind will show. This may be the host's mount namespace, where nothing is mounted: on a kernel that cannot copy mounts without,
/// it is what can be seen at the source.
fn view(source: &Path, mount: &Mount) -> Result<OwnedFd> {
    let named = || format!("{} on {}", source.display(), mount.destination.display());
    match mount::detached(CWD, source, mount.options.bind != Some(false)) {
        Err(Errno::ENOSYS) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            openat(CWD, source, flags, Mode::empty()).or_cannot("bind", named())
        }
        answer => answer.or_cannot("bind", named()),
    }
}

fn is_below(place: &Path, above: &Path) -> bool {
    place != above && place.starts_with(above)
}

fn is_directory(file: &OwnedFd, path: &Path) -> Result<bool> {
    let found = rustix::fs::fstat(file).or_cannot("look at", path.display())?;
    Ok(rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory)
}

fn source_is_directory(source: &Path, mount: &Mount) -> Result<bool> {
    let found = std::fs::metadata(source);
    let on = format!("{} on {}", source.display(), mount.destination.display());
    Ok(found.or_cannot("bind", on).map_err(|error| error.hint("the source does not exist"))?.is_dir())
}

fn make_mount_point(root: &Root, place: &Path, is_dir: bool) -> Result<()> {
    if is_dir { root.make_dirs(place, 0o755, Links::Follow).map(drop) } else { root.make_file(place).map(drop) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_is_below() {
        assert!(is_below(Path::new("/dev/shm"), Path::new("/dev")));
        assert!(!is_below(Path::new("/dev"), Path::new("/dev")));
        assert!(!is_below(Path::new("/devil"), Path::new("/dev")));
    }
}
