//! Making one mount: a detached mount first, complete with its attributes, then one move onto a descriptor of its place.
//!
//! Nothing is visible half-made, and no path is looked up twice. Where the kernel lacks the mount API by descriptor
//! (before 5.2, or 5.12 for attributes), its first ENOSYS leads to [`by_path`], which does the same by mount(2). fsopen(2),
//! open_tree(2), mount_setattr(2), move_mount(2)

use std::borrow::Cow;
use std::ffi::CStr;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::fchdir;
use rustix::fs::{CWD, FileType, StatVfsMountFlags, fstat, fstatfs, fstatvfs, readlinkat, stat, symlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount, open_tree,
};

use super::by_path;
use super::label;
use super::options::{Attributes, Options};
use super::plan::{Mount, What, is_path};
use crate::error::{Context, Error, Result};
use crate::path::{Links, Root, errno};
use crate::sys::mount::{MOUNT_ATTR_RDONLY, MountAttr, mount_setattr};

/// How `/sys/fs/cgroup` inside the container comes about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupView {
    /// Whether the container has a cgroup namespace.
    pub namespaced: bool,
    /// The host's directory that a container without one, or without the right to mount, sees instead: its own, or all of
    /// the tree for one that shares the host's cgroup and user namespaces.
    pub host_path: Option<PathBuf>,
}

/// Makes one mount inside `root`, and answers its root where there is a new one. `handed` is the detached copy of its source,
/// or the detached filesystem, where the host side made it.
///
/// # Errors
/// The deed, the place and the kernel's answer, with the filesystem's own words where it gave some.
pub fn make(root: &Root, mount: &Mount, handed: Option<OwnedFd>, cgroup: &CgroupView) -> Result<Option<OwnedFd>> {
    match &mount.what {
        What::Bind(source) if mount.options.copy_link && handed.is_none() => {
            match readlinkat(CWD, source, Vec::new()) {
                Ok(target) => link(root, &target, &mount.destination).map(|()| None),
                // None, or nothing that can be looked at, which the bind will say.
                Err(_) => bind(root, source, None, &mount.destination, &mount.options).map(Some),
            }
        }
        What::Bind(source) => bind(root, source, handed, &mount.destination, &mount.options).map(Some),
        What::Inside(source) => {
            let copy = handed.map_or_else(|| clone_inside(root, source, &mount.options, &mount.destination), Ok)?;
            bind(root, source, Some(copy), &mount.destination, &mount.options).map(Some)
        }
        What::Filesystem { kind, source } => mounted(root, kind, source, handed, mount).map(Some),
        What::Cgroup => cgroup_view(root, mount, cgroup).map(Some),
        What::Remount => remount(root, mount).map(|()| None),
    }
}

/// Makes a symbolic link at a place, unless that very one is there.
fn link(root: &Root, target: &CStr, place: &Path) -> Result<()> {
    let named = || root.name(place);
    let name = place.file_name().ok_or(Errno::EISDIR).or_cannot("link", named())?;
    let parent = root.make_dirs(place.parent().unwrap_or(place), 0o755, Links::Follow)?;
    match symlinkat(target, &parent, name) {
        Err(rustix::io::Errno::EXIST) if readlinkat(&parent, name, Vec::new()).is_ok_and(|there| *there == *target) => {
            Ok(())
        }
        made => made.or_cannot("link", named()),
    }
}

/// Whether it is a mount that failed.
pub fn is_of_mount(error: &Error) -> bool {
    ["mount", "bind", "remount", "set attributes of"].iter().any(|deed| error.is_of(deed))
}

