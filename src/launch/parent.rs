//! The host side of a launch: the clone, and what is done beside the child while it prepares itself.
//!
//! The child is on the critical path, so the parent clones as early as it can and does the rest at the same time: the
//! record, the limits, the device program. All of it is in force before the child is let go.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::birth::clone_into;
use super::execute;
use super::foreground::Attended;
use super::init::{self, Init};
use super::plan::Plan;
use super::protocol::{Channel, Message};
use super::{descriptor, enter, gate, hooks, sources};
use crate::cgroup::location::Place;
use crate::cgroup::{Cgroup, resctrl};
use crate::container::record::{Init as InitProcess, Record};
use crate::container::status::{State, Status};
use crate::container::store::Entry;
use crate::error::{Context, Error, Result};
use crate::host::{self, Host};
use crate::log::{Log, Milestone};
use crate::namespaces::{Join, Kind, User, id_map};
use crate::network;
use crate::process::command::Beginning;
use crate::process::{hidden, identity, limits, scheduling};
use crate::sys::clone::{Cloned, Parent, exit_now};
use crate::sys::fd;

/// A child that was cloned and not yet let go. Dropping it does not end it: [`Child::kill`] does.
#[derive(Debug)]
pub struct Child {
    /// As the host counts.
    pub pid: Pid,
    /// Its descriptor.
    pub pidfd: OwnedFd,
    /// The parent's end of the handshake.
    pub channel: Channel,
    /// The pty's master, once it was sent and if nobody else takes it.
    pub console: Option<OwnedFd>,
    /// Interfaces of the host that it was given, until it executes its program.
    pub moved: Option<network::devices::Moved>,
}

/// Who takes part in a launch.
pub struct Launch<'a> {
    /// What is done.
    pub plan: &'a Plan,
    /// What this user may do.
    pub host: &'a Host,
    /// The container's directory.
    pub entry: &'a Entry,
    /// Where warnings go.
    pub log: &'a Log,
    /// Whether the child waits at a gate (`create`) or executes at once (`run`).
    pub gated: bool,
    /// Who gets the pty's master; nobody: the caller.
    pub console_socket: Option<&'a Path>,
    /// Where hooks write.
    pub streams: &'a hooks::Streams,
}

/// How far a child has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// It waits to be let go, or at the gate.
    Ready,
    /// Its stream has ended: it executed the program, or it is dead.
    End,
}

