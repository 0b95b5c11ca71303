//! A running container to images.
//!
//! What CRIU is told is planned first, from the configuration and what is mounted, as a value; then CRIU is asked. It stops
//! the processes through the container's cgroup, and lets them go on if anything fails; ferry sees to it that the cgroup is left
//! as it was found, even where CRIU itself did not live to do so: see [`super::freezer`].

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};

use super::criu::{Criu, Start, check_feature, check_version, find};
use super::freezer::Freezer;
use super::rpc::{CgroupsMode, Deed, Feature, NetworkLock, Options, Request};
use super::streams::Streams;
use super::{cause, external, obstacles};
use crate::cgroup::{Cgroup, life};
use crate::container::store::Entry;
use crate::container::worker::Worker;
use crate::error::{Context, Error, Result};
use crate::host;
use crate::namespaces::{self, Kind};
use crate::path::{Root, fd_path};
use crate::procfs;
use crate::procfs::mountinfo;
use crate::rootfs::mount::new_filesystem;
use crate::rootfs::{self, options as mount};
use crate::spec::Config;
use crate::sys::fd;

/// What the user chooses, for a dump as for a restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// The directory of images.
    pub images: PathBuf,
    /// The directory of logs and the like, where it is another.
    pub work: Option<PathBuf>,
    /// CRIU's log tells all that it does, and not only what went wrong.
    pub verbose: bool,
    /// Keep established connections.
    pub tcp_established: bool,
    /// Close connections in the restore.
    pub tcp_close: bool,
    /// Allow UNIX sockets that lead out.
    pub ext_unix_sk: bool,
    /// Allow a terminal from outside.
    pub shell_job: bool,
    /// Keep file locks.
    pub file_locks: bool,
    /// Free pages that a parent's images hold in vain.
    pub auto_dedup: bool,
    /// Leave the memory until it is asked for.
    pub lazy_pages: bool,
    /// How much of cgroups is restored.
    pub cgroups_mode: Option<CgroupsMode>,
    /// How connections are kept still.
    pub network_lock: Option<NetworkLock>,
    /// A descriptor to write a NUL to when pages can be asked for.
    pub status_fd: Option<i32>,
}

/// What the user chooses for a dump.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DumpChoice {
    /// As for a restore.
    pub choice: Choice,
    /// The images that these build on, relative to them.
    pub parent: Option<PathBuf>,
    /// The container goes on.
    pub leave_running: bool,
    /// The memory only; the container goes on.
    pub pre_dump: bool,
    /// What is written to in memory is tracked from here on, so that other images can build on these.
    pub track: bool,
    /// Leave out connections that are still being made.
    pub tcp_skip_in_flight: bool,
    /// Give files without a name one for the time.
    pub link_remap: bool,
    /// Send pages there.
    pub page_server: Option<(String, u16)>,
}

/// The container that is dumped.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its configuration.
    pub config: &'a Config,
    /// Absolute.
    pub bundle: &'a Path,
    /// Its root filesystem on the host.
    pub rootfs: &'a Path,
    /// Its first process.
    pub pid: Pid,
    /// Its cgroup.
    pub cgroup: Option<&'a Cgroup>,
    /// Its directory, where CRIU's process is noted, so that `delete --force` finds one that hangs.
    pub entry: Option<&'a Entry>,
    /// What has it locked, as long as it is open.
    pub lock: Option<BorrowedFd<'a>>,
}

/// The first CRIU that can do without a lock.
const KNOWS_SKIP: u32 = 31900;

/// CRIU's word before it stops anything. It has none where it takes the memory only.
pub const ABOUT_TO_STOP: &str = "pre-dump";

/// CRIU's word when everything is in the images, and nothing of the container runs.
pub const STANDS_STILL: &str = "post-dump";

/// The name of a dump's log.
const LOG: &str = "dump.log";

/// What becomes of a container of which everything is in the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// What the choice says: it ends, unless it is to go on.
    End,
    /// It stays as it stands, by its cgroup: see [`Freezer::keep`], which whoever says so has asked for.
    StandStill,
}

