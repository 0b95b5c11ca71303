//! The end that takes the container. See [`super::source`] for the order of what is said, and [`super::settle`] for what may be
//! said on a link of its own after a cut.
//!
//! Whatever fails before the journal says `prepared` leaves nothing. From there on only the source knows what is to become of
//! it, and what is here stays until it has said so.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::content;
use super::faults::Faults;
use super::frame::refused;
use super::host::{Host, Lazily};
use super::images::{self, Taken};
use super::journal::{Entry, FORMAT, Journal, Journals};
use super::left;
use super::link::{Frame, Link};
use super::message::{self, Blob, Message, PROTOCOL, Place, Request, Token, Verdict};
use super::ownership::{AtDestination, Role, State, at_destination};
use super::page_server::{Form, Pages};
use super::pages::Unpacker;
use super::pump::Pump;
use super::staged;
use crate::checkpoint::restore::Moment;
use crate::error::{Context, Error, Result};
use crate::image::tree;
use crate::security::jail::{self, Work};

/// What images may take beside a multiple of the memory. Bytes.
const BESIDE: u64 = 256 << 20;

/// Why a container is lost, as far as it is known later.
const CUT_OFF: &str = "what brought the rest of its memory was cut off";

/// The round that stands for an image's content: before the first. Its directory is called so.
const CONTENT: u32 = 0;

/// How long it is known here that a container has come, where the source has not said that it has heard.
const KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How often all of the memory and of the files may come: a round may have as much as the first.
const ROUNDS: u64 = 64;

/// What came of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Served {
    /// A container runs here.
    Taken(String),
    /// It was refused, for these reasons.
    Refused(Vec<String>),
    /// It could not be taken, or was not given, and the source knows that nothing of it is left here.
    Failed(Error),
    /// Nothing is to be done.
    Nothing,
}

/// Serves one link to its end.
///
/// # Errors
/// Why a container did not come here; the source has been told, unless it is gone.
pub fn serve(link: &mut Link, journals: &Journals, host: &mut dyn Host) -> Result<Served> {
    loop {
        match link.receive_or_end()? {
            None => return Ok(Served::Nothing),
            Some(Frame::Message(Message::Reserve(request))) => return reserve(link, journals, host, &request),
            Some(Frame::Message(Message::Settle { version, token, verdict })) => {
                if version != PROTOCOL {
                    let why = format!("it speaks version {version} of the protocol, and this end {PROTOCOL}");
                    link.send(&Message::Failed(why.clone()))?;
                    return Err(refused(why));
                }
                settle(link, journals, host, &token, verdict)?;
            }
            Some(Frame::Message(other)) => return Err(other.out_of_turn()),
            Some(Frame::Data(_)) => return Err(refused("a piece of a file came out of turn")),
        }
    }
}

fn reserve(link: &mut Link, journals: &Journals, host: &mut dyn Host, request: &Request) -> Result<Served> {
    let (place, lacks, journal) = match looked(journals, host, request) {
        Ok(Ok((place, lacks, Some(journal)))) => (place, lacks, journal),
        Ok(Ok((place, _, None))) => {
            link.send(&Message::Reserved(Box::new(place)))?;
            return Ok(Served::Nothing);
        }
        Ok(Err(reasons)) => {
            link.send(&Message::Refused(reasons.clone()))?;
            return Ok(Served::Refused(reasons));
        }
        Err(error) => {
            let told = link.send(&Message::Failed(error.to_string()));
            return if told.is_ok() { Ok(Served::Failed(error)) } else { Err(error) };
        }
    };
    let most = request.memory.saturating_add(request.files).saturating_mul(ROUNDS).saturating_add(BESIDE);
    let most = most.min(place.disk_free);
    let unsettled = BTreeSet::new();
    let mut taking = Taking { link, host, journal, unsettled, aborted: false, unknown: false };
    let reserved = taking.link.send(&Message::Reserved(Box::new(place)));
    let taken = reserved.and_then(|()| taking.take_content(request, &lacks)).and_then(|()| taking.receive(most));
    let taken = taken.and_then(|()| taking.restore()).or_else(|error| taking.runs_all_the_same(error));
    match taken {
        Ok(active) if taking.left() > 0 => taking.bring(&active).map(|()| Served::Taken(request.id.clone())),
        Ok(active) => taking.done(&active).map(|()| Served::Taken(request.id.clone())),
        Err(error) => taking.give_up(error).map(Served::Failed),
    }
}

