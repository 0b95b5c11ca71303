//! How a migration is shown: one line that is written over on a terminal, a line of JSON an event for programs, nothing
//! elsewhere.

use serde_json::json;

use crate::cli::output;
use crate::cli::progress::{How, line};
use crate::error::{Error, Result};
use crate::migrate::progress::{Event, Progress};
use crate::migrate::report::{size, time};
use crate::migrate::rounds;

/// Who shows it.
#[derive(Debug)]
pub struct Shown {
    how: How,
    refused: Option<Error>,
}

impl Shown {
    /// By the value of `--progress`.
    ///
    /// # Errors
    /// It is none of the words.
    pub fn new(given: Option<&str>) -> Result<Self> {
        Ok(Self { how: How::of(given)?, refused: None })
    }

    /// Clears the line away.
    ///
    /// # Errors
    /// Standard output did not take a line.
    pub fn finish(&mut self) -> Result<()> {
        if self.how == How::Line {
            line("");
        }
        self.refused.take().map_or(Ok(()), Err)
    }
}

impl Progress for Shown {
    fn event(&mut self, event: Event<'_>) {
        match (&self.how, &event) {
            (How::Quiet, _) | (_, Event::Done(_)) => (),
            (How::Line, event) => line(&words(event)),
            (How::Json, event) => {
                let printed = output::print_line(&told(event));
                self.refused = self.refused.take().or(printed.err());
            }
        }
    }
}

fn words(event: &Event<'_>) -> String {
    match event {
        Event::Step(step) => step.name().to_owned(),
        Event::Note(note) => (*note).to_owned(),
        Event::Round { rounds, sent } => {
            let rate = |rate: Option<u64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{}/s", size(rate)));
            let still =
                rounds::downtime(rounds).map_or_else(|| "-".to_owned(), |still| time(still.total().as_nanos() as u64));
            format!(
                "round {}: {} sent, written to {}, carried {}, would stand still {still}",
                rounds.len(),
                size(*sent),
                rate(rounds::dirty_rate(rounds)),
                rate(rounds::bandwidth(rounds)),
            )
        }
        Event::Done(_) => String::new(),
    }
}

fn told(event: &Event<'_>) -> serde_json::Value {
    match event {
        Event::Step(step) => json!({"event": "step", "step": step.name()}),
        Event::Note(note) => json!({"event": "note", "note": note}),
        Event::Round { rounds, sent } => json!({
            "event": "round", "round": rounds.len(), "last": rounds.last(), "sent": sent,
            "dirtyRate": rounds::dirty_rate(rounds), "bandwidth": rounds::bandwidth(rounds),
            "estimate": rounds::downtime(rounds).map(|still| still.total().as_nanos() as u64),
        }),
        Event::Done(_) => json!({"event": "done"}),
    }
}
