//! Images to a running container, in a root filesystem and a cgroup that ferry prepared.
//!
//! The process that becomes CRIU first gets a mount namespace of its own, in which the root is bound to a stage: nothing is
//! ever mounted on the host, whatever ends in the middle. It is born in the container's cgroup, with the limits in force
//! before the first process is restored. The first process is then a child of ferry's own, as one that was launched is.
//!
//! ```text
//! ferry                                    the process that becomes CRIU
//!   | clone3, into the cgroup -----------> |  its mount namespace, the root on the stage
//!   | scope, limits, record                |
//!   | ---- Placed -----------------------> |  criu swrk
//!   | ---- RESTORE ----------------------> |
//!   | <--- setup-namespaces, pid --------- |  hooks, loopback: the namespaces are there, and nobody runs in them
//!   | <--- orphan-pts-master, descriptor - |  (only with a terminal)
//!   | <--- post-restore ------------------ |  the record is saved: from here on the container lives
//!   | <--- pre-resume -------------------- |  what came from elsewhere is looked at
//!   | <--- success ----------------------- |
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::criu::{Criu, FIRST_INHERITED, Notice, Start, WAITING, check_feature, check_version, find};
use super::dump::{self, Choice, Directories};
use super::rpc::{Deed, Feature, Options, Pair, Request};
use super::shared::{self, Shared};
use super::stage::{self, Upper};
use super::streams::Streams;
use super::{audit, cause, external, held};
use crate::cgroup::Cgroup;
use crate::cgroup::location::find_tree;
use crate::error::{Context, Error, Result};
use crate::launch::Plan;
use crate::launch::init::join_keyring;
use crate::launch::sources::Place;
use crate::namespaces::{Join, Kind, Namespaces, User};
use crate::path::{Links, Root};
use crate::process::scheduling;
use crate::process::sysctl::{self, Sysctl};
use crate::procfs::{self, mountinfo};
use crate::rootfs::Base;
use crate::rootfs::options::Attributes;
use crate::rootfs::plan::{Mount, What};
use crate::spec::Config;
use crate::sys::mount::{MOUNT_ATTR_NOSYMFOLLOW, MountAttr, mount_setattr};

/// The name of a restore's log.
const LOG: &str = "restore.log";

/// What the user chooses for a restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreChoice {
    /// As for a dump.
    pub choice: Choice,
    /// The LSM label to have, as `TYPE:NAME`.
    pub lsm_profile: Option<String>,
    /// The SELinux context of mounts.
    pub lsm_mount_context: Option<String>,
    /// CRIU, where it was found and looked at before; `None`: that is done now.
    pub criu: Option<PathBuf>,
    /// The images may be anybody's: what comes out of them is looked at before it runs. See [`super::audit`].
    pub audited: bool,
}

/// A container that is being restored: CRIU is prepared and waits to be told to go on.
pub struct Restore<'a> {
    plan: &'a Plan,
    /// Where the root is, in the mount namespace of the process that becomes CRIU.
    root: PathBuf,
    choice: &'a RestoreChoice,
    options: Options,
    directories: Directories,
    status: Option<OwnedFd>,
    criu: Criu,
    /// Tells when the root is there.
    there: OwnedFd,
}

/// What a restore says on its way to whoever keeps the container's record.
pub trait Keeper {
    /// The namespaces are there, and this is their first process, which does not run yet.
    ///
    /// # Errors
    /// They end the restore.
    fn namespaces_made(&mut self, pid: Pid) -> Result<()>;

    /// Here is the master of the container's terminal.
    ///
    /// # Errors
    /// They end the restore.
    fn terminal(&mut self, master: OwnedFd) -> Result<()>;

    /// Everything is restored, and about to run.
    ///
    /// # Errors
    /// They end the restore.
    fn restored(&mut self, pid: Pid) -> Result<()>;

