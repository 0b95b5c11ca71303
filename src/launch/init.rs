//! The child of `create` and `run`: the container's first process, until it executes the program.
//!
//! A table of named steps over the plan, in this order and for these reasons. The child only applies what was decided; a
//! step that fails is sent to the parent, and the child ends.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, fchdir, fchown, getpid, sethostname, setresgid, setresuid, setsid};

mod mounts;

use super::execute::execute;
use super::plan::{Plan, ProcessPlan};
use super::protocol::{Channel, Message};
use super::{gate, hooks, terminal};
use rustix::system::setdomainname;

use crate::container::{State, Status};
use crate::error::{Context, Error, Result};
use crate::namespaces::{CLONE_NEWTIME, Kind, User};
use crate::path::{Links, Root};
use crate::process::{command, hidden, identity, sysctl};
use crate::rootfs::plan::MountedIn;
use crate::rootfs::{Base, devices, layers, on_host, overlay, pivot, protect};
use crate::security::lsm;
use crate::spec::config::Hook;
use crate::sys::{clone::exit_now, fd, keyring};

/// What the child has in its hands.
pub struct Init<'a> {
    /// What is to be done.
    pub plan: &'a Plan,
    /// The child's end of the handshake.
    pub channel: Channel,
    /// The gate at which it waits, for `create`.
    pub gate: Option<OwnedFd>,
    /// The mount namespace to join, where one is.
    pub mount_namespace: Option<OwnedFd>,
    /// The cgroup namespace to join, where one is.
    pub cgroup_namespace: Option<OwnedFd>,
    /// The cgroup's directory on the host.
    pub cgroup: Option<PathBuf>,
    /// The container's state, for hooks that run in here.
    pub state: State,
    /// Where hooks write.
    pub streams: &'a hooks::Streams,
    /// What the host side opened, once it is here.
    pub handed: Handed,
    /// Whether Go has come already.
    pub let_go: bool,
    /// Whether its OOM score is the parent's to adjust: in a user namespace there is no right to lower it.
    pub is_scored: bool,
    /// Whether it is ferry that carries the terminal.
    pub foreground: bool,
    /// The caller's, which hooks of the host are to have.
    pub umask: Mode,
    /// Whether it has to wait to be placed even where the plan does not say so: it was not born in its cgroup and is moved
    /// there, or another process has to tell of its birth before it says anything itself.
    pub waits: bool,
    /// The new root, once it is attached.
    pub root: Option<Root>,
    /// A private procfs, for the process' label.
    pub procfs: Option<OwnedFd>,
    /// The terminal, once it is open.
    pub terminal: Option<OwnedFd>,
    /// Where the process begins.
    pub begins: command::Beginning,
}

/// What the host side opened for the child.
#[derive(Debug, Default)]
pub struct Handed {
    /// The directory of the root filesystem.
    pub root: Option<OwnedFd>,
    /// Detached copies of the sources of mounts, by the mount's index.
    pub sources: BTreeMap<usize, OwnedFd>,
}

