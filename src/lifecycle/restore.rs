//! `restore`: a container anew from a bundle, with processes from images instead of a program that is started.
//!
//! It is planned as `run` plans it, and leaves the same behind: a record, a cgroup with its limits, and in the foreground
//! ferry, until the container ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{PidfdFlags, pidfd_open};

use super::create::{self, Source};
use super::{Setting, delete, run_image};
use crate::cgroup::{self, Cgroup};
use crate::checkpoint::progress::{Event, Progress, Step};
use crate::checkpoint::restore::{Keeper, Moment, Restore, RestoreChoice, made_time_namespace};
use crate::checkpoint::stage::Upper;
use crate::container::record::Init;
use crate::container::store::Entry;
use crate::container::worker::Worker;
use crate::container::{Id, Record, Status, Store};
use crate::error::{Context, EXIT_FAILURE, Error, Result};
use crate::host;
use crate::launch::descriptor;
use crate::launch::foreground::{self, Attended};
use crate::launch::parent::state_of;
use crate::launch::{Plan, hooks, plan};
use crate::namespaces::Kind;
use crate::rootfs::{Base, Layers};
use crate::spec::Document;

/// How to restore.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// What of `create` applies: id, bundle, console socket, pid file, no pivot.
    pub create: create::Options,
    /// Does not wait.
    pub detach: bool,
    /// Does not reap.
    pub no_subreaper: bool,
    /// What CRIU is told.
    pub choice: RestoreChoice,
    /// The migration that brings it.
    pub brought_by: Option<String>,
}

/// `restore`. Answers the container's exit status, or 0 when detached.
///
/// # Errors
/// What could not be restored; nothing is left of it then, but the images.
pub fn restore(setting: &Setting, options: &Options, progress: &dyn Progress) -> Result<u8> {
    let source = create::read(&options.create.bundle, options.create.config.as_deref())?;
    restore_source(setting, options, source, progress, &mut || Ok(()))
}

/// `restore`, with something to be done once the container runs and the images are of no use any more.
///
/// # Errors
/// As [`restore`]; `then` fails, upon which the container is taken down.
pub(super) fn restore_source(
    setting: &Setting,
    options: &Options,
    source: Source,
    progress: &dyn Progress,
    then: &mut dyn FnMut() -> Result<()>,
) -> Result<u8> {
    progress.event(Event::Step(Step::Restore, None));
    let mut held = |moment| {
        if moment == Moment::Held {
            progress.event(Event::Step(Step::Resume, None));
        }
        Ok(())
    };
    let brought = bring_back_then(setting, options, source, (Whose::Ours, &mut held), then);
    brought.map_err(|error| error.exit(EXIT_FAILURE))
}

/// Who says whether what is restored runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This verb: what fails takes the container down again.
    Ours,
    /// Another one, which has let it go on once it was held: from then on nothing that fails here takes it down.
    Theirs,
}

/// As [`restore`]; `held` is told of each [`Moment`], and whether it runs is its to say. What fails once it has said so leaves the
/// container as it is: it may run, and its caller has to find that out.
pub(super) fn bring_back(
    setting: &Setting,
    options: &Options,
    source: Source,
    held: &mut dyn FnMut(Moment) -> Result<()>,
) -> Result<u8> {
    bring_back_then(setting, options, source, (Whose::Theirs, held), &mut || Ok(()))
}