/// Dumps a container, and asks what is to become of it. `heard` gets each word of CRIU's on its way, and
/// [`super::criu::WAITING`] now and then, with the container's cgroup; what it answers to [`STANDS_STILL`], when everything is in the images and nothing of the
/// container runs, is what is done.
///
/// # Errors
/// What could not be dumped, or `heard` has failed: the container then runs as it did. Once `heard` has decided, it stays as it
/// was left whatever fails.
pub fn dump_then(
    subject: &Subject<'_>,
    choice: &DumpChoice,
    heard: &mut dyn FnMut(&str, &mut Freezer<'_>) -> Result<Afterwards>,
) -> Result<Afterwards> {
    let program = find()?;
    let version = check_version(&program)?;
    if choice.tracks_memory() {
        check_feature(&program, Feature::MemoryTracking)?;
    }
    if choice.choice.lazy_pages {
        check_feature(&program, Feature::LazyPages)?;
        check_pipe()?;
    }
    let pids = processes(subject)?;
    if !choice.pre_dump {
        obstacles::check(subject.id, subject.config, &pids, &choice.choice)?;
    }
    let streams = if choice.pre_dump { None } else { Some(streams(subject, choice, &pids)?) };
    let directories = Directories::make(&choice.choice)?;
    check_parent(&choice.choice.images, choice.parent.as_deref())?;
    let mut status = status_descriptor(choice.choice.status_fd)?;
    let mut options = plan(subject, choice)?;
    options.network_lock = options.network_lock.or_else(|| network_lock(choice.choice.tcp_established, version));
    directories.put(&mut options);
    if let Some(streams) = streams {
        options.external.extend(streams.external());
        streams.save(&choice.choice.images)?;
    }
    if let Some(entry) = subject.entry.filter(|_| choice.tracks_memory()) {
        entry.forget_tracked()?;
    }
    let deed = if choice.pre_dump { Deed::PreDump } else { Deed::Dump };
    let mut freezer = Freezer::of(subject.cgroup)?;
    let criu = Criu::start(&program, &Start::default())?;
    let mut decided = None;
    let noted = subject.entry.map(|entry| entry.note_worker(&Worker::own(Some(criu.pid))?)).transpose();
    let watched = noted.and_then(|_| freezer.watch(criu.pidfd(), subject.lock)).and_then(|()| criu.executed());
    let answer = watched.and_then(|()| {
        if choice.pre_dump {
            freezer.freeze()?;
        }
        criu.ask(&Request::Deed(deed, Box::new(options)), &mut |notice| {
            ready(&notice.script, &mut status)?;
            let afterwards = heard(&notice.script, &mut freezer)?;
            match notice.script.as_str() {
                ABOUT_TO_STOP => freezer.freeze()?,
                STANDS_STILL => decided = Some(afterwards),
                _ => (),
            }
            match afterwards {
                Afterwards::End => Ok(()),
                // CRIU lets the processes go, which then are in the hands of their cgroup.
                Afterwards::StandStill => Err(Error::plain("it is to stand still")),
            }
        })
    });
    let ended = criu.wait();
    if decided == Some(Afterwards::StandStill) {
        return ended.map(|()| Afterwards::StandStill);
    }
    let failed = match answer {
        Ok(answer) if answer.success => {
            let goes_on = choice.leave_running || choice.pre_dump;
            let left = if goes_on { freezer.go_on() } else { freezer.dismiss() };
            return ended.and(left).map(|()| Afterwards::End);
        }
        Ok(answer) => {
            let log = choice.choice.log_directory().join(LOG);
            cause::error("checkpoint container", &format!("{:?}", subject.id), &log, answer.errno)
        }
        Err(error) => error.and_then(ended.and_then(|()| survived(&pids))),
    };
    // Whoever decided has given it up: it is not to go on.
    if decided.is_some() && freezer.is_kept() {
        return Err(failed);
    }
    Err(failed.and_then(freezer.go_on()))
}

/// Where the first process' standard streams lead.
fn streams(subject: &Subject<'_>, choice: &DumpChoice, pids: &[Pid]) -> Result<Streams> {
    let streams = Streams::of(subject.pid, pids, &table(subject.pid)?)?;
    match streams.terminal().filter(|_| !choice.choice.shell_job) {
        None => Ok(streams),
        Some(number) => {
            let why = format!("descriptor {number} of process {} is a terminal from outside", subject.pid);
            Err(Error::said("checkpoint container", format!("{:?}", subject.id), why).hint(
                "--shell-job, at both ends of the way, puts the restorer's own in its place; or run the container with \
                 process.terminal",
            ))
        }
    }
}

/// Somebody who kills CRIU may kill a process along with it: see [`super::ending`].
fn survived(pids: &[Pid]) -> Result<()> {
    let ended = |pid: &&Pid| procfs::stat(**pid).map_or(true, |stat| stat.is_dead());
    let ended: Vec<String> = pids.iter().filter(ended).map(ToString::to_string).collect();
    if ended.is_empty() {
        return Ok(());
    }
    Err(Error::plain(format!("these of the container's processes have ended meanwhile: {}", ended.join(", "))))
}

/// What CRIU hands out page by page goes through a pipe as large as it can be; it does not look whether it got one, and
/// fails with the container stopped. criu/page-pipe.c, pipe_read_dest_init
fn check_pipe() -> Result<()> {
    // As many slots (`struct pipe_buffer`, 40 bytes) as eight pages hold, and a page in each.
    let page = rustix::param::page_size();
    let size = (8 * page / 40).next_power_of_two() * page;
    let (read, _write) = nix::unistd::pipe().or_cannot("make", "a pipe")?;
    match fcntl(&read, FcntlArg::F_SETPIPE_SZ(i32::try_from(size).unwrap_or(i32::MAX))) {
        Ok(_) => Ok(()),
        Err(answer) => Err(Error::kernel("make", format!("the pipe of {size} bytes that --lazy-pages takes"), answer)
            .hint(format!("run ferry with CAP_SYS_RESOURCE, or set fs.pipe-max-size to {size}"))),
    }
}

/// Who waits for pages to be there to ask for is told.
///
/// # Errors
/// Nobody reads there.
pub fn ready(script: &str, status: &mut Option<OwnedFd>) -> Result<()> {
    match status.take_if(|_| script == "status-ready") {
        Some(status) => {
            rustix::io::write(&status, &[0]).map(drop).or_cannot("write to", "the descriptor of --status-fd")
        }
        None => Ok(()),
    }
}

/// Takes over the descriptor that `--status-fd` names.
///
/// # Errors
/// It is not open.
pub fn status_descriptor(number: Option<i32>) -> Result<Option<OwnedFd>> {
    number
        .map(|number| {
            fd::handed_down(number)
                .ok_or_else(|| Error::plain(format!("--status-fd {number}: no such descriptor is open")))
        })
        .transpose()
}

/// What CRIU is asked for, but for directories and streams.
fn plan(subject: &Subject<'_>, choice: &DumpChoice) -> Result<Options> {
    let namespaces = namespaces::plan::plan(subject.config)?;
    let mut options = Options {
        pid: Some(subject.pid.as_raw()),
        leave_running: choice.leave_running,
        tcp_skip_in_flight: choice.tcp_skip_in_flight,
        link_remap: choice.link_remap,
        page_server: choice.page_server.clone(),
        parent: choice.parent.as_ref().map(|parent| parent.as_os_str().as_bytes().to_vec()),
        track_memory: choice.tracks_memory(),
        root: Some(subject.rootfs.as_os_str().as_bytes().to_vec()),
        external: external::dumped_namespaces(&namespaces, subject.pid)?,
        freeze_cgroup: subject.cgroup.map(|cgroup| cgroup.path.as_os_str().as_bytes().to_vec()),
        log_file: LOG,
        ..options(&choice.choice, subject.config)
    };
    if !choice.pre_dump {
        let (bundle, root) = (subject.bundle, subject.rootfs);
        let around = rootfs::plan::Around { namespaces: &namespaces, bundle, root, privileged: true };
        let rootfs = rootfs::plan::plan(subject.config, around, true)?;
        let root = Root::open(&PathBuf::from(format!("/proc/{}/root", subject.pid)))?;
        let table = table(subject.pid)?;
        options.mounts = external::dumped_mounts(&rootfs, &namespaces, &root, &table)?;
    }
    Ok(options)
}

/// What the two directions have in common.
pub fn options(choice: &Choice, config: &Config) -> Options {
    Options {
        verbose: choice.verbose,
        ext_unix_sk: choice.ext_unix_sk,
        tcp_established: choice.tcp_established,
        tcp_close: choice.tcp_close,
        shell_job: choice.shell_job,
        file_locks: choice.file_locks,
        auto_dedup: choice.auto_dedup,
        lazy_pages: choice.lazy_pages,
        cgroups_mode: choice.cgroups_mode,
        network_lock: choice.network_lock,
        // Interfaces and addresses are for whoever set the network up to set up again, as with runc.
        empty_namespaces: Kind::Network.row().flag.cast_unsigned(),
        config_file: config_file(config),
        ..Options::default()
    }
}

/// How connections are kept still where nothing is said. Where none is kept there is no need to: the lock would stay on a
/// network namespace that others may share until the restore. CRIU's own default is iptables, which many hosts no longer
/// have; for nftables it needs no other program.
fn network_lock(keeps_connections: bool, version: u32) -> Option<NetworkLock> {
    match keeps_connections {
        false if version >= KNOWS_SKIP => Some(NetworkLock::Skip),
        _ => host::program("iptables-restore").is_none().then_some(NetworkLock::Nftables),
    }
}

/// A file of the administrator's with options for CRIU: by annotation, or one of the usual places. runc's is the last of
/// them, since that is where tools have come to write.
fn config_file(config: &Config) -> Option<Vec<u8>> {
    const PLACES: [&str; 2] = ["/etc/criu/ferry.conf", "/etc/criu/runc.conf"];
    match config.annotations.get("org.criu.config") {
        Some(named) if named.is_empty() => None,
        Some(named) => Some(named.clone().into_bytes()),
        None => PLACES.into_iter().find(|place| Path::new(place).exists()).map(|place| place.as_bytes().to_vec()),
    }
}

fn table(pid: Pid) -> Result<Vec<mountinfo::Row>> {
    mountinfo::read_of(Path::new(&format!("/proc/{pid}"))).or_cannot("read the mounts of process", pid)
}

/// The container's processes; without a cgroup only the first is known.
fn processes(subject: &Subject<'_>) -> Result<Vec<Pid>> {
    match subject.cgroup {
        Some(cgroup) => life::procs(cgroup),
        None => Ok(vec![subject.pid]),
    }
}

fn check_parent(images: &Path, parent: Option<&Path>) -> Result<()> {
    let Some(parent) = parent else { return Ok(()) };
    if parent.is_absolute() {
        return Err(Error::plain("--parent-path must be relative")
            .hint("it is looked for from the directory of --image-path, in which it stays as a link"));
    }
    let whole = images.join(parent);
    match std::fs::metadata(&whole) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::kernel("use --parent-path", whole.display().to_string(), nix::errno::Errno::ENOTDIR)),
        Err(error) => Err(error).or_cannot("use --parent-path", whole.display()),
    }
}