/// What this end is, what it lacks of the image, and the journal of what is to come, where it is; or what is in the way.
type Looked = std::result::Result<(Place, Vec<Blob>, Option<Journal>), Vec<String>>;

fn looked(journals: &Journals, host: &mut dyn Host, request: &Request) -> Result<Looked> {
    let mut reasons = host.obstacles(request)?;
    reasons.extend(unsettled(journals, host, request)?);
    if !reasons.is_empty() {
        return Ok(Err(reasons));
    }
    let lacks = host.lacks(request)?;
    let place = Place { lacks: lacks.iter().map(|blob| blob.digest.clone()).collect(), ..host.place()? };
    if request.dry_run {
        return Ok(Ok((place, lacks, None)));
    }
    let journal = journals.begin(Entry {
        format: FORMAT,
        token: request.token.clone(),
        role: Role::Destination,
        id: request.id.clone(),
        which: None,
        root: host.root().to_owned(),
        peer: message::shown(&request.from),
        state: State::Open,
        bundle: request.bundle.clone(),
        choices: request.choices,
        image: request.image.clone(),
        last: None,
        daemon: None,
    })?;
    Ok(Ok((place, lacks, Some(journal))))
}

/// What is left of earlier ones stands in the way, but for one that came to its end: that stays for a source that may ask yet.
fn unsettled(journals: &Journals, host: &mut dyn Host, request: &Request) -> Result<Vec<String>> {
    let (id, mut reasons) = (&request.id, Vec::new());
    for journal in journals.of(id, host.root(), Role::Destination)? {
        match at_destination(Some(journal.entry.state), None) {
            AtDestination::Discard | AtDestination::Keep if request.dry_run => (),
            AtDestination::Discard => discard(journal, host)?,
            AtDestination::Keep if journal.age() > KEPT && host.runs(&journal.entry)?.is_none() => journal.remove()?,
            AtDestination::Keep => (),
            _ => reasons.push(format!(
                "an earlier migration of {id} is not settled: `ferry migrate --recover` at {} does that",
                message::shown(&journal.entry.peer)
            )),
        }
    }
    Ok(reasons)
}

/// A container on its way here.
struct Taking<'a> {
    link: &'a mut Link,
    host: &'a mut dyn Host,
    journal: Journal,
    /// Bodies that may not be on disk yet.
    unsettled: BTreeSet<u64>,
    aborted: bool,
    /// Whether it runs here cannot be found out.
    unknown: bool,
}

