//! Calls that change something: each is a worker's.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use prost::Message;

use super::{Code, Container, End, Failure, Job, Key, Process, Reply, Service, Stage, Then, Unread, invalid, task};
use crate::checkpoint::dump::{Choice, DumpChoice};
use crate::checkpoint::progress::Silent;
use crate::checkpoint::restore::RestoreChoice;
use crate::container::{Id, Store};
use crate::error::{Context, Error, Result};
use crate::lifecycle::delete::Which;
use crate::lifecycle::{self, Setting};
use crate::shim::console::Console;
use crate::shim::logger::{Logger, Pipes};
use crate::shim::messages::{CheckpointOptions, Options};
use crate::shim::stdio::Streams;
use crate::shim::{mounts, settings, work};

/// How long a client may take to read what a process wrote, and whoever it has left to end. Others have it so, too.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long before that it may take to make room for what a terminal or a pipe still holds.
const COPYING: Duration = Duration::from_secs(10);

/// What a call answers later, or at once.
type Later = Result<Option<Vec<u8>>, Failure>;

impl Service {
    fn begin(&mut self, reply: Reply, key: Key, work: Result<work::Work>, then: Then) -> Later {
        let work = work?;
        if let Ok(process) = self.process(&key) {
            process.busy = true;
        }
        self.jobs.push(Job { work, key, reply, then, abandoned: false });
        Ok(None)
    }

    /// Kills the worker that makes a process or starts it, if there is one: what it has said or left is looked at when it is
    /// waited for.
    pub(super) fn abandon(&mut self, key: &Key) -> bool {
        let begins = |job: &&mut Job| matches!(job.then, Then::Created { .. } | Then::Started { .. });
        let Some(job) = self.jobs.iter_mut().filter(begins).find(|job| job.key == *key) else { return false };
        job.abandoned = true;
        // A child that was not waited for: the number is still its own.
        kill(job.work.pid, Signal::SIGKILL).is_ok()
    }

    /// The same for all execs of a container that is over.
    pub(super) fn abandon_execs(&mut self, id: &str) {
        let beginning = self.jobs.iter().filter(|job| job.key.0 == id && !job.key.1.is_empty());
        for key in beginning.map(|job| job.key.clone()).collect::<Vec<_>>() {
            self.abandon(&key);
        }
    }

    /// The process, if nobody is at it.
    fn idle(&mut self, key: &Key) -> Result<&mut Process, Failure> {
        let process = self.process(key)?;
        if process.busy { Err(Failure::state("another call is at it")) } else { Ok(process) }
    }

    pub(super) fn create(&mut self, reply: Reply, asked: task::CreateTask) -> Later {
        if self.containers.contains_key(&asked.id) {
            return Err(Failure::new(Code::AlreadyExists, format!("container {} is there", asked.id)));
        }
        let options = settings::read(asked.options.as_ref())?;
        let bundle = PathBuf::from(&asked.bundle);
        let root = settings::root(&options, &self.namespace);
        settings::keep_root(&bundle, &root)?;
        let streams = Streams {
            stdin: asked.stdin.clone(),
            stdout: asked.stdout.clone(),
            stderr: asked.stderr.clone(),
            terminal: asked.terminal,
        };
        streams.check()?;
        let setting = settings::setting(&options, root, &bundle);
        let checkpoint = Some(PathBuf::from(&asked.checkpoint)).filter(|path| !path.as_os_str().is_empty());
        let key = (asked.id.clone(), String::new());
        let mut first = Process::new(streams.clone(), Vec::new());
        let restored = checkpoint.is_some();
        let prepared = if restored { Prepared::default() } else { Prepared::new(&mut first, &bundle, "init")? };
        let logger = Logger::of(&asked.stdout, &asked.id, &self.namespace);
        let processes = BTreeMap::from([(String::new(), first)]);
        let create = creation(&asked.id, &bundle, &options, prepared.console.as_ref());
        let mounted = asked.rootfs.clone();
        let work = work::begin(&prepared.kept(), || {
            mounts::make(&mounted, &bundle)?;
            // A restore comes with Start.
            let created = if restored {
                Ok(0)
            } else {
                prepared.arrange(&streams, logger.as_ref()).and_then(|()| create_now(&setting, &create))
            };
            created.map_err(|error| error.and_then(mounts::undo(&bundle)))
        });
        let container = Container { bundle, setting, processes, memory: None, paused: false, checkpoint, options };
        self.containers.insert(asked.id.clone(), container);
        let begun =
            self.begin(reply, key, work, Then::Created { request: Box::new(asked.clone()), console: prepared.console });
        if begun.is_err() {
            self.containers.remove(&asked.id);
        }
        begun
    }

