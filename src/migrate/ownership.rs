//! Who has the container: decided by two journals, and by the source's where they differ.
//!
//! ```text
//! source       Open ───────────────► Committed ───────► (nothing: what was here is gone)
//!                │                      │ the destination has given it back
//!                └────────► Aborted ◄───┘            ► (nothing: it runs here)
//! destination  Open ──► Prepared ─┬► Committed ──┬──► Active ──► (nothing)
//!                                 └► Incomplete ─┤
//!                                                ├──► Returned ──────► (nothing)
//!                                                └──► Lost ──────────► (nothing)
//! ```
//!
//! A journal is on disk before the deed it allows. The source may let its processes go on unless its journal says
//! `Committed`; the destination may let them go on once its own does, which it never does before the source's. So two never
//! run. The source keeps its processes, standing still, until the destination says that they run there, and the destination
//! its images: so there is always one that can. What is not known after a cut is asked: of the source, which always knows. Where
//! that cannot be asked ever again, a person may have what waits for its word discarded, which lets nothing run.
//!
//! A container of which memory is left at the source when it goes on is `Incomplete` in the place of `Committed`, until all of
//! it is there. From its first step until then it takes both ends: a cut loses it, for what it has done meanwhile is known to
//! nobody else. It is ended then, and never run again from what was sent: the destination says `Lost`. At the source it stands as
//! it was when it went, and stays so, for a person to decide over: to let it go on from there would be to go back in time.

use serde::{Deserialize, Serialize};

use super::message::Verdict;

/// How far one end is, as its journal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It has begun.
    Open,
    /// Destination: everything is here, verified, on disk, and was restored. The source decides.
    Prepared,
    /// The destination has it.
    Committed,
    /// Destination: it has it and may run it, and some of the memory is at the source.
    Incomplete,
    /// Destination: it has run, and the rest of its memory never came. The source may not know yet. Source: it knows.
    Lost,
    /// Source: it stays. The destination may not know yet.
    Aborted,
    /// Destination: it runs. The source may not know yet.
    Active,
    /// Destination: it could not be made to run after all, and is the source's again. The source may not know yet.
    Returned,
}

/// Which end a journal is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// What the source does with a migration that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtSource {
    /// Lets the container go on, and then tells the destination.
    GoOn,
    /// Asks the destination to take over, and until it says that it has, leaves the container as it stands.
    HandOver,
    /// Nothing: the container stays as it stands.
    Leave,
}

/// The source's way out.
pub fn at_source(state: State) -> AtSource {
    match state {
        State::Committed => AtSource::HandOver,
        State::Lost => AtSource::Leave,
        _ => AtSource::GoOn,
    }
}

/// The verdict that goes with it.
pub fn verdict(state: State) -> Verdict {
    match at_source(state) {
        AtSource::GoOn => Verdict::Aborted,
        AtSource::HandOver | AtSource::Leave => Verdict::Committed,
    }
}

/// What the destination does with a migration that was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtDestination {
    /// Removes what there is of it: it stays at the source.
    Discard,
    /// Leaves it as it is: only the source knows.
    Wait,
    /// Restores it from the images.
    TakeOver,
    /// Nothing: it runs here.
    Keep,
    /// Says that it has given it back.
    Return,
    /// Ends what runs of it, and notes that it is lost.
    Lose,
    /// Says that it is lost.
    Lost,
    /// Says that it knows nothing of it.
    Unknown,
    /// Refuses: the source contradicts itself.
    Contradict,
}

/// The destination's way out; `verdict` is what the source says, if it was heard.
pub fn at_destination(state: Option<State>, verdict: Option<Verdict>) -> AtDestination {
    match (state, verdict) {
        (Some(State::Open | State::Aborted), None) | (Some(State::Open | State::Aborted), Some(Verdict::Aborted)) => {
            AtDestination::Discard
        }
        (Some(State::Prepared | State::Returned | State::Lost), None) => AtDestination::Wait,
        (Some(State::Incomplete), None | Some(Verdict::Committed)) => AtDestination::Lose,
        (Some(State::Lost), Some(Verdict::Committed)) => AtDestination::Lost,
        (Some(State::Prepared | State::Returned), Some(Verdict::Aborted)) => AtDestination::Discard,
        (Some(State::Prepared | State::Committed), Some(Verdict::Committed)) | (Some(State::Committed), None) => {
            AtDestination::TakeOver
        }
        (Some(State::Active), None | Some(Verdict::Committed)) => AtDestination::Keep,
        (Some(State::Returned), Some(Verdict::Committed)) => AtDestination::Return,
        // Nothing was kept, or nothing is left.
        (None, Some(Verdict::Aborted) | None) => AtDestination::Discard,
        (None, Some(Verdict::Committed)) => AtDestination::Unknown,
        (Some(State::Open | State::Aborted), Some(Verdict::Committed))
        | (Some(State::Committed | State::Incomplete | State::Active | State::Lost), Some(Verdict::Aborted)) => {
            AtDestination::Contradict
        }
    }
}

#[cfg(test)]
#[path = "ownership_tests.rs"]
mod tests;
