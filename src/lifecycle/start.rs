//! `start`: opens the gate at which a created container waits, and learns whether its program was executed.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Setting, delete};
use crate::container::store::Entry;
use crate::container::{Id, Record, State, Status, Store, status};
use crate::error::{EXIT_FAILURE, Error, Result};
use crate::launch::notify::Notify;
use crate::launch::protocol::{Channel, Message};
use crate::launch::{descriptor, execute, gate, hooks, plan};
use crate::spec::Config;

/// `start`.
///
/// # Errors
/// The container is not created, or its program could not be executed; it is stopped then.
pub fn start(setting: &Setting, id: &str) -> Result<()> {
    let id = Id::new(id)?;
    let entry = Store::new(&setting.root).open(&id)?;
    entry.lock()?;
    let record =
        entry.record()?.ok_or_else(|| Error::plain(format!("cannot start container {id}: it is not created yet")))?;
    match status::of(&entry, &record)? {
        Status::Created => (),
        Status::Stopped => {
            return Err(Error::plain(format!("cannot start container {id}: it has stopped"))
                .hint("delete it and create it anew"));
        }
        // It could not answer at its gate, and everybody would wait for this.
        Status::Paused => {
            return Err(Error::plain(format!("cannot start container {id}: it is paused")).hint("resume it first"));
        }
        status => return Err(Error::plain(format!("cannot start container {id}: it is {status}, not created"))),
    }
    let config = if record.reads_config { entry.config()? } else { Config::default() };
    if record.reads_config && config.process.is_none() {
        return Err(Error::config("process", "is missing, and there is nothing to start")
            .hint("a container without a process can only be created"));
    }
    // Before the program can speak there.
    let notify = Notify::listen(&entry, &setting.log)?;
    let gate = gate::open(&entry)?;
    // One start is all there is.
    entry.remove_gate()?;
    let state = State::new(&record, Status::Running, config.annotations.clone(), String::new());
    let executed = follow(setting, &gate, &entry, &record, &config, &state)?;
    // A container of which a hook failed, or whose agent does not answer, is not to run: it is taken down whole.
    // runtime.md#lifecycle
    let poststart = || {
        let streams = hooks::Streams::open(&config.hooks, &config.annotations)?;
        hooks::run("poststart", &config.hooks.poststart, &state, &streams)
    };
    let clean_up = || delete::clean_up(setting, &entry, Some(&record));
    executed.and_then(|()| poststart()).map_err(|error| error.and_then(clean_up()))?;
    entry.unlock()?;
    if let (Some(notify), Some(init)) = (notify, record.init)
        && let Some(pid) = Pid::from_raw(init.pid)
        && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
    {
        notify.wait(pidfd.as_fd(), init.pid);
    }
    Ok(())
}

/// Reads what the container's process tells on its way to the program. The inner result is that of the steps before the
/// program; an outer error is about the program itself, and leaves the container stopped.
fn follow(
    setting: &Setting,
    gate: &Channel,
    entry: &Entry,
    record: &Record,
    config: &Config,
    state: &State,
) -> Result<Result<()>> {
    loop {
        match gate.receive()? {
            None => return Ok(Ok(())),
            Some((Message::Warning(text), _)) => setting.log.warning(text),
            Some((Message::Listener, Some(listener))) => {
                if let Err(error) = tell_agent(record, config, state, listener.as_fd()) {
                    return Ok(Err(error));
                }
            }
            Some((Message::Failed(error), _)) => return Ok(Err(error.exit(EXIT_FAILURE))),
            Some((Message::NotExecuted(stage, errno), _)) => {
                let process = entry.config()?.process.unwrap_or_default();
                let name = process.args.first().map_or("", String::as_str);
                return Err(execute::failure(stage, errno, name).exit(EXIT_FAILURE));
            }
            Some((other, _)) => {
                return Err(Error::said("follow", "the handshake", format!("{other:?} came out of turn")));
            }
        }
    }
}

/// Passes the seccomp listener on.
fn tell_agent(record: &Record, config: &Config, state: &State, listener: BorrowedFd<'_>) -> Result<()> {
    let Some(notify) = plan::filter(config)?.and_then(|program| program.notify) else { return Ok(()) };
    descriptor::tell_agent(&notify, record.init.map_or(0, |init| init.pid), state, listener)
}
