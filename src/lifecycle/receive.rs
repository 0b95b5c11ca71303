//! `receive`: the end of a migration that takes the container. What is said is [`crate::migrate::destination`]; here are the
//! machine, the bundle that is there, and the restore.
//!
//! The peer decides what runs in the container, and nothing of what surrounds it: root filesystem, mounts, limits and hooks are
//! those of a bundle that is here already, and its config.json must be the one the container has. Of a container of an image the
//! image is here already, by its digest, and the configuration is held to what `run` makes of it, as that of an archive is.

mod listen;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, dup2_stdin, dup2_stdout};

use super::create::{self, Source};
use super::lent::{self, Lent};
use super::migrate::{host_name, journals, logs};
use super::own_root::{self, Configured};
use super::pause::PATIENCE;
use super::{Setting, content, delete, live, outlive, restore};
use crate::cgroup::{self, life};
use crate::checkpoint::criu;
use crate::checkpoint::dump::Choice;
use crate::checkpoint::lazy::Daemon;
use crate::checkpoint::restore::{Moment, RestoreChoice};
use crate::checkpoint::root::{self, Image, Origin};
use crate::checkpoint::rpc::Feature;
use crate::checkpoint::stage::Upper;
use crate::checkpoint::streams::Streams;
use crate::container::worker::Worker;
use crate::container::{Id, Status, Store};
use crate::error::{Context, Error, Result};
use crate::host;
use crate::image::store::Guard;
use crate::launch::plan;
use crate::migrate::destination::{self, Served};
use crate::migrate::host::{Host, Lazily};
use crate::migrate::journal::{self, Entry, Journals};
use crate::migrate::link::Link;
use crate::migrate::message::{Blob, Choices, PROTOCOL, Place, Request};
use crate::migrate::ownership::State;
use crate::migrate::pump::Pump;
use crate::migrate::reserve;
use crate::rootfs::Base;
use crate::security::jail;
use crate::spec::Document;
use crate::sys::clone::{Cloned, Parent, clone_either_way, exit_now};
use crate::sys::fd::{self, close_from};

/// Why memory cannot come later.
const NO_USERFAULTFD: &str = "memory cannot come after the container has gone on: CRIU or the kernel has no userfaultfd that serves other processes";

/// How to receive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The address to listen at; `None`: standard input and output are the link.
    pub listen: Option<String>,
    /// The directory of certificates, where TLS is spoken at that address; absolute.
    pub tls: Option<PathBuf>,
    /// Ends after one.
    pub once: bool,
    /// Where files are that take the place of standard streams; absolute.
    pub output: Option<PathBuf>,
    /// How long the far end may be silent.
    pub patience: Duration,
}

/// Receives. `told` gets a line for a person now and then. Answers whether the last container has come: why not, the source
/// knows, and says it where a person is.
///
/// # Errors
/// Why none came, where the source does not know; that it cannot listen.
pub fn receive(setting: &Setting, options: &Options, told: &mut dyn FnMut(&str) -> Result<()>) -> Result<bool> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).or_cannot("block", "signals")?;
    let mut machine = Machine::new(setting, options.output.clone())?;
    let Some(address) = &options.listen else {
        let (input, output) = take_streams()?;
        let mut link = Link::new(input, output, options.patience)?;
        let served = destination::serve(&mut link, &journals(setting)?, &mut machine);
        drop(link);
        machine.rest()?;
        let served = served?;
        return Ok(matches!(served, Served::Taken(_) | Served::Nothing));
    };
    listen::listen(&mut machine, address, options, told)
}

/// Standard input and output as the link's own: what is restored must not get hold of them.
fn take_streams() -> Result<(OwnedFd, OwnedFd)> {
    let (input, output) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let copy = |stream, name| fd::copy_above(stream, 3).or_cannot("take", name);
    let ends = (copy(input, "standard input")?, copy(output, "standard output")?);
    let null = lent::null()?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).or_cannot("leave", "the standard streams")?;
    Ok(ends)
}

/// This machine.
pub(super) struct Machine<'a> {
    setting: &'a Setting,
    journals: Journals,
    output: PathBuf,
    /// CRIU and its version, once they were looked for. A container stands still while it is restored: what can be known
    /// before is.
    criu: Option<(PathBuf, u32)>,
    /// What puts memory in its place that comes later, while it does.
    daemon: Option<Daemon>,
    /// Whether the container that it is for may run.
    let_go: bool,
    /// What brings that memory.
    pump: Option<Pid>,
    /// Keeps an image here that has come along and is not used yet.
    content: Option<Guard>,
}

