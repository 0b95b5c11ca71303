//! One process that a shim answers for: a container's first, or one that was executed in it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use super::console::Console;
use super::logger::Pipes;
use super::messages::task;
use super::service::Reply;
use super::stdio::{self, Pump, Streams};
use crate::error::{Context, Result};
use crate::sys::fd::unread;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is to be: of an exec, and of a container that is restored, before Start.
    Added,
    /// It waits for Start.
    Created,
    /// Its program runs.
    Running,
    /// It has ended, which is told after the ends of those that were executed beside it.
    Ending,
    /// It has ended, or could not be started.
    Stopped,
}

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// As a shell has it: 128 and the signal, where it was one.
    pub status: u32,
    /// When it was heard of.
    pub at: SystemTime,
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// As the host counts; 0 before there is one.
    pub pid: i32,
    /// How far it is.
    pub stage: Stage,
    /// A worker is at it.
    pub busy: bool,
    /// As its client has named them.
    pub streams: Streams,
    /// Of one that was executed: what it is, as JSON.
    pub spec: Vec<u8>,
    /// Set when it is known.
    pub end: Option<End>,
    /// Whom its end is told to.
    pub waiting: Vec<Reply>,
    /// Its terminal.
    pub master: Option<OwnedFd>,
    /// On its way to the process.
    pub input: Option<Pump>,
    /// On their way from the terminal, or from pipes.
    pub outputs: Vec<Pump>,
    keepers: Vec<OwnedFd>,
    greetings: Vec<OwnedFd>,
    /// Of one with a terminal: where its log program reads what that says.
    log: Option<OwnedFd>,
    /// Pipes from which outputs will be copied, and where to.
    pipes: Vec<(OwnedFd, String)>,
}

impl Process {
    /// One that is to be.
    pub fn new(streams: Streams, spec: Vec<u8>) -> Self {
        Self {
            pid: 0,
            stage: Stage::Added,
            busy: false,
            streams,
            spec,
            end: None,
            waiting: Vec::new(),
            master: None,
            input: None,
            outputs: Vec::new(),
            keepers: Vec::new(),
            greetings: Vec::new(),
            log: None,
            pipes: Vec::new(),
        }
    }

    /// Has clients open their ends of the outputs while the process is not there yet.
    pub fn greet(&mut self) {
        self.greetings = self.streams.greet();
    }

    /// Prepares its input; answers the end that the process gets, where it has input and no terminal.
    ///
    /// # Errors
    /// The fifo is not there.
    pub fn prepare(&mut self) -> Result<Option<OwnedFd>> {
        if self.streams.terminal {
            return Ok(None);
        }
        let Some(fifo) = self.streams.input()? else { return Ok(None) };
        let (theirs, ours) = stdio::pipe()?;
        self.input = Some(Pump::new(fifo, ours));
        Ok(Some(theirs))
    }

    /// Prepares the pipes to its log program, where it has one.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn prepare_log(&mut self) -> Result<Option<Pipes>> {
        if !self.streams.is_logged() {
            return Ok(None);
        }
        let pipes = Pipes::new()?;
        if self.streams.terminal {
            let ours = pipes.write[0].try_clone().or_cannot("copy", "a pipe")?;
            stdio::do_not_block(&ours)?;
            self.log = Some(ours);
        }
        Ok(Some(pipes))
    }

    /// Prepares the outputs that are copied from pipes; answers the process' ends of those.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn prepare_outputs(&mut self) -> Result<[Option<OwnedFd>; 2]> {
        self.pipes.clear();
        let [stdout, stderr] = self.streams.copied(!self.spec.is_empty());
        let mut pipe = |address: &str| -> Result<OwnedFd> {
            let (theirs, ours) = stdio::output_pipe()?;
            self.pipes.push((ours, address.to_owned()));
            Ok(theirs)
        };
        let first = stdout.map(&mut pipe).transpose()?;
        let second = match &first {
            // What goes to one place stays in its order.
            Some(first) if stderr == stdout => Some(first.try_clone().or_cannot("copy", "a pipe")?),
            _ => stderr.map(pipe).transpose()?,
        };
        Ok([first, second])
    }

    /// It is there, this far: its terminal is taken, and its streams are held.
    ///
    /// # Errors
    /// The terminal has not come; a fifo has gone. It is there all the same.
    pub fn made(&mut self, pid: i32, stage: Stage, console: Option<Console>) -> Result<()> {
        (self.pid, self.stage) = (pid, stage);
        // From here on the process itself has the outputs open, or the terminal's pump.
        let _greetings = std::mem::take(&mut self.greetings);
        self.keepers = self.streams.keepers();
        for (pipe, address) in std::mem::take(&mut self.pipes) {
            self.outputs.push(Pump::new(pipe, stdio::destination(&address)?));
        }
        let Some(console) = console else { return Ok(()) };
        let master = console.take()?;
        stdio::do_not_block(&master)?;
        // Who is left without streams is killed before its terminal goes: by that it might end in another way, or not at all.
        let master = self.master.insert(master);
        let copy = || master.as_fd().try_clone_to_owned().or_cannot("copy", "the terminal");
        if let Some(log) = self.log.take() {
            self.outputs.push(Pump::new(copy()?, log));
        } else if !self.streams.stdout.is_empty() {
            self.outputs.push(Pump::new(copy()?, stdio::destination(&self.streams.stdout)?));
        }
        if let Some(fifo) = self.streams.input()? {
            self.input = Some(Pump::new(fifo, copy()?));
        }
        Ok(())
    }

    /// It has ended, or will not be. What it has said is copied as far as there is room, and what is left later.
    pub fn ended(&mut self, end: End) {
        // The terminal was its session's: whoever else has it open can say nothing any more. To a pipe others may.
        self.is_copied(self.streams.terminal);
        self.stage = Stage::Stopped;
        self.end = Some(end);
        self.greetings.clear();
        self.pipes.clear();
        self.log = None;
        self.input = None;
        self.master = None;
    }

    /// Moves what can be moved of what it says.
    pub fn copy(&mut self) {
        self.outputs.retain_mut(Pump::step);
    }

    /// Whether all that it has said is on its way to clients, and what those say who have its outputs open, too; from the
    /// `last` time on they are not waited for.
    pub fn is_copied(&mut self, last: bool) -> bool {
        if last {
            self.outputs.iter_mut().for_each(Pump::end);
        }
        self.copy();
        self.outputs.is_empty()
    }

    /// Whether clients have read what it wrote, or nobody can. Of a container it is not asked: its clients keep their ends.
    pub fn is_read(&self) -> bool {
        self.spec.is_empty() || self.keepers.iter().all(|fifo| unread(fifo.as_fd()).is_ok_and(|bytes| bytes == 0))
    }

    /// Whether its end is not known yet.
    pub fn has_no_end(&self) -> bool {
        !matches!(self.stage, Stage::Ending | Stage::Stopped)
    }

    /// Its end, to whoever waits for it.
    pub fn exit(&self) -> task::Exit {
        let (status, at) = self.told();
        task::Exit { exit_status: status, exited_at: at }
    }

    /// Exit status and time; a process that has not ended has neither.
    pub fn told(&self) -> (u32, Option<super::messages::Timestamp>) {
        self.end.map_or((0, None), |end| (end.status, Some(end.at.into())))
    }

    /// Its number on the wire.
    pub fn number(&self) -> u32 {
        self.pid.unsigned_abs()
    }
}
