//! The Task service: what containerd asks of a container and its processes, and what is answered.
//!
//! A call is answered at once, when a worker is done, or when a process ends. Until then a [`Reply`] is kept for it.

mod deeds;
mod ends;
mod queries;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use prost::Message;

use super::console::Console;
use super::events::Events;
use super::failure::{Code, Failure};
use super::messages::{Empty, Request, task};
use super::process::{End, Process, Stage};
use super::work::Work;
use crate::cgroup::stats::MemoryEvents;
use crate::lifecycle::Setting;

/// Whom an answer goes to: a connection, and a stream of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// By the server's count.
    pub connection: u64,
    /// By the client's.
    pub stream: u32,
}

/// What a call answers: a message.
pub type Answer = Result<Vec<u8>, Failure>;

/// A container's id, and that of an exec or nothing.
pub type Key = (String, String);

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its bundle.
    pub bundle: PathBuf,
    /// What holds for its verbs.
    pub setting: Setting,
    /// Its processes by the id of their exec; the first one's is empty.
    pub processes: BTreeMap<String, Process>,
    /// Where processes that memory ran short for are told of.
    pub memory: Option<MemoryEvents>,
    /// Its processes are held still.
    paused: bool,
    /// The directory of the checkpoint that it is to begin from.
    checkpoint: Option<PathBuf>,
    /// How it is to be created.
    options: super::messages::Options,
}

/// A worker, and what is to be done when it is done.
#[derive(Debug)]
pub struct Job {
    /// The worker.
    pub work: Work,
    /// The process that it is about.
    pub key: Key,
    /// Whom it is told to.
    reply: Reply,
    then: Then,
    /// It was killed: what it has begun is for nobody.
    pub abandoned: bool,
}

/// What a worker does.
#[derive(Debug)]
enum Then {
    Created { request: Box<task::CreateTask>, console: Option<Console> },
    Started { console: Option<Console> },
    Deleted,
    Paused,
    Resumed,
    Updated,
    Checkpointed(String),
}

/// All containers of one shim.
#[derive(Debug)]
pub struct Service {
    namespace: String,
    /// Containers by their ids.
    pub containers: BTreeMap<String, Container>,
    /// Workers that have not told yet how it went.
    pub jobs: Vec<Job>,
    /// What is to be answered.
    pub answers: Vec<(Reply, Answer)>,
    /// What is to be told.
    pub events: Events,
    /// Ends of processes that are nobody's as yet: a worker may be about to tell whose.
    unclaimed: BTreeMap<i32, End>,
    /// Processes whose deletion goes on when whoever makes them is dead.
    deletions: Vec<(Reply, Key)>,
    /// Processes that have ended and are to be deleted, but what they wrote is not read.
    unread: Vec<Unread>,
    /// It is to end when nothing is left to be done.
    leaving: bool,
    /// Nothing is left to be done.
    pub over: bool,
}

/// A process whose deletion waits for its client to read what it wrote: some clients give up their ends when it is deleted.
#[derive(Debug)]
struct Unread {
    key: Key,
    reply: Reply,
    /// From then on processes that it has left, and that have its outputs open, are waited for no longer.
    ends: Instant,
    /// From then on room for output is waited for no longer.
    copied: Instant,
    /// From then on it is waited for no longer: there may be no client.
    until: Instant,
}

impl Service {
    /// Without containers.
    pub fn new(namespace: String, events: Events) -> Self {
        Self {
            namespace,
            containers: BTreeMap::new(),
            jobs: Vec::new(),
            answers: Vec::new(),
            events,
            unclaimed: BTreeMap::new(),
            deletions: Vec::new(),
            unread: Vec::new(),
            leaving: false,
            over: false,
        }
    }