/// Changes what stands at a place already: the mount's attributes, and by options of the filesystem's own that filesystem,
/// for everybody who has it mounted. A remount of a bind is about the mount alone, as in mount(8).
fn remount(root: &Root, mount: &Mount) -> Result<()> {
    let Options { attributes, data, bind, .. } = &mount.options;
    let named = || root.name(&mount.destination);
    let nothing = |error: Error| match error.errno() {
        Some(Errno::EINVAL) => error.hint("remount is for a place where something is mounted"),
        _ => locked(error),
    };
    let place = root.resolve(&mount.destination, Links::Follow).or_cannot("remount", named())?;
    set(place.as_fd(), *attributes, 0, false).or_cannot("remount", named()).map_err(nothing)?;
    let mut data = Cow::Borrowed(data);
    // A disk is read-only as a whole where it was mounted so: see `configure`.
    if attributes.clear & MOUNT_ATTR_RDONLY != 0 && is_read_only(place.as_fd()) {
        data.to_mut().push(("rw".to_owned(), None));
    }
    if bind.is_none() && !data.is_empty() {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let context = fspick(&place, "", flags).or_cannot("remount", named())?;
        put(context.as_fd(), &data)
            .and_then(|()| fsconfig_reconfigure(context.as_fd()))
            .or_cannot("remount", named())
            .map_err(|error| error.hint(words(context.as_fd())))?;
    }
    finish(place.as_fd(), &mount.options).or_cannot("set attributes of", named())
}

fn is_read_only(place: BorrowedFd<'_>) -> bool {
    fstatvfs(place).is_ok_and(|filesystem| filesystem.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Mounts a filesystem: the one that was `handed`, or a new one.
fn mounted(root: &Root, kind: &str, source: &str, handed: Option<OwnedFd>, mount: &Mount) -> Result<OwnedFd> {
    // Where procfs and sysfs stand decides what labels and sysctls are written to: no link may lead there.
    let links = if matches!(kind, "proc" | "sysfs") { Links::Refuse } else { Links::Follow };
    let covered_mode = if kind == "tmpfs" { covered_mode(root, mount)? } else { None };
    let target = root.make_dirs(&mount.destination, 0o755, links).map_err(|error| match error.errno() {
        Some(Errno::ELOOP) => error.hint(format!(
            "{kind} must be mounted on ordinary directory: the image must not have a symbolic link there"
        )),
        _ => error,
    })?;
    let named = || format!("{kind} on {}", root.name(&mount.destination));
    let mut options = Cow::Borrowed(&mount.options);
    if let Some(mode) = covered_mode {
        options.to_mut().data.push(("mode".to_owned(), Some(format!("{mode:o}"))));
    }
    if mount.options.copy_up {
        // Written to first: its attributes, `ro` among them, come after.
        options.to_mut().attributes = Attributes::default();
    }
    let on = root.name(&mount.destination);
    let detached = handed.map_or_else(|| filesystem(kind, source, &options, on), Ok)?;
    if mount.options.copy_up {
        super::overlay::copy_up(target.as_fd(), detached.as_fd(), &root.name(&mount.destination))?;
        if !mount.options.attributes.is_empty() {
            set(detached.as_fd(), mount.options.attributes, 0, false).or_cannot("set attributes of", named())?;
        }
    }
    place(detached.as_fd(), target.as_fd()).or_cannot("mount", named())?;
    if let Err(answer) = finish(detached.as_fd(), &mount.options) {
        let undone = fchdir(detached.as_fd()).and_then(|()| umount2(".", MntFlags::MNT_DETACH));
        let error = Error::kernel("set attributes of", named(), answer);
        return Err(error.and_then(undone.or_cannot("unmount", named())));
    }
    if let Some(label) = &mount.root_label {
        label::root(detached.as_fd(), label, &mount.destination)?;
    }
    Ok(detached)
}

/// A tmpfs whose options give no mode has that of the directory it covers. Where there is none, the kernel's own default
/// (1777) is left to it.
fn covered_mode(root: &Root, mount: &Mount) -> Result<Option<u32>> {
    if mount.options.data.iter().any(|(key, _)| key == "mode") {
        return Ok(None);
    }
    match root.resolve(&mount.destination, Links::Follow) {
        Ok(directory) => {
            let stat = fstat(&directory).or_cannot("look at", root.name(&mount.destination))?;
            Ok(Some(stat.st_mode & 0o7777))
        }
        Err(_) => Ok(None),
    }
}

/// A new, detached mount of a filesystem, that is going to be `on` a place.
///
/// # Errors
/// The kernel's refusal, with the filesystem's own words where it gave some.
pub fn filesystem(kind: &str, source: &str, options: &Options, on: impl fmt::Display) -> Result<OwnedFd> {
    let refusal = |Refusal { answer, words }| refused(kind, format!("{kind} on {on}"), answer, &words);
    new_filesystem(kind, source, options).map_err(refusal)
}

fn refused(kind: &str, named: String, answer: Errno, words: &str) -> Error {
    let error = Error::kernel("mount", named, answer);
    match (kind, answer) {
        _ if !words.is_empty() => error.hint(words.to_owned()),
        ("proc", Errno::EPERM) => {
            error.hint("a container in a user namespace may mount proc only with a pid namespace of its own, on a host whose own /proc is not masked")
        }
        ("sysfs", Errno::EPERM) => {
            error.hint("a container in a user namespace may mount sysfs only with a network namespace of its own; bind /sys instead")
        }
        (_, Errno::ENODEV) => error.hint("this kernel has no such filesystem"),
        _ => error,
    }
}

/// Why a new filesystem was not made.
#[derive(Debug)]
pub struct Refusal {
    /// The kernel's answer.
    pub answer: Errno,
    /// What the filesystem said beside.
    pub words: String,
}

/// How long a value may be that fsconfig(2) takes. Bytes. fs/fsopen.c
const LONGEST: usize = 255;

/// A new, detached mount of a filesystem, with the attributes of `options` that apply to the mount itself.
///
/// # Errors
/// The kernel's refusal.
pub fn new_filesystem(kind: &str, source: &str, options: &Options) -> std::result::Result<OwnedFd, Refusal> {
    let silent = |answer| Refusal { answer, words: String::new() };
    // Many lower directories of an overlay, say: mount(2) has a page for them all.
    let values = options.data.iter().filter_map(|(_, value)| value.as_deref()).chain([source]);
    if values.map(str::len).any(|length| length > LONGEST) {
        return by_path::new_filesystem(kind, source, options).map_err(silent);
    }
    let context = match fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(rustix::io::Errno::NOSYS) => return by_path::new_filesystem(kind, source, options).map_err(silent),
        context => context.map_err(|answer| silent(errno(answer)))?,
    };
    configure(context.as_fd(), source, options)
        .and_then(|()| {
            let attributes = MountAttrFlags::from_bits_retain(options.attributes.set as u32);
            fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        })
        .map_err(|answer| Refusal { answer: errno(answer), words: words(context.as_fd()) })
}

fn configure(context: BorrowedFd<'_>, source: &str, options: &Options) -> rustix::io::Result<()> {
    if !source.is_empty() {
        fsconfig_set_string(context, "source", source)?;
    }
    // The mount alone would leave the filesystem free to write to its disk by itself: it counts mounts, and replays its journal. One
    // that the kernel shares with the host stays as it is, and so does one in memory, where it makes no difference.
    if options.attributes.set & MOUNT_ATTR_RDONLY != 0 && is_disk(source) {
        fsconfig_set_flag(context, "ro")?;
    }
    put(context, &options.data)?;
    fsconfig_create(context)
}

fn is_disk(source: &str) -> bool {
    let kind = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode);
    is_path(source) && stat(source).is_ok_and(|stat| kind(stat) == FileType::BlockDevice)
}

