//! An image's layers as a root: an overlay whose lowers are shared by all containers of the image and never written, and whose
//! upper is the container's own.
//!
//! Lowers are handed to the kernel one by one (`lowerdir+`, Linux 6.7), by descriptor, since a path may be longer than the 255
//! bytes a value can have. Before that all of them must fit into the one page of mount(2): there they are named `0` to `499` by
//! links in a directory that is the working directory for the length of the call. Documentation/filesystems/overlayfs.rst

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::MsFlags;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno as Answer;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::mount::place;
use super::plan::Layers;
use crate::error::{Context, Error, Result};
use crate::path::{Root, errno, fd_path};

/// What fails where the kernel refuses to stack them.
const DEED: &str = "stack the image's layers on";

/// Whether the kernel would not stack the layers, whatever they hold: it has no overlayfs, this user may not mount one, or the
/// filesystem cannot be an upper layer.
pub fn is_refused(error: &Error) -> bool {
    use Errno::{EACCES, EINVAL, ENODEV, ENOSYS, EOPNOTSUPP, EPERM};
    let answers = [EACCES, EINVAL, ENODEV, ENOSYS, EOPNOTSUPP, EPERM];
    error.is_of(DEED) && error.errno().is_some_and(|answer| answers.contains(&answer))
}

/// Mounts them on their stage. With an upper layer, the mount tree must be cut off from the host already; without one, they can
/// only be read, and nobody gets rights through them.
///
/// # Errors
/// A layer that is not there; the kernel's answer, with what it means for this upper layer.
pub fn mount(stack: &Layers) -> Result<Root> {
    let stage = opened(&stack.stage)?;
    match detached(stack) {
        Ok(mount) => {
            place(mount.as_fd(), stage.as_fd()).or_cannot("mount the image on", stack.stage.display())?;
            Ok(Root::from_dir(mount, &stack.stage))
        }
        Err(Refused::Old) => {
            by_links(stack).map_err(|answer| explained(stack, answer, ""))?;
            Ok(Root::from_dir(opened(&stack.stage)?, &stack.stage))
        }
        Err(Refused::Missing(error)) => Err(error),
        Err(Refused::Answer(answer, words)) => Err(explained(stack, answer, &words)),
    }
}

enum Refused {
    /// This kernel takes lowers in one string only.
    Old,
    /// A layer is not there.
    Missing(Error),
    /// The kernel's answer, and its words.
    Answer(Errno, String),
}

fn opened(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .or_cannot("open", path.display())
}

/// A detached overlay.
fn detached(stack: &Layers) -> Result<OwnedFd, Refused> {
    let silent = |answer: Answer| match answer {
        Answer::NOSYS => Refused::Old,
        answer => Refused::Answer(errno(answer), String::new()),
    };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(silent)?;
    let told = |answer: Answer| Refused::Answer(errno(answer), super::mount::words(context.as_fd()));
    fsconfig_set_string(&context, "source", "ferry").map_err(told)?;
    let set = |key: &str, path: &Path| {
        let dir = opened(path).map_err(Refused::Missing)?;
        let by_descriptor = fd_path(dir.as_fd());
        Ok(fsconfig_set_string(&context, key, by_descriptor.as_c_str()))
    };
    for lower in &stack.lowers {
        match set("lowerdir+", lower)? {
            // The key is unknown.
            Err(Answer::INVAL) => return Err(Refused::Old),
            answer => answer.map_err(told)?,
        }
    }
    if let Some(upper) = &stack.upper {
        set("upperdir", upper)?.map_err(told)?;
        set("workdir", &stack.work)?.map_err(told)?;
        // With an index, a file of several names that is changed by one of them is changed by all, and only that one is in the upper
        // layer: an image made of it would lack the change under the others.
        fsconfig_set_string(&context, "index", "off").map_err(told)?;
        // What is renamed or changed is copied whole, whatever the kernel's own setting: the upper layer can be made an image of.
        // In a user namespace that is the only way there is, and not to be asked for.
        if !stack.userxattr {
            fsconfig_set_string(&context, "redirect_dir", "off").map_err(told)?;
            fsconfig_set_string(&context, "metacopy", "off").map_err(told)?;
        }
        // The upper layer goes with the container: nothing of it needs to reach the disk. Linux 5.10
        fsconfig_set_flag(&context, "volatile").map_err(told)?;
    }
    if stack.userxattr {
        fsconfig_set_flag(&context, "userxattr").map_err(told)?;
    }
    // A file keeps its number when it is copied up, and all are of one device, as in layers of one filesystem.
    if stack.xino {
        fsconfig_set_string(&context, "xino", "auto").map_err(told)?;
    }
    fsconfig_create(&context).map_err(told)?;
    let attributes = match stack.upper {
        Some(_) => MountAttrFlags::empty(),
        // Nobody on the host is to get rights of a program or a device that an image brings.
        None => {
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV
        }
    };
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(told)
}

