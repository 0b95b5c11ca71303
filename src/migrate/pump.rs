//! Between the source, this end's ferry and CRIU's lazy-pages daemon, for a container whose memory comes later.
//!
//! ```text
//! source <===== link =====> pump <===== link =====> ferry, which restores, commits, waits
//!                            ^
//!                            +--- words of CRIU's page server --- the lazy-pages daemon
//! ```
//!
//! A process touches its memory while ferry is at something else: while CRIU restores it, and in a hook that waits for it. So what
//! is asked for is brought by a process of its own, which passes on what else the two ends say to each other. It takes a
//! stranger's bytes apart, and so reaches nothing but what it has open ([`crate::security::jail`]).
//!
//! The daemon is answered in the order in which it asks. What it will ask for next is on its way by then ([`super::ahead`]).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ahead::Ahead;
use super::faults::Waits;
use super::frame::refused;
use super::left::{OPEN, page};
use super::link::{Frame, Link};
use super::message::Message;
use super::page_server::{CLOSED, Form, Pages, Word};
use super::pages::Unpacker;
use crate::error::{Context, Error, Result};

/// How often it looks whether anybody is to be told that it is at work.
const BEAT: u16 = 1000;

/// Who asks.
const NAMED: &str = "CRIU's lazy-pages daemon";

/// What stands between.
pub struct Pump {
    /// To the source.
    source: Link,
    /// To this end's ferry.
    ferry: Link,
    daemon: File,
    form: Form,
    unpacker: Unpacker,
    /// What the daemon has asked for and was not answered, and when.
    open: VecDeque<(Pages, Instant)>,
    ahead: Ahead,
    waits: Waits,
    /// The daemon asks for nothing more.
    is_over: bool,
    /// It has everything.
    is_whole: bool,
    /// Ferry has said that the container runs.
    is_active: bool,
    /// Ferry knows that it is whole.
    has_told: bool,
}

impl Pump {
    /// `daemon` is a stream socket; `unpacker` has taken what was sent before, and `left` is what was not.
    pub fn new(source: Link, ferry: Link, daemon: OwnedFd, form: Form, unpacker: Unpacker, left: Vec<Pages>) -> Self {
        let ahead = Ahead::new(left);
        let (open, waits) = (VecDeque::new(), Waits::default());
        let (is_over, is_whole, is_active, has_told) = (false, false, false, false);
        Self {
            source,
            ferry,
            daemon: daemon.into(),
            form,
            unpacker,
            open,
            ahead,
            waits,
            is_over,
            is_whole,
            is_active,
            has_told,
        }
    }

