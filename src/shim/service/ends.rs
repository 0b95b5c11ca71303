//! Ends: of workers, which have made something or have not, and of containers' processes.

use std::time::SystemTime;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use prost::Message;
use rustix::process::{WaitOptions, wait};

use super::{Console, Container, End, Failure, Job, Key, Process, Service, Stage, Then, empty, task};
use crate::cgroup::stats::MemoryEvents;
use crate::error::{Error, Result};
use crate::shim::messages::events::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecStarted, TaskExit, TaskIo, TaskNamed, TaskStart,
};
use crate::shim::work;
use crate::spec::Config;

impl Service {
    /// Waits for whichever children have ended.
    pub fn reap(&mut self) {
        loop {
            let (pid, status) = match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => (pid.as_raw_nonzero().get(), status),
                Err(rustix::io::Errno::INTR) => continue,
                // None has, or there is none.
                Ok(None) | Err(_) => break,
            };
            let status = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal));
            if let Some(status) = status.map(i32::unsigned_abs) {
                self.reaped(pid, End { status, at: SystemTime::now() });
            }
        }
    }

    /// A child was waited for: from here on its number may be another's.
    fn reaped(&mut self, pid: i32, end: End) {
        if let Some(at) = self.jobs.iter().position(|job| job.work.pid.as_raw() == pid) {
            // What it said lies in the socket; one that said nothing has died.
            let job = self.jobs.swap_remove(at);
            let mut result = job.work.result().unwrap_or_else(|| Err(work::died()));
            if job.abandoned {
                self.bury(&job.key, result.as_ref().ok());
                result = result.map_err(|_| Error::plain("it was killed before it ran"));
            }
            self.done(job, result);
        } else if let Some(key) = self.owner(pid) {
            self.ended(&key, end);
        } else if !self.jobs.is_empty() {
            self.unclaimed.insert(pid, end);
        }
    }

    /// Kills the process of an exec whose worker was killed: told of, or only named in a file, as it is before it is let go. The
    /// file may also be that of an earlier one.
    fn bury(&self, (id, exec): &Key, told: Option<&i32>) {
        let Some(container) = self.containers.get(id).filter(|_| !exec.is_empty()) else { return };
        let named = || super::deeds::taken(&container.bundle.join(format!("{exec}.pid"))).ok();
        let Some(pid) = told.copied().or_else(named) else { return };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if self.owner(pid).is_none() && waitid(Id::Pid(Pid::from_raw(pid)), flags).is_ok() {
            // A child of this process that it has not waited for. It may have ended meanwhile.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }

    /// The process of that number whose end is not known, and which no worker is at.
    fn owner(&self, pid: i32) -> Option<Key> {
        self.containers.iter().find_map(|(id, container)| {
            let alive = |process: &Process| process.pid == pid && !process.busy && process.has_no_end();
            let (exec, _) = container.processes.iter().find(|(_, process)| alive(process))?;
            Some((id.clone(), exec.clone()))
        })
    }

    /// A worker tells how it went.
    pub fn heard(&mut self, at: usize) {
        if let Some(result) = self.jobs[at].work.result() {
            let job = self.jobs.swap_remove(at);
            self.done(job, result);
        }
    }

    /// Gives a process that a worker was at its end, where that came before the worker's word.
    fn claim(&mut self, key: &Key) {
        let idle = self.process(key).ok().filter(|process| !process.busy && process.has_no_end());
        if let Some(pid) = idle.map(|process| process.pid)
            && let Some(end) = self.unclaimed.remove(&pid)
            // Numbers come round: where there is a process of this one, the end is that of an earlier.
            && kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
        {
            self.ended(key, end);
        }
        // Orphans of containers, which a subreaper gets as well, and workers that had told already.
        if self.jobs.is_empty() {
            self.unclaimed.clear();
        }
    }

    fn ended(&mut self, key: &Key, end: End) {
        if !key.1.is_empty() {
            self.tell_end(key, end);
        } else if let Ok(first) = self.process(key) {
            (first.stage, first.end) = (Stage::Ending, Some(end));
            self.abandon_execs(&key.0);
            self.end_the_rest(&key.0);
        }
        self.end_last(&key.0);
    }

    /// Tells the end of a container's first process, if it is known, as the last: whoever hears of it takes the container down.
    fn end_last(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let runs = |(exec, process): (&String, &Process)| {
            !exec.is_empty() && (process.busy || process.stage == Stage::Running)
        };
        if let Some(Process { stage: Stage::Ending, end: Some(end), .. }) = container.processes.get("")
            && !container.processes.iter().any(runs)
        {
            self.tell_end(&(id.to_owned(), String::new()), *end);
        }
    }

    fn tell_end(&mut self, key: &Key, end: End) {
        let (id, exec) = key;
        let Ok(process) = self.process(key) else { return };
        process.ended(end);
        let (exit, waiting) = (process.exit(), std::mem::take(&mut process.waiting));
        let pid = process.number();
        self.answers.extend(waiting.into_iter().map(|reply| (reply, Ok(exit.encode_to_vec()))));
        self.out_of_memory(id);
        if exec.is_empty()
            && let Some(container) = self.containers.get_mut(id)
        {
            // systemd removes a scope by itself, and of a file that is gone poll(2) tells without an end.
            container.memory = None;
        }
        let event = TaskExit {
            container_id: id.clone(),
            id: if exec.is_empty() { id.clone() } else { exec.clone() },
            pid,
            exit_status: end.status,
            exited_at: exit.exited_at,
        };
        self.events.tell("exit", "TaskExit", &event);
    }

    /// Without a pid namespace of its own, a container's processes do not end with the first.
    fn end_the_rest(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else { return };
        let config = container.config(id).unwrap_or_default();
        let own = |namespace: &crate::spec::config::Namespace| {
            namespace.kind == "pid" && namespace.path.as_os_str().is_empty()
        };
        if config.linux.namespaces.iter().any(own) {
            return;
        }
        if let Err(error) = crate::lifecycle::kill::kill(&container.setting, id, libc::SIGKILL, true) {
            container.setting.log.warning(error);
        }
        // Their ends are waited for: also where there is no cgroup by which to find them.
        for process in container.processes.values().filter(|process| process.stage == Stage::Running) {
            kill(Pid::from_raw(process.pid), Signal::SIGKILL).ok();
        }
    }

    /// Tells of processes that memory ran short for.
    pub fn out_of_memory(&mut self, id: &str) {
        let memory = self.containers.get_mut(id).and_then(|container| container.memory.as_mut());
        if memory.is_some_and(|memory| memory.new_kills().is_ok_and(|kills| kills > 0)) {
            self.events.tell("oom", "TaskOOM", &TaskNamed { container_id: id.to_owned() });
        }
    }

    fn done(&mut self, job: Job, result: Result<i32>) {
        let Job { key, reply, then, .. } = job;
        if let Ok(process) = self.process(&key) {
            process.busy = false;
        }
        let answer = match (then, result) {
            (Then::Created { request, console }, result) => match result.map_err(Failure::from) {
                Ok(pid) => {
                    // One that is restored comes with Start.
                    let stage = if pid == 0 { Stage::Added } else { Stage::Created };
                    self.made(&key, pid, stage, console).map(|()| self.created(*request, pid))
                }
                Err(failure) => {
                    // What a killed worker has left is for the deletion.
                    if !self.deletions.iter().any(|(_, deleted)| *deleted == key) {
                        self.containers.remove(&key.0);
                    }
                    Err(failure)
                }
            },
            (Then::Started { console }, Ok(pid)) => self.started(&key, pid, console),
            (Then::Started { .. }, Err(error)) => {
                self.never_ran(&key);
                Err(error.into())
            }
            (_, Err(error)) => Err(error.into()),
            (Then::Deleted, Ok(_)) => Ok(self.deleted(&key)),
            (Then::Paused, Ok(_)) => Ok(self.paused(&key.0, true)),
            (Then::Resumed, Ok(_)) => Ok(self.paused(&key.0, false)),
            (Then::Updated, Ok(_)) => Ok(empty()),
            (Then::Checkpointed(checkpoint), Ok(_)) => {
                let event = TaskCheckpointed { container_id: key.0.clone(), checkpoint };
                self.events.tell("checkpointed", "TaskCheckpointed", &event);
                Ok(empty())
            }
        };
        self.answers.push((reply, answer));
        self.claim(&key);
        self.end_last(&key.0);
        let (due, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.deletions).into_iter().partition(|(_, deleted)| *deleted == key);
        self.deletions = others;
        for (reply, key) in due {
            let answered = self.delete(reply, key);
            self.answer(reply, answered);
        }
        self.leave();
    }

    /// A worker has made a process. Without its streams it is nobody's: it is killed, and its end told as any other's.
    fn made(&mut self, key: &Key, pid: i32, stage: Stage, console: Option<Console>) -> Result<(), Failure> {
        let made = self.process(key)?.made(pid, stage, console);
        // It is the worker's child, or was and is this process': whose end was not heard of has its number still.
        if made.is_err() && pid > 0 && !self.unclaimed.contains_key(&pid) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        Ok(made?)
    }

    fn created(&mut self, request: task::CreateTask, pid: i32) -> Vec<u8> {
        if let Some(container) = self.containers.get_mut(&request.id) {
            container.watch_memory(&request.id);
        }
        let io =
            TaskIo { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
        let event = TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(io),
            checkpoint: request.checkpoint,
            pid: pid.unsigned_abs(),
        };
        self.events.tell("create", "TaskCreate", &event);
        task::Pid { pid: pid.unsigned_abs() }.encode_to_vec()
    }

    fn started(&mut self, key: &Key, pid: i32, console: Option<Console>) -> super::Answer {
        if self.process(key)?.pid == 0 {
            self.made(key, pid, Stage::Running, console)?;
        }
        let process = self.process(key)?;
        process.stage = Stage::Running;
        let pid = process.number();
        let (container_id, exec_id) = key.clone();
        if exec_id.is_empty() {
            self.container(&container_id)?.watch_memory(&container_id);
            self.events.tell("start", "TaskStart", &TaskStart { container_id, pid });
        } else {
            let event = TaskExecStarted { container_id, exec_id, pid };
            self.events.tell("exec-started", "TaskExecStarted", &event);
        }
        Ok(task::Pid { pid }.encode_to_vec())
    }

    /// What could not be started has ended, for those who wait for it. A container's process that is there ends by itself.
    fn never_ran(&mut self, key: &Key) {
        let Ok(process) = self.process(key) else { return };
        if process.pid != 0 {
            return;
        }
        process.ended(End { status: 255, at: SystemTime::now() });
        process.outputs.clear();
        let (exit, waiting) = (process.exit().encode_to_vec(), std::mem::take(&mut process.waiting));
        self.answers.extend(waiting.into_iter().map(|reply| (reply, Ok(exit.clone()))));
    }

    fn paused(&mut self, id: &str, paused: bool) -> Vec<u8> {
        if let Some(container) = self.containers.get_mut(id) {
            container.paused = paused;
        }
        let (topic, name) = if paused { ("paused", "TaskPaused") } else { ("resumed", "TaskResumed") };
        self.events.tell(topic, name, &TaskNamed { container_id: id.to_owned() });
        empty()
    }

    fn deleted(&mut self, key: &Key) -> Vec<u8> {
        self.abandon_execs(&key.0);
        // One that was created only has ended by this.
        if let Some(first) = self.process(key).ok().filter(|first| first.stage != Stage::Stopped && first.pid != 0) {
            let (pid, told) = (first.pid, first.end);
            let end = self.unclaimed.remove(&pid).or(told);
            self.tell_end(key, end.unwrap_or(End { status: 137, at: SystemTime::now() }));
        }
        let container = self.containers.remove(&key.0);
        let first = container.and_then(|mut container| container.processes.remove(""));
        let (exit_status, exited_at) = first.as_ref().map_or((0, None), super::Process::told);
        let pid = first.map_or(0, |first| first.number());
        let event = TaskDelete { container_id: key.0.clone(), pid, exit_status, exited_at, id: String::new() };
        self.events.tell("delete", "TaskDelete", &event);
        task::Deleted { pid, exit_status, exited_at }.encode_to_vec()
    }
}

impl Container {
    fn config(&self, id: &str) -> Result<Config> {
        use crate::container::{Id, Store};
        Store::new(&self.setting.root).open(&Id::new(id)?)?.config()
    }

    /// A host without the controller tells of nothing.
    fn watch_memory(&mut self, id: &str) {
        if self.memory.is_none()
            && let Ok(cgroup) = self.cgroup(id)
        {
            self.memory = MemoryEvents::open(&cgroup).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::events::Events;
    use crate::shim::service::Reply;
    use crate::shim::stdio::Streams;
    use crate::shim::work::Work;

    const REPLY: Reply = Reply { connection: 0, stream: 1 };

    /// A service with one container, the first process of which runs and has a number.
    fn service(pid: i32) -> Service {
        let mut first = Process::new(Streams::default(), Vec::new());
        (first.pid, first.stage) = (pid, Stage::Running);
        let container = Container {
            bundle: "/nowhere".into(),
            setting: crate::lifecycle::Setting { root: "/nowhere".into(), ..Default::default() },
            processes: [(String::new(), first)].into(),
            memory: None,
            paused: false,
            checkpoint: None,
            options: crate::shim::messages::Options::default(),
        };
        let mut service = Service::new("test".into(), Events::new(None, "test"));
        service.containers.insert("box".into(), container);
        service
    }

    fn key() -> Key {
        ("box".into(), String::new())
    }

    fn job(pid: i32) -> (Job, std::os::fd::OwnedFd) {
        let (work, channel) = Work::silent(Pid::from_raw(pid));
        (Job { work, key: key(), reply: REPLY, then: Then::Started { console: None }, abandoned: false }, channel)
    }

    fn end() -> End {
        End { status: 0, at: SystemTime::now() }
    }

    /// A number that no process has: above the highest there can be.
    const GONE: i32 = (1 << 22) + 1;

    #[test]
    fn an_end_is_that_of_the_process_which_had_the_number_then() {
        let own = std::process::id().cast_signed();
        // Of an orphan, while a worker was at it; then its number is that of the process, which lives.
        for (pid, stage) in [(own, Stage::Running), (GONE, Stage::Stopped)] {
            let mut service = service(pid);
            let (job, _channel) = job(GONE + 1);
            service.jobs.push(job);
            service.process(&key()).unwrap().busy = true;
            service.reaped(pid, end());
            service.reaped(GONE + 1, end());
            assert_eq!(service.process(&key()).unwrap().stage, stage, "{pid}");
            assert!(service.unclaimed.is_empty());
        }
        // Known, and at rest: there is nothing to be mistaken about.
        let mut service = service(own);
        service.reaped(own, end());
        assert_eq!(service.process(&key()).unwrap().stage, Stage::Stopped);
    }

    #[test]
    fn a_worker_with_the_number_of_an_earlier_child_is_not_taken_for_dead() {
        let mut service = service(GONE);
        let ((first, _first), (second, _second)) = (job(1 << 21), job(GONE + 2));
        service.jobs.push(first);
        service.reaped(GONE + 2, end());
        service.jobs.push(second);
        service.reaped(GONE + 3, end());
        assert_eq!((service.jobs.len(), service.answers.len()), (2, 0));
        service.reaped(GONE + 2, end());
        assert_eq!((service.jobs.len(), service.answers.len()), (1, 1));
    }
}