    /// CRIU is at work, as it was a second ago.
    ///
    /// # Errors
    /// They end the restore.
    fn waiting(&mut self) -> Result<()>;
}

/// What whoever has the last word over a restore is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It is at work, as it was a second ago.
    Waiting,
    /// Everything is there, and nothing of it runs yet: whether it runs is to be said now.
    Held,
    /// CRIU has let it go on: it has run, though it may have ended since.
    Running,
}

impl<'a> Restore<'a> {
    /// Prepares everything up to CRIU itself. `on` is an empty directory, for the root to be bound to, or mounted on; `upper`
    /// fills the upper layer of one that is in memory.
    ///
    /// # Errors
    /// CRIU or the images are missing; the root filesystem lacks what cannot be made.
    pub fn begin(
        plan: &'a Plan,
        config: &Config,
        choice: &'a RestoreChoice,
        on: &Path,
        upper: Option<&Upper>,
        cgroup: Option<&Cgroup>,
    ) -> Result<Self> {
        let program = match &choice.criu {
            Some(program) => program.clone(),
            None => {
                let program = find()?;
                check_version(&program)?;
                if choice.choice.lazy_pages {
                    check_feature(&program, Feature::LazyPages)?;
                }
                program
            }
        };
        // Looked for here first, where nothing has begun.
        drop(Directories::open(&choice.choice)?);
        if choice.audited {
            audit::filters(&choice.choice.images, plan)?;
        }
        let streams = Streams::load(&choice.choice.images)?;
        let status = dump::status_descriptor(choice.choice.status_fd)?;
        if let Base::Directory(directory) = &plan.rootfs.base {
            stage::complete(&plan.rootfs, &Root::open(directory)?)?;
        }
        let joined = external::restored_namespaces(&plan.namespaces)?;
        let mut options = self::options(config, choice);
        for (number, (name, _)) in (FIRST_INHERITED..).zip(&joined.inherited) {
            options.inherit.push(((*name).to_owned(), number));
        }
        let mut inherited: Vec<OwnedFd> = joined.inherited.into_iter().map(|(_, namespace)| namespace).collect();
        streams.inherit(&mut options, &mut inherited, owner(plan))?;
        options.join = joined.by_path;
        // The newer way takes which mounts are shared from one of them, and needs one that shows all of its filesystem, which a mapped
        // source does not.
        options.mounts_by_path = plan.rootfs.is_mapped();
        let root = stage::place(&plan.rootfs, on);
        options.root = Some(root.as_os_str().as_bytes().to_vec());
        let (there, told) = nix::unistd::pipe2(OFlag::O_CLOEXEC).or_cannot("make", "a pipe")?;
        let caller = nix::unistd::getpid();
        let prepare = || {
            // What CRIU forks has its keyring. Here `/proc` is the host's still, and the label of keys goes with an exec.
            join_keyring(plan.keyring.as_deref(), plan.process.as_ref())?;
            stage::with_caller(caller, || stage::put(&plan.rootfs, &plan.namespaces.user, on, upper))?;
            // CRIU saves none of it: what it restores has it from CRIU.
            plan.process.as_ref().map_or(Ok(()), |process| scheduling::apply_inherited(&process.scheduling))?;
            nix::unistd::write(&told, &[0]).map(drop).or_cannot("write to", "a pipe")
        };
        let start = Start {
            cgroup,
            namespaces: Kind::Mount.row().flag.cast_unsigned().into(),
            inherited,
            streams: true,
            shares_terminal: choice.choice.shell_job,
            prepare: Some(&prepare),
        };
        let criu = Criu::start(&program, &start)?;
        drop(start);
        drop(told);
        // CRIU mounts in its working directory, which therefore must be on a mount of its own namespace.
        let opened = open_inside(&choice.choice, &plan.namespaces.user, on, criu.pid);
        match opened {
            Ok(directories) => {
                directories.put(&mut options);
                Ok(Self { plan, root, choice, options, directories, status, criu, there })
            }
            Err(error) => Err(error.and_then(criu.wait())),
        }
    }