impl Launch<'_> {
    /// Clones the child and brings everything around it into force; `record` is saved with its pid, and `config`, the text of
    /// its configuration, beside it. The child is not let go yet. What was made when this fails is the caller's to undo, by
    /// the record.
    ///
    /// # Errors
    /// The deed that failed, here or in the child.
    pub fn clone(&self, config: &[u8], record: &mut Record, cgroup: &mut Option<Cgroup>) -> Result<Child> {
        if let Some(process) = &self.plan.process {
            limits::raise_own(&process.limits)?;
        }
        self.plan.say(self.log);
        let (channel, theirs) = Channel::pair()?;
        let gate = if self.gated { Some(gate::make(self.entry)?) } else { None };
        let init = Init {
            plan: self.plan,
            channel: theirs,
            gate,
            mount_namespace: self.open_joined(Kind::Mount)?,
            cgroup_namespace: self.open_joined(Kind::Cgroup)?,
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.path.clone()),
            state: state_of(record, self.plan, Status::Creating),
            streams: self.streams,
            handed: init::Handed::default(),
            let_go: false,
            procfs: None,
            is_scored: self.scores(),
            foreground: self.console_socket.is_none(),
            umask: Mode::empty(),
            waits: false,
            root: None,
            terminal: None,
            begins: Beginning::default(),
        };
        let (mut child, waits) = self.born(channel, init, cgroup.as_ref())?;
        self.log.milestone(Milestone::Cloned, child.pid);
        let unlocked = cgroup.as_ref().map_or(Ok(()), Cgroup::unlock);
        match unlocked.and_then(|()| self.beside(config, record, &mut child, cgroup, waits)) {
            Ok(()) => {
                self.log.milestone(Milestone::Prepares, child.pid);
                Ok(child)
            }
            Err(error) => Err(child.failed(error)),
        }
    }

    /// Whether the child's OOM score is adjusted from here.
    fn scores(&self) -> bool {
        let has_score = self.plan.process.as_ref().is_some_and(|process| process.oom_score_adj.is_some());
        let makes = matches!(self.plan.namespaces.user, User::Make { .. });
        has_score && makes && self.host.privileged && !host::in_user_namespace()
    }

    /// A namespace that the child joins itself.
    fn open_joined(&self, kind: Kind) -> Result<Option<OwnedFd>> {
        self.plan.namespaces.join.iter().find(|join| join.kind == kind).map(enter::open).transpose()
    }

    /// The clone itself. Namespaces that are joined are joined by ferry first, for the child to inherit, and left again:
    /// hooks run in ferry's own. Where there is no way back, a process between the two joins them: a user namespace cannot
    /// be left, and from inside of one, as with an engine of an ordinary user, the host's namespaces cannot be entered.
    fn born(&self, channel: Channel, init: Init<'_>, cgroup: Option<&Cgroup>) -> Result<(Child, bool)> {
        let joins = &self.plan.namespaces.join;
        if let User::Join(path) = &self.plan.namespaces.user {
            return self.born_between(channel, init, cgroup, Some(path));
        }
        if joins.iter().any(|join| !enter::is_the_childs(join)) && host::in_user_namespace() {
            return self.born_between(channel, init, cgroup, None);
        }
        let way_back = enter::beside(joins)?;
        // The container's processes see it from its first moment, and over a user namespace that root makes any other root has all
        // rights. An ordinary user's has its maps to be written first.
        if self.host.privileged && self.plan.namespaces.has_company() {
            hidden::hide()?;
        }
        let (cloned, moved) = clone_into(self.plan.namespaces.clone_flags(), cgroup, Parent::Caller)?;
        match cloned {
            Cloned::Child => {
                // The parent's end: the stream would otherwise not end with the parent. And its lock: whoever deletes what a
                // parent that was killed has left is not to wait for a child that is busy.
                drop(channel);
                fd::close_in_child(self.entry.dir());
                init::main(Init { waits: moved, ..init })
            }
            Cloned::Parent { pid, pidfd } => {
                drop(init);
                enter::leave(way_back)?;
                Ok((Child { pid, pidfd, channel, console: None, moved: None }, moved))
            }
        }
    }

    fn born_between(
        &self,
        channel: Channel,
        init: Init<'_>,
        cgroup: Option<&Cgroup>,
        user: Option<&Path>,
    ) -> Result<(Child, bool)> {
        let user = user.map(|path| Ok((path, enter::open(&Join { kind: Kind::User, path: path.to_owned() })?)));
        let user = user.transpose()?;
        match clone_into(0, None, Parent::Caller)?.0 {
            Cloned::Child => {
                drop(channel);
                fd::close_in_child(self.entry.dir());
                let joins = &self.plan.namespaces.join;
                // While /proc/self can be written: the one that is born here inherits it.
                let scored = if init.is_scored { Ok(()) } else { init::oom_score("self", self.plan.process.as_ref()) };
                let entered = scored.and_then(|()| hidden::hide()).and_then(|()| match &user {
                    Some((path, namespace)) => {
                        self.give_up_groups().and_then(|()| enter::around(namespace, path, joins))
                    }
                    None => enter::beside(joins).map(drop),
                });
                let born = entered
                    .and_then(|()| clone_into(self.plan.namespaces.clone_flags(), cgroup, Parent::CallersParent));
                let told = match born {
                    // It says nothing before it is placed, so that Born comes first.
                    Ok((Cloned::Child, _)) => init::main(Init { waits: true, is_scored: true, ..init }),
                    Ok((Cloned::Parent { pid, pidfd }, _)) => {
                        init.channel.send(&Message::Born(pid.as_raw()), Some(pidfd.as_fd()))
                    }
                    Err(error) => init.channel.send(&Message::Failed(error), None),
                };
                exit_now(i32::from(told.is_err()))
            }
            Cloned::Parent { pid, .. } => {
                drop(init);
                let answer = channel.receive();
                waitpid(pid, None).or_cannot("wait for", "the process that joins the namespaces")?;
                match answer? {
                    Some((Message::Born(pid), Some(pidfd))) => {
                        Ok((Child { pid: Pid::from_raw(pid), pidfd, channel, console: None, moved: None }, true))
                    }
                    Some((Message::Failed(error), _)) => Err(error),
                    _ => Err(Error::said("join", "the namespaces", "the process that does it has ended")),
                }
            }
        }
    }

    /// See [`identity::drop_groups`].
    fn give_up_groups(&self) -> Result<()> {
        let keeps = self.plan.process.as_ref().is_some_and(|process| process.identity.keeps_groups);
        if keeps { Ok(()) } else { identity::drop_groups() }
    }

    /// What the host side does while the child prepares itself.
    fn beside(
        &self,
        config: &[u8],
        record: &mut Record,
        child: &mut Child,
        cgroup: &mut Option<Cgroup>,
        waits: bool,
    ) -> Result<()> {
        // Before a deadline policy, which needs all CPUs, and that comes after Go.
        scheduling::unbind(child.pid);
        if let User::Make { uids, gids } = &self.plan.namespaces.user {
            id_map::write(self.host, child.pid, uids, gids)?;
        }
        if self.scores() {
            init::oom_score(&child.pid.to_string(), self.plan.process.as_ref())?;
        }
        self.plan.begin_scope(child.pid, record, cgroup)?;
        if self.plan.rootfs.is_handed() {
            sources::hand(self.plan, child, self.open_joined(Kind::Mount)?)?;
        }
        let moves = !self.plan.net_devices.is_empty();
        if !moves && (self.plan.waits_to_be_placed() || waits) {
            child.channel.send(&Message::Placed, None)?;
        }
        let stat = crate::procfs::stat(child.pid).or_cannot("look at", "the container's process")?;
        record.init = Some(InitProcess { pid: child.pid.as_raw(), start_time: stat.start_time });
        record.resctrl = self.plan.resctrl.as_ref().map(resctrl::locate).transpose()?;
        // Who finds a process in the record finds its configuration, too.
        self.entry.keep_config(config)?;
        self.entry.save(record)?;
        self.plan.limit(child.pid, record, cgroup.as_ref())?;
        if !self.plan.mounts_disks() {
            self.plan.limit_devices(cgroup.as_ref(), self.log)?;
        }
        if moves {
            // Once nothing else of this side can fail; the child waits, as a kernel parameter may name them.
            child.moved = Some(network::devices::move_in(&self.plan.net_devices, &child.network()?)?);
            child.channel.send(&Message::Placed, None)?;
        }
        Ok(())
    }

    /// Serves the child until it is Ready (at a gate) or its stream ends; `cgroup` is its own.
    ///
    /// # Errors
    /// What the child reported, or a hook that failed.
    pub fn serve(&self, child: &mut Child, record: &Record, cgroup: Option<&Cgroup>) -> Result<Reached> {
        loop {
            let Some((message, descriptor)) = child.channel.receive()? else {
                self.log.milestone(Milestone::StreamEnds, child.pid);
                return Ok(Reached::End);
            };
            match (message, descriptor) {
                (Message::Ready, _) => return Ok(Reached::Ready),
                (Message::Warning(text), _) => self.log.warning(text),
                (Message::Map(index), Some(tree)) => {
                    sources::map(self.plan, child, index, tree.as_fd())?;
                    child.channel.send(&Message::Mapped, None)?;
                }
                (Message::HooksDue, _) => {
                    if self.plan.mounts_disks() {
                        // Before any hook: what they start in the container is under it.
                        self.plan.limit_devices(cgroup, self.log)?;
                    }
                    let state = state_of(record, self.plan, Status::Creating);
                    hooks::run("prestart", &self.plan.hooks.prestart, &state, self.streams)?;
                    hooks::run("createRuntime", &self.plan.hooks.create_runtime, &state, self.streams)?;
                    // Engines connect a container by these hooks, so its interfaces are there only now.
                    if let Some(bandwidth) = &self.plan.bandwidth {
                        network::bandwidth::limit(bandwidth, &child.network()?)?;
                    }
                    child.channel.send(&Message::HooksDone, None)?;
                    if !self.gated {
                        child.go()?;
                    }
                }
                (Message::Console, Some(master)) => match self.console_socket {
                    Some(path) => descriptor::send(path, b"console", master.as_fd())?,
                    None => child.console = Some(master),
                },
                (Message::Listener, Some(listener)) => {
                    let state = state_of(record, self.plan, Status::Running);
                    self.plan.send_listener(&listener, record, &state)?;
                }
                (message, _) => return Err(self.plan.told(message)),
            }
        }
    }
}

