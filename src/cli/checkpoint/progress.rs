//! How a checkpoint or restore is shown while it works: one line that is written over on a terminal, a line of JSON an event for
//! programs, nothing elsewhere. All of it goes to standard error: standard output may be the archive's, or the container's.

use std::io::{Write, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::checkpoint::progress::{Event, Progress, Step};
use crate::cli::progress::{How, line};
use crate::cli::size;
use crate::cli::verb::{self, Flag};
use crate::error::Result;

/// `--progress`.
pub const PROGRESS: Flag = Flag {
    long: "progress",
    value: verb::Value::Words("auto|json|none"),
    help: "Show progress as a line on a terminal (auto, the default), as lines of json on standard error, or not (none)",
    ..Flag::SWITCH
};

/// Between two changes of what is shown within a step.
const PACE: Duration = Duration::from_millis(100);

/// Who shows it.
pub struct Shown {
    how: How,
    state: Mutex<Option<State>>,
}

/// Where a step is.
struct State {
    step: Step,
    began: Instant,
    total: Option<u64>,
    done: u64,
    files: u64,
    /// When and at what of all it was shown.
    shown: (Instant, u64),
}

impl State {
    fn new(step: Step, total: Option<u64>) -> Self {
        let now = Instant::now();
        Self { step, began: now, total, done: 0, files: 0, shown: (now, 0) }
    }

    /// Bytes a second.
    fn rate(&self) -> u64 {
        let seconds = self.began.elapsed().as_secs_f64();
        if seconds > 0.0 { (self.done as f64 / seconds) as u64 } else { 0 }
    }

    fn words(&self) -> String {
        let amount = || match self.total {
            Some(total) => format!("{} of {}", size::text(self.done), size::text(total)),
            None => size::text(self.done),
        };
        match self.step {
            // What CRIU does with the processes it does in one go: they stand still from the first moment on.
            Step::Freeze | Step::Dump => {
                format!("frozen for {:.1} s, {} saved", self.began.elapsed().as_secs_f64(), size::text(self.done))
            }
            Step::Digest | Step::Pack | Step::Unpack => {
                let files = if self.files == 0 { String::new() } else { format!(", {} files", self.files) };
                format!("{}: {}{files}, {} a second", self.step.name(), amount(), size::text(self.rate()))
            }
            Step::Saved | Step::Restore => self.step.name().to_owned(),
            // From here on the terminal is the container's.
            Step::Resume => String::new(),
        }
    }

    fn told(&self) -> Value {
        let mut told = json!({"event": "bytes", "step": self.step.name(), "done": self.done, "rate": self.rate()});
        if let Some(total) = self.total {
            told["total"] = total.into();
        }
        if self.files > 0 {
            told["files"] = self.files.into();
        }
        told
    }

    /// Whether there is something new.
    fn is_behind(&self) -> bool {
        self.shown.1 != self.done
    }
}

/// As a line is, each is for looking at: one that cannot be written is no failure.
fn print(told: &Value) {
    stderr().lock().write_all(format!("{told}\n").as_bytes()).ok();
}

impl Shown {
    /// By the value of `--progress`.
    ///
    /// # Errors
    /// It is none of the words.
    pub fn new(given: Option<&str>) -> Result<Self> {
        Ok(Self { how: How::of(given)?, state: Mutex::default() })
    }

    /// Clears the line away; where all is `done`, a program is told.
    pub fn finish(&self, done: bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).take();
        match self.how {
            How::Quiet => (),
            How::Line => line(""),
            How::Json => {
                if let Some(state) = state.filter(State::is_behind) {
                    print(&state.told());
                }
                if done {
                    print(&json!({"event": "done"}));
                }
            }
        }
    }

    fn begin(&self, state: &mut Option<State>, step: Step, total: Option<u64>) {
        if let (How::Json, Some(before)) = (self.how, state.as_ref().filter(|before| before.is_behind())) {
            print(&before.told());
        }
        // The processes stand still from the first of the two on.
        let began = state.as_ref().filter(|before| before.step == Step::Freeze).map(|before| before.began);
        let now = state.insert(State::new(step, total));
        now.began = began.filter(|_| step == Step::Dump).unwrap_or(now.began);
        match self.how {
            How::Quiet => (),
            How::Line => line(&now.words()),
            How::Json => {
                let mut told = json!({"event": "step", "step": step.name()});
                if let Some(total) = total {
                    told["total"] = total.into();
                }
                print(&told);
            }
        }
    }
}

impl Progress for Shown {
    fn event(&self, event: Event) {
        if self.how == How::Quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (event, state.as_mut()) {
            (Event::Step(step, total), _) => return self.begin(&mut state, step, total),
            (_, None) => return,
            (Event::More(bytes), Some(state)) => state.done += bytes,
            (Event::File, Some(state)) => state.files += 1,
            (Event::Memory(bytes), Some(state)) => state.done = bytes,
        }
        let Some(state) = state.as_mut() else { return };
        let due = state.is_behind() && state.shown.0.elapsed() >= PACE;
        if !due && !matches!(event, Event::Memory(_)) {
            return;
        }
        state.shown = (Instant::now(), state.done);
        match self.how {
            How::Line => line(&state.words()),
            _ => print(&state.told()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_in_words_and_in_json() {
        let mut state = State::new(Step::Pack, Some(4 << 20));
        (state.done, state.files) = (1 << 20, 3);
        assert!(state.words().starts_with("pack: 1.0M of 4.0M, 3 files, "), "{}", state.words());
        assert!(state.is_behind());
        let told = state.told();
        assert_eq!((&told["done"], &told["total"], &told["files"]), (&json!(1 << 20), &json!(4 << 20), &json!(3)));
        let state = State::new(Step::Dump, None);
        assert_eq!(state.words(), "frozen for 0.0 s, 0B saved");
        assert_eq!(state.told()["total"], Value::Null);
        assert_eq!(State::new(Step::Resume, None).words(), "", "the terminal is the container's");
    }
}
