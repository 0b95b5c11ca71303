//! Calls that only look.

use prost::Message;

use super::{Answer, Container, Failure, Service, Stage, task};
use crate::cgroup::{self, Cgroup};
use crate::container::{Id, Record, Store};
use crate::error::{Error, Result};
use crate::lifecycle::ps;
use crate::shim::messages::{Any, ProcessDetails};
use crate::shim::metrics;

/// types/task/task.proto
#[derive(Clone, Copy)]
enum Status {
    Created = 1,
    Running = 2,
    Stopped = 3,
    Paused = 4,
}

impl Service {
    pub(super) fn state(&mut self, which: task::Which) -> Answer {
        let key = (which.id, which.exec_id);
        let (bundle, paused) = {
            let container = self.container(&key.0)?;
            (container.bundle.display().to_string(), container.paused)
        };
        let process = self.process(&key)?;
        let status = match process.stage {
            Stage::Added | Stage::Created => Status::Created,
            Stage::Running if paused => Status::Paused,
            Stage::Running | Stage::Ending => Status::Running,
            Stage::Stopped => Status::Stopped,
        };
        let (exit_status, exited_at) = process.told();
        let streams = process.streams.clone();
        let state = task::State {
            id: key.0,
            bundle,
            pid: process.number(),
            status: status as i32,
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: streams.terminal,
            exit_status,
            exited_at,
            exec_id: key.1,
        };
        Ok(state.encode_to_vec())
    }

    pub(super) fn pids(&mut self, id: &str) -> Answer {
        let container = self.container(id)?;
        let pids = ps::pids(&container.setting, id)?;
        let exec = |pid: i32| {
            let found = container.processes.iter().find(|(exec, process)| process.pid == pid && !exec.is_empty())?;
            let details = ProcessDetails { exec_id: found.0.clone() };
            Some(Any::of("containerd.runc.v1.ProcessDetails", &details))
        };
        let processes = pids.iter().map(|pid| task::ProcessInfo { pid: pid.unsigned_abs(), info: exec(*pid) });
        Ok(task::Pids { processes: processes.collect() }.encode_to_vec())
    }

    pub(super) fn stats(&mut self, id: &str) -> Answer {
        let metrics = metrics::read(&self.container(id)?.cgroup(id)?)?;
        let stats = Some(Any::of("io.containerd.cgroups.v2.Metrics", &metrics));
        Ok(task::Stats { stats }.encode_to_vec())
    }

    pub(super) fn connect(&mut self, id: &str) -> Answer {
        // A daemon that is back asks this first: a shim that it hears nothing of it cannot take down, and it may have made nothing.
        let task_pid = self.process(&(id.to_owned(), String::new())).map_or(0, |first| first.number());
        let connected = task::Connected { shim_pid: std::process::id(), task_pid, version: String::new() };
        Ok(connected.encode_to_vec())
    }
}

impl Container {
    /// Its record, as the library keeps it.
    pub(super) fn record(&self, id: &str) -> Result<Record> {
        let gone = || Error::plain(format!("container {id:?} is not complete"));
        Store::new(&self.setting.root).open(&Id::new(id)?)?.record()?.ok_or_else(gone)
    }

    pub(super) fn cgroup(&self, id: &str) -> Result<Cgroup, Failure> {
        match self.record(id)?.cgroup {
            Some(path) => Ok(cgroup::fs::open(&path)?),
            None => Err(Failure::state(format!("container {id} has no cgroup"))),
        }
    }
}