impl Plan {
    /// Whether the child stops for hooks of the host side and for what has to come after them, which it does before it waits
    /// to be let go.
    pub fn stops_for_hooks(&self) -> bool {
        !self.hooks.prestart.is_empty()
            || !self.hooks.create_runtime.is_empty()
            || self.bandwidth.is_some()
            || self.mounts_disks()
    }

    /// Whether the child has to wait, before anything else, until its id maps are written, it is in its scope, it was handed
    /// what it cannot open, or its network interfaces are there, which a kernel parameter may name.
    pub fn waits_to_be_placed(&self) -> bool {
        matches!(self.namespaces.user, User::Make { .. })
            || matches!(self.cgroup.place, Place::Scope(_))
            || self.rootfs.is_handed()
            || !self.net_devices.is_empty()
    }

    /// The error in a message that ends a launch.
    pub fn told(&self, message: Message) -> Error {
        let name = self.process.as_ref().and_then(|process| process.command.args.first()).map_or("", String::as_str);
        match message {
            Message::Failed(error) => error.of_child(),
            Message::NotExecuted(stage, errno) => execute::failure(stage, errno, name),
            other => Error::said("follow", "the handshake", format!("{other:?} came out of turn")),
        }
    }

    /// Passes the seccomp listener to the agent, with the container process state.
    ///
    /// # Errors
    /// The agent cannot be reached.
    pub fn send_listener(&self, listener: &OwnedFd, record: &Record, state: &State) -> Result<()> {
        let filter = self.process.as_ref().and_then(|process| process.seccomp.as_ref());
        let Some(notify) = filter.and_then(|filter| filter.notify.as_ref()) else { return Ok(()) };
        descriptor::tell_agent(notify, record.init.map_or(0, |init| init.pid), state, listener.as_fd())
    }
}

