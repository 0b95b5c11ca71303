//! One named test: what it needs, what it does, and how its end is told.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use libtest_mimic::{Completion, Failed, Trial};

use super::case::Case;
use super::need::Need;
use super::stage::Stage;

/// How a test ends: any error fails it, and so does a panic.
pub type Outcome = Result<(), Failed>;

/// A test by name, with its needs.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    name: &'static str,
    needs: &'static [Need],
    test: fn(&mut Case) -> Outcome,
}

/// A row of a file's table.
pub const fn scenario(name: &'static str, needs: &'static [Need], test: fn(&mut Case) -> Outcome) -> Scenario {
    Scenario { name, needs, test }
}

impl Scenario {
    /// The test as the harness wants it, under `noun::name`.
    pub fn trial(self, noun: &str, stage: &Arc<Stage>) -> Trial {
        let name = format!("{noun}::{}", self.name);
        let (stage, full_name) = (Arc::clone(stage), name.clone());
        Trial::ignorable_test(name, move || self.perform(&full_name, &stage))
    }

    fn perform(self, name: &str, stage: &Arc<Stage>) -> Result<Completion, Failed> {
        if let Some(why) = self.needs.iter().find_map(|need| need.missing(stage)) {
            return Ok(stage.skip(name, why));
        }
        let mut case = Case::new(Arc::clone(stage))?;
        let ended = catch_unwind(AssertUnwindSafe(|| (self.test)(&mut case)));
        let failure = match ended {
            Ok(Ok(())) => return Ok(Completion::Completed),
            Ok(Err(failed)) => failed.message().unwrap_or("failed").to_owned(),
            Err(_) => PANIC.take(),
        };
        match self.needs.iter().find_map(|need| need.known_difference(stage)) {
            Some(why) => Ok(stage.skip(name, why)),
            None => Err(format!("{failure}\n{}", case.transcript()).into()),
        }
    }
}

thread_local! {
    /// The words and place of this thread's last panic.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A failed assertion is told once, with the test's failure, and not also at once among the other tests' lines.
pub fn keep_panics_for_the_end() {
    panic::set_hook(Box::new(|info| {
        PANIC.set(info.to_string());
    }));
}