impl<'a> Machine<'a> {
    /// `output`: where files are that take the place of standard streams.
    ///
    /// # Errors
    /// There is no place for what must be kept.
    pub fn new(setting: &'a Setting, output: Option<PathBuf>) -> Result<Self> {
        let journals = journals(setting)?;
        let output = output.unwrap_or_else(|| journals.path().with_file_name("output"));
        Ok(Self { setting, journals, output, criu: None, daemon: None, let_go: false, pump: None, content: None })
    }

    /// A link has come to its end: so does what was at work for it alone.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn rest(&mut self) -> Result<()> {
        self.content = None;
        // Who may wait for it is not to go on without his memory: it stays, until that one is removed.
        let daemon = self.daemon.take().filter(|_| !self.let_go);
        let ended = daemon.map_or(Ok(()), Daemon::end);
        self.let_go = false;
        if let Some(pump) = self.pump.take() {
            waitpid(pump, None).or_cannot("wait for", "what brings memory")?;
        }
        ended
    }

    fn criu(&mut self) -> Result<u32> {
        if let Some((_, version)) = &self.criu {
            return Ok(*version);
        }
        let program = criu::find()?;
        let version = criu::check_version(&program)?;
        self.criu = Some((program, version));
        Ok(version)
    }

    /// What the bundle is in the way of.
    fn bundle(&self, request: &Request, reasons: &mut Vec<String>) -> Result<()> {
        if !request.bundle.is_absolute() {
            reasons.push(format!("its bundle {} is not absolute", request.bundle.display()));
            return Ok(());
        }
        let source = match create::read(&request.bundle, None) {
            Ok(source) => source,
            Err(error) => {
                reasons.push(format!("its bundle is not here: {error}"));
                return Ok(());
            }
        };
        if let Some(why) = differs(&source.text, request.config.as_bytes()) {
            reasons.push(format!("{} is not what the container has: {why}", source.path.display()));
        }
        if let Err(error) = self.planned(request, source) {
            reasons.push(error.to_string());
        }
        Ok(())
    }

    /// What the image that it runs from is in the way of: its layers must be here, and its configuration is one that `run` makes.
    fn image(&self, request: &Request, image: &Image) -> Result<()> {
        let text = request.config.clone().into_bytes();
        let configured = Configured::Told(text, PathBuf::from("its config.json"));
        let origin = Origin::Image(image.clone());
        let source = own_root::source(self.setting, &origin, PathBuf::new(), configured, None)?;
        self.planned(request, source)
    }

    /// Whether it could be made here.
    fn planned(&self, request: &Request, source: Source) -> Result<()> {
        let id = Id::new(&request.id)?;
        let options = plan::Options {
            cgroup_driver: self.setting.cgroup_manager,
            layers: source.image.as_ref().and_then(|image| image.layers(&self.setting.root.join(id.as_str()))),
            ..plan::Options::default()
        };
        let document = Document::new(&source.path, source.text);
        let plan = plan::plan(&id, &source.config, &source.bundle, &host::probe(), &options)
            .map_err(|error| document.locate(error))?;
        match &plan.rootfs.base {
            Base::Directory(directory) if directory.is_dir() => Ok(()),
            Base::Directory(directory) => {
                Err(Error::plain(format!("its root filesystem {} is not here", directory.display())))
            }
            Base::Layers(_) => Ok(()),
            Base::CopyOnWrite { .. } => Err(Error::plain("its root filesystem is no directory")),
        }
    }
}

/// Where two configurations differ, if they do: the first field at the top that is another.
fn differs(here: &[u8], there: &[u8]) -> Option<String> {
    let parsed = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).ok();
    match (parsed(here), parsed(there)) {
        (Some(here), Some(there)) if here == there => None,
        (Some(serde_json::Value::Object(here)), Some(serde_json::Value::Object(there))) => {
            let differs = here.keys().chain(there.keys()).find(|key| here.get(*key) != there.get(*key));
            Some(format!("{} is another", differs.map_or("it", |key| key)))
        }
        _ => Some("it is none".to_owned()),
    }
}