    pub(super) fn start(&mut self, reply: Reply, which: task::Which) -> Later {
        let key = (which.id, which.exec_id);
        let stage = self.idle(&key)?.stage;
        match (stage, key.1.is_empty()) {
            (Stage::Created, true) => {
                let container = self.container(&key.0)?;
                let (setting, id) = (container.setting.clone(), key.0.clone());
                let work = work::begin(&[], move || lifecycle::start::start(&setting, &id).map(|()| 0));
                self.begin(reply, key, work, Then::Started { console: None })
            }
            (Stage::Added, true) => self.restore(reply, key),
            (Stage::Added, false) => match self.process(&(key.0.clone(), String::new()))?.stage {
                Stage::Created | Stage::Running => self.start_exec(reply, key),
                Stage::Added | Stage::Ending | Stage::Stopped => {
                    Err(Failure::state(format!("container {} does not run", key.0)))
                }
            },
            _ => Err(Failure::state(format!("process {} of container {} was started before", key.1, key.0))),
        }
    }

    fn start_exec(&mut self, reply: Reply, key: Key) -> Later {
        let container = self.container(&key.0)?;
        let (setting, bundle) = (container.setting.clone(), container.bundle.clone());
        let namespace = self.namespace.clone();
        let process = self.process(&key)?;
        let logger = Logger::of(&process.streams.stdout, &key.1, &namespace);
        let prepared = Prepared::new(process, &bundle, &key.1)?;
        let (spec, streams) = (memory_file(&process.spec)?, process.streams.clone());
        let options = lifecycle::exec::Options {
            id: key.0.clone(),
            process: Some(format!("/proc/self/fd/{}", spec.as_raw_fd()).into()),
            detach: true,
            pid_file: Some(bundle.join(format!("{}.pid", key.1))),
            console_socket: prepared.console.as_ref().map(|console| console.path.clone()),
            ..lifecycle::exec::Options::default()
        };
        let kept: Vec<_> = prepared.kept().into_iter().chain([spec.as_fd()]).collect();
        let work = work::begin(&kept, || {
            prepared.arrange(&streams, logger.as_ref())?;
            lifecycle::exec::exec(&setting, &options)?;
            options.pid_file.as_deref().map_or(Ok(0), taken)
        });
        self.begin(reply, key, work, Then::Started { console: prepared.console })
    }

    fn restore(&mut self, reply: Reply, key: Key) -> Later {
        let container = self.container(&key.0)?;
        let (setting, bundle) = (container.setting.clone(), container.bundle.clone());
        let (images, asked) = (container.checkpoint.clone().unwrap_or_default(), container.options.clone());
        let work_path = Some(asked.criu_work_path.as_str()).filter(|path| !path.is_empty());
        let work_path = work_path.map_or_else(|| bundle.join("work"), PathBuf::from);
        let namespace = self.namespace.clone();
        let process = self.process(&key)?;
        let logger = Logger::of(&process.streams.stdout, &key.0, &namespace);
        let prepared = Prepared::new(process, &bundle, "init")?;
        let streams = process.streams.clone();
        let options = lifecycle::restore::Options {
            create: creation(&key.0, &bundle, &asked, prepared.console.as_ref()),
            detach: true,
            no_subreaper: true,
            choice: RestoreChoice {
                choice: Choice { images, work: Some(work_path), verbose: setting.log.debugs(), ..Choice::default() },
                ..RestoreChoice::default()
            },
            brought_by: None,
        };
        let work = work::begin(&prepared.kept(), || {
            prepared.arrange(&streams, logger.as_ref())?;
            lifecycle::restore::restore(&setting, &options, &Silent)?;
            first_pid(&setting, &options.create.id)
        });
        self.begin(reply, key, work, Then::Started { console: prepared.console })
    }

    pub(super) fn delete(&mut self, reply: Reply, key: Key) -> Later {
        if self.process(&key)?.busy && self.abandon(&key) {
            self.deletions.push((reply, key));
            return Ok(None);
        }
        let process = self.idle(&key)?;
        if matches!(process.stage, Stage::Running | Stage::Ending) {
            return Err(Failure::state(format!("cannot delete a process that runs: {}", process.pid)));
        }
        if process.stage == Stage::Stopped && !(process.is_copied(false) && process.is_read()) {
            let now = Instant::now();
            // Engines give up soon on the deletion of a container.
            let copied = if key.1.is_empty() { now } else { now + COPYING };
            self.unread.push(Unread { key, reply, ends: now + PATIENCE, copied, until: now + PATIENCE });
            return Ok(None);
        }
        self.take_down(reply, key)
    }

