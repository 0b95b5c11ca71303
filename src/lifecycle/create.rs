//! `create`: everything up to the program, which then waits for `start`; and the beginning that `run` shares with it.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::{Setting, run_image};
use crate::cgroup::location::Place;
use crate::cgroup::{self, Cgroup, Limits, Location};
use crate::checkpoint::stage::Upper;
use crate::container::record::FORMAT;
use crate::container::store::Entry;
use crate::container::{Id, Record, Store};
use crate::error::{Context, EXIT_FAILURE, Error, Result};
use crate::host::{self, Host};
use crate::launch::descriptor;
use crate::launch::notify::{self, Notify};
use crate::launch::parent::{Child, Launch, Reached, state_of};
use crate::launch::{Plan, hooks, plan};
use crate::namespaces::{self, Kind, User};
use crate::process::memory_merge;
use crate::rootfs::plan::MountedIn;
use crate::rootfs::{Base, on_host};
use crate::spec::seccomp::Seccomp;
use crate::spec::{self, Config, extensions};

/// How to create.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Options {
    /// The container's id.
    pub id: String,
    /// The bundle.
    pub bundle: PathBuf,
    /// Its configuration, where that is not its config.json.
    pub config: Option<PathBuf>,
    /// Receives the terminal.
    pub console_socket: Option<PathBuf>,
    /// Gets the process id.
    pub pid_file: Option<PathBuf>,
    /// Receives the pidfd.
    pub pidfd_socket: Option<PathBuf>,
    /// No pivot_root.
    pub no_pivot: bool,
    /// No session keyring.
    pub no_new_keyring: bool,
    /// Descriptors passed on.
    pub preserve_fds: u32,
    /// Memory is merged with that of others, whatever the configuration says.
    pub merge_memory: bool,
}

/// How long processes that were killed may take to be gone.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What a container is made from.
pub(super) struct Source {
    /// The configuration.
    pub config: Config,
    /// Its text, to be kept beside the record.
    pub text: Vec<u8>,
    /// Where the text comes from, for errors.
    pub path: PathBuf,
    /// Absolute.
    pub bundle: PathBuf,
    /// Whether the root is a copy-on-write overlay over the configured directory.
    pub copy_on_write: bool,
    /// The image whose layers are the root.
    pub image: Option<run_image::Used>,
    /// Of a restore: what the upper layer of a root of its own held.
    pub upper: Option<Upper>,
    /// Of a container that is made anew: the directory that it has.
    pub again: Option<Entry>,
}

/// A container that is being made: its child prepares itself, and nobody has let it go.
pub(super) struct Begun {
    /// Its directory, locked.
    pub entry: Entry,
    /// What is done.
    pub plan: Plan,
    /// Its record, with its pid.
    pub record: Record,
    /// Its process.
    pub child: Child,
    /// Where it says that it is ready, if `start` will not be asked to listen there.
    pub notify: Option<Notify>,
    /// Where hooks write.
    pub streams: hooks::Streams,
    host: Host,
    cgroup: Option<Cgroup>,
    gated: bool,
    console_socket: Option<PathBuf>,
}

/// `create`.
///
/// # Errors
/// What could not be done; nothing is left of it then.
pub fn create(setting: &Setting, options: &Options) -> Result<()> {
    let source = read(&options.bundle, options.config.as_deref())?;
    let terminal = source.config.process.as_ref().is_some_and(|process| process.terminal);
    console(terminal, options.console_socket.as_deref())?;
    let mut begun = begin(setting, options, source, true)?;
    let ready = begun.serve(setting).and_then(|reached| match reached {
        Reached::Ready => begun
            .let_go(setting, options)
            // Killed, or deleted since it was unlocked.
            .map_err(|error| if error.errno() == Some(nix::errno::Errno::EPIPE) { begun.ended() } else { error }),
        Reached::End => Err(begun.ended()),
    });
    ready.map_err(|error| begun.undo(setting, error).exit(EXIT_FAILURE))
}