    /// Takes a call.
    pub fn call(&mut self, reply: Reply, request: &Request) {
        let answered = match request.service.as_str() {
            // Whatever came of it would have nobody who answers for it.
            _ if self.over => Err(Failure::new(Code::Unavailable, "the shim is ending")),
            "containerd.task.v2.Task" | "containerd.task.v3.Task" => {
                self.dispatch(reply, &request.method, &request.payload)
            }
            other => Err(Failure::new(Code::Unimplemented, format!("unknown service {other}"))),
        };
        self.answer(reply, answered);
    }

    fn answer(&mut self, reply: Reply, answered: Result<Option<Vec<u8>>, Failure>) {
        match answered {
            Ok(None) => (),
            Ok(Some(answer)) => self.answers.push((reply, Ok(answer))),
            Err(failure) => self.answers.push((reply, Err(failure))),
        }
    }

    /// The answer to a call; `None`: it comes later.
    fn dispatch(&mut self, reply: Reply, method: &str, payload: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
        match method {
            "Create" => self.create(reply, task::CreateTask::decode(payload)?),
            "Start" => self.start(reply, task::Which::decode(payload)?),
            "Delete" => {
                let which = task::Which::decode(payload)?;
                self.delete(reply, (which.id, which.exec_id))
            }
            "Exec" => self.exec(task::Exec::decode(payload)?).map(Some),
            "Wait" => self.wait(reply, task::Which::decode(payload)?),
            "Kill" => self.kill(&task::Kill::decode(payload)?).map(Some),
            "State" => self.state(task::Which::decode(payload)?).map(Some),
            "Pids" => self.pids(&task::Which::decode(payload)?.id).map(Some),
            "Stats" => self.stats(&task::Which::decode(payload)?.id).map(Some),
            "Connect" => self.connect(&task::Which::decode(payload)?.id).map(Some),
            "Pause" => self.pause(reply, task::Which::decode(payload)?.id),
            "Resume" => self.resume(reply, task::Which::decode(payload)?.id),
            "Update" => self.update(reply, task::Update::decode(payload)?),
            "Checkpoint" => self.checkpoint(reply, task::Checkpoint::decode(payload)?),
            "CloseIO" => self.close_io(task::CloseIo::decode(payload)?).map(Some),
            "ResizePty" => self.resize(task::ResizePty::decode(payload)?).map(Some),
            "Shutdown" => Ok(Some(self.shutdown(&task::Shutdown::decode(payload)?))),
            other => Err(Failure::new(Code::Unimplemented, format!("unknown method {other}"))),
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.get_mut(id).ok_or_else(|| Failure::not_found(format!("container {id}")))
    }

    fn process(&mut self, (id, exec): &Key) -> Result<&mut Process, Failure> {
        let what =
            if exec.is_empty() { format!("container {id}") } else { format!("process {exec} of container {id}") };
        self.container(id)?.processes.get_mut(exec).ok_or_else(|| Failure::not_found(what))
    }

    fn wait(&mut self, reply: Reply, which: task::Which) -> Result<Option<Vec<u8>>, Failure> {
        let process = self.process(&(which.id, which.exec_id))?;
        if process.stage == Stage::Stopped {
            return Ok(Some(process.exit().encode_to_vec()));
        }
        process.waiting.push(reply);
        Ok(None)
    }

    fn kill(&mut self, asked: &task::Kill) -> Answer {
        let key = (asked.id.clone(), asked.exec_id.clone());
        let process = self.process(&key)?;
        let signal = i32::try_from(asked.signal).unwrap_or(i32::MAX);
        let (stage, pid) = (process.stage, process.pid);
        match stage {
            Stage::Stopped if !asked.all || !asked.exec_id.is_empty() => {
                return Err(Failure::not_found("the process, which has ended"));
            }
            Stage::Added => {
                // It may wait for a reader of its output, who need not come.
                let ends = [libc::SIGKILL, libc::SIGTERM].contains(&signal) && !asked.exec_id.is_empty();
                let abandoned = ends && self.abandon(&key);
                return if abandoned { Ok(empty()) } else { Err(Failure::state("the process is not started")) };
            }
            _ => (),
        }
        if asked.exec_id.is_empty() {
            crate::lifecycle::kill::kill(&self.container(&asked.id)?.setting, &asked.id, signal, asked.all)?;
        } else {
            // A child of this process that it has not waited for: the number is still its own.
            send(pid, signal).map_err(|errno| match errno {
                Errno::EINVAL => invalid(format!("there is no signal {signal}")),
                errno => Failure::not_found(format!("process {pid}: {errno}")),
            })?;
        }
        Ok(empty())
    }

    fn exec(&mut self, asked: task::Exec) -> Answer {
        let key = (asked.id.clone(), asked.exec_id.clone());
        let streams = super::stdio::Streams {
            stdin: asked.stdin,
            stdout: asked.stdout,
            stderr: asked.stderr,
            terminal: asked.terminal,
        };
        streams.check()?;
        let container = self.container(&key.0)?;
        // It is part of files' names in the bundle.
        if key.1.contains('/') {
            return Err(invalid(format!("an id with a slash: {}", key.1)));
        }
        if key.1.is_empty() || container.processes.contains_key(&key.1) {
            return Err(Failure::new(
                Code::AlreadyExists,
                format!("process {} of container {} is there", key.1, key.0),
            ));
        }
        let spec = asked.spec.ok_or_else(|| invalid("an exec without a process"))?.value;
        let mut spec: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&spec).map_err(|why| invalid(format!("cannot read the process: {why}")))?;
        spec.insert("terminal".to_owned(), asked.terminal.into());
        let mut process = Process::new(streams, serde_json::Value::Object(spec).to_string().into_bytes());
        process.greet();
        container.processes.insert(key.1.clone(), process);
        let event = super::messages::events::TaskExecAdded { container_id: key.0, exec_id: key.1 };
        self.events.tell("exec-added", "TaskExecAdded", &event);
        Ok(empty())
    }