/// By mount(2), for an older kernel. The links lie in memory on the stage, and the overlay is then mounted over them; of a stack
/// that is only looked at, whose stage the host sees, they lie in the work directory.
fn by_links(stack: &Layers) -> Result<(), Errno> {
    use nix::mount::mount;
    let none: Option<&str> = None;
    let here = nix::unistd::getcwd()?;
    // By descriptor: what is mounted on the stage may cover them.
    let hold = |path: &Path| {
        openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(errno)
    };
    let held = stack.upper.as_deref().map(|upper| Ok::<_, Errno>((hold(upper)?, hold(&stack.work)?))).transpose()?;
    let flags = match stack.upper {
        Some(_) => {
            mount(Some("ferry"), &stack.stage, Some("tmpfs"), MsFlags::empty(), Some("mode=0700"))?;
            nix::unistd::chdir(&stack.stage)?;
            MsFlags::empty()
        }
        None => {
            nix::unistd::chdir(&stack.work)?;
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV
        }
    };
    let link = |target: &Path, name: &str| rustix::fs::symlink(target, name).map_err(errno);
    let mut names = Vec::new();
    for (index, lower) in stack.lowers.iter().enumerate() {
        names.push(index.to_string());
        link(lower, &index.to_string())?;
    }
    let mut options = format!("lowerdir={}", names.join(":"));
    if let Some((upper, work)) = &held {
        for (name, dir) in [("u", upper), ("w", work)] {
            rustix::fs::symlink(fd_path(dir.as_fd()).as_c_str(), name).map_err(errno)?;
        }
        options.push_str(",upperdir=u,workdir=w,index=off");
    }
    match (stack.userxattr, &stack.upper) {
        (true, _) => options.push_str(",userxattr"),
        (false, Some(_)) => options.push_str(",redirect_dir=off,metacopy=off"),
        (false, None) => (),
    }
    if stack.xino {
        options.push_str(",xino=auto");
    }
    let volatile = if stack.upper.is_some() { ",volatile" } else { "" };
    let kind = Some("overlay");
    let mounted = match mount(Some("ferry"), &stack.stage, kind, flags, Some(format!("{options}{volatile}").as_str())) {
        // Before Linux 5.10.
        Err(Errno::EINVAL) => mount(Some("ferry"), &stack.stage, kind, flags, Some(options.as_str())),
        answer => answer,
    };
    nix::unistd::chdir(&here)?;
    match stack.upper {
        Some(_) => mounted.and_then(|()| mount(none, &stack.stage, none, MsFlags::MS_PRIVATE, none)),
        None => mounted,
    }
}

/// What the kernel's answer means. Its own words go to the log of the kernel for most of them.
fn explained(stack: &Layers, answer: Errno, words: &str) -> Error {
    let error = Error::kernel(DEED, stack.stage.display().to_string(), answer);
    let upper = stack.upper.as_deref().unwrap_or(Path::new("the upper layer"));
    match answer {
        Errno::EINVAL if stack.lowers.len() > 500 => error.hint("an overlay takes 500 layers at most"),
        Errno::EINVAL if unsuitable(upper) => error.hint(format!(
            "the filesystem of {} cannot be an upper layer (another overlay, FUSE, NFS, SMB and FAT cannot): name a directory \
             on ext4, XFS, btrfs or tmpfs with --store before the verb",
            upper.display()
        )),
        Errno::EPERM if stack.userxattr => error.hint("overlayfs in a user namespace needs Linux 5.11"),
        Errno::ENODEV => error.hint("this kernel has no overlayfs: load the module overlay"),
        // The kernel's ELOOP means that layers contain each other.
        Errno::ELOOP => error.hint("overlay directories may not overlap"),
        _ if !words.is_empty() => error.hint(words.to_owned()),
        Errno::EINVAL => error.hint("the kernel's log says why: dmesg | grep overlayfs"),
        _ => error,
    }
}

/// Filesystems without what overlay needs of an upper: rename with whiteouts, file types in directories, attributes.
fn unsuitable(path: &Path) -> bool {
    const OVERLAY: i64 = 0x794c_7630;
    const NFS: i64 = 0x6969;
    const FAT: i64 = 0x4d44;
    const EXFAT: i64 = 0x2011_bab0;
    const NINE_P: i64 = 0x0102_1997;
    const FUSE: i64 = 0x6573_5546;
    const SMB2: i64 = 0xfe53_4d42;
    let Ok(filesystem) = rustix::fs::statfs(path) else { return false };
    [OVERLAY, NFS, FAT, EXFAT, NINE_P, FUSE, SMB2].contains(&filesystem.f_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_would_not_do_is_a_refusal() {
        let stack = Layers {
            lowers: vec!["/".into()],
            upper: Some("/".into()),
            work: "/".into(),
            stage: "/stage".into(),
            userxattr: true,
            xino: false,
        };
        for answer in [Errno::ENODEV, Errno::EPERM, Errno::EACCES, Errno::EINVAL] {
            let error = explained(&stack, answer, "");
            assert!(is_refused(&error), "{error}");
            // As the child sends it.
            assert!(is_refused(&Error::from_wire(error.to_wire())), "{error}");
        }
        for error in [explained(&stack, Errno::ELOOP, ""), explained(&stack, Errno::ENOSPC, "")] {
            assert!(!is_refused(&error), "{error}");
        }
        assert!(!is_refused(&Error::kernel("open", "/layer", Errno::EACCES)));
    }
}