    /// The process that becomes CRIU.
    pub fn pid(&self) -> Pid {
        self.criu.pid
    }

    /// Restores. `cgroup` is the container's on the host. Answers the first process, and what is left of the handshake with
    /// the process that made it.
    ///
    /// # Errors
    /// What could not be restored; CRIU has ended, and with it what it had begun.
    pub fn carry_out(mut self, cgroup: Option<&Path>, keeper: &mut dyn Keeper) -> Result<Pid> {
        let answer = self.ask(cgroup, keeper);
        let Self { criu, choice, plan, directories, .. } = self;
        let ended = criu.wait();
        drop(directories);
        if answer.is_err() {
            sweep(choice.choice.log_directory());
        }
        let answer = answer?;
        ended?;
        match answer.pid {
            Some(pid) if answer.success && pid > 0 => Ok(Pid::from_raw(pid)),
            _ => {
                let log = choice.choice.log_directory().join(LOG);
                Err(cause::error("restore container", &format!("{:?}", plan.id.as_str()), &log, answer.errno))
            }
        }
    }

    fn ask(&mut self, cgroup: Option<&Path>, keeper: &mut dyn Keeper) -> Result<super::rpc::Response> {
        if !is_told(&self.there)? {
            // What stood in the way is its own to say.
            self.criu.executed()?;
            return Err(Error::plain("the root filesystem was not put in its place"));
        }
        let (rootfs, namespaces) = (&self.plan.rootfs, &self.plan.namespaces);
        let root = stage::seen(self.criu.pid, &self.root)?;
        let host = mountinfo::read().or_cannot("read", "/proc/self/mountinfo")?;
        // As a launch has it: all of them, but in a user namespace.
        let own = cgroup.filter(|_| namespaces.user != User::Inherit).map(Path::to_owned);
        let seen = own.map_or_else(|| Ok(find_tree()?.map(|tree| tree.mount)), |own| Ok(Some(own)))?;
        let place = (&root, self.root.as_path());
        self.options.mounts = external::restored_mounts(rootfs, namespaces, place, seen.as_deref(), &host)?;
        self.options.cgroup_roots = cgroup_roots(self.criu.pid)?;
        let shared = Shared::of(namespaces)?;
        self.criu.executed()?;
        let request = Request::Deed(Deed::Restore, Box::new(std::mem::take(&mut self.options)));
        let (plan, status, criu) = (self.plan, &mut self.status, self.criu.pid);
        let (audited, own) = (self.choice.audited, &self.root);
        let mut looked = !audited;
        let answer = self.criu.ask(&request, &mut |notice| {
            if audited && notice.script == BEFORE_THEY_RUN {
                looked = true;
                return audit(plan, own, criu);
            }
            if notice.script == NAMESPACES_MADE {
                shared.put_back()?;
            }
            heard(notice, plan, keeper, status)
        });
        // Also of one that failed before it told.
        let answer = match (answer, shared.put_back()) {
            (Err(error), back) => return Err(error.and_then(back)),
            (Ok(answer), back) => back.map(|()| answer)?,
        };
        if answer.success && !looked {
            return Err(Error::plain("CRIU did not tell when the processes were there, so that nobody looked at them"));
        }
        Ok(answer)
    }

    /// Ends the process before it has become CRIU.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn give_up(self) -> Result<()> {
        self.criu.wait()
    }
}

/// Removes what a CRIU that was killed leaves in its directory: places it mounted cgroups on, in its own mount namespace.
fn sweep(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_bytes().starts_with(b".criu.cgyard.")) {
        // Only an empty one is taken away; what fails here is no reason to say anything but the error itself.
        std::fs::remove_dir(entry.path()).ok();
    }
}