impl Host for Machine<'_> {
    fn place(&mut self) -> Result<Place> {
        let criu = self.criu()?;
        Ok(Place {
            version: PROTOCOL,
            host: host_name(),
            machine: reserve::machine(criu)?,
            memory_free: reserve::memory_free()?,
            disk_free: reserve::disk_free(self.journals.path())?,
            lacks: Vec::new(),
        })
    }

    fn root(&self) -> &Path {
        &self.setting.root
    }

    fn obstacles(&mut self, request: &Request) -> Result<Vec<String>> {
        // A receiver that listens may go on for longer than a CRIU is installed.
        self.criu = None;
        let place = match self.place() {
            Ok(place) => place,
            Err(error) => return Ok(vec![error.to_string()]),
        };
        let mut reasons = reserve::missing(request, &place.machine, place.memory_free, place.disk_free);
        match Id::new(&request.id) {
            Ok(id) if Store::new(&self.setting.root).has(&id) => {
                reasons.push(format!("there is a container of the id {id} already"));
            }
            Ok(_) => (),
            Err(error) => reasons.push(error.to_string()),
        }
        if let (true, Some((program, _))) = (request.leaves, &self.criu) {
            let can = criu::check_feature(program, Feature::LazyPages);
            reasons.extend(can.err().map(|_| NO_USERFAULTFD.to_owned()));
        }
        let lacks = self.lacks(request)?;
        reasons.extend(reserve::no_room(&lacks, request.memory, place.disk_free));
        match &request.image {
            // Whether it can be made here is seen once it is.
            Some(_) if !lacks.is_empty() => (),
            Some(image) => reasons.extend(self.image(request, image).err().map(|error| error.to_string())),
            None => self.bundle(request, &mut reasons)?,
        }
        Ok(reasons)
    }

    fn lacks(&mut self, request: &Request) -> Result<Vec<Blob>> {
        let lacks = |image| content::lacks(self.setting, image, &request.content);
        request.image.as_ref().map_or(Ok(Vec::new()), lacks)
    }

    fn keep(&mut self, request: &Request, directory: &Path, waiting: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let Some(image) = &request.image else { return Ok(()) };
        self.content = Some(content::keep(self.setting, image, directory, waiting)?);
        self.image(request, image)
    }

    fn restore(&mut self, entry: &Entry, images: &Path, held: &mut dyn FnMut(Moment) -> Result<()>) -> Result<i32> {
        let last = entry.last.clone().ok_or_else(|| Error::plain("it is not known what to restore from"))?;
        self.clear(entry)?;
        let bodies = journal::bodies(images);
        let images = images.join(last.round.to_string());
        let source = match &entry.image {
            Some(image) => {
                let (diff, configured) = (images.join(root::DIFF), Configured::Anybodys(images.join(root::CONFIG)));
                let origin = Origin::Image(image.clone());
                let mut source = own_root::source(self.setting, &origin, diff, configured, None)?;
                source.upper =
                    source.upper.map(|upper| Upper { bodies: Some(bodies).filter(|path| path.exists()), ..upper });
                source
            }
            None => create::read(&entry.bundle, None)?,
        };
        let streams = Streams::load(&images)?;
        let Choices { tcp_established, tcp_close, ext_unix_sk, file_locks } = entry.choices;
        let work = Some(logs(&self.journals, &entry.id));
        let lazy_pages = last.left > 0;
        let choice = Choice {
            images: images.clone(),
            work,
            verbose: self.setting.log.debugs(),
            tcp_established,
            tcp_close,
            ext_unix_sk,
            file_locks,
            lazy_pages,
            ..Choice::default()
        };
        let options = restore::Options {
            create: create::Options {
                id: entry.id.clone(),
                bundle: source.bundle.clone(),
                ..create::Options::default()
            },
            detach: true,
            no_subreaper: true,
            choice: RestoreChoice {
                choice,
                criu: self.criu.as_ref().map(|(program, _)| program.clone()),
                // What has more than the bundle here gives is ended before it has run, and so it is the source's again.
                audited: true,
                ..RestoreChoice::default()
            },
            brought_by: Some(entry.token.to_string()),
        };
        let (mut let_go, mut ran) = (false, false);
        let mut daemon = self.daemon.take();
        let restored = {
            let _lent = Lent::new(&self.output, &entry.id, &streams, &last)?;
            restore::bring_back(self.setting, &options, source, &mut |moment| {
                if let (Moment::Held, Some(daemon)) = (moment, &mut daemon) {
                    daemon.hold(&images)?;
                }
                held(moment)?;
                (let_go, ran) = (let_go || moment == Moment::Held, ran || moment == Moment::Running);
                Ok(())
            })
        };
        (self.daemon, self.let_go) = (daemon, let_go);
        match restored {
            // Also one that has ended at once: what it did in that time is not to be done again where it came from.
            Err(error) if ran => self.setting.log.warning(error),
            Err(error) if let_go => return self.after_all(entry, error),
            restored => drop(restored?),
        }
        Ok(live::open(self.setting, &entry.id)?.record.init.map_or(0, |init| init.pid))
    }

    fn begin_lazily(&mut self, entry: &Entry, images: &Path) -> Result<Lazily> {
        let (program, version) = self.criu.clone().ok_or_else(|| Error::plain("CRIU was not looked for"))?;
        let round = entry.last.as_ref().map_or(0, |last| last.round);
        let work = logs(&self.journals, &entry.id);
        let (daemon, asks) = Daemon::start(&program, &images.join(round.to_string()), &work)?;
        let identity = daemon.identity();
        self.daemon = Some(daemon);
        Ok(Lazily { asks, criu: version, daemon: Some(identity?) })
    }

    fn pump(&mut self, pump: Pump) -> Result<()> {
        match clone_either_way(0, Parent::Caller).or_cannot("start", "a process that brings memory")? {
            Cloned::Child => {
                let alone = close_from(3, &pump.descriptors()).or_cannot("close", "what ferry has open");
                let done = alone.and_then(|()| jail::two_ends()).and_then(|()| pump.run());
                exit_now(i32::from(done.is_err()))
            }
            Cloned::Parent { pid, .. } => {
                self.pump = Some(pid);
                Ok(())
            }
        }
    }

    fn whole(&mut self) -> Result<()> {
        self.daemon.take().map_or(Ok(()), Daemon::wait)
    }

    fn lose(&mut self, entry: &Entry) -> Result<()> {
        let daemon = self.daemon.take();
        self.delete(entry)?;
        match (daemon, entry.daemon) {
            (Some(daemon), _) => daemon.end(),
            (None, Some(daemon)) => Worker { ferry: daemon, criu: Some(daemon), restores: false }.end_criu(),
            (None, None) => Ok(()),
        }
    }

    fn runs(&mut self, entry: &Entry) -> Result<Option<i32>> {
        if !self.has(entry)? {
            return Ok(None);
        }
        let container = live::open(self.setting, &entry.id)?;
        let is_known = entry.state == State::Active;
        if let Some(path) = container.record.cgroup.as_ref().filter(|path| !is_known && path.exists()) {
            let cgroup = cgroup::fs::open(path)?;
            // Until it is noted that it runs here nobody has been told so who could pause it: one that stands still was left so by a
            // ferry that was killed while it looked, and goes on.
            if container.status == Status::Paused {
                life::thaw(&cgroup, PATIENCE)?;
            }
            outlive::criu(&cgroup)?;
            outlive::the_dying(&cgroup)?;
        }
        self.first(entry)
    }

    fn discard(&mut self, entry: &Entry) -> Result<()> {
        if !self.has(entry)? {
            return Ok(());
        }
        // Noted as long as a restore is at work.
        match Store::new(&self.setting.root).open(&Id::new(&entry.id)?)?.worker() {
            Some(worker) if worker.is_cut_off()? => delete::delete(self.setting, &entry.id, delete::Which::Any),
            _ => Ok(()),
        }
    }
}

