//! The source's side of what is left to be said once it has decided, also after a cut and by whoever comes later.
//!
//! ```text
//! source                                      destination
//!   | ---- Settle{token, committed} --------> |  restores it from the images, unless it runs
//!   | <--- Active{pid}, Returned, Unknown --- |
//!   | ---- Settle{token, aborted} ----------> |  removes what there is of it
//!   | <--- Aborted -------------------------- |
//! ```

use std::time::Duration;

use super::journal::Journal;
use super::link::{self, Link};
use super::message::{self, Message, PROTOCOL, Token, Verdict};
use super::ownership::{self, AtSource, State};
use super::source::Container;
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
}

/// Gives a container that was prepared up on this link, or, if that is cut, on a new one, which then takes its place.
///
/// # Errors
/// It is not known whether the destination has heard.
pub fn hand_over(link: &mut Link, token: &Token, connect: &mut dyn FnMut() -> Result<Connection>) -> Result<Answer> {
    let mut failed = match link.send(&Message::Commit(token.clone())).and_then(|()| answer(link)) {
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

fn answer(link: &mut Link) -> Result<Answer> {
    match link.hear()? {
        Message::Active { pid, .. } => Ok(Answer::Active(pid)),
        Message::Returned(why) => Ok(Answer::Returned(message::shown(&why))),
        other => Err(other.out_of_turn()),
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
            Ok(Message::Prepared | Message::RoundTaken(_)) => (),
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
    /// It runs at the destination, as this process.
    There(i32),
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
                connection.close()?;
                return Ok(Recovered::There(pid));
            }
            Answer::Returned(_) => connection.close()?,
        }
    }
    journal.note(State::Aborted)?;
    container.go_on()?;
    let told = connect().and_then(|mut connection| {
        settle(&mut connection.link, &token, Verdict::Aborted)?;
        connection.close()
    });
    match told {
        Ok(()) => journal.remove().map(|()| Recovered::Here(None)),
        Err(error) => Ok(Recovered::Here(Some(error))),
    }
}
