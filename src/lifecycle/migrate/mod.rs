//! `migrate`: a running container to another machine. What the two ends say to each other is [`crate::migrate`]; here the
//! container is looked at, the far end is reached, and what was cut off is settled.

use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::live::Live;
use super::{Setting, content, image, live, own_root, receive};
use crate::cgroup;
use crate::checkpoint::root::Origin;
use crate::checkpoint::rpc::Feature;
use crate::checkpoint::{criu, dump, obstacles};
use crate::container::{Id, Status, Store};
use crate::error::{Context, Error, Result};
use crate::host;
use crate::migrate::destination::{self, Found};
use crate::migrate::host::Host;
use crate::migrate::journal::{Entry, Journal, Journals, Which};
use crate::migrate::message::{Choices, PROTOCOL, Request, Token};
use crate::migrate::ownership::{AtDestination, Role, State, at_destination};
use crate::migrate::progress::{Event, Progress};
use crate::migrate::report::Report;
use crate::migrate::reserve;
use crate::migrate::rounds::Wishes;
use crate::migrate::settle::{self, Recovered};
use crate::migrate::source::{self, NoConvergence, PreCopy, Source};
use crate::migrate::transport::{Destination, Reach};
use crate::spec::Document;

mod container;
mod weight;

use container::Running;

/// How to migrate.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The container's id here.
    pub id: String,
    /// Where to, as it was written.
    pub destination: String,
    /// Its id there, where that is another.
    pub id_there: Option<String>,
    /// Its bundle there, where that is another. Absolute.
    pub bundle: Option<PathBuf>,
    /// `None`: pre-copy where this machine can.
    pub mode: Option<Mode>,
    /// How long it may stand still, and after how many rounds at most it does.
    pub wishes: Wishes,
    /// What to do where the rounds do not converge.
    pub on_no_convergence: NoConvergence,
    /// The most bytes a second to be sent.
    pub bandwidth: Option<u64>,
    /// zstd's, of which 0 is without; `None`: as the link is fast or slow.
    pub level: Option<i32>,
    /// Only ask.
    pub dry_run: bool,
    /// What goes along.
    pub choices: Choices,
    /// How the far end is reached.
    pub reach: Reach,
}

/// When memory is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In rounds while it runs, and the rest while it stands still.
    PreCopy,
    /// While it stands still.
    StopAndCopy,
    /// After it has gone on at the destination: when it is touched, and in the background.
    PostCopy,
    /// In rounds while it runs, and what is left after it has gone on.
    Hybrid,
}

impl Mode {
    /// Whether the kernel has to tell what is written to.
    fn has_rounds(self) -> bool {
        matches!(self, Self::PreCopy | Self::Hybrid)
    }

    /// Whether memory is sent after it has gone on.
    fn leaves(self) -> bool {
        matches!(self, Self::PostCopy | Self::Hybrid)
    }
}

/// The words of `--mode`.
pub const MODES: [(&str, Mode); 4] = [
    ("pre-copy", Mode::PreCopy),
    ("post-copy", Mode::PostCopy),
    ("hybrid", Mode::Hybrid),
    ("stop-and-copy", Mode::StopAndCopy),
];

/// The words of `--on-no-convergence`.
pub const ON_NO_CONVERGENCE: [(&str, NoConvergence); 3] =
    [("stop", NoConvergence::Stop), ("post-copy", NoConvergence::PostCopy), ("abort", NoConvergence::Abort)];

