//! What a migration tells while it works. Who listens decides what of it is shown.

use super::report::Report;
use super::rounds::Round;

/// The steps of a migration, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The destination proves that it can take the container, and holds the place.
    Reserve,
    /// What the destination lacks of its image is sent.
    Content,
    /// Memory is sent while it runs.
    PreCopy,
    /// It stands still, and the rest is sent.
    StopAndCopy,
    /// The destination has everything, and gets it.
    Commit,
    /// It runs there.
    Activate,
    /// It runs there, and memory that was left here follows.
    Push,
    /// What was here of it goes.
    Release,
}

impl Step {
    /// Its name in output and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Content => "content",
            Self::PreCopy => "pre-copy",
            Self::StopAndCopy => "stop-and-copy",
            Self::Commit => "commit",
            Self::Activate => "activate",
            Self::Push => "push",
            Self::Release => "release",
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A step begins.
    Step(Step),
    /// A round is over: all so far, and the bytes that are sent.
    Round {
        /// This one last.
        rounds: &'a [Round],
        /// Over the link, in all.
        sent: u64,
    },
    /// Something worth knowing.
    Note(&'a str),
    /// It is over.
    Done(&'a Report),
}

/// Who listens.
pub trait Progress {
    /// Something happened.
    fn event(&mut self, event: Event<'_>);
}

/// Nobody.
#[derive(Debug)]
pub struct Silent;

impl Progress for Silent {
    fn event(&mut self, _: Event<'_>) {}
}