impl Taking<'_> {
    /// What this end lacks of the image.
    fn take_content(&mut self, request: &Request, lacks: &[Blob]) -> Result<()> {
        if lacks.is_empty() {
            return Ok(());
        }
        let Self { link, host, journal, .. } = self;
        let (images, directory) = (journal.open_images()?, journal.round(CONTENT)?);
        jail::confined(Work::Receives(images.as_fd()), || content::take(link, &directory, lacks))?;
        host.keep(request, &directory, &mut || link.alive())?;
        // It is in the store now.
        tree::remove(images.as_fd(), c"0").or_cannot("remove", directory.display())?;
        link.send(&Message::ContentTaken)
    }

    /// All rounds, and what to restore from; by a thread that reaches nothing but the images.
    fn receive(&mut self, most: u64) -> Result<()> {
        let Self { link, journal, .. } = self;
        let images = journal.open_images()?;
        let (taken, left) = jail::confined(Work::Receives(images.as_fd()), || {
            let taken = images::rounds(link, journal, most)?;
            let left = if taken.last.left > 0 { left::missing(&journal.round(taken.last.round)?) } else { Vec::new() };
            Ok((taken, left))
        })?;
        let Taken { last, unpacker, unsettled } = taken;
        self.unsettled = unsettled;
        let Self { journal, .. } = self;
        journal.entry.last = Some(last);
        if self.left() > 0 { self.lend(unpacker, left) } else { Ok(()) }
    }

    /// How many pages come later.
    fn left(&self) -> u64 {
        self.journal.entry.last.as_ref().map_or(0, |last| last.left)
    }

    /// From here on what brings them stands between the source and this end.
    fn lend(&mut self, unpacker: Unpacker, left: Vec<Pages>) -> Result<()> {
        let Self { link, journal, host, .. } = self;
        let Lazily { asks, criu, daemon } = host.begin_lazily(&journal.entry, &journal.images())?;
        journal.entry.daemon = daemon;
        journal.note(State::Open)?;
        let (near, far) = Link::pair(link.patience())?;
        let source = std::mem::replace(*link, near);
        host.pump(Pump::new(source, far, asks, Form::of(criu), unpacker, left))
    }

    /// Restores it, holds it until the source has decided, and lets it go on if it may.
    fn restore(&mut self) -> Result<Message> {
        let Self { link, host, journal, unsettled, aborted, .. } = self;
        let (entry, images) = (journal.entry.clone(), journal.images());
        let started = Instant::now();
        let last = images.join(entry.last.as_ref().map_or(0, |last| last.round).to_string());
        let left = entry.last.as_ref().map_or(0, |last| last.left);
        let (mut prepared, mut committed) = (0, None);
        let pid = host.restore(&entry, &images, &mut |moment| {
            match (moment, committed) {
                (Moment::Held, _) => (),
                (Moment::Running, _) => return Ok(()),
                (Moment::Waiting, None) => return link.alive(),
                // It is this end's, whoever is still there to be told.
                (Moment::Waiting, Some(_)) => return Ok(()),
            }
            // The disk had as long as CRIU took. Once it is this end's it can be restored from the images, whatever goes down.
            images::settle(&last, &mut || link.alive())?;
            staged::settle(&journal.bodies(), unsettled, &mut || link.alive())?;
            prepared = nanoseconds(started);
            journal.note(State::Prepared)?;
            link.send(&Message::Prepared)?;
            match link.receive()? {
                Frame::Message(Message::Commit(token)) if token == journal.entry.token => (),
                Frame::Message(Message::Abort(why)) => {
                    *aborted = true;
                    return Err(Error::plain(format!("the source gave up: {}", message::shown(&why))));
                }
                Frame::Message(Message::Failed(why)) => return Err(Error::plain(why)),
                Frame::Message(other) => return Err(other.out_of_turn()),
                Frame::Data(_) => return Err(refused("a piece of a file came out of turn")),
            }
            if left > 0 {
                journal.prepare(State::Active)?;
            }
            journal.note(if left > 0 { State::Incomplete } else { State::Committed })?;
            committed = Some(Instant::now());
            Ok(())
        })?;
        Ok(Message::Active { pid, prepared, resumed: committed.map_or(0, nanoseconds) })
    }

    /// It runs here. What cannot be said or noted now is found out by whoever asks later.
    fn done(mut self, active: &Message) -> Result<()> {
        self.journal.note(State::Active)?;
        released(self.link, self.journal, active)
    }

    /// It runs here, and the rest of its memory comes. Without that it is lost: see [`super::ownership`].
    fn bring(mut self, active: &Message) -> Result<()> {
        match self.brought(active) {
            Ok(faults) => released(self.link, self.journal, &Message::Whole(faults)),
            Err(error) => {
                let why = error.to_string();
                Err(error.and_then(lost(self.link, self.journal, self.host, &why)))
            }
        }
    }

    fn brought(&mut self, active: &Message) -> Result<Faults> {
        self.link.send(active)?;
        let faults = loop {
            match self.link.receive_any()? {
                // However long it takes, as long as it goes on.
                Some(Frame::Message(Message::Alive)) => (),
                Some(Frame::Message(Message::Whole(faults))) => break faults,
                Some(Frame::Message(Message::Failed(why))) => return Err(Error::plain(why)),
                Some(Frame::Message(other)) => return Err(other.out_of_turn()),
                Some(Frame::Data(_)) => return Err(refused("a piece of a file came out of turn")),
                None => return Err(Error::plain("what brings the container's memory has ended")),
            }
        };
        self.host.whole()?;
        self.journal.note_prepared(State::Active)?;
        Ok(faults)
    }

    /// What went wrong after the commit may have done so once it ran. Then it is this end's; and as long as nobody knows, it is not
    /// given back, for two would run.
    fn runs_all_the_same(&mut self, error: Error) -> Result<Message> {
        if !matches!(self.journal.entry.state, State::Committed | State::Incomplete) {
            return Err(error);
        }
        match self.host.runs(&self.journal.entry) {
            Ok(Some(pid)) => Ok(Message::Active { pid, prepared: 0, resumed: 0 }),
            Ok(None) => Err(error),
            Err(why) => {
                self.unknown = true;
                Err(error.and_then(Err::<(), _>(why)))
            }
        }
    }

    /// Says why, and leaves nothing. Answers the error that the source knows of.
    fn give_up(self, error: Error) -> Result<Error> {
        let told = match (self.journal.entry.state, self.aborted) {
            (State::Open, _) => {
                let why = Message::Failed(error.to_string());
                self.journal.remove().and_then(|()| self.link.send(&why))
            }
            (State::Prepared, true) => self.journal.remove().and_then(|()| self.link.send(&Message::Aborted)),
            (State::Committed | State::Incomplete, _) if !self.unknown => give_back(self.link, self.journal, &error),
            _ => {
                return Err(error.hint(format!(
                    "only the source knows whether it is this end's: `ferry migrate --recover` at {} settles it",
                    message::shown(&self.journal.entry.peer)
                )));
            }
        };
        if told.is_ok() { Ok(error) } else { Err(error.and_then(told)) }
    }
}