/// Reads a bundle; `config` is the file that stands for its config.json.
pub(super) fn read(bundle: &Path, config: Option<&Path>) -> Result<Source> {
    let bundle = std::path::absolute(bundle).or_cannot("use bundle", bundle.display())?;
    let path = config.map_or_else(|| bundle.join("config.json"), Path::to_owned);
    let (loaded, document) = spec::load(&path).map_err(|error| match error.errno() {
        Some(nix::errno::Errno::ENOENT) if config.is_none() => error
            .hint("a bundle is a directory with a config.json: name it with --bundle, or write one with `ferry spec`"),
        _ => error,
    })?;
    Ok(Source {
        config: loaded,
        text: document.text,
        path,
        bundle,
        copy_on_write: false,
        image: None,
        upper: None,
        again: None,
    })
}

/// A terminal that nobody holds would end with ferry.
pub(super) fn console(terminal: bool, socket: Option<&Path>) -> Result<()> {
    match (terminal, socket) {
        (true, None) => Err(Error::plain("process.terminal is set, and ferry will not stay to hold the terminal")
            .hint("give a socket that takes it with --console-socket, or use `ferry run` without --detach")),
        (false, Some(_)) => Err(Error::plain("--console-socket is given, and process.terminal is not set")),
        _ => Ok(()),
    }
}

/// From a configuration to a child that prepares itself. Signals are blocked from here on: ferry is not to end in the
/// middle, and what waits for a foreground container reads them later.
pub(super) fn begin(setting: &Setting, options: &Options, mut source: Source, gated: bool) -> Result<Begun> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).or_cannot("block", "signals")?;
    let id = Id::new(&options.id)?;
    preserved(options.preserve_fds)?;
    let host = host::probe();
    let store = Store::new(&setting.root);
    let stage = stage(setting, &id, &source);
    let awaited =
        notify::is_awaited() && notify::configure(&mut source.config, &setting.root.join(id.as_str()).join("notify"));
    if options.merge_memory {
        ask_to_merge(&mut source)?;
    }
    let plan_options = plan::Options {
        no_pivot: options.no_pivot,
        no_new_keyring: options.no_new_keyring,
        preserve_fds: options.preserve_fds,
        listen_fds: listen_fds(),
        cgroup_driver: setting.cgroup_manager,
        rootless: setting.rootless,
        copy_on_write: stage,
        layers: source.image.as_ref().and_then(|image| image.layers(&setting.root.join(id.as_str()))),
    };
    let document = spec::Document::new(&source.path, source.text);
    let plan = plan::plan(&id, &source.config, &source.bundle, &host, &plan_options)
        .map_err(|error| document.locate(error))?;
    plan.warnings.iter().for_each(|warning| setting.log.warning(warning));
    let streams = hooks::Streams::open(&plan.hooks, &plan.annotations)?;

    let mut record = record(&plan, &source.config, options, &host);
    record.store = source.image.as_ref().map(|image| image.path.clone());
    if plan.rootfs.mounted_in == MountedIn::Host {
        record.mounted_over = Some(on_host::mounts_at(&record.rootfs)?);
    }
    let entry = claim(&store, &plan.id, source.again, &mut record)?;
    let mut listener = None;
    let begun = prepare(&entry, &plan, source.image.as_ref())
        .and_then(|()| if awaited { entry.make_notify() } else { Ok(()) })
        .and_then(|()| {
            listener = if gated { None } else { Notify::listen(&entry, &setting.log)? };
            make_cgroup(&plan, setting.rootless, cgroup::fs::create)
        })
        .and_then(|mut cgroup| {
            record.cgroup = cgroup.as_ref().map(|cgroup| cgroup.path.clone());
            let console_socket = options.console_socket.as_deref();
            let (log, streams) = (&setting.log, &streams);
            let launch = Launch { plan: &plan, host: &host, entry: &entry, log, gated, console_socket, streams };
            match launch.clone(&document.text, &mut record, &mut cgroup) {
                Ok(child) => Ok((child, cgroup)),
                Err(error) => Err(undo_resctrl(&record, undo_cgroup(cgroup, error))),
            }
        });
    let (child, cgroup) = match begun {
        Ok(begun) => begun,
        Err(error) => return Err(undo_entry(&entry, &record, error)),
    };
    let console_socket = options.console_socket.clone();
    let begun = Begun { entry, plan, record, child, notify: listener, streams, host, cgroup, gated, console_socket };
    // While the child prepares itself; nothing of the image is removed as long as this process has hold of it.
    match source.image.map_or(Ok(()), |image| image.note(&begun.entry)) {
        Ok(()) => Ok(begun),
        Err(error) => Err(begun.undo(setting, error)),
    }
}