/// Migrates a container. Answers what it came to.
///
/// # Errors
/// Why it could not be done; the container runs here then, unless the error says otherwise.
pub fn migrate(setting: &Setting, options: &Options, progress: &mut dyn Progress) -> Result<Report> {
    // An interrupt ends it where that can be, and not in the middle of something.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).or_cannot("block", "signals")?;
    let destination = Destination::parse(&options.destination)?;
    let journals = journals(setting)?;
    let container = live::open(setting, &options.id)?;
    check(&container, options)?;
    let program = criu::find()?;
    let version = criu::check_version(&program)?;
    let note = without_pre_copy(options.mode, &program)?;
    if let Some(note) = note {
        progress.event(Event::Note(note));
    }
    let request = request(options, &container, version)?;
    let mut connect = || destination.connect(&options.reach);
    for journal in journals.of(&options.id, &setting.root, Role::Source)? {
        cut_off(setting, &journals, journal, options)?;
    }
    let mut connection = connect()?;
    connection.link.heed_interrupts(true)?;
    if let Some(bandwidth) = options.bandwidth {
        connection.link.limit(bandwidth);
    }
    let how = source::Options {
        destination: options.destination.clone(),
        root: setting.root.clone(),
        id: options.id.clone(),
        which: Which::of(&container.record),
        pre_copy: match options.mode.is_none_or(Mode::has_rounds) {
            false => PreCopy::Nothing,
            true if note.is_some() => PreCopy::Files,
            true => PreCopy::Everything,
        },
        leaves: options.mode.is_some_and(Mode::leaves),
        wishes: options.wishes,
        on_no_convergence: options.on_no_convergence,
        level: options.level,
    };
    let mut running = Running {
        setting,
        id: &options.id,
        which: Some(how.which.clone()),
        met_another: false,
        went_on: false,
        peer: options.destination.clone(),
        choices: options.choices,
        logs: Some(logs(&journals, &options.id)),
    };
    let report = Source {
        link: &mut connection.link,
        container: &mut running,
        options: &how,
        progress,
        connect: &mut connect,
        asked: false,
    }
    .migrate(&request, &journals);
    let closed = connection.close();
    let mut report = report?;
    report.notes.extend(note.map(str::to_owned));
    if request.image.is_some() && report.migrated {
        let when = if how.pre_copy == PreCopy::Nothing { " while it stood still" } else { "" };
        report.notes.push(format!("what it had changed in its image's files went along{when}"));
    }
    match closed {
        // It runs there, whatever becomes of the way there.
        Err(error) if report.migrated => setting.log.warning(error),
        closed => closed?,
    }
    Ok(report)
}

/// Where journals are: they outlive the machine going down, which records do not.
pub(super) fn journals(setting: &Setting) -> Result<Journals> {
    image::location(setting, &host::probe()).map(|store| Journals::new(&store, &setting.log))
}

/// Where CRIU's logs go: images and what is beside them are removed when it is over, and a log is for afterwards.
pub(super) fn logs(journals: &Journals, id: &str) -> PathBuf {
    journals.path().with_file_name("logs").join(id)
}

/// The container of a migration that was cut off, as its journal has it.
fn earlier<'a>(setting: &'a Setting, journals: &Journals, id: &'a str, entry: &Entry) -> Running<'a> {
    let Entry { which, peer, choices, state, .. } = entry.clone();
    let (went_on, logs) = (state == State::Aborted, Some(logs(journals, id)));
    Running { setting, id, which, met_another: false, went_on, peer, choices, logs }
}

/// Everything that can be said against it before the destination is asked.
fn check(container: &Live, options: &Options) -> Result<()> {
    let id = &options.id;
    let refuse = |why: &str| Error::plain(format!("container {id:?} cannot be migrated: {why}"));
    match container.status {
        Status::Running => (),
        Status::Paused => {
            return Err(refuse("it is paused").hint(format!(
                "`ferry resume {id}` lets it go on; one that a migration left so is settled by `ferry migrate --recover {id}`"
            )));
        }
        status => {
            return Err(refuse(&format!("it is {status}")).hint("only one whose program runs has anything to carry"));
        }
    }
    if container.record.mounted_over.is_some() {
        return Err(refuse("its mounts are the host's").hint("give it a mount namespace of its own"));
    }
    let is_of_image = container.record.store.is_some();
    if container.entry.has_stage() && !is_of_image {
        return Err(refuse("what it changed in its root is in the memory of this machine")
            .hint("run it from an image, or from a bundle that the destination has too"));
    }
    if is_of_image && options.bundle.is_some() {
        return Err(refuse("it has no bundle").hint("the destination looks for its image by the digest"));
    }
    let config = container.entry.config()?;
    if config.process.as_ref().is_some_and(|process| process.terminal) {
        return Err(refuse("it has a terminal, which cannot be carried").hint("run it without process.terminal"));
    }
    let cgroup = container.cgroup("migrate")?;
    let choice = dump::Choice {
        tcp_established: options.choices.tcp_established,
        tcp_close: options.choices.tcp_close,
        ..dump::Choice::default()
    };
    obstacles::check(id, &config, &cgroup::life::procs(&cgroup)?, &choice)
}