    fn close_io(&mut self, asked: task::CloseIo) -> Answer {
        let process = self.process(&(asked.id, asked.exec_id))?;
        // A terminal has no end of its input but the one that is typed.
        if asked.stdin
            && process.master.is_none()
            && let Some(input) = &mut process.input
        {
            input.end();
            if !input.step() {
                process.input = None;
            }
        }
        Ok(empty())
    }

    fn resize(&mut self, asked: task::ResizePty) -> Answer {
        let process = self.process(&(asked.id, asked.exec_id))?;
        let size = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        if let Some(master) = &process.master {
            crate::sys::terminal::resize(master.as_fd(), size(asked.height), size(asked.width))
                .map_err(|errno| crate::error::Error::kernel("resize", "the terminal", errno))?;
        }
        Ok(empty())
    }

    /// Moves what can be moved of a process' input, and takes the pump away when it is done.
    pub fn pump_input(&mut self, key: &Key) {
        let Ok(process) = self.process(key) else { return };
        if process.input.as_mut().is_some_and(|pump| !pump.step()) {
            process.input = None;
        }
    }

    /// The same of its outputs.
    pub fn pump_outputs(&mut self, key: &Key) {
        if let Ok(process) = self.process(key) {
            process.copy();
        }
    }

    /// It is asked for once, also where the container's last call is not done yet. Other containers of a pod ask for themselves.
    fn shutdown(&mut self, asked: &task::Shutdown) -> Vec<u8> {
        self.leaving |= self.containers.is_empty() || self.containers.contains_key(&asked.id);
        self.over |= asked.now;
        self.leave();
        empty()
    }

    fn leave(&mut self) {
        self.over |= self.leaving && self.containers.is_empty() && self.jobs.is_empty();
    }
}

/// A signal by its number, to which there is a name for some alone.
fn send(pid: i32, signal: i32) -> Result<(), Errno> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(Errno::ESRCH)?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    let pidfd = pidfd.map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    crate::sys::signal::pidfd_send(pidfd.as_fd(), signal)
}

fn empty() -> Vec<u8> {
    Empty {}.encode_to_vec()
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidArgument, message)
}