    /// Deletes a process that does not run, and a container with its first.
    fn take_down(&mut self, reply: Reply, key: Key) -> Later {
        if !key.1.is_empty() {
            return self.forget(&key).map(Some);
        }
        let process = self.idle(&key)?;
        let stage = process.stage;
        // One that was created only is taken down with its process.
        let force = stage != Stage::Stopped;
        if force {
            process.end.get_or_insert(End { status: 137, at: std::time::SystemTime::now() });
        }
        let container = self.container(&key.0)?;
        let (setting, bundle, id) = (container.setting.clone(), container.bundle.clone(), key.0.clone());
        let absent = stage == Stage::Added;
        let work = work::begin(&[], move || {
            // Whoever could not be started has no record, and whoever ended with a checkpoint has none any more.
            if Store::new(&setting.root).has(&Id::new(&id)?) {
                let which = if force || absent { Which::Any } else { Which::Created };
                lifecycle::delete::delete(&setting, &id, which)?;
            }
            mounts::undo(&bundle).map(|()| 0)
        });
        self.begin(reply, key, work, Then::Deleted)
    }

    /// An exec is gone without a trace: its process is, already.
    fn forget(&mut self, key: &Key) -> Result<Vec<u8>, Failure> {
        let process = self.process(key)?;
        let (exit_status, exited_at) = process.told();
        let deleted = task::Deleted { pid: process.number(), exit_status, exited_at };
        self.container(&key.0)?.processes.remove(&key.1);
        Ok(deleted.encode_to_vec())
    }

    /// Deletes processes whose output was read meanwhile. A fifo tells nobody when it is: it is to be asked again as long as
    /// this answers true.
    pub fn drain(&mut self) -> bool {
        let now = Instant::now();
        for mut waiting in std::mem::take(&mut self.unread) {
            // One that another call has deleted is not waited for.
            let copied = self.process(&waiting.key).map_or(true, |process| process.is_copied(waiting.ends <= now));
            if !copied && now < waiting.copied {
                waiting.until = now + PATIENCE;
            }
            let read = copied && self.process(&waiting.key).map_or(true, |process| process.is_read());
            if read || waiting.until <= now {
                let answered = self.take_down(waiting.reply, waiting.key);
                self.answer(waiting.reply, answered);
            } else {
                self.unread.push(waiting);
            }
        }
        !self.unread.is_empty()
    }

    pub(super) fn pause(&mut self, reply: Reply, id: String) -> Later {
        let setting = self.container(&id)?.setting.clone();
        let name = id.clone();
        let work = work::begin(&[], move || lifecycle::pause::pause(&setting, &name).map(|()| 0));
        self.begin_unmarked(reply, id, work, Then::Paused)
    }

    pub(super) fn resume(&mut self, reply: Reply, id: String) -> Later {
        let setting = self.container(&id)?.setting.clone();
        let name = id.clone();
        let work = work::begin(&[], move || lifecycle::resume::resume(&setting, &name).map(|()| 0));
        self.begin_unmarked(reply, id, work, Then::Resumed)
    }

    pub(super) fn update(&mut self, reply: Reply, asked: task::Update) -> Later {
        let setting = self.container(&asked.id)?.setting.clone();
        let value = asked.resources.map(|any| any.value).unwrap_or_default();
        let resources: crate::spec::resources::Resources =
            serde_json::from_slice(&value).map_err(|why| invalid(format!("cannot read the resources: {why}")))?;
        let name = asked.id.clone();
        let work = work::begin(&[], move || lifecycle::update::update(&setting, &name, &resources).map(|()| 0));
        self.begin_unmarked(reply, asked.id, work, Then::Updated)
    }