/// As if the configuration had asked, so that `exec` and `state` read it in the copy that is kept.
fn ask_to_merge(source: &mut Source) -> Result<()> {
    let (key, yes) = (memory_merge::ANNOTATION, "true");
    source.config.annotations.insert(key.into(), yes.into());
    let unreadable = |why: serde_json::Error| Error::said("add to config.json", key, why.to_string());
    let mut json: serde_json::Value = serde_json::from_slice(&source.text).map_err(unreadable)?;
    if json["annotations"].is_null() {
        json["annotations"] = serde_json::json!({});
    }
    json["annotations"][key] = yes.into();
    source.text = serde_json::to_vec(&json).map_err(unreadable)?;
    Ok(())
}

/// Where a copy-on-write root is staged.
pub(super) fn stage(setting: &Setting, id: &Id, source: &Source) -> Option<PathBuf> {
    source.copy_on_write.then(|| setting.root.join(id.as_str()).join("root"))
}

/// The container's directory, locked, with its record and the cgroup in it that it is about to have: whatever is cut off after
/// this can be cleaned up by that. One that is made anew is the same as long as its former process lives.
pub(super) fn claim(store: &Store, id: &Id, again: Option<Entry>, record: &mut Record) -> Result<Entry> {
    let Some(entry) = again else { return store.claim(id, record) };
    record.init = entry.before().and_then(|before| before.init);
    match entry.save(record) {
        Ok(()) => Ok(entry),
        Err(error) => Err(undo_entry(&entry, record, error)),
    }
}

pub(super) fn prepare(entry: &Entry, plan: &Plan, image: Option<&run_image::Used>) -> Result<()> {
    match plan.rootfs.base {
        Base::CopyOnWrite { .. } => entry.make_stage().map(drop),
        Base::Directory(_) | Base::Layers(_) => image.map_or(Ok(()), |image| image.make_upper(entry)),
    }
}

/// `make` makes it, or only tells what would come of that. `rootless`: whether a refused cgroup is borne with; none said, it is where nobody asked for one.
pub(super) fn make_cgroup<T>(
    plan: &Plan,
    rootless: Option<bool>,
    make: fn(&Location, &Limits) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let limits = &plan.cgroup.limits;
    match &plan.cgroup.place {
        Place::Directory(location) => match (make(location, limits), rootless) {
            (Ok(None), Some(false)) => {
                let place = location.dir().display().to_string();
                Err(Error::said("make the cgroup", place, "this user may not").hint("leave out --rootless false"))
            }
            // A limit is not given up: what was asked for would not hold.
            (Err(error), Some(true)) if limits.writes.is_empty() && cgroup::fs::is_denied(&error) => Ok(None),
            (made, _) => made,
        },
        // systemd makes it, around a process that is there.
        Place::Scope(_) => Ok(None),
        Place::Nowhere if limits.writes.is_empty() => Ok(None),
        Place::Nowhere => {
            let field = &limits.writes[0].field;
            Err(Error::config(format!("linux.resources.{field}"), "cannot be enforced without a cgroup")
                .hint("leave out --cgroup-manager disabled"))
        }
    }
}