/// Without its memory it does not go on: it is ended, and the source is told why.
fn lost(link: &mut Link, mut journal: Journal, host: &mut dyn Host, why: &str) -> Result<()> {
    host.lose(&journal.entry)?;
    journal.note(State::Lost)?;
    released(link, journal, &Message::Lost(why.to_owned()))
}

/// Says that it runs, and forgets the migration once the source has.
fn released(link: &mut Link, journal: Journal, active: &Message) -> Result<()> {
    link.send(active).ok();
    match link.receive_or_end() {
        Ok(Some(Frame::Message(Message::Released))) => journal.remove(),
        // The source will ask again; or it has nothing left to ask about. Nothing is restored from the images any more.
        _ => journal.forget_images(),
    }
}

/// It could not be made to go on: it is the source's again, which has it still.
fn give_back(link: &mut Link, mut journal: Journal, error: &Error) -> Result<()> {
    let said = journal.note(State::Returned).and_then(|()| link.send(&Message::Returned(error.to_string())));
    said?;
    match link.receive_or_end()? {
        Some(Frame::Message(Message::Abort(_))) => journal.remove().and_then(|()| link.send(&Message::Aborted)),
        // The source will ask again.
        _ => Ok(()),
    }
}

/// The source has decided over a migration that was cut off.
fn settle(link: &mut Link, journals: &Journals, host: &mut dyn Host, token: &Token, verdict: Verdict) -> Result<()> {
    let mut journal = journals.open(token, Role::Destination)?.filter(|journal| journal.entry.root == host.root());
    if let Some(journal) = &mut journal {
        look(journal, host)?;
    }
    let state = journal.as_ref().map(|journal| journal.entry.state);
    match (at_destination(state, Some(verdict)), journal) {
        (AtDestination::Discard, journal) => {
            journal.map_or(Ok(()), |journal| discard(journal, host))?;
            link.send(&Message::Aborted)
        }
        (AtDestination::Keep, Some(journal)) => {
            let pid = host.runs(&journal.entry)?.unwrap_or(0);
            released(link, journal, &Message::Active { pid, prepared: 0, resumed: 0 })
        }
        (AtDestination::TakeOver, Some(mut journal)) => match take_over(&mut journal, host) {
            Ok(active) => released(link, journal, &active),
            Err(error) => Err(not_taken(link, &mut journal, host, error)),
        },
        (AtDestination::Return, _) => link.send(&Message::Returned("it could not be made to run".to_owned())),
        (AtDestination::Lose, Some(journal)) => lost(link, journal, host, CUT_OFF),
        (AtDestination::Lost, Some(journal)) => released(link, journal, &Message::Lost(CUT_OFF.to_owned())),
        (AtDestination::Unknown, _) => link.send(&Message::Unknown),
        _ => {
            let why = "the source says that it stays there, and it was given to this end";
            link.send(&Message::Failed(why.to_owned()))?;
            Err(refused(why))
        }
    }
}