/// Opens the directories as the process that becomes CRIU would.
fn open_inside(choice: &Choice, user: &User, stage: &Path, pid: Pid) -> Result<Directories> {
    let mut directories = Place::of(pid, None)?.visit(|| Directories::open(choice))?;
    if let User::Make { .. } = user {
        directories.share(choice, stage)?;
    }
    Ok(directories)
}

/// CRIU's word when the namespaces have all that they had, and nobody runs in them.
const NAMESPACES_MADE: &str = "setup-namespaces";

/// CRIU's word when every process stands before its first step, with all that it has.
const BEFORE_THEY_RUN: &str = "pre-resume";

/// Looks at what was restored. CRIU does not take a no for an answer any more by then: so the processes are killed, and then
/// CRIU, which would wait for them in the wrong order.
fn audit(plan: &Plan, root: &Path, criu: Pid) -> Result<()> {
    let found = stage::seen(criu, root).and_then(|root| audit::check(plan, &root, criu));
    let Err(error) = found else { return Ok(()) };
    let end = |process: PathBuf| match process.file_name().map(|name| name.to_string_lossy().parse()) {
        Some(Ok(pid)) => kill(Pid::from_raw(pid)),
        _ => Ok(()),
    };
    let restored = held::processes(criu, held::Among::restored(&plan.namespaces));
    // All that can be, whatever stands in the way of one.
    let error = restored.fold(error, |error, process| error.and_then(process.and_then(end)));
    Err(error.and_then(kill(criu)))
}

fn kill(pid: Pid) -> Result<()> {
    match nix::sys::signal::kill(pid, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(answer) => Err(Error::kernel("kill process", pid.to_string(), answer)),
    }
}

fn heard(notice: Notice, plan: &Plan, keeper: &mut dyn Keeper, status: &mut Option<OwnedFd>) -> Result<()> {
    match (notice.script.as_str(), notice.pid, notice.descriptor) {
        (NAMESPACES_MADE, Some(pid), _) => {
            network(plan, pid)?;
            keeper.namespaces_made(pid)
        }
        ("orphan-pts-master", _, Some(master)) => keeper.terminal(master),
        ("post-restore", Some(pid), _) => {
            no_links(plan, pid)?;
            keeper.restored(pid)
        }
        (WAITING, ..) => keeper.waiting(),
        _ => dump::ready(&notice.script, status),
    }
}

/// A network namespace that CRIU made is as empty as any new one, and has the kernel's own parameters.
fn network(plan: &Plan, pid: Pid) -> Result<()> {
    let namespace = shared::open(Path::new(&format!("/proc/{pid}/ns/{}", Kind::Network.row().file)))?;
    if !plan.net_devices.is_empty() {
        crate::network::devices::move_in(&plan.net_devices, &namespace)?;
    }
    if !plan.loopback {
        return Ok(());
    }
    let of_network = |sysctl: &&Sysctl| sysctl.file.starts_with("net/");
    let sysctls: Vec<Sysctl> = plan.sysctl.iter().filter(of_network).cloned().collect();
    shared::visit(Kind::Network, &namespace, || {
        crate::network::loopback_up()?;
        sysctl::apply(&sysctls)
    })
}

/// `nosymfollow`, which CRIU does not know, on the mounts that can be seen.
fn no_links(plan: &Plan, pid: Pid) -> Result<()> {
    let mounts = &plan.rootfs.mounts;
    let is_covered = |index: usize, mount: &Mount| {
        let over = |later: &Mount| later.what != What::Remount && mount.destination.starts_with(&later.destination);
        mounts[index + 1..].iter().any(over)
    };
    let asked = |attributes: Attributes| (attributes.set | attributes.clear) & MOUNT_ATTR_NOSYMFOLLOW != 0;
    let asks = |mount: &Mount| asked(mount.options.attributes) || asked(mount.options.recursive);
    let seen = mounts.iter().enumerate().filter(|(index, mount)| asks(mount) && !is_covered(*index, mount));
    let seen: Vec<&Mount> = seen.map(|(_, mount)| mount).collect();
    if seen.is_empty() {
        return Ok(());
    }
    Place::of(pid, None)?.visit(|| {
        let root = Root::open(Path::new("/"))?;
        seen.iter().try_for_each(|mount| {
            let set = || {
                let place = root.resolve(&mount.destination, Links::Follow)?;
                for (attributes, recursive) in [(mount.options.attributes, false), (mount.options.recursive, true)] {
                    let [set, clear] = [attributes.set, attributes.clear].map(|bits| bits & MOUNT_ATTR_NOSYMFOLLOW);
                    if set | clear != 0 {
                        let attributes = MountAttr { set, clear, ..MountAttr::default() };
                        mount_setattr(place.as_fd(), c"", recursive, &attributes)?;
                    }
                }
                Ok::<(), Errno>(())
            };
            set().or_cannot("set attributes of", mount.destination.display())
        })
    })
}