pub(super) fn record(plan: &Plan, config: &Config, options: &Options, host: &Host) -> Record {
    let has = |row: &&namespaces::Row| plan.namespaces.has(row.kind);
    let mut kinds: Vec<Kind> = namespaces::TABLE.iter().filter(has).map(|row| row.kind).collect();
    if plan.namespaces.user == User::Inherit {
        kinds.retain(|kind| *kind != Kind::User);
    }
    let root = config.root.as_ref().map(|root| plan.bundle.join(&root.path)).unwrap_or_default();
    Record {
        format: FORMAT,
        id: plan.id.as_str().to_owned(),
        oci_version: plan.oci_version.clone(),
        bundle: plan.bundle.clone(),
        rootfs: root,
        created: crate::log::rfc3339(SystemTime::now()),
        owner: host.uid,
        init: None,
        cgroup: match &plan.cgroup.place {
            Place::Directory(location) => Some(location.dir()),
            Place::Scope(_) | Place::Nowhere => None,
        },
        unit: match &plan.cgroup.place {
            Place::Scope(unit) => Some(unit.clone()),
            Place::Directory(_) | Place::Nowhere => None,
        },
        resctrl: None,
        store: None,
        cgroup_driver: plan.cgroup.driver,
        namespaces: kinds,
        mounted_over: None,
        no_new_keyring: options.no_new_keyring,
        reads_config: config.process.is_none()
            || !config.hooks.poststart.is_empty()
            || !config.hooks.poststop.is_empty()
            || has_agent(config),
        brought_by: None,
        given_to: None,
    }
}

/// Whether a seccomp agent may have to be told where its listener comes from.
fn has_agent(config: &Config) -> bool {
    let named = |profile: &Seccomp| !profile.listener_path.as_os_str().is_empty();
    config.linux.seccomp.as_ref().is_some_and(named) || extensions::seccomp_receiver(&config.annotations).is_some()
}

/// Tells whoever asked to be told of the process.
pub(super) fn announce(child: &Child, plan: &Plan, options: &Options) -> Result<()> {
    use std::os::fd::AsFd;
    if let Some(path) = &options.pid_file {
        write_pid_file(path, child.pid.as_raw())?;
    }
    match options.pidfd_socket.as_deref().or_else(|| extensions::pidfd_receiver(&plan.annotations)) {
        Some(path) => descriptor::send(path, b"pidfd", child.pidfd.as_fd()),
        None => Ok(()),
    }
}

/// Descriptors that are to be passed on must be there: at least the last of them. An engine that was asked for some by their numbers
/// (`podman run --preserve-fd 9,40`) counts up to the highest, and what it left out below that stays left out.
pub(super) fn preserved(count: u32) -> Result<()> {
    let last = i32::try_from(count).unwrap_or(i32::MAX - 3) + 2;
    if count > 0 && !crate::sys::fd::is_inherited(last) {
        return Err(Error::plain(format!("--preserve-fds {count}: descriptor {last} is not open")));
    }
    Ok(())
}

/// Whole or not at all: whoever waits for the file reads it as soon as it is there. It is written beside under a name that anybody can
/// know, so what lies there is removed and never written through.
pub(super) fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    let write = || {
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        File::create_new(&beside)?.write_all(pid.to_string().as_bytes())?;
        std::fs::rename(&beside, path)
    };
    write().or_cannot("write pid file", path.display())
}

/// Sockets that a service manager passes to this very process, as many of them as are there. What stands in the environment may be
/// meant for a process further up, and so may the descriptors that it counts. sd_listen_fds(3)
fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return 0;
    }
    let said = number("LISTEN_FDS").and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    let there = (3..).take(said).take_while(|number| crate::sys::fd::is_inherited(*number)).count();
    u32::try_from(there).unwrap_or(0)
}