/// One that was killed between letting the processes go on and noting it has left them running.
fn look(journal: &mut Journal, host: &mut dyn Host) -> Result<()> {
    if journal.entry.state == State::Committed && host.runs(&journal.entry)?.is_some() {
        journal.note(State::Active)?;
    }
    Ok(())
}

/// The journal goes last: as long as it is there, it says that there may be something to remove.
fn discard(journal: Journal, host: &mut dyn Host) -> Result<()> {
    host.discard(&journal.entry)?;
    journal.remove()
}

/// Restores it from the images, alone.
fn take_over(journal: &mut Journal, host: &mut dyn Host) -> Result<Message> {
    journal.note(State::Committed)?;
    let started = Instant::now();
    let pid = host.restore(&journal.entry.clone(), &journal.images(), &mut |_| Ok(()))?;
    journal.note(State::Active)?;
    Ok(Message::Active { pid, prepared: nanoseconds(started), resumed: 0 })
}

/// It could not be taken over. The source has it still, and gets it back, unless it runs here after all.
fn not_taken(link: &mut Link, journal: &mut Journal, host: &mut dyn Host, error: Error) -> Error {
    let said = host.runs(&journal.entry).and_then(|pid| match pid {
        Some(_) => Ok(()),
        None => journal.note(State::Returned).and_then(|()| link.send(&Message::Returned(error.to_string()))),
    });
    error.and_then(said)
}

/// What became of a migration to here that was cut off, as far as it can be said here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing is left of it, and the container is not here.
    Discarded,
    /// The container runs here.
    Here,
    /// It ran here, and has ended since.
    Ended,
    /// It ran here, and its memory never came: nothing is left of it here.
    Lost,
    /// Only the source knows.
    Undecided,
}

/// Settles what can be settled here, without the source.
///
/// # Errors
/// What cannot be done.
pub fn recover(mut journal: Journal, host: &mut dyn Host) -> Result<Found> {
    look(&mut journal, host)?;
    if journal.entry.state == State::Lost {
        return Ok(Found::Lost);
    }
    match at_destination(Some(journal.entry.state), None) {
        AtDestination::Lose => {
            host.lose(&journal.entry)?;
            journal.note(State::Lost).map(|()| Found::Lost)
        }
        AtDestination::Discard => discard(journal, host).map(|()| Found::Discarded),
        // The source may not know yet that it runs here: its journal asks for this one.
        AtDestination::Keep => Ok(if host.runs(&journal.entry)?.is_some() { Found::Here } else { Found::Ended }),
        AtDestination::TakeOver => take_over(&mut journal, host).map(|_| Found::Here),
        _ => Ok(Found::Undecided),
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
