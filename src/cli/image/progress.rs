//! How an import is shown: one line that is written over on a terminal, a line of JSON an event for programs, nothing elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cli::output;
use crate::cli::progress::{How, line};
use crate::cli::verb::{Flag, Value};
use crate::error::{Error, Result};
use crate::image::progress::{Event, Progress};

/// `--progress`.
pub const PROGRESS: Flag = Flag {
    long: "progress",
    value: Value::Words("auto|json|none"),
    help: "Show progress as a bar on a terminal (auto, the default), as lines of json on standard output, or not (none)",
    ..Flag::SWITCH
};

/// Between two changes of what is shown.
const PACE: Duration = Duration::from_millis(100);

/// Who shows it.
pub struct Shown {
    how: How,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    layers: usize,
    unpacked: usize,
    total: u64,
    done: u64,
    shown: Option<Instant>,
    refused: Option<Error>,
}

impl Shown {
    /// By the value of `--progress`.
    ///
    /// # Errors
    /// It is none of the words.
    pub fn new(given: Option<&str>) -> Result<Self> {
        Ok(Self { how: How::of(given)?, state: Mutex::default() })
    }

    /// Clears the bar away.
    ///
    /// # Errors
    /// Standard output did not take a line.
    pub fn finish(self) -> Result<()> {
        if self.how == How::Line {
            line("");
        }
        match self.state.into_inner().unwrap_or_else(PoisonError::into_inner).refused {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl Progress for Shown {
    fn event(&self, event: Event) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &event {
            Event::Begin { layers, present, bytes } => {
                *state = State { layers: *layers, unpacked: *present, total: *bytes, ..State::default() };
            }
            Event::Bytes { bytes, .. } => state.done += bytes,
            Event::Layer { .. } => state.unpacked += 1,
            Event::Sync | Event::Done { .. } => {}
        }
        let due = state.shown.is_none_or(|shown| shown.elapsed() >= PACE) || !matches!(event, Event::Bytes { .. });
        if !due {
            return;
        }
        state.shown = Some(Instant::now());
        match self.how {
            How::Quiet => {}
            How::Line => line(&bar(&state)),
            How::Json => {
                let printed = output::print_line(&told(&event, &state));
                state.refused = state.refused.take().or(printed.err());
            }
        }
    }
}

fn bar(state: &State) -> String {
    const WIDTH: u64 = 30;
    let filled = state.done.saturating_mul(WIDTH).checked_div(state.total).unwrap_or(WIDTH).min(WIDTH) as usize;
    let rest = WIDTH as usize - filled;
    let (done, total) = (state.done >> 20, state.total >> 20);
    format!(
        "[{}{}] {done}/{total} MiB, {}/{} layers",
        "#".repeat(filled),
        "-".repeat(rest),
        state.unpacked,
        state.layers
    )
}

fn told(event: &Event, state: &State) -> serde_json::Value {
    match event {
        Event::Begin { layers, present, bytes } => {
            json!({"event": "begin", "layers": layers, "present": present, "bytes": bytes})
        }
        Event::Bytes { .. } => json!({"event": "bytes", "done": state.done, "total": state.total}),
        Event::Layer { index, digest, bytes } => {
            json!({"event": "layer", "index": index, "digest": digest.to_string(), "bytes": bytes})
        }
        Event::Sync => json!({"event": "sync"}),
        Event::Done { manifest, names } => json!({"event": "done", "manifest": manifest.to_string(), "names": names}),
    }
}
