//! The end that has the container: reserve, pre-copy, stop and copy, commit, activate, release.
//!
//! ```text
//! source                                     destination
//!   | ---- Reserve{id, bundle, machine…} ---> |  looks; holds the place
//!   | <--- Reserved, or Refused{reasons} ---- |
//!   |      what it lacks of the image: see content
//!   | - Round(n), Body…, File…, RoundEnd ---> |  verified                   (any number, while it runs)
//!   | <--- RoundTaken(n) -------------------- |  the disk writes it
//!   stops the container
//!   | - Round(n+1), Body…, File…, RoundEnd -> |  verified; the disk has begun to write it
//!   | <--- RoundTaken(n+1) ------------------ |
//!   | ---- Finish{round, streams} ----------> |  restores it, and holds it; all of it is on disk
//!   | <--- Prepared ------------------------- |  journal: prepared
//!   freezes its cgroup; journal: committed
//!   | ---- Commit{token} -------------------> |  journal: committed; lets it go on
//!   | <--- Active{pid} ---------------------- |  journal: active
//!   removes it; journal: none
//!   | ---- Released ------------------------> |  journal: none
//! ```
//!
//! The container stands still in [`super::stop`]. Where memory is left here ([`super::left`]), the last round goes without it, and it is asked for from `Finish` on:
//!
//! ```text
//!   | <--- Want(pages) ---------------------- |  any number, until it is whole
//!   | ---- Pages(pages), block -------------> |
//!   | <--- Active{pid} ---------------------- |  it runs there
//!   | <--- Whole{faults} -------------------- |  journal: active
//! ```
//!
//! Until the journal says `committed`, any failure is answered by letting the container go on. After it, the container here
//! stays as it stands until the destination says that it runs there, or that it never will.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::bodies::{Bodies, Tree};
use super::container::{Container, Dumped};
use super::content;
use super::images::{self, Sent};
use super::journal::{Entry, FORMAT, Journal, Journals, Which};
use super::left::{self, Left};
use super::link::Link;
use super::message::{self, Message, PROTOCOL, Place, Request};
use super::ownership::{Role, State};
use super::pages::{PAGE, Packer};
use super::progress::{Event, Progress, Step};
use super::report::{self, Bytes, Report};
use super::rounds::{self, Downtime, Next, Round, Wishes};
use super::settle;
use super::stop::{Last, Stop, Times};
use super::transport::Connection;
use crate::checkpoint::dump::Afterwards;
use crate::error::{Error, Result};
use crate::image::digest::Digest;

/// How to migrate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where to, as it was written.
    pub destination: String,
    /// Where this end keeps containers, and its id here.
    pub root: PathBuf,
    /// The container's id here.
    pub id: String,
    /// Which of those that have had it.
    pub which: Which,
    /// What is sent while it runs.
    pub pre_copy: PreCopy,
    /// What the rounds are to come to.
    pub wishes: Wishes,
    /// Whether what is left of it is sent after it has gone on there.
    pub leaves: bool,
    /// What to do where the rounds do not come to what they are to.
    pub on_no_convergence: NoConvergence,
    /// zstd's, of which 0 is without; `None`: as the link is fast or slow.
    pub level: Option<i32>,
}

/// What is sent while the container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreCopy {
    /// Nothing.
    Nothing,
    /// What it changed in the files of its image: the kernel does not tell which memory is written to.
    Files,
    /// That, and its memory.
    Everything,
}

/// What to do with a container that writes faster than is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoConvergence {
    /// It stands still for as long as it takes.
    #[default]
    Stop,
    /// It goes on there, and what is left of its memory comes after it.
    PostCopy,
    /// It stays.
    Abort,
}

impl Options {
    /// The name of what is asked for.
    fn mode(&self) -> &'static str {
        match (self.pre_copy == PreCopy::Everything, self.leaves) {
            (true, false) => "pre-copy",
            (false, false) => "stop-and-copy",
            (false, true) => "post-copy",
            (true, true) => "hybrid",
        }
    }
}

/// A migration on its way.
pub struct Source<'a> {
    /// To the destination.
    pub link: &'a mut Link,
    /// What is migrated.
    pub container: &'a mut dyn Container,
    /// How.
    pub options: &'a Options,
    /// Who listens.
    pub progress: &'a mut dyn Progress,
    /// Goes to the destination anew.
    pub connect: &'a mut dyn FnMut() -> Result<Connection>,
    /// Whether the destination was asked to restore it, and so may have something to undo.
    pub asked: bool,
}