/// Why memory cannot be sent while it runs, which takes a kernel that tells what is written to. An error where it must be.
fn without_pre_copy(mode: Option<Mode>, program: &Path) -> Result<Option<&'static str>> {
    if mode.is_some_and(|mode| !mode.has_rounds()) {
        return Ok(None);
    }
    match (criu::check_feature(program, Feature::MemoryTracking), mode) {
        (Ok(()), _) => Ok(None),
        (Err(error), Some(_)) => Err(error.hint("--mode stop-and-copy and --mode post-copy do without")),
        (Err(_), None) => Ok(Some(
            "this kernel does not tell which pages are written to: all memory is sent while the container stands still",
        )),
    }
}

fn request(options: &Options, container: &Live, criu: u32) -> Result<Request> {
    let path = container.entry.path().join("config.json");
    let config = String::from_utf8(Document::read(&path)?.text)
        .map_err(|_| Error::said("send", path.display().to_string(), "it is not UTF-8"))?;
    let image = match container.record.store.as_ref().map(|_| own_root::origin(container)).transpose()? {
        Some(Origin::Image(image)) => Some(image),
        _ => None,
    };
    let content = match (&image, &container.record.store) {
        (Some(image), Some(store)) => content::of(&own_root::store_of(store)?, image)?.unwrap_or_default(),
        _ => Vec::new(),
    };
    let there = options.id_there.clone().unwrap_or_else(|| options.id.clone());
    Id::new(&there)?;
    let in_rounds = options.mode.is_none_or(Mode::has_rounds);
    Ok(Request {
        version: PROTOCOL,
        token: Token::new()?,
        id: there,
        from: host_name(),
        bundle: options.bundle.clone().unwrap_or_else(|| container.record.bundle.clone()),
        config,
        machine: reserve::machine(criu)?,
        memory: weight::memory(container)?,
        files: if image.is_some() { weight::files(container, in_rounds)? } else { 0 },
        content,
        image,
        choices: options.choices,
        leaves: options.mode.is_some_and(Mode::leaves) || options.on_no_convergence == NoConvergence::PostCopy,
        dry_run: options.dry_run,
    })
}

pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// An earlier one of the same container. One that was given up is settled by the way, with the machine that it was to go to: any
/// other answers that there is nothing left of it. One that was not is a person's to know.
fn cut_off(setting: &Setting, journals: &Journals, journal: Journal, options: &Options) -> Result<()> {
    let Entry { id, state, peer, .. } = journal.entry.clone();
    if state == State::Committed {
        return Err(Error::plain(format!(
            "container {id:?} is that of {peer}: an earlier migration was cut off after that"
        ))
        .hint(format!("`ferry migrate --recover {id}` settles it")));
    }
    if options.dry_run {
        return Ok(());
    }
    let destination = Destination::parse(&peer)?;
    let mut running = earlier(setting, journals, &id, &journal.entry);
    match settle::recover(journal, &mut running, &mut || destination.connect(&options.reach))? {
        Recovered::Here(Some(error)) | Recovered::Gone(Some(error)) => {
            let settled = format!("an earlier migration of {id} to {peer} is not settled, and only that machine can");
            Err(Error::plain(format!("{settled}: {error}"))
                .hint(format!("where it is gone for good, `ferry migrate --recover --discard {id}` forgets it")))
        }
        Recovered::Here(None) | Recovered::Gone(None) | Recovered::There(_) | Recovered::Lost(_) => Ok(()),
    }
}