    pub(super) fn checkpoint(&mut self, reply: Reply, asked: task::Checkpoint) -> Later {
        let container = self.container(&asked.id)?;
        let (setting, bundle) = (container.setting.clone(), container.bundle.clone());
        let options = asked
            .options
            .map_or_else(|| Ok(CheckpointOptions::default()), |any| CheckpointOptions::decode(&*any.value))?;
        // For runc's shim alone containerd puts the place that a client asks for into the call; for others one of its own.
        let images = if options.image_path.is_empty() { asked.path } else { options.image_path };
        if images.is_empty() {
            return Err(invalid("a checkpoint without a place for it"));
        }
        let work_path =
            if options.work_path.is_empty() { bundle.join("work") } else { PathBuf::from(&options.work_path) };
        let choice = DumpChoice {
            choice: Choice {
                images: PathBuf::from(&images),
                work: Some(work_path),
                verbose: setting.log.debugs(),
                tcp_established: options.open_tcp,
                ext_unix_sk: options.external_unix_sockets,
                shell_job: options.terminal,
                file_locks: options.file_locks,
                ..Choice::default()
            },
            leave_running: !options.exit,
            ..DumpChoice::default()
        };
        let name = asked.id.clone();
        let work =
            work::begin(&[], move || lifecycle::checkpoint::checkpoint(&setting, &name, &choice, &Silent).map(|()| 0));
        self.begin_unmarked(reply, asked.id, work, Then::Checkpointed(images))
    }

    /// For deeds beside which the process may end, and its end be told.
    fn begin_unmarked(&mut self, reply: Reply, id: String, work: Result<work::Work>, then: Then) -> Later {
        self.jobs.push(Job { work: work?, key: (id, String::new()), reply, then, abandoned: false });
        Ok(None)
    }
}

/// What a process needs before it is made: the end of its input, or a socket that its terminal comes by, the ends of outputs that
/// are copied, and pipes to what logs it.
#[derive(Default)]
struct Prepared {
    input: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    console: Option<Console>,
    log: Option<Pipes>,
}

impl Prepared {
    fn new(process: &mut Process, bundle: &Path, name: &str) -> Result<Self> {
        let (input, outputs, log) = (process.prepare()?, process.prepare_outputs()?, process.prepare_log()?);
        let console =
            if process.streams.terminal { Some(Console::listen(bundle, format!("{name}.console"))?) } else { None };
        Ok(Self { input, outputs, console, log })
    }

    /// What a worker needs of it.
    fn kept(&self) -> Vec<BorrowedFd<'_>> {
        let ends = self.input.iter().chain(self.outputs.iter().flatten());
        ends.map(AsFd::as_fd).chain(self.log.iter().flat_map(Pipes::all)).collect()
    }

    /// For a worker: starts what logs the process, and arranges its streams.
    fn arrange(&self, streams: &Streams, logger: Option<&Logger>) -> Result<()> {
        if let (Some(pipes), Some(logger)) = (&self.log, logger) {
            logger.start(pipes)?;
        }
        let pipes = match &self.log {
            Some(log) => log.write.each_ref().map(|end| Some(end.as_fd())),
            None => self.outputs.each_ref().map(|end| end.as_ref().map(AsFd::as_fd)),
        };
        streams.arrange(self.input.as_ref().map(AsFd::as_fd), pipes)
    }
}

fn creation(id: &str, bundle: &Path, asked: &Options, console: Option<&Console>) -> lifecycle::create::Options {
    lifecycle::create::Options {
        id: id.to_owned(),
        bundle: bundle.to_owned(),
        console_socket: console.map(|console| console.path.clone()),
        no_pivot: asked.no_pivot_root,
        no_new_keyring: asked.no_new_keyring,
        // As other shims do: there are tools that look for it.
        pid_file: Some(bundle.join("init.pid")),
        ..lifecycle::create::Options::default()
    }
}

fn create_now(setting: &Setting, create: &lifecycle::create::Options) -> Result<i32> {
    lifecycle::create::create(setting, create)?;
    create.pid_file.as_deref().map_or(Ok(0), number)
}

fn first_pid(setting: &Setting, id: &str) -> Result<i32> {
    lifecycle::state::state(setting, id).map(|state| state.pid)
}

fn number(path: &Path) -> Result<i32> {
    let text = std::fs::read_to_string(path).or_cannot("read", path.display())?;
    text.trim().parse().map_err(|_| Error::said("read", path.display().to_string(), "it is no process id"))
}

/// The number in a file that is of no use any more.
pub(super) fn taken(path: &Path) -> Result<i32> {
    let number = number(path)?;
    std::fs::remove_file(path).or_cannot("remove", path.display())?;
    Ok(number)
}

/// A file without a name.
fn memory_file(content: &[u8]) -> Result<std::fs::File> {
    let fd =
        rustix::fs::memfd_create("process", rustix::fs::MemfdFlags::CLOEXEC).or_cannot("make", "a file in memory")?;
    let mut file = std::fs::File::from(fd);
    file.write_all(content).or_cannot("write", "a file in memory")?;
    Ok(file)
}
