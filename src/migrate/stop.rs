//! What the source does while the container stands still, and until the destination has all of it: the last round, the commit, and
//! memory that is left here given to who asks for it.

use std::path::Path;
use std::time::Instant;

use super::bodies::{Bodies, Tree};
use super::container::Still;
use super::faults::Faults;
use super::images::{self, Sent};
use super::journal::Journal;
use super::left::{Giving, Left};
use super::link::Link;
use super::message::{self, Message};
use super::ownership::State;
use super::pages::{PAGE, Packer};
use super::progress::{Event, Progress, Step};
use super::settle::{self, Answer};
use super::source::nanoseconds;
use super::transport::Connection;
use crate::checkpoint::dump::Afterwards;
use crate::error::{Error, Result};

/// What is measured of the last round.
#[derive(Debug, Default)]
pub struct Times {
    pub stopped: Option<Instant>,
    pub dumped: u64,
    pub sent: u64,
    pub commit: u64,
    pub activate: u64,
    pub downtime: u64,
    pub pid: i32,
    /// Bytes of pages that went in it, and over the link.
    pub pages: u64,
    pub bytes: u64,
    pub faults: Option<Faults>,
    pub push: u64,
}

/// What goes in the last round.
pub struct Last<'a> {
    pub directory: &'a Path,
    pub number: u32,
    /// What it has changed in its files, where some of that is there already.
    pub tree: &'a Option<Tree>,
    pub bodies: &'a mut Bodies,
    /// Memory that goes later.
    pub left: &'a Left,
}

/// The container stands still.
pub struct Stop<'a> {
    pub link: &'a mut Link,
    pub progress: &'a mut dyn Progress,
    pub connect: &'a mut dyn FnMut() -> Result<Connection>,
    pub times: &'a mut Times,
    pub asked: &'a mut bool,
}

impl Stop<'_> {
    /// The last round.
    ///
    /// # Errors
    /// The link's; what reading images answers.
    pub fn copy(&mut self, round: &mut Last<'_>, packer: &mut Packer, still: &dyn Still) -> Result<Sent> {
        let started = Instant::now();
        let (bytes, before) = (self.link.sent, packer.counts.pages);
        let Last { directory, number, tree, bodies, left } = round;
        let (number, bodies) = (*number, &mut **bodies);
        let sent = images::send(self.link, directory, number, packer, true, &mut |link, packer| {
            let sent = tree.as_ref().map_or(Ok(0), |tree| bodies.send(link, packer, tree, true))?;
            still.keep_root(&|stat| bodies.has(stat), &mut || link.alive()).map(|()| sent)
        })?;
        match self.link.hear()? {
            Message::RoundTaken(taken) if taken == number => (),
            other => return Err(other.out_of_turn()),
        }
        *self.asked = true;
        let last = message::Last { round: number, left: left.pages, streams: still.streams()? };
        self.link.send(&Message::Finish(Box::new(last)))?;
        self.times.sent = nanoseconds(started);
        (self.times.bytes, self.times.pages) = (self.link.sent - bytes, (packer.counts.pages - before) * PAGE as u64);
        Ok(sent)
    }

    /// Gives it up, once the destination has it. An error before the journal says so lets the container go on; the error that
    /// is answered beside [`Afterwards::StandStill`] is why it is not known what became of it, or that it is lost.
    ///
    /// # Errors
    /// It has not been given up.
    pub fn commit(
        &mut self,
        journal: &mut Journal,
        still: &mut dyn Still,
        giving: &mut Giving<'_>,
    ) -> Result<(Afterwards, Option<Error>)> {
        let started = Instant::now();
        match giving.hear(self.link)? {
            Message::Prepared => (),
            other => return Err(other.out_of_turn()),
        }
        self.progress.event(Event::Step(Step::Commit));
        self.link.heed_interrupts(false)?;
        still.freeze()?;
        // Whoever killed it before that was told that it ends.
        if still.is_ending()? {
            return Err(Error::plain("it was killed while it stood still"));
        }
        if let Err(error) = journal.note(State::Committed) {
            return match journal.note(State::Aborted) {
                Ok(()) => Err(error),
                // What is on the disk is not known any more.
                Err(second) => Ok((Afterwards::StandStill, Some(second))),
            };
        }
        self.times.commit = nanoseconds(started);
        let started = Instant::now();
        self.progress.event(Event::Step(Step::Activate));
        giving.without_bound();
        let token = &journal.entry.token;
        let mut given = Given { giving, times: self.times, progress: self.progress, started, ran: None };
        let answer = settle::hand_over(self.link, token, &mut given, self.connect);
        given.ends();
        match answer {
            Ok(Answer::Active(pid)) => {
                self.times.pid = pid;
                Ok((Afterwards::End, None))
            }
            Ok(Answer::Returned(why)) => match journal.note(State::Aborted) {
                Ok(()) => Err(Error::plain(format!("the destination could not let it go on: {why}"))),
                Err(error) => Ok((Afterwards::StandStill, Some(error))),
            },
            Ok(Answer::Lost(why)) => {
                let lost = Error::plain(format!("the container is lost: {why}"));
                Ok((Afterwards::StandStill, Some(lost.and_then(journal.note(State::Lost)))))
            }
            Err(error) => Ok((
                Afterwards::StandStill,
                Some(error.hint(
                    "it is the destination's, and whether it runs there is not known: here it stands still until then",
                )),
            )),
        }
    }
}

/// The destination has it, and memory that is left here is given.
struct Given<'a, 'b> {
    giving: &'a mut Giving<'b>,
    times: &'a mut Times,
    progress: &'a mut dyn Progress,
    started: Instant,
    ran: Option<Instant>,
}

impl Given<'_, '_> {
    /// It runs there, as far as is known.
    fn noted(&mut self) {
        if self.ran.is_none() {
            self.times.activate = nanoseconds(self.started);
            self.times.downtime = self.times.stopped.map_or(0, nanoseconds);
        }
        self.ran.get_or_insert_with(Instant::now);
    }

    /// There is nothing more to be heard.
    fn ends(mut self) {
        self.noted();
        if self.giving.left.pages > 0 {
            self.times.push = self.ran.map_or(0, nanoseconds);
        }
    }
}

impl settle::Giving for Given<'_, '_> {
    fn hear(&mut self, link: &mut Link) -> Result<Message> {
        self.giving.hear(link)
    }

    fn runs(&mut self, _: i32) -> bool {
        self.noted();
        let is_left = self.giving.left.pages > 0;
        if is_left {
            self.progress.event(Event::Step(Step::Push));
        }
        is_left
    }

    fn whole(&mut self, faults: Faults) {
        self.times.faults = Some(faults);
    }
}
