//! The child of `exec`: it enters a container's namespaces and executes a program there.
//!
//! Everything of the host that it needs is in its hands before it enters, and it is hidden from then on (see [`hidden`]). It is cloned
//! only after the pid namespace was entered, since that holds for children alone.

use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chroot, fchdir, setsid};

use super::execute::execute;
use super::init::{become_root, join_keyring, label_procfs, oom_score, own_terminal};
use super::plan::ProcessPlan;
use super::protocol::{Channel, Message};
use super::terminal;
use crate::error::{Context, Error, Result};
use crate::namespaces::Kind;
use crate::path::Root;
use crate::process::{command, hidden, identity, scheduling};
use crate::sys::clone::{exit_now, setns};

/// What the child has in its hands.
pub struct Joining<'a> {
    /// What is executed, as whom.
    pub process: &'a ProcessPlan,
    /// The child's end of the handshake.
    pub channel: Channel,
    /// The container's first process.
    pub init: OwnedFd,
    /// The namespaces to enter; the pid namespace was entered before the clone.
    pub namespaces: &'a [Kind],
    /// The container's root, where it has no mount namespace to enter.
    pub root: Option<OwnedFd>,
    /// Whether there is a user namespace, in which to become root first.
    pub user_namespace: bool,
    /// Whether its OOM score is adjusted already.
    pub is_scored: bool,
    /// The session keyring's name.
    pub keyring: Option<String>,
    /// A private procfs, for the process' label.
    pub procfs: Option<OwnedFd>,
    /// Whether it is ferry that carries the terminal.
    pub foreground: bool,
    /// The terminal, once it is open.
    pub terminal: Option<OwnedFd>,
    /// Where the process begins.
    pub begins: command::Beginning,
}

/// A named step.
type Step<'a> = (&'static str, fn(&mut Joining<'a>) -> Result<()>);

impl<'a> Joining<'a> {
    /// The steps of a process that joins.
    pub const STEPS: [Step<'a>; 10] = [
        ("session", Self::session),
        // Born in the container's cgroup, whose cpuset these are judged by.
        ("cpus", Self::cpus),
        // While /proc/self is the host's.
        ("oom score", Self::oom_score),
        ("keyring", Self::keyring),
        // The pid namespace is the container's already, and every right to mount still there.
        ("label", Self::label),
        ("namespaces", Self::enter),
        ("ids", Self::ids),
        ("terminal", Self::terminal),
        ("working directory", Self::working_directory),
        ("program", Self::find_program),
    ];
}

/// Takes all steps and executes the program. Never returns.
pub fn main(mut joining: Joining<'_>) -> ! {
    let steps = Joining::STEPS.iter().try_for_each(|(_, step)| step(&mut joining)).and_then(|()| joining.let_go());
    let failed = match steps {
        Ok(()) => execute(joining.process, &joining.begins, joining.procfs.as_ref(), &joining.channel, None, None)
            .map(|never| match never {}),
        Err(error) => Err(error),
    };
    if let Err(error) = failed
        && joining.channel.send(&Message::Failed(error), None).is_err()
    {
        exit_now(2);
    }
    exit_now(1)
}

impl Joining<'_> {
    /// Waits until the caller has done what it has to do beside.
    fn let_go(&self) -> Result<()> {
        match self.channel.receive()? {
            Some((Message::Go, _)) => Ok(()),
            Some(_) => Err(Error::said("follow", "the handshake", "a message came out of turn")),
            None => exit_now(1),
        }
    }

    fn session(&mut self) -> Result<()> {
        umask(Mode::empty());
        setsid().map(drop).or_cannot("begin", "a session")
    }

    fn cpus(&mut self) -> Result<()> {
        self.process.scheduling.affinity.as_ref().map_or(Ok(()), |affinity| scheduling::bind_to(&affinity.last))
    }

    fn oom_score(&mut self) -> Result<()> {
        if self.is_scored { Ok(()) } else { oom_score("self", Some(self.process)) }
    }

    fn keyring(&mut self) -> Result<()> {
        join_keyring(self.keyring.as_deref(), Some(self.process))
    }

    fn label(&mut self) -> Result<()> {
        self.procfs = label_procfs(Some(self.process))?;
        Ok(())
    }

    fn enter(&mut self) -> Result<()> {
        hidden::hide()?;
        if self.user_namespace && !self.process.identity.keeps_groups {
            identity::drop_groups()?;
        }
        let flags = self
            .namespaces
            .iter()
            .fold(CloneFlags::empty(), |flags, kind| flags | CloneFlags::from_bits_retain(kind.row().flag));
        if !flags.is_empty() {
            setns(self.init.as_fd(), flags.bits()).or_cannot("join", "the container's namespaces")?;
        }
        if let Some(root) = &self.root {
            fchdir(root).or_cannot("enter", "the container's root")?;
            chroot(".").or_cannot("chroot to", "the container's root")?;
        }
        Ok(())
    }

    fn ids(&mut self) -> Result<()> {
        if self.user_namespace { become_root(self.process.identity.keeps_groups) } else { Ok(()) }
    }

    fn terminal(&mut self) -> Result<()> {
        if !self.process.terminal {
            return Ok(());
        }
        let root = Root::open(std::path::Path::new("/"))?;
        let slave = terminal::open(&root, self.process.console_size, self.foreground, &self.channel)?;
        terminal::attach(&slave)?;
        own_terminal(&slave, Some(self.process))?;
        self.terminal = Some(slave);
        Ok(())
    }

    fn working_directory(&mut self) -> Result<()> {
        self.begins.enter(&self.process.command)
    }

    fn find_program(&mut self) -> Result<()> {
        self.begins.find(&self.process.command)
    }
}
