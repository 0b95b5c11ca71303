//! The source's side of what is left to be said once it has decided, also after a cut and by whoever comes later.
//!
//! ```text
//! source                                      destination
//!   | ---- Settle{token, committed} --------> |  restores it from the images, unless it runs
//!   | <--- Active{pid}, Returned, Lost,
//!          Unknown -------------------------- |
//!   | ---- Settle{token, aborted} ----------> |  removes what there is of it
//!   | <--- Aborted -------------------------- |
//! ```

use std::time::Duration;

use super::container::Container;
use super::faults::Faults;
use super::journal::Journal;
use super::link::{self, Link};
use super::message::{self, Message, PROTOCOL, Token, Verdict};
use super::ownership::{self, AtSource, State};
use super::transport::Connection;
use crate::error::{Error, Result};

/// Before each new try to reach the destination, once the container is its own.
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

/// What the destination says of a container that is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It runs there, as this process.
    Active(i32),
    /// It does not and never will, for this reason.
    Returned(String),
    /// It did, and does not any more: memory that was left here never came, for this reason.
    Lost(String),
}

/// What goes on while the destination has the container and is heard.
pub trait Giving {
    /// The next message; memory that is asked for meanwhile is given.
    ///
    /// # Errors
    /// As [`Link::hear`].
    fn hear(&mut self, link: &mut Link) -> Result<Message>;

    /// It runs there, as this process. Answers whether memory is left here, and there is more to be heard.
    fn runs(&mut self, pid: i32) -> bool;

    /// All of it is there.
    fn whole(&mut self, faults: Faults);
}

/// Gives a container that was prepared up on this link, or, if that is cut, on a new one, which then takes its place.
///
/// # Errors
/// It is not known whether the destination has heard.
pub fn hand_over(
    link: &mut Link,
    token: &Token,
    giving: &mut dyn Giving,
    connect: &mut dyn FnMut() -> Result<Connection>,
) -> Result<Answer> {
    let mut failed = match link.send(&Message::Commit(token.clone())).and_then(|()| answer(link, giving)) {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    for pause in PAUSES {
        link::pause(pause)?;
        let answer = connect().and_then(|connection| {
            let sent = link.sent;
            *link = connection.link;
            link.sent += sent;
            settle(link, token, Verdict::Committed)
        });
        match answer {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => return Err(unknown(token)),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn answer(link: &mut Link, giving: &mut dyn Giving) -> Result<Answer> {
    let mut runs = None;
    loop {
        match (giving.hear(link)?, runs) {
            (Message::Active { pid, .. }, None) if giving.runs(pid) => runs = Some(pid),
            (Message::Active { pid, .. }, None) => return Ok(Answer::Active(pid)),
            (Message::Whole(faults), Some(pid)) => {
                giving.whole(faults);
                return Ok(Answer::Active(pid));
            }
            (Message::Returned(why), None) => return Ok(Answer::Returned(message::shown(&why))),
            (Message::Lost(why), _) => return Ok(Answer::Lost(message::shown(&why))),
            (other, _) => return Err(other.out_of_turn()),
        }
    }
}

fn unknown(token: &Token) -> Error {
    Error::plain(format!("the destination knows nothing of the migration {token}"))
        .hint("does it look in the same places (--root, --store) as when it was reserved there?")
}

/// Says what became of a migration. `None`: the destination knows nothing of it, or nothing any more.
fn settle(link: &mut Link, token: &Token, verdict: Verdict) -> Result<Option<Answer>> {
    link.send(&Message::Settle { version: PROTOCOL, token: token.clone(), verdict })?;
    match (link.hear()?, verdict) {
        (Message::Active { pid, .. }, Verdict::Committed) => Ok(Some(Answer::Active(pid))),
        (Message::Returned(why), Verdict::Committed) => Ok(Some(Answer::Returned(message::shown(&why)))),
        (Message::Lost(why), Verdict::Committed) => Ok(Some(Answer::Lost(message::shown(&why)))),
        (Message::Unknown, Verdict::Committed) | (Message::Aborted, Verdict::Aborted) => Ok(None),
        (other, _) => Err(other.out_of_turn()),
    }
}

/// Takes back what the destination was asked to restore, and waits until nothing of it is left there.
///
/// # Errors
/// It is not known whether the destination has heard.
pub fn abort(link: &mut Link, why: &str) -> Result<()> {
    link.heed_interrupts(false)?;
    link.send(&Message::Abort(why.to_owned()))?;
    loop {
        match link.hear() {
            Ok(Message::Aborted) => return Ok(()),
            // Said before it heard.
            Ok(Message::Prepared | Message::RoundTaken(_) | Message::Want(_)) => (),
            Ok(other) => return Err(other.out_of_turn()),
            Err(_) if link.failed => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// What became of a migration that was cut off.
#[derive(Debug)]
pub enum Recovered {
    /// The container is here. Why the destination could not be told, where it could not.
    Here(Option<Error>),
    /// The destination does not have it, and here it is not any more either. Why the destination could not be told, where it could not.
    Gone(Option<Error>),
    /// It runs at the destination, as this process; or has run there, and has ended since.
    There(Option<i32>),
    /// It has run there, and does not any more, for this reason. What is here of it stands as it was when it went.
    Lost(String),
}

/// What there is to do about a container that is lost.
pub fn left_as_it_was(id: &str) -> String {
    format!(
        "here it stands as it was when it went: `ferry resume {id}` lets it go on from there, without what it has done since, and \
         `ferry delete --force {id}` removes it"
    )
}

/// Settles what was cut off.
///
/// # Errors
/// The container is the destination's, and that cannot be reached; what cannot be done here.
pub fn recover(
    mut journal: Journal,
    container: &mut dyn Container,
    connect: &mut dyn FnMut() -> Result<Connection>,
) -> Result<Recovered> {
    let token = journal.entry.token.clone();
    if ownership::at_source(journal.entry.state) == AtSource::HandOver {
        let mut connection = connect()?;
        match settle(&mut connection.link, &token, Verdict::Committed)?.ok_or_else(|| unknown(&token))? {
            Answer::Active(pid) => {
                container.release()?;
                journal.remove()?;
                // Without this word the destination keeps its journal, and nothing else.
                connection.link.send(&Message::Released).ok();
                connection.close().ok();
                return Ok(Recovered::There(Some(pid).filter(|pid| *pid > 0)));
            }
            Answer::Lost(why) => {
                journal.note(State::Lost)?;
                container.take_back()?;
                journal.remove()?;
                connection.link.send(&Message::Released).ok();
                connection.close().ok();
                return Ok(Recovered::Lost(why));
            }
            Answer::Returned(_) => connection.close()?,
        }
    }
    if ownership::at_source(journal.entry.state) == AtSource::Leave {
        container.take_back()?;
        journal.remove()?;
        return Ok(Recovered::Lost("it was said before".to_owned()));
    }
    if journal.entry.state == State::Committed {
        journal.note(State::Aborted)?;
    }
    let is_here = container.go_on()?;
    // What was never given up has gone on once this is said: it is not let go on again.
    journal.note(State::Aborted)?;
    let told = connect().and_then(|mut connection| {
        settle(&mut connection.link, &token, Verdict::Aborted)?;
        connection.close()
    });
    let untold = match told {
        Ok(()) => journal.remove().map(|()| None)?,
        Err(error) => Some(error),
    };
    Ok(if is_here { Recovered::Here(untold) } else { Recovered::Gone(untold) })
}