impl Child {
    /// Its network namespace.
    fn network(&self) -> Result<File> {
        let path = format!("/proc/{}/ns/{}", self.pid, Kind::Network.row().file);
        File::open(&path).or_cannot("open", &path)
    }

    /// Lets the child go on to its gate or its program.
    ///
    /// # Errors
    /// It has ended.
    pub fn go(&self) -> Result<()> {
        self.channel.send(&Message::Go, None)
    }

    /// Whether it has not ended.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn is_alive(&self) -> Result<bool> {
        let seen = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(self.pid), seen | WaitPidFlag::__WALL);
        Ok(status.or_cannot("look at", "the container's process")? == WaitStatus::StillAlive)
    }

    /// Ends the child and reaps it.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn kill(&self) -> Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => (),
            // Our own child, and not waited for: its pid is nobody else's.
            Err(rustix::io::Errno::NOSYS) => {
                match nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => (),
                    Err(answer) => return Err(Error::kernel("kill", "the container's process", answer)),
                }
            }
            Err(answer) => return Err(answer).or_cannot("kill", "the container's process"),
        }
        loop {
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                Ok(_) | Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => (),
                Err(answer) => return Err(Error::kernel("wait for", "the container's process", answer)),
            }
        }
    }

    /// Gives the host back what it has given, for one that comes to nothing.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn give_back(&mut self) -> Result<()> {
        self.moved.take().map_or(Ok(()), network::devices::Moved::give_back)
    }

    /// What to say when the host side failed: if the child failed first, its words are the cause. They are there by then;
    /// a child that said nothing may be waiting itself.
    fn failed(mut self, error: Error) -> Error {
        let first = matches!(error.errno(), Some(Errno::EPIPE | Errno::ECONNRESET | Errno::ESRCH | Errno::ENOENT));
        let cause = match first && self.channel.has_message() {
            true => match self.channel.receive() {
                Ok(Some((Message::Failed(told), _))) => told.of_child(),
                _ => error,
            },
            false => error,
        };
        cause.and_then(self.kill()).and_then(self.give_back())
    }

    /// How the child ended: see [`wait_for_end`].
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn wait(&self) -> Result<u8> {
        wait_for_end(self.pid)
    }

    /// Whom to stay for, now that the program runs.
    pub fn attended(&self) -> Attended<'_> {
        Attended { pid: self.pid, pidfd: self.pidfd.as_fd(), console: self.console.as_ref().map(AsFd::as_fd) }
    }
}

/// Waits for a child; answers its exit status, or 128 and the signal that ended it.
///
/// # Errors
/// The kernel's answer.
pub fn wait_for_end(pid: Pid) -> Result<u8> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code).unwrap_or(255)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as u8),
            Ok(_) | Err(Errno::EINTR) => (),
            Err(answer) => return Err(Error::kernel("wait for", "the container's process", answer)),
        }
    }
}

/// The state that hooks and agents get: with the process also where the container is none yet, or is no more.
pub fn state_of(record: &Record, plan: &Plan, status: Status) -> State {
    let pid = record.init.map_or(0, |init| init.pid);
    State { pid, ..State::new(record, status, plan.annotations.clone(), String::new()) }
}