fn bring_back_then(
    setting: &Setting,
    options: &Options,
    source: Source,
    (whose, held): (Whose, &mut dyn FnMut(Moment) -> Result<()>),
    then: &mut dyn FnMut() -> Result<()>,
) -> Result<u8> {
    let terminal = source.config.process.as_ref().is_some_and(|process| process.terminal);
    if options.detach || options.create.console_socket.is_some() {
        create::console(terminal, options.create.console_socket.as_deref())?;
    }
    if !options.detach && !options.no_subreaper {
        nix::sys::prctl::set_child_subreaper(true).map_err(|errno| Error::kernel("become", "subreaper", errno))?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).or_cannot("block", "signals")?;
    let id = Id::new(&options.create.id)?;
    let host = host::probe();
    let plan_options = plan::Options {
        no_pivot: options.create.no_pivot,
        no_new_keyring: options.create.no_new_keyring,
        cgroup_driver: setting.cgroup_manager,
        copy_on_write: create::stage(setting, &id, &source),
        layers: source.image.as_ref().and_then(|image| image.layers(&setting.root.join(id.as_str()))),
        ..plan::Options::default()
    };
    let document = Document::new(&source.path, source.text);
    let plan = plan::plan(&id, &source.config, &source.bundle, &host, &plan_options)
        .map_err(|error| document.locate(error))?;
    plan.warnings.iter().for_each(|warning| setting.log.warning(warning));
    let streams = hooks::Streams::open(&plan.hooks, &plan.annotations)?;
    let mut record = create::record(&plan, &source.config, &options.create, &host);
    record.store = source.image.as_ref().map(|image| image.path.clone());
    record.brought_by.clone_from(&options.brought_by);
    let entry = create::claim(&Store::new(&setting.root), &id, source.again, &mut record)?;
    let mut restoring = Restoring {
        setting,
        options,
        plan: &plan,
        entry: &entry,
        streams,
        record,
        image: source.image,
        upper: source.upper,
        cgroup: None,
        console: None,
        first: None,
        let_go: false,
        held,
    };
    let ended = restoring.steps(&source.config, &document.text).and_then(|(pid, pidfd)| {
        then()?;
        restoring.attend(pid, pidfd.as_fd())
    });
    match ended {
        Err(error) if restoring.let_go && whose == Whose::Theirs => Err(error.and_then(restoring.entry.rest())),
        // A container that nobody attends any more is not to go on in the dark.
        ended => ended.map_err(|error| restoring.undo(error)),
    }
}

/// A container on its way back.
struct Restoring<'a> {
    setting: &'a Setting,
    options: &'a Options,
    plan: &'a Plan,
    entry: &'a Entry,
    /// Where hooks write.
    streams: hooks::Streams,
    record: Record,
    /// The image whose layers are the root.
    image: Option<run_image::Used>,
    /// What its upper layer held.
    upper: Option<Upper>,
    cgroup: Option<Cgroup>,
    /// The terminal's master, where nobody else takes it.
    console: Option<OwnedFd>,
    /// Its first process, once it is there.
    first: Option<Pid>,
    /// Whether it may run by now.
    let_go: bool,
    /// Has the last word.
    held: &'a mut dyn FnMut(Moment) -> Result<()>,
}