fn undone(peer: &str, untold: Option<&Error>, discard: bool) -> String {
    match (untold, discard) {
        (None, _) => format!("the migration to {peer} is undone"),
        (Some(error), false) => {
            format!("the destination could not be told, and may keep images until it is: {error}")
        }
        (Some(error), true) => {
            format!("the migration to {peer} is forgotten, and may have to be discarded there too: {error}")
        }
    }
}

/// What `--recover` found out, in words. With `discard`, what waits for the other end's word is forgotten at this one; but a
/// container that was given up is never let go on here without that word.
///
/// # Errors
/// It cannot be settled now.
pub fn recover(setting: &Setting, id: &str, given: Option<&str>, reached: &Reach, discard: bool) -> Result<String> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).or_cannot("block", "signals")?;
    Id::new(id)?;
    let journals = journals(setting)?;
    let mut told = Vec::new();
    for journal in journals.of(id, &setting.root, Role::Source)? {
        let peer = given.unwrap_or(&journal.entry.peer).to_owned();
        let destination = Destination::parse(&peer)?;
        let mut running = earlier(setting, &journals, id, &journal.entry);
        let token = journal.entry.token.clone();
        let recovered = settle::recover(journal, &mut running, &mut || destination.connect(reached))?;
        if discard && matches!(recovered, Recovered::Here(Some(_)) | Recovered::Gone(Some(_))) {
            journals.open(&token, Role::Source)?.map_or(Ok(()), Journal::remove)?;
        }
        told.push(match recovered {
            Recovered::Here(untold) => format!("{id} is here: {}", undone(&peer, untold.as_ref(), discard)),
            Recovered::Gone(untold) => {
                format!("{id} is not here any more: {}", undone(&peer, untold.as_ref(), discard))
            }
            Recovered::Lost(why) => {
                format!("{id} is lost: it ran at {peer}, and {why}; {}", settle::left_as_it_was(id))
            }
            Recovered::There(Some(pid)) => format!("{id} is at {peer}, where it runs as process {pid}"),
            Recovered::There(None) => format!("{id} went to {peer}, ran there and has ended since"),
        });
        if running.met_another {
            told.push(format!("the container that is called {id} here now is another one, and was left alone"));
        }
    }
    let mut machine = receive::Machine::new(setting, None)?;
    for journal in journals.of(id, &setting.root, Role::Destination)? {
        let peer = journal.entry.peer.clone();
        if discard && at_destination(Some(journal.entry.state), None) == AtDestination::Wait {
            machine.discard(&journal.entry)?;
            journal.remove()?;
            told.push(format!(
                "what there was of {id} here is removed, and {peer} was not asked: if that had given it up, it stands still there"
            ));
            continue;
        }
        told.push(match destination::recover(journal, &mut machine)? {
            Found::Discarded => format!("{id} has stayed at {peer}: what there was of it here is removed"),
            Found::Here => format!("{id} is here"),
            Found::Ended => format!("{id} ran here and has ended since"),
            Found::Lost => format!(
                "{id} is lost: what brought the rest of its memory was cut off. As it was when it went it stands at {peer}, where \
                 `ferry migrate --recover {id}` tells what to do"
            ),
            Found::Undecided => {
                return Err(Error::plain(format!("whose container {id:?} is, only {peer} knows, where it came from"))
                    .hint(format!(
                        "`ferry migrate --recover {id}` there settles it for both; once it is known that it has stayed there, \
                         `ferry migrate --recover --discard {id}` removes what there is of it here"
                    )));
            }
        });
    }
    if told.is_empty() {
        told.push(match Store::new(&setting.root).has(&Id::new(id)?) {
            true => format!("{id} is here, and no migration of it was cut off"),
            false => format!("there is no {id} here, and no migration of it was cut off"),
        });
    }
    Ok(told.join("\n"))
}