/// Hands over the filesystem's own options.
fn put(context: BorrowedFd<'_>, data: &[(String, Option<String>)]) -> rustix::io::Result<()> {
    data.iter().try_for_each(|(key, value)| match value {
        Some(value) => fsconfig_set_string(context, key.as_str(), value.as_str()),
        None => fsconfig_set_flag(context, key.as_str()),
    })
}

/// What the filesystem said beside its errno: lines of the context's log, each behind a level letter. fsopen(2)
pub(super) fn words(context: BorrowedFd<'_>) -> String {
    let mut said = Vec::new();
    let mut line = [0u8; 512];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut line) {
        let text = String::from_utf8_lossy(&line[..length]);
        said.push(text.get(2..).unwrap_or(&text).trim_end().to_owned());
    }
    said.join("; ")
}

/// A detached copy of `source`, which is bound to `on`.
///
/// # Errors
/// The source missing, mounts below it that are locked.
pub fn clone_source(source: &Path, options: &Options, on: impl fmt::Display) -> Result<OwnedFd> {
    let named = format_args!("{} on {on}", source.display());
    // `bind` in the type alone takes what is mounted below along, as in runc.
    let recursive = options.bind != Some(false);
    clone_tree(CWD, source, recursive).or_cannot("bind", named).map_err(|error| match error.errno() {
        Some(Errno::ENOENT) => error.hint("the source does not exist"),
        Some(Errno::EINVAL) => {
            error.hint("in a user namespace, mounts below the source must be bound with it: use rbind")
        }
        _ => error,
    })
}