impl Restoring<'_> {
    /// Everything up to the container that runs.
    fn steps(&mut self, config: &crate::spec::Config, text: &[u8]) -> Result<(Pid, OwnedFd)> {
        create::prepare(self.entry, self.plan, self.image.as_ref())?;
        // Once its use is noted nothing of the image is removed.
        self.image.take().map_or(Ok(()), |image| image.note(self.entry))?;
        self.entry.keep_config(text)?;
        let stage = match &self.plan.rootfs.base {
            Base::Directory(_) => self.entry.make_stage()?,
            // Made already, and it stays for as long as the container.
            Base::CopyOnWrite { stage, .. } | Base::Layers(Layers { stage, .. }) => stage.clone(),
        };
        self.entry.note_worker(&Worker::restoring(None)?)?;
        self.fill()?;
        self.cgroup = create::make_cgroup(self.plan, self.setting.rootless, crate::cgroup::fs::create)?;
        self.record.cgroup = self.cgroup.as_ref().map(|cgroup| cgroup.path.clone());
        let (plan, choice) = (self.plan, &self.options.choice);
        let restore = Restore::begin(plan, config, choice, &stage, self.upper.as_ref(), self.cgroup.as_ref())?;
        let unlocked = self.cgroup.as_ref().map_or(Ok(()), Cgroup::unlock);
        let noted = unlocked
            .and_then(|()| Worker::restoring(Some(restore.pid())))
            .and_then(|worker| self.entry.note_worker(&worker));
        if let Err(error) = noted.and_then(|()| self.limit(restore.pid())) {
            return Err(error.and_then(restore.give_up()));
        }
        let cgroup = self.record.cgroup.clone();
        let pid = restore.carry_out(cgroup.as_deref(), self)?;
        (self.held)(Moment::Running)?;
        if matches!(plan.rootfs.base, Base::Directory(_)) {
            self.entry.remove_stage()?;
        }
        self.entry.rest()?;
        self.announce(pid)
    }

    /// An upper layer on disk is filled before anything is mounted upon it; one in memory is not there yet.
    fn fill(&self) -> Result<()> {
        match (&self.plan.rootfs.base, &self.upper) {
            (Base::Layers(Layers { upper: Some(directory), lowers, .. }), Some(upper)) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let opened = openat(CWD, directory, flags, Mode::empty()).or_cannot("open", directory.display())?;
                upper.fill(opened, lowers)
            }
            _ => Ok(()),
        }
    }

    /// What limits CRIU, and so everything it restores.
    fn limit(&mut self, criu: Pid) -> Result<()> {
        self.plan.begin_scope(criu, &mut self.record, &mut self.cgroup)?;
        self.record.resctrl = self.plan.resctrl.as_ref().map(cgroup::resctrl::locate).transpose()?;
        self.note(criu)?;
        self.plan.limit(criu, &self.record, self.cgroup.as_ref())?;
        self.plan.limit_devices(self.cgroup.as_ref(), &self.setting.log)
    }

    /// Saves the record with this process as the container's first.
    fn note(&mut self, pid: Pid) -> Result<()> {
        let stat = crate::procfs::stat(pid).or_cannot("look at", "the container's process")?;
        self.record.init = Some(Init { pid: pid.as_raw(), start_time: stat.start_time });
        self.entry.save(&self.record)
    }

    fn announce(&mut self, pid: Pid) -> Result<(Pid, OwnedFd)> {
        let state = state_of(&self.record, self.plan, Status::Running);
        hooks::run("poststart", &self.plan.hooks.poststart, &state, &self.streams)?;
        let number =
            rustix::process::Pid::from_raw(pid.as_raw()).ok_or_else(|| Error::plain("CRIU restored no process"))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty()).or_cannot("find", "the restored process")?;
        if let Some(path) = &self.options.create.pid_file {
            create::write_pid_file(path, pid.as_raw())?;
        }
        Ok((pid, pidfd))
    }

    /// Stays until the container ends, unless it is to be left alone.
    fn attend(&mut self, pid: Pid, pidfd: BorrowedFd<'_>) -> Result<u8> {
        self.entry.unlock()?;
        if self.options.detach {
            return Ok(0);
        }
        let console = self.console.as_ref().map(AsFd::as_fd);
        let code = foreground::attend(&Attended { pid, pidfd, console }, None)?;
        self.first = None;
        // Somebody may have deleted it meanwhile; then there is nothing left to do.
        if self.entry.lock().is_ok() {
            delete::clean_up(self.setting, self.entry, Some(&self.record))?;
        }
        Ok(code)
    }

    /// Undoes everything; the error stays the first one, with what could not be undone beside it.
    fn undo(self, error: Error) -> Error {
        let killed = self.first.map_or(Ok(()), end);
        let error = error.and_then(killed);
        if create::is_gone(self.entry) {
            return error;
        }
        let state = state_of(&self.record, self.plan, Status::Stopped);
        let error = create::undo_resctrl(&self.record, create::undo_cgroup(self.cgroup, error));
        let error = create::undo_entry(self.entry, &self.record, error);
        hooks::run_each("poststop", &self.plan.hooks.poststop, &state, &self.streams, &self.setting.log);
        error
    }
}

/// Ends a restored process, which is a child, and reaps it.
fn end(pid: Pid) -> Result<()> {
    match nix::sys::signal::kill(pid, Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => (),
        Err(answer) => return Err(Error::kernel("kill", "the container's process", answer)),
    }
    match waitpid(pid, None) {
        Ok(_) | Err(nix::errno::Errno::ECHILD) => Ok(()),
        Err(answer) => Err(Error::kernel("wait for", "the container's process", answer)),
    }
}

impl Keeper for Restoring<'_> {
    fn namespaces_made(&mut self, pid: Pid) -> Result<()> {
        self.first = Some(pid);
        self.note(pid)?;
        let state = state_of(&self.record, self.plan, Status::Creating);
        hooks::run("prestart", &self.plan.hooks.prestart, &state, &self.streams)?;
        hooks::run("createRuntime", &self.plan.hooks.create_runtime, &state, &self.streams)
    }

    fn terminal(&mut self, master: OwnedFd) -> Result<()> {
        match &self.options.create.console_socket {
            Some(path) => descriptor::send(path, b"console", master.as_fd()),
            None => {
                self.console = Some(master);
                Ok(())
            }
        }
    }

    fn restored(&mut self, pid: Pid) -> Result<()> {
        if made_time_namespace(pid, &self.plan.namespaces)? {
            self.record.namespaces.push(Kind::Time);
        }
        self.note(pid)?;
        (self.held)(Moment::Held)?;
        self.let_go = true;
        Ok(())
    }

    fn waiting(&mut self) -> Result<()> {
        (self.held)(Moment::Waiting)
    }
}

/// The directory of images, where none is named: runc's.
pub fn default_images() -> Result<PathBuf> {
    let here = std::env::current_dir().or_cannot("find", "the working directory, where the images are")?;
    Ok(here.join("checkpoint"))
}