impl Begun {
    /// Serves the child until it is ready or its stream ends.
    pub(super) fn serve(&mut self, setting: &Setting) -> Result<Reached> {
        let console_socket = self.console_socket.clone();
        let launch = Launch {
            plan: &self.plan,
            host: &self.host,
            entry: &self.entry,
            log: &setting.log,
            gated: self.gated,
            console_socket: console_socket.as_deref(),
            streams: &self.streams,
        };
        launch.serve(&mut self.child, &self.record, self.cgroup.as_ref())
    }

    /// Lets the child go to its gate.
    fn let_go(&mut self, setting: &Setting, options: &Options) -> Result<()> {
        if !self.plan.waits_in_stub() {
            announce(&self.child, &self.plan, options)?;
            // Unlocked first: from Go on the child lives by itself, and holds what ferry held.
            self.entry.unlock()?;
            return self.child.go();
        }
        self.child.go()?;
        match self.serve(setting)? {
            // Nobody is told of what comes to nothing on its way there, and nobody opens the gate before.
            Reached::End if self.child.is_alive()? => announce(&self.child, &self.plan, options)?,
            Reached::End | Reached::Ready => return Err(self.ended()),
        }
        self.entry.unlock()
    }

    /// What to say of a child that ended without a word.
    pub(super) fn ended(&self) -> Error {
        let how = self.child.wait().map_or_else(|error| error.to_string(), |code| format!("exit status {code}"));
        Error::said(
            "create container",
            self.plan.id.to_string(),
            format!("its process ended before it was ready ({how})"),
        )
    }

    /// Undoes everything; the error stays the first one, with what could not be undone beside it.
    pub(super) fn undo(mut self, setting: &Setting, error: Error) -> Error {
        let error = error.and_then(self.child.kill()).and_then(self.child.give_back());
        if is_gone(&self.entry) {
            return error;
        }
        let state = state_of(&self.record, &self.plan, crate::container::Status::Stopped);
        let error = undo_resctrl(&self.record, undo_cgroup(self.cgroup, error));
        let error = undo_entry(&self.entry, &self.record, error);
        hooks::run_each("poststop", &self.plan.hooks.poststop, &state, &self.streams, &setting.log);
        error
    }
}

/// Whether somebody has deleted the container since it was unlocked, with all that was made for it: what is there of its name now is
/// another's. Where it is not so, nobody can any more.
pub(super) fn is_gone(entry: &Entry) -> bool {
    matches!(entry.lock(), Err(error) if error.errno().is_none())
}

pub(super) fn undo_cgroup(cgroup: Option<Cgroup>, error: Error) -> Error {
    let Some(cgroup) = cgroup else { return error };
    // Those that the container has made below its own go with it; one that was there before stays as a whole.
    let emptied = cgroup::life::kill(&cgroup).and_then(|()| match cgroup.made {
        0 => cgroup::life::wait_empty(&cgroup, PATIENCE).map(drop),
        _ => cgroup::life::remove(&cgroup, PATIENCE),
    });
    error.and_then(emptied).and_then(cgroup.undo())
}

pub(super) fn undo_resctrl(record: &Record, error: Error) -> Error {
    match &record.resctrl {
        Some(groups) => error.and_then(cgroup::resctrl::remove(groups)),
        None => error,
    }
}

pub(super) fn undo_entry(entry: &Entry, record: &Record, error: Error) -> Error {
    if let Some(before) = entry.before() {
        return error.and_then(entry.end_again(before));
    }
    let error = match &record.mounted_over {
        Some(before) => error.and_then(on_host::detach(&record.rootfs, before)),
        None => error,
    };
    let error = match &record.store {
        Some(store) => error.and_then(run_image::end(store, entry.path())),
        None => error,
    };
    error.and_then(entry.remove())
}