/// A named step.
type Step<'a> = (&'static str, fn(&mut Init<'a>) -> Result<()>);

impl<'a> Init<'a> {
    /// The steps up to Ready.
    pub const STEPS: [Step<'a>; 23] = [
        ("session", Self::session),
        // Files of /proc/self that stop being this process' own to write once it has taken the ids of its user namespace.
        ("oom score", Self::oom_score),
        ("time namespace", Self::time_namespace),
        // Nothing else can be done in a user namespace that has no ids yet, and a scope must be there before it is a namespace's root.
        ("placement", Self::await_placement),
        ("keyring", Self::keyring),
        // Born in the container's cgroup, whose place is the root of the new cgroup namespace only if it is made from inside.
        ("cgroup namespace", Self::cgroup_namespace),
        ("host name", Self::names),
        ("loopback", Self::loopback),
        // Through the host's /proc, before any mount of the container's can be in its place.
        ("sysctl", Self::sysctl),
        // In a user namespace only while a procfs that nothing covers is in sight.
        ("label", Self::label),
        ("mount namespace", Self::mount_namespace),
        ("root filesystem", Self::root_filesystem),
        ("mounts", Self::mounts),
        ("devices", Self::devices),
        // The devpts is mounted, and the host's /dev/null still there.
        ("terminal", Self::terminal),
        // While the root can still be written.
        ("working directory made", Self::make_working_directory),
        // Hooks may still mount and write into the root; what protects it comes after them.
        ("hooks before pivot", Self::hooks),
        ("masked paths", Self::mask),
        ("read-only paths", Self::write_protect),
        ("pivot", Self::pivot),
        ("streams", Self::streams),
        ("working directory", Self::working_directory),
        // Looked for now, so that create already says that it is missing.
        ("program", Self::find_program),
    ];
}

/// Takes all steps, waits to be let go, and executes the program. Never returns.
pub fn main(mut init: Init<'_>) -> ! {
    let failed = match init.steps() {
        Ok(()) => init.finish(),
        Err(error) => Some(error),
    };
    if let Some(error) = failed {
        // Nobody to tell is nobody to tell: whoever waited for this process sees it end.
        if init.channel.send(&Message::Failed(error), None).is_err() {
            exit_now(2);
        }
    }
    exit_now(1)
}

impl Init<'_> {
    fn steps(&mut self) -> Result<()> {
        Self::STEPS.iter().try_for_each(|(_, step)| step(self))
    }

    /// From Ready to the exec. `None`: the parent has gone, and this process goes too.
    fn finish(&mut self) -> Option<Error> {
        if self.gate.is_some() && self.channel.send(&Message::Ready, None).is_err() {
            return None;
        }
        while !self.let_go {
            match self.channel.receive() {
                Ok(Some((Message::Go, _))) => self.let_go = true,
                Ok(None) => return None,
                Ok(Some(_)) => return Some(unexpected()),
                Err(error) => return Some(error),
            }
        }
        self.go().err()
    }

    fn go(&mut self) -> Result<()> {
        if let Some(listener) = self.gate.take_if(|_| !self.plan.waits_in_stub()) {
            self.give_up(&listener)?;
            self.channel = gate::wait(&listener)?;
        }
        let process = self.process()?;
        let hooks = in_environment(&self.plan.hooks.start_container, process);
        let run = || self.run_hooks("startContainer", &hooks, Status::Created);
        hidden::hide()?;
        let last: Option<&dyn Fn() -> Result<()>> = if hooks.is_empty() { None } else { Some(&run) };
        let gate = self.gate.as_ref();
        execute(process, &self.begins, self.procfs.as_ref(), &self.channel, gate, last).map(|never| match never {})
    }

    /// Whoever gets into this process while it waits finds nothing of the host's in its hands.
    fn give_up(&mut self, listener: &OwnedFd) -> Result<()> {
        drop((self.root.take(), self.mount_namespace.take(), self.terminal.take(), std::mem::take(&mut self.handed)));
        let preserved = self.plan.process.as_ref().map_or(0, |process| process.preserve_fds);
        let first = i32::try_from(preserved).unwrap_or(i32::MAX - 3) + 3;
        let mut kept = fd::inherited(first);
        kept.extend([listener.as_fd(), self.channel.as_fd()]);
        kept.extend(self.procfs.as_ref().map(AsFd::as_fd));
        if !self.plan.hooks.start_container.is_empty() {
            kept.extend(self.streams.fds());
        }
        match fd::close_from(3, &kept) {
            // Before Linux 5.9: they are closed by the exec.
            Ok(()) | Err(Errno::ENOSYS) => Ok(()),
            Err(answer) => Err(Error::kernel("close", "other descriptors", answer)),
        }
    }

    fn process(&self) -> Result<&ProcessPlan> {
        // The plan outlives this struct's borrow of self.
        self.plan.process.as_ref().ok_or_else(|| {
            Error::config("process", "is missing, and there is nothing to start")
                .hint("a container without a process can only be created")
        })
    }

    fn root(&self) -> Result<&Root> {
        self.root.as_ref().ok_or_else(|| Error::said("prepare", "the root filesystem", "it is not attached"))
    }

    fn await_placement(&mut self) -> Result<()> {
        if self.plan.waits_to_be_placed() || self.waits {
            self.take_what_is_handed()?;
        }
        // The maps of an ordinary user's namespace are written by now, and from his own processes nothing is to be hidden before.
        if self.plan.namespaces.has_company() {
            hidden::hide()?;
        }
        let keeps_groups = self.plan.process.as_ref().is_some_and(|process| process.identity.keeps_groups);
        if self.plan.namespaces.user != User::Inherit {
            become_root(keeps_groups)?;
        }
        match self.plan.namespaces.makes_ipc_later() {
            true => unshare(CloneFlags::CLONE_NEWIPC).or_cannot("make", "an ipc namespace"),
            false => Ok(()),
        }
    }

    /// Everything up to Placed.
    fn take_what_is_handed(&mut self) -> Result<()> {
        loop {
            match self.channel.receive()? {
                Some((Message::Placed, _)) => return Ok(()),
                Some((Message::Root, Some(directory))) => self.handed.root = Some(directory),
                Some((Message::Source(index), Some(tree))) => {
                    self.handed.sources.insert(index as usize, tree);
                }
                Some(_) => return Err(unexpected()),
                None => exit_now(1),
            }
        }
    }

    /// Files are made with umask 0 and the modes they are to have. The session is the container's own, so that no signal
    /// of the caller's terminal reaches it and it can have a terminal of its own.
    fn session(&mut self) -> Result<()> {
        self.umask = umask(Mode::empty());
        setsid().map(drop).or_cannot("begin", "a session")
    }

    fn oom_score(&mut self) -> Result<()> {
        if self.is_scored { Ok(()) } else { oom_score("self", self.plan.process.as_ref()) }
    }

    fn keyring(&mut self) -> Result<()> {
        join_keyring(self.plan.keyring.as_deref(), self.plan.process.as_ref())
    }

    fn cgroup_namespace(&mut self) -> Result<()> {
        match self.cgroup_namespace.take() {
            Some(joined) => setns(joined, CloneFlags::CLONE_NEWCGROUP).or_cannot("join", "the cgroup namespace"),
            None if self.plan.namespaces.makes(Kind::Cgroup) => {
                unshare(CloneFlags::CLONE_NEWCGROUP).or_cannot("make", "a cgroup namespace")
            }
            None => Ok(()),
        }
    }

    /// Offsets can be written only while nobody is in the namespace: it is made for children first, and entered by path.
    fn time_namespace(&mut self) -> Result<()> {
        if !self.plan.namespaces.makes(Kind::Time) {
            return Ok(());
        }
        let time = CloneFlags::from_bits_retain(CLONE_NEWTIME);
        unshare(time).or_cannot("make", "a time namespace")?;
        if !self.plan.namespaces.time_offsets.is_empty() {
            let text = self.plan.namespaces.time_offsets.join("\n");
            std::fs::write("/proc/self/timens_offsets", text).or_cannot("write", "/proc/self/timens_offsets")?;
        }
        let children =
            std::fs::File::open("/proc/self/ns/time_for_children").or_cannot("open", "the time namespace")?;
        setns(children, time).or_cannot("enter", "the time namespace")
    }

    fn names(&mut self) -> Result<()> {
        if !self.plan.hostname.is_empty() {
            sethostname(&self.plan.hostname).or_cannot("set host name", &self.plan.hostname)?;
        }
        if !self.plan.domainname.is_empty() {
            setdomainname(self.plan.domainname.as_bytes()).or_cannot("set domain name", &self.plan.domainname)?;
        }
        Ok(())
    }

    fn loopback(&mut self) -> Result<()> {
        if self.plan.loopback { crate::network::loopback_up() } else { Ok(()) }
    }

    fn sysctl(&mut self) -> Result<()> {
        sysctl::apply(&self.plan.sysctl)
    }

    fn label(&mut self) -> Result<()> {
        self.procfs = label_procfs(self.plan.process.as_ref())?;
        Ok(())
    }

    fn mount_namespace(&mut self) -> Result<()> {
        match &self.mount_namespace {
            Some(namespace) => setns(namespace, CloneFlags::CLONE_NEWNS).or_cannot("join", "the mount namespace"),
            None => Ok(()),
        }
    }

    fn root_filesystem(&mut self) -> Result<()> {
        let rootfs = &self.plan.rootfs;
        let root = match &rootfs.base {
            Base::Directory(path) => match rootfs.mounted_in {
                MountedIn::Own => pivot::attach(rootfs, path, self.handed.root.take())?,
                MountedIn::Host => on_host::attach(path)?,
                MountedIn::Nowhere => Root::open(path)?,
            },
            Base::CopyOnWrite { lower, stage } => {
                pivot::isolate(rootfs)?;
                let mut warnings = Vec::new();
                let userxattr = self.plan.namespaces.user != User::Inherit;
                let root = overlay::build(lower, stage, userxattr, None, &mut warnings)?;
                warnings.into_iter().try_for_each(|text| self.channel.send(&Message::Warning(text), None))?;
                root
            }
            Base::Layers(stack) => {
                pivot::isolate(rootfs)?;
                layers::mount(stack)?
            }
        };
        self.root = Some(root);
        Ok(())
    }

    fn devices(&mut self) -> Result<()> {
        if self.plan.rootfs.own_dev { devices::make(self.root()?, &self.plan.rootfs.devices) } else { Ok(()) }
    }

    fn terminal(&mut self) -> Result<()> {
        let Some(process) = self.plan.process.as_ref().filter(|process| process.terminal) else { return Ok(()) };
        let slave = terminal::open(self.root()?, process.console_size, self.foreground, &self.channel)?;
        if self.plan.rootfs.own_dev {
            terminal::bind_console(self.root()?, &slave)?;
        }
        self.terminal = Some(slave);
        Ok(())
    }

    fn make_working_directory(&mut self) -> Result<()> {
        let mounts_any = self.plan.rootfs.mounted_in != MountedIn::Nowhere;
        let (Some(process), true) = (&self.plan.process, mounts_any) else { return Ok(()) };
        match self.root()?.make_dirs(&process.command.cwd, 0o755, Links::Follow) {
            // A root that cannot be written, or a file in the way: entering it says so.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn hooks(&mut self) -> Result<()> {
        let hooks = &self.plan.hooks;
        if self.plan.stops_for_hooks() {
            self.channel.send(&Message::HooksDue, None)?;
            match self.channel.receive()? {
                Some((Message::HooksDone, _)) => (),
                Some(_) => return Err(unexpected()),
                None => exit_now(1),
            }
        }
        // Hooks have come to name the container's files from here.
        fchdir(self.root()?.dir()).or_cannot("enter", "the root filesystem")?;
        if !hooks.create_container.is_empty() {
            umask(self.umask);
            self.run_hooks("createContainer", &hooks.create_container, Status::Creating)?;
            umask(Mode::empty());
        }
        Ok(())
    }

    /// Hooks in here are told of this process as they see it themselves.
    fn run_hooks(&self, name: &str, hooks: &[Hook], status: Status) -> Result<()> {
        if hooks.is_empty() {
            return Ok(());
        }
        let state = State { status, pid: getpid().as_raw(), ..self.state.clone() };
        hooks::run(name, hooks, &state, self.streams)
    }

    fn mask(&mut self) -> Result<()> {
        protect::mask(self.root()?, &self.plan.rootfs.masked)
    }

    fn write_protect(&mut self) -> Result<()> {
        protect::finish_read_only(self.root()?, &self.plan.rootfs.read_only_last)?;
        protect::write_protect(self.root()?, &self.plan.rootfs.readonly)
    }

    fn pivot(&mut self) -> Result<()> {
        pivot::enter(self.root()?, &self.plan.rootfs)
    }

    fn streams(&mut self) -> Result<()> {
        let Some(slave) = self.terminal.take() else { return Ok(()) };
        terminal::attach(&slave)?;
        own_terminal(&slave, self.plan.process.as_ref())
    }

    fn working_directory(&mut self) -> Result<()> {
        match &self.plan.process {
            Some(process) => self.begins.enter(&process.command),
            None => Ok(()),
        }
    }

    fn find_program(&mut self) -> Result<()> {
        match &self.plan.process {
            Some(process) => self.begins.find(&process.command),
            None => Ok(()),
        }
    }
}

/// Hooks that run in the container's place and are given no environment have that of its process, as runc's.
fn in_environment(hooks: &[Hook], process: &ProcessPlan) -> Vec<Hook> {
    let own = |hook: &Hook| match hook.env[..] {
        [] => Hook { env: command::environment(&process.command, process.identity.uid), ..hook.clone() },
        _ => hook.clone(),
    };
    hooks.iter().map(own).collect()
}

fn unexpected() -> Error {
    Error::said("follow", "the handshake", "a message came out of turn")
}

/// Takes the ids of root in the user namespace: what is made from here on belongs to them. Supplementary groups are
/// dropped unless they are to be kept.
///
/// # Errors
/// EINVAL where the maps leave id 0 out.
pub fn become_root(keeps_groups: bool) -> Result<()> {
    if !keeps_groups {
        identity::drop_groups()?;
    }
    let hint = |error: Error| error.hint("the id maps must give the container an id 0");
    let (gid, uid) = (Gid::from_raw(0), Uid::from_raw(0));
    setresgid(gid, gid, gid).or_cannot("become", "group 0 of the user namespace").map_err(hint)?;
    setresuid(uid, uid, uid).or_cannot("become", "user 0 of the user namespace").map_err(hint)
}

/// The private procfs of a process that has a label.
///
/// # Errors
/// It cannot be had.
pub fn label_procfs(process: Option<&ProcessPlan>) -> Result<Option<OwnedFd>> {
    process.and_then(|process| process.label.as_ref()).map(|_| lsm::procfs()).transpose()
}

/// Adjusts the OOM score of a process (a pid, or `self`) and of those it will have.
///
/// # Errors
/// EACCES for a lower score without CAP_SYS_RESOURCE.
pub fn oom_score(whose: &str, process: Option<&ProcessPlan>) -> Result<()> {
    let Some(score) = process.and_then(|process| process.oom_score_adj) else { return Ok(()) };
    std::fs::write(format!("/proc/{whose}/oom_score_adj"), score.to_string())
        .or_cannot("set OOM score to", score)
        .map_err(|error| error.hint("lowering it needs CAP_SYS_RESOURCE on the host"))
}

/// Joins the container's session keyring, which has the label of the process, and lets its owner search and link it.
///
/// # Errors
/// EDQUOT at the owner's limit of keys.
pub fn join_keyring(name: Option<&str>, process: Option<&ProcessPlan>) -> Result<()> {
    /// `KEY_POS_SEARCH` and so on of the possessor are given already; this is the owner's `KEY_USR_SEARCH`.
    const OWNER_SEARCH: u32 = 0x0008_0000;
    let Some(name) = name.and_then(|name| std::ffi::CString::new(name).ok()) else { return Ok(()) };
    if let Some(label) = process.and_then(|process| process.label.as_ref()) {
        label.label_keys()?;
    }
    let serial = match keyring::join_session(&name) {
        // A kernel without keyrings, or a filter around ferry that hides them, has none to share either.
        Err(Errno::ENOSYS | Errno::EPERM) => return Ok(()),
        answer => answer
            .or_cannot("join", "a session keyring")
            .map_err(|error| error.hint("leave the keyring alone with --no-new-keyring"))?,
    };
    let permissions = keyring::permissions(serial).or_cannot("look at", "the session keyring")?;
    keyring::set_permissions(serial, permissions | OWNER_SEARCH).or_cannot("share", "the session keyring")
}

/// The terminal belongs to the user that runs on it.
///
/// # Errors
/// The kernel's answer.
pub fn own_terminal(slave: &OwnedFd, process: Option<&ProcessPlan>) -> Result<()> {
    match process.map(|process| process.identity.uid) {
        Some(uid) if uid != 0 => {
            fchown(slave.as_fd(), Some(Uid::from_raw(uid)), None).or_cannot("give away", "the terminal")
        }
        _ => Ok(()),
    }
}