impl Source<'_> {
    /// Migrates. Answers what it came to; a dry run ends after the first step.
    ///
    /// # Errors
    /// Why it could not be done. The container runs here then, unless the error says otherwise.
    pub fn migrate(&mut self, request: &Request, journals: &Journals) -> Result<Report> {
        let begun = Instant::now();
        let mut report = Report {
            format: report::FORMAT,
            id: self.options.id.clone(),
            destination: self.options.destination.clone(),
            mode: self.options.mode().to_owned(),
            ..Report::default()
        };
        let place = self.reserve(request)?;
        report.host = message::shown(&place.host);
        report.step(Step::Reserve.name(), nanoseconds(begun));
        let lacks = request.content.iter().filter(|blob| place.lacks.contains(&blob.digest));
        let lacking = lacks.fold(0_u64, |bytes, blob| bytes.saturating_add(blob.size));
        if request.dry_run {
            if lacking > 0 {
                report
                    .notes
                    .push(format!("{} of its image are not there, and would be sent first", report::size(lacking)));
            }
            report.total = nanoseconds(begun);
            return Ok(report);
        }
        let mut journal = journals.begin(Entry {
            format: FORMAT,
            token: request.token.clone(),
            role: Role::Source,
            id: self.options.id.clone(),
            which: Some(self.options.which.clone()),
            root: self.options.root.clone(),
            peer: self.options.destination.clone(),
            state: State::Open,
            bundle: request.bundle.clone(),
            choices: request.choices,
            image: request.image.clone(),
            last: None,
            daemon: None,
        })?;
        let (mut packer, mut bodies) = (Packer::new(self.options.level)?, Bodies::default());
        let sent = self.send_content(request, &place, &mut packer, &mut report);
        let ran = sent.and_then(|()| self.pre_copy(&journal, &mut packer, &mut bodies, &mut report));
        let moved = ran.and_then(|leaves| {
            // From here on an interrupt is CRIU's to notice, until the container is the destination's.
            self.stop_and_copy(&mut journal, &mut packer, &mut bodies, &mut report, leaves)
        });
        match moved {
            Ok(()) => self.finish(journal, &packer, &mut report, begun).map(|()| report),
            Err(error) => Err(self.abandon(journal, error)),
        }
    }

    fn reserve(&mut self, request: &Request) -> Result<Box<Place>> {
        self.progress.event(Event::Step(Step::Reserve));
        if let Err(error) = self.link.send(&Message::Reserve(Box::new(request.clone()))) {
            // One that has gone may have said why.
            return Err(self.link.hear().err().unwrap_or(error));
        }
        match self.link.hear()? {
            Message::Reserved(place) if place.version == PROTOCOL => Ok(place),
            Message::Reserved(place) => {
                Err(super::frame::refused(format!("it speaks version {} of the protocol", place.version)))
            }
            Message::Refused(reasons) => {
                let reasons: Vec<String> = reasons.iter().take(50).map(|reason| message::shown(reason)).collect();
                Err(Error::said("migrate container", format!("{:?}", request.id), reasons.join("; "))
                    .hint("nothing was sent, and nothing has changed"))
            }
            other => Err(other.out_of_turn()),
        }
    }

    /// What the destination lacks of the image.
    fn send_content(
        &mut self,
        request: &Request,
        place: &Place,
        packer: &mut Packer,
        report: &mut Report,
    ) -> Result<()> {
        if place.lacks.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        self.progress.event(Event::Step(Step::Content));
        let Self { link, container, .. } = self;
        let mut open = |digest: &Digest| container.content(digest);
        report.bytes.content = content::send(link, &place.lacks, &request.content, packer, &mut open)?;
        report.step(Step::Content.name(), nanoseconds(begun));
        Ok(())
    }

    /// Rounds, until the rest fits. Answers whether that is sent after it has gone on.
    fn pre_copy(
        &mut self,
        journal: &Journal,
        packer: &mut Packer,
        bodies: &mut Bodies,
        report: &mut Report,
    ) -> Result<bool> {
        let mut leaves = self.options.leaves;
        let has_memory = self.options.pre_copy == PreCopy::Everything;
        let has_files = self.options.pre_copy == PreCopy::Files && self.container.upper()?.is_some();
        if !has_memory && !has_files {
            return Ok(leaves);
        }
        let begun = Instant::now();
        self.progress.event(Event::Step(Step::PreCopy));
        loop {
            let number = count(&report.rounds) + 1;
            let directory = journal.round(number)?;
            let started = Instant::now();
            let tree = self.dump_ahead(&directory, number)?;
            let dump = nanoseconds(started);
            let (sent, before, started) = (self.link.sent, packer.counts.pages, Instant::now());
            let counted = images::send(self.link, &directory, number, packer, false, &mut |link, packer| {
                tree.as_ref().map_or(Ok(0), |tree| bodies.send(link, packer, tree, false))
            })
            .map_err(|error| content::why(self.link, error))?;
            self.taken(number)?;
            report.bytes.images += counted.others;
            report.bytes.files += counted.bodies;
            report.rounds.push(Round {
                pages: (packer.counts.pages - before) * PAGE as u64,
                files: counted.bodies,
                sent: self.link.sent - sent,
                dump,
                send: nanoseconds(started),
            });
            self.progress.event(Event::Round { rounds: &report.rounds, sent: self.link.sent });
            match rounds::next(&report.rounds, &self.options.wishes) {
                Next::Another => (),
                Next::Stop => break,
                // That is what it is for.
                Next::Diverges | Next::Limit if leaves => break,
                next => {
                    leaves |= self.not_met(next, report)?;
                    break;
                }
            }
        }
        // Of memory that goes all at once nothing is known yet.
        let estimate = rounds::downtime(&report.rounds).filter(|_| has_memory);
        report.estimate = estimate.map(|found| as_nanoseconds(found.total()));
        report.step(Step::PreCopy.name(), nanoseconds(begun));
        Ok(leaves)
    }

    /// Saves its memory, if that goes in rounds, and opens what it has changed in its files, if that is its own.
    fn dump_ahead(&mut self, directory: &Path, number: u32) -> Result<Option<Tree>> {
        let tree = self.container.upper()?.map(|upper| Tree::running(upper, directory)).transpose()?;
        if self.options.pre_copy != PreCopy::Everything {
            return Ok(tree.map(Tree::unsettled));
        }
        let link = &mut *self.link;
        self.container.pre_dump(directory, parent(number).as_deref(), &mut || link.alive())?;
        let is_mapped = tree.is_some() && self.container.maps_files()?;
        Ok(tree.map(|tree| if is_mapped { tree.mapped() } else { tree }))
    }

    /// It would stand still for longer than was asked for. Answers whether what is left is sent after it has gone on.
    fn not_met(&mut self, next: Next, report: &mut Report) -> Result<bool> {
        let still = rounds::downtime(&report.rounds);
        let time = |time: Option<Duration>| report::time(time.map_or(0, as_nanoseconds));
        let found = match next {
            Next::Overhead => format!(
                "to save and restore it takes about {}, however little is left: no further round makes that less",
                time(still.map(|still| still.overhead))
            ),
            Next::Limit => format!(
                "it had as many rounds as --max-rounds allows, and would stand still for {}",
                still.map_or_else(|| "a time that one does not tell".to_owned(), |still| time(Some(still.total()))),
            ),
            _ => format!(
                "it does not converge: {} a second are written to, {} a second are sent, and it would stand still for {}",
                report::size(rounds::dirty_rate(&report.rounds).unwrap_or(0)),
                report::size(rounds::bandwidth(&report.rounds).unwrap_or(0)),
                time(still.map(Downtime::total)),
            ),
        };
        if self.options.on_no_convergence == NoConvergence::Abort && next != Next::Limit {
            return Err(Error::plain(found)
                .hint("--on-no-convergence stop migrates it all the same, --max-downtime allows more"));
        }
        self.progress.event(Event::Note(&found));
        report.notes.push(found);
        // What CRIU takes for anything is no less for memory that comes later.
        Ok(next == Next::Diverges && self.options.on_no_convergence == NoConvergence::PostCopy)
    }

    fn taken(&mut self, number: u32) -> Result<()> {
        match self.link.hear()? {
            Message::RoundTaken(taken) if taken == number => Ok(()),
            other => Err(other.out_of_turn()),
        }
    }

    fn stop_and_copy(
        &mut self,
        journal: &mut Journal,
        packer: &mut Packer,
        bodies: &mut Bodies,
        report: &mut Report,
        leaves: bool,
    ) -> Result<()> {
        self.progress.event(Event::Step(Step::StopAndCopy));
        let number = count(&report.rounds) + 1;
        let directory = journal.round(number)?;
        let mut times = Times::default();
        let mut copied = Sent::default();
        let mut unsure = None;
        let tree = if bodies.is_empty() { None } else { self.container.upper()?.map(Tree::still) };
        let Self { link, container, progress, connect, asked, .. } = self;
        let after = container.dump(&directory, parent(number).as_deref(), &mut |dumped| {
            let still = match dumped {
                Dumped::All(still) => still,
                Dumped::NotYet => return link.alive().map(|()| Afterwards::End),
            };
            let (progress, connect) = (&mut **progress, &mut **connect);
            let mut stop = Stop { link, progress, connect, times: &mut times, asked };
            stop.times.stopped = Some(still.since());
            stop.times.dumped = nanoseconds(still.since());
            let left = if leaves { Left::take_out(&directory)? } else { Left::default() };
            copied = stop
                .copy(&mut Last { directory: &directory, number, tree: &tree, bodies, left: &left }, packer, still)
                .map_err(|error| content::why(stop.link, error))?;
            let verdict = stop.commit(journal, still, &mut left::Giving::new(&left, packer))?;
            unsure = verdict.1;
            Ok(verdict.0)
        });
        report.bytes.images += copied.others;
        report.bytes.files += copied.bodies;
        report.rounds.push(Round {
            pages: times.pages,
            files: copied.bodies,
            sent: times.bytes,
            dump: times.dumped,
            send: times.sent,
        });
        report.step(Step::StopAndCopy.name(), times.dumped + times.sent);
        report.step(Step::Commit.name(), times.commit);
        report.step(Step::Activate.name(), times.activate);
        if times.push > 0 {
            report.step(Step::Push.name(), times.push);
        }
        (report.downtime, report.pid, report.faults) = (times.downtime, times.pid, times.faults);
        match (unsure, after, journal.entry.state) {
            (Some(error), ..) => Err(error),
            // It runs there: whatever CRIU has to say of the processes here, they go.
            (None, _, State::Committed) => Ok(()),
            (None, Err(error), _) => Err(error),
            (None, Ok(_), _) => Err(Error::plain("the container was stopped, and nobody has decided over it")),
        }
    }

    fn finish(&mut self, journal: Journal, packer: &Packer, report: &mut Report, begun: Instant) -> Result<()> {
        let started = Instant::now();
        report.total = nanoseconds(begun);
        self.progress.event(Event::Step(Step::Release));
        self.container.release().and_then(|()| journal.remove()).map_err(|error| {
            error.hint(format!(
                "the container runs at the destination; `ferry migrate --recover {}` removes what is here",
                self.options.id
            ))
        })?;
        // It runs there, whatever becomes of this word: without it the destination keeps its journal, and nothing else.
        self.link.send(&Message::Released).ok();
        report.step(Step::Release.name(), nanoseconds(started));
        let counts = packer.counts;
        let page = PAGE as u64;
        report.bytes = Bytes {
            pages: counts.pages * page,
            images: report.bytes.images,
            files: report.bytes.files,
            content: report.bytes.content,
            sent: self.link.sent,
            saved_zero: counts.zero * page,
            saved_same: counts.same * page,
            saved_unchanged: counts.unchanged_away,
            saved_compression: counts.compressed_away,
        };
        report.pages = counts;
        report.migrated = true;
        self.progress.event(Event::Done(report));
        Ok(())
    }

    /// It stays here. The destination is told, and the journal goes once it is known that nothing is left there.
    fn abandon(&mut self, mut journal: Journal, error: Error) -> Error {
        if journal.entry.state == State::Lost {
            let removed = self.container.take_back().and_then(|()| journal.remove());
            // Without this word the destination keeps its journal, and nothing else.
            self.link.send(&Message::Released).ok();
            return match removed {
                Ok(()) => error.hint(settle::left_as_it_was(&self.options.id)),
                Err(second) => error.and_then(Err::<(), _>(second)),
            };
        }
        if journal.entry.state == State::Committed {
            return error.hint(format!("`ferry migrate --recover {}` settles it", self.options.id));
        }
        let told = match (self.asked, self.link.failed) {
            (_, true) => Ok(()),
            // Nothing is decided there that would have to be undone.
            (false, _) => {
                self.link.send(&Message::Abort(error.to_string())).ok();
                Ok(())
            }
            (true, false) => settle::abort(self.link, &error.to_string()),
        };
        let undone = match told {
            Ok(()) => journal.remove(),
            Err(error) => Err(journal.note(State::Aborted).err().unwrap_or(error)),
        };
        match undone {
            Ok(()) => error,
            Err(second) => error.hint(format!(
                "it goes on here; what is left of this is settled by `ferry migrate --recover {}`: {second}",
                self.options.id
            )),
        }
    }
}

/// The round before, as seen from this one's directory.
fn parent(round: u32) -> Option<PathBuf> {
    (round > 1).then(|| Path::new("..").join((round - 1).to_string()))
}

fn count(rounds: &[Round]) -> u32 {
    u32::try_from(rounds.len()).unwrap_or(u32::MAX)
}

/// Nanoseconds from then to now.
pub(super) fn nanoseconds(since: Instant) -> u64 {
    as_nanoseconds(since.elapsed())
}

fn as_nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