    /// What it needs of what is open.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let own = [self.source.ends(), self.ferry.ends()].concat();
        own.into_iter().chain([self.daemon.as_fd()]).chain(self.unpacker.files().map(AsFd::as_fd)).collect()
    }

    /// Passes on and brings what is asked for, until this end's ferry goes.
    ///
    /// # Errors
    /// The source is gone, or breaks a rule; the daemon is gone before it has everything.
    pub fn run(mut self) -> Result<()> {
        let done = self.pass(self.source.patience());
        if let Err(error) = &done {
            // Who waits for it hears of it, if there still is anybody.
            self.ferry.send(&Message::Failed(error.to_string())).ok();
        }
        done
    }

    fn pass(&mut self, patience: Duration) -> Result<()> {
        let mut heard = Instant::now();
        loop {
            let [source, ferry, daemon] = self.wait()?;
            self.source.alive()?;
            if source {
                match self.source.receive_any()? {
                    None => return Err(refused("the connection is cut")),
                    Some(Frame::Message(Message::Pages(pages))) => self.put(pages)?,
                    Some(frame) => pass_on(frame, &mut self.ferry)?,
                }
                heard = Instant::now();
            } else if heard.elapsed() > patience {
                return Err(refused(format!("it has been silent for {} s", patience.as_secs_f64())));
            }
            self.ferry.alive()?;
            if ferry {
                match self.ferry.receive_any()? {
                    None => return Ok(()),
                    Some(frame) => {
                        let is_active = matches!(frame, Frame::Message(Message::Active { .. }));
                        pass_on(frame, &mut self.source)?;
                        self.tell(is_active)?;
                    }
                }
            }
            // It may have turned out to be gone meanwhile.
            if daemon && !self.is_over {
                self.ask()?;
            }
        }
    }

    /// Who has something to say; nobody, after a while.
    fn wait(&self) -> Result<[bool; 3]> {
        let hears_daemon = !self.is_over && self.open.len() < OPEN;
        let mut waited = vec![self.source.ends()[0], self.ferry.ends()[0]];
        waited.extend(hears_daemon.then(|| self.daemon.as_fd()));
        let mut waited: Vec<PollFd<'_>> = waited.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut waited, PollTimeout::from(BEAT)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => (),
            Err(answer) => return Err(Error::kernel("wait for", "either end", answer)),
        }
        let ready = |at: usize| waited.get(at).is_some_and(|waited| waited.any().unwrap_or(false));
        Ok([ready(0), ready(1), ready(2)])
    }

    /// The daemon asks, or is gone.
    fn ask(&mut self) -> Result<()> {
        let mut word = vec![0; self.form.length()];
        let heard = self.daemon.read_exact(&mut word).or_cannot("hear from", NAMED);
        match heard.and_then(|()| self.form.decode(&word)) {
            Ok(Word::Get(pages)) => {
                let now = Instant::now();
                self.open.push_back((pages, now));
                if let Some(first) = self.ahead.wanted(pages, now) {
                    self.source.send(&Message::Want(first))?;
                }
                self.answer()
            }
            Ok(Word::Close) => {
                (self.is_over, self.is_whole) = (true, true);
                match self.daemon.write_all(&CLOSED).or_cannot("answer", NAMED) {
                    Ok(()) => self.tell(false),
                    Err(error) => self.lacks(&error),
                }
            }
            Err(error) => self.lacks(&error),
        }
    }

    /// The daemon is gone, or does not ask as it should. Ferry, which ends the container, still has something to tell the source.
    fn lacks(&mut self, error: &Error) -> Result<()> {
        // Once: ferry hears nothing but the source after that.
        (self.is_over, self.is_whole) = (true, false);
        self.ferry.send(&Message::Failed(error.to_string()))
    }

    /// Says that all is there, once it is, and once ferry has said that it runs, and can hear it.
    fn tell(&mut self, is_active: bool) -> Result<()> {
        self.is_active |= is_active;
        if !(self.is_whole && self.is_active) || std::mem::replace(&mut self.has_told, true) {
            return Ok(());
        }
        self.ferry.send(&Message::Whole(self.waits.faults()))
    }

    /// The source has answered.
    fn put(&mut self, pages: Pages) -> Result<()> {
        let stranger = || refused("it sends memory that was not asked for");
        let fits = self.ahead.comes(pages, Instant::now());
        let block = match self.source.receive_any()? {
            Some(Frame::Data(block)) if fits => self.unpacker.block(&block)?,
            None => return Err(refused("the connection is cut")),
            _ => return Err(stranger()),
        };
        if block.len() as u64 != pages.count * page() {
            return Err(stranger());
        }
        self.ahead.keep(pages, block);
        self.answer()
    }

    /// Gives the daemon what has come of what it asked for, in the order in which it did, and has more come.
    fn answer(&mut self) -> Result<()> {
        while let Some((asked, since)) = self.open.front().copied().filter(|_| !self.is_over) {
            let Some(bytes) = self.ahead.take(asked) else {
                if let Some(first) = self.ahead.wanted_still(asked, Instant::now()) {
                    self.source.send(&Message::Want(first))?;
                }
                break;
            };
            self.open.pop_front();
            let count = bytes.len() as u64 / page();
            let answer = [self.form.answer(Pages { count, ..asked }), bytes].concat();
            match self.daemon.write_all(&answer).or_cannot("answer", NAMED) {
                Ok(()) => self.waits.note(asked.count, count * page(), since.elapsed()),
                Err(error) => self.lacks(&error)?,
            }
        }
        while let Some(more) = self.ahead.more(Instant::now()).filter(|_| !self.is_over) {
            self.source.send(&Message::Want(more))?;
        }
        Ok(())
    }
}

fn pass_on(frame: Frame, to: &mut Link) -> Result<()> {
    match frame {
        // Each way has its own.
        Frame::Message(Message::Alive) => Ok(()),
        // Those are between the source and the pump alone.
        Frame::Message(message @ (Message::Want(_) | Message::Pages(_))) => Err(message.out_of_turn()),
        Frame::Message(message) => to.send(&message),
        Frame::Data(_) => Err(refused("a piece of a file came out of turn")),
    }
}