/// A detached copy of `source` inside the root, which is bound to `on`. Links on the way lead no further than the root.
///
/// # Errors
/// As [`clone_source`].
pub fn clone_inside(root: &Root, source: &Path, options: &Options, on: &Path) -> Result<OwnedFd> {
    let named = || format!("{} on {}", root.name(source), root.name(on));
    let found = root.resolve(source, Links::Follow).or_cannot("bind", named())?;
    clone_tree(found.as_fd(), Path::new(""), options.bind != Some(false)).or_cannot("bind", named())
}

/// Binds `source` of the host to `destination` inside.
///
/// # Errors
/// The source missing, the place not to be had, attributes that are locked.
fn bind(root: &Root, source: &Path, handed: Option<OwnedFd>, destination: &Path, options: &Options) -> Result<OwnedFd> {
    let named = || format!("{} on {}", source.display(), root.name(destination));
    let tree = match handed {
        Some(tree) => tree,
        None => clone_source(source, options, root.name(destination))?,
    };
    let kind = FileType::from_raw_mode(fstat(&tree).or_cannot("bind", named())?.st_mode);
    let target = match kind {
        FileType::Directory => root.make_dirs(destination, 0o755, Links::Follow)?,
        _ => root.make_file(destination)?,
    };
    not_over_proc(target.as_fd(), tree.as_fd(), destination)?;
    attributes(tree.as_fd(), options).or_cannot("set attributes of", named()).map_err(locked)?;
    match place(tree.as_fd(), target.as_fd()) {
        Ok(()) => Ok(tree),
        // As mount(2) answers, and as engines look for it. A directory does not come so far where a file is.
        Err(Errno::EINVAL) if kind != FileType::Directory && by_path::is_directory(target.as_fd()) == Ok(true) => {
            let error = Error::kernel("bind", named(), Errno::ENOTDIR);
            Err(error.hint("the source is a file, and the place is a directory"))
        }
        Err(answer) => Err(Error::kernel("bind", named(), answer)),
    }
}

/// A bind to a place that a link of the image led onto a procfs would fake what is written there (CVE-2019-16884,
/// CVE-2025-52881): which filesystem the place is on is asked of the descriptor, not of the path.
fn not_over_proc(target: BorrowedFd<'_>, tree: BorrowedFd<'_>, destination: &Path) -> Result<()> {
    let on_proc = |fd| fstatfs(fd).map(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC).unwrap_or(false);
    if !destination.starts_with("/proc") && on_proc(target) && !on_proc(tree) {
        let why = "a symbolic link leads there onto procfs, which nothing may be mounted over";
        return Err(Error::said("bind on", destination.display().to_string(), why));
    }
    Ok(())
}

fn locked(error: Error) -> Error {
    match error.errno() {
        Some(Errno::EPERM) => error.hint(
            "the host locked an attribute of this mount (ro, nodev, nosuid, noexec or its access times), and the options ask for another",
        ),
        _ => error,
    }
}

/// A detached copy of the mount at `path`, with what is mounted below it when `recursive`.
///
/// # Errors
/// ENOENT, EINVAL for an unbindable mount or one with locked mounts below, EPERM.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> std::result::Result<OwnedFd, Errno> {
    match detached(dir, path, recursive) {
        Err(Errno::ENOSYS) => by_path::clone_tree(dir, path, recursive),
        answer => answer,
    }
}

/// The same, to be looked into: where the mount namespace is the host's or a running container's, nothing may be mounted, and there
/// is no other way to such a copy.
///
/// # Errors
/// As [`clone_tree`]; ENOSYS before Linux 5.2.
pub fn detached(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> std::result::Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    open_tree(dir, path, flags).map_err(errno)
}