impl DumpChoice {
    /// Whether the kernel is told to track anew what is written to.
    fn tracks_memory(&self) -> bool {
        self.track || self.pre_dump || self.parent.is_some()
    }
}

impl Choice {
    /// Where logs are.
    pub fn log_directory(&self) -> &Path {
        self.work.as_deref().unwrap_or(&self.images)
    }
}

/// The directories, open: CRIU opens them again by their numbers here.
#[derive(Debug)]
pub struct Directories {
    images: OwnedFd,
    work: Option<OwnedFd>,
}

impl Directories {
    /// Makes what is missing of both, for their owner alone: in images is everything that was in memory.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn make(choice: &Choice) -> Result<Self> {
        make_directory(&choice.images)?;
        choice.work.as_deref().map_or(Ok(()), make_directory)?;
        Self::open(choice)
    }

    /// Opens both; the work directory is made where it is missing.
    ///
    /// # Errors
    /// There are no images.
    pub fn open(choice: &Choice) -> Result<Self> {
        choice.work.as_deref().map_or(Ok(()), make_directory)?;
        let work = choice.work.as_deref().map(open_directory).transpose()?;
        Ok(Self { images: open_directory(&choice.images)?, work })
    }

    /// Lets everybody in CRIU's hands read the images, whose directory is for its owner alone: in a user namespace CRIU reads
    /// them first as the host's root and then as the container's. They are seen through an overlay with nothing but a root
    /// directory of another mode, that of the empty directory `above`; nobody can come to it by a path.
    ///
    /// # Errors
    /// The kernel refuses the overlay.
    pub fn share(&mut self, choice: &Choice, above: &Path) -> Result<()> {
        let (top, images) = (open_directory(above)?, open_directory(&choice.images)?);
        let named = [&top, &images].map(|fd| fd_path(fd.as_fd()).to_string_lossy().into_owned());
        let options = mount::Options { data: vec![("lowerdir".into(), Some(named.join(":")))], ..Default::default() };
        let tree = new_filesystem("overlay", "overlay", &options).map_err(|refusal| {
            Error::kernel("share", choice.images.display().to_string(), refusal.answer).hint(refusal.words)
        })?;
        let shared = openat(&tree, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let own = std::mem::replace(&mut self.images, shared.or_cannot("open directory", choice.images.display())?);
        // What is written goes where it would have gone.
        self.work.get_or_insert(own);
        Ok(())
    }

    /// Names them to CRIU.
    pub fn put(&self, options: &mut Options) {
        options.images = self.images.as_raw_fd();
        options.work = self.work.as_ref().map(AsRawFd::as_raw_fd);
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .or_cannot("open directory", path.display())
}

fn make_directory(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        make_directory(parent)?;
    }
    match mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(answer) => Err(answer).or_cannot("make directory", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_relative_and_there() {
        let here = std::env::temp_dir();
        assert!(check_parent(&here, None).is_ok());
        assert!(check_parent(&here, Some(Path::new("."))).is_ok());
        let absolute = check_parent(&here, Some(&here)).unwrap_err().to_string();
        assert!(absolute.starts_with("--parent-path must be relative"), "{absolute}");
        let missing = check_parent(&here, Some(Path::new("none/such"))).unwrap_err().to_string();
        assert!(missing.starts_with("cannot use --parent-path") && missing.contains("ENOENT"), "{missing}");
    }

    #[test]
    fn a_file_of_options_is_named_or_left_out() {
        let mut config = Config::default();
        config.annotations.insert("org.criu.config".into(), "/etc/mine.conf".into());
        assert_eq!(config_file(&config).as_deref(), Some(&b"/etc/mine.conf"[..]));
        config.annotations.insert("org.criu.config".into(), String::new());
        assert_eq!(config_file(&config), None);
    }
}