fn options(config: &Config, choice: &RestoreChoice) -> Options {
    Options {
        evasive_devices: true,
        sibling: true,
        lsm_profile: choice.lsm_profile.clone(),
        lsm_mount_context: choice.lsm_mount_context.clone(),
        log_file: LOG,
        ..dump::options(&choice.choice, config)
    }
}

/// Who opens files from outside, where it is not ferry's own user: the user of the first process, as the host counts.
fn owner(plan: &Plan) -> Option<u32> {
    let (User::Make { uids, .. }, Some(process)) = (&plan.namespaces.user, &plan.process) else { return None };
    let inside = process.identity.uid;
    uids.iter().find_map(|map| {
        let offset = inside.checked_sub(map.container_id).filter(|offset| *offset < map.size)?;
        map.host_id.checked_add(offset)
    })
}

/// Waits until the other end is written to; `false`: it was closed before that.
fn is_told(pipe: &OwnedFd) -> Result<bool> {
    loop {
        match nix::unistd::read(pipe, &mut [0]) {
            Err(Errno::EINTR) => (),
            answer => return answer.map(|count| count > 0).or_cannot("read from", "a pipe"),
        }
    }
}

/// Cgroups of the dump are to be where CRIU itself is now: controllers, and path. proc_pid_cgroup(5)
fn cgroup_roots(pid: Pid) -> Result<Vec<Pair>> {
    let path = format!("/proc/{pid}/cgroup");
    let table = procfs::text(&path).or_cannot("read", &path)?;
    Ok(table.lines().flat_map(cgroup_line).collect())
}

fn cgroup_line(line: &str) -> Vec<Pair> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    controllers.split(',').map(|controller| (controller.to_owned(), path.to_owned())).collect()
}

/// The namespaces that a restored process has to itself: CRIU puts one into a time namespace, so that its clocks go on from
/// where they stopped.
///
/// # Errors
/// The process is gone.
pub fn made_time_namespace(pid: Pid, namespaces: &Namespaces) -> Result<bool> {
    let joined = |join: &Join| join.kind == Kind::Time;
    if namespaces.makes(Kind::Time) || namespaces.join.iter().any(joined) {
        return Ok(false);
    }
    let link = |path: &str| match std::fs::read_link(path) {
        // A kernel without time namespaces, before Linux 5.6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(PathBuf::new()),
        answer => answer.or_cannot("read", path),
    };
    Ok(link(&format!("/proc/{pid}/ns/time"))? != link("/proc/self/ns/time")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_of_every_hierarchy() {
        let pair = |controllers: &str, path: &str| (controllers.to_owned(), path.to_owned());
        assert_eq!(cgroup_line("0::/a:b/c"), [pair("", "/a:b/c")]);
        assert_eq!(cgroup_line("4:cpu,cpuacct:/x"), [pair("cpu", "/x"), pair("cpuacct", "/x")]);
        assert_eq!(cgroup_line("1:name=systemd:/y"), [pair("name=systemd", "/y")]);
        assert_eq!(cgroup_line("nonsense"), []);
    }
}