/// Moves a detached mount onto the place `target`.
///
/// # Errors
/// What move_mount(2) answers.
pub fn place(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    match move_mount(mount, "", target, "", flags) {
        Err(rustix::io::Errno::NOSYS) => by_path::place(mount, target),
        answer => answer.map_err(errno),
    }
}

/// Attributes of a bind and then what every mount gets; nothing is called when nothing is asked for.
///
/// # Errors
/// What mount_setattr(2) answers: EPERM for an attribute that is locked.
pub fn attributes(mount: BorrowedFd<'_>, options: &Options) -> std::result::Result<(), Errno> {
    if options.about_attributes {
        match set(mount, options.attributes.replacing(), 0, false) {
            // The source has attributes that a user namespace may not take away; what was asked for may do without that.
            Err(Errno::EPERM) => set(mount, options.attributes.keeping(), 0, false)?,
            answer => answer?,
        }
    }
    finish(mount, options)
}

/// Recursive attributes and propagation.
fn finish(mount: BorrowedFd<'_>, options: &Options) -> std::result::Result<(), Errno> {
    if !options.recursive.is_empty() {
        set(mount, options.recursive, 0, true)?;
    }
    for flags in &options.propagation {
        let recursive = flags & MsFlags::MS_REC.bits() != 0;
        set(mount, Attributes::default(), flags & !MsFlags::MS_REC.bits(), recursive)?;
    }
    Ok(())
}

/// mount_setattr on a mount's descriptor; by remounting where the kernel has no such call.
fn set(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    propagation: u64,
    recursive: bool,
) -> std::result::Result<(), Errno> {
    let attr = MountAttr { set: attributes.set, clear: attributes.clear, propagation, userns: 0 };
    match mount_setattr(mount, c"", recursive, &attr) {
        Err(Errno::ENOSYS) => by_path::change(mount, attributes, propagation, recursive),
        answer => answer,
    }
}

/// Makes the mount (or the tree) at `fd` read-only; `CWD` is that of the working directory, and all there is where `/proc`
/// is not the host's any more.
///
/// # Errors
/// What mount_setattr(2) answers.
pub fn read_only(fd: BorrowedFd<'_>, recursive: bool) -> std::result::Result<(), Errno> {
    let attributes = Attributes { set: MOUNT_ATTR_RDONLY, clear: 0 };
    set(fd, attributes, 0, recursive)
}

/// Changes the propagation of the mount at `fd`: `MS_SLAVE`, …, with `MS_REC` for everything below it. `CWD` as in
/// [`read_only`].
///
/// # Errors
/// What mount_setattr(2) answers.
pub fn propagate(fd: BorrowedFd<'_>, flags: u64) -> std::result::Result<(), Errno> {
    let recursive = flags & MsFlags::MS_REC.bits() != 0;
    set(fd, Attributes::default(), flags & !MsFlags::MS_REC.bits(), recursive)
}

/// `/sys/fs/cgroup` inside: the container's own tree in a cgroup namespace, else a directory of the host's. That one is
/// bound: a new mount from the host's cgroup namespace would take its options (nsdelegate) from the host's own.
fn cgroup_view(root: &Root, mount: &Mount, view: &CgroupView) -> Result<OwnedFd> {
    let named = || format!("cgroup2 on {}", root.name(&mount.destination));
    let refusal = if view.namespaced {
        match new_filesystem("cgroup2", "cgroup", &Options { data: Vec::new(), ..mount.options.clone() }) {
            Ok(detached) => {
                let target = root.make_dirs(&mount.destination, 0o755, Links::Refuse)?;
                place(detached.as_fd(), target.as_fd()).or_cannot("mount", named())?;
                finish(detached.as_fd(), &mount.options).or_cannot("set attributes of", named())?;
                return Ok(detached);
            }
            Err(Refusal { answer, .. }) => answer,
        }
    } else {
        Errno::EPERM
    };
    let Some(host_path) = &view.host_path else {
        return Err(Error::kernel("mount", named(), refusal)
            .hint("this host has no cgroup v2 tree: leave the mount out of config.json"));
    };
    let options = Options { bind: Some(false), data: Vec::new(), ..mount.options.clone() };
    bind(root, host_path, None, &mount.destination, &options)
}