impl Machine<'_> {
    /// Whether there is what this migration has made here. A container that somebody else has made of this id is not that; one that
    /// has no record yet is nobody's.
    fn has(&self, entry: &Entry) -> Result<bool> {
        let (id, store) = (Id::new(&entry.id)?, Store::new(&self.setting.root));
        if !store.has(&id) {
            return Ok(false);
        }
        let record = store.open(&id)?.record()?;
        Ok(record.is_none_or(|record| record.brought_by.as_deref() == Some(entry.token.as_str())))
    }

    /// Ends and removes what this migration has made here.
    fn delete(&self, entry: &Entry) -> Result<()> {
        if self.has(entry)? { delete::delete(self.setting, &entry.id, delete::Which::Any) } else { Ok(()) }
    }

    /// What went wrong once it was let go may have done so when it ran already. Where it does not run, nothing is left of it.
    fn after_all(&mut self, entry: &Entry, error: Error) -> Result<i32> {
        match self.runs(entry) {
            Ok(Some(pid)) => Ok(pid),
            Ok(None) => {
                let deleted = self.delete(entry);
                self.let_go = deleted.is_err();
                Err(error.and_then(deleted))
            }
            Err(why) => Err(error.and_then(Err::<(), _>(why))),
        }
    }

    /// Its first process, as its record has it.
    fn first(&self, entry: &Entry) -> Result<Option<i32>> {
        let container = live::open(self.setting, &entry.id)?;
        let runs = matches!(container.status, Status::Running | Status::Paused);
        Ok(container.record.init.filter(|_| runs).map(|init| init.pid))
    }

    /// A restore that was killed may have left a container without a process.
    fn clear(&mut self, entry: &Entry) -> Result<()> {
        if !Store::new(&self.setting.root).has(&Id::new(&entry.id)?) {
            return Ok(());
        }
        let is_another = !self.has(entry)?;
        match live::open(self.setting, &entry.id) {
            Ok(container) if is_another || container.has_process() => {
                Err(Error::plain(format!("there is a container of the id {} already", entry.id)))
            }
            _ => delete::delete(self.setting, &entry.id, delete::Which::Any),
        }
    }
}
