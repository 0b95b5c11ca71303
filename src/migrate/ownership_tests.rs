//! Every state that two ends can come to, with either of them killed and the connection cut between any two deeds: never do
//! two copies run, and recovery always ends with one. Where memory is left at the source it may end with none: then it stands
//! still there.

use std::collections::HashSet;

use super::*;

/// A copy of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Copy {
    None,
    /// Stopped by CRIU, which lets it go on when ferry goes.
    Held,
    /// Stopped by the cgroup.
    Frozen,
    Runs,
}

/// What an end is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Begin,
    Stop,
    AwaitPrepared,
    Freeze,
    Decide,
    SendCommit,
    AwaitActive,
    Release,
    Forget,
    AwaitFinish,
    Restore,
    AwaitCommit,
    NoteCommit,
    Resume,
    NoteActive,
    AwaitWhole,
    AwaitReleased,
    GiveBack,
    End,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    source: (Step, Option<State>, Copy),
    destination: (Step, Option<State>, Copy),
    /// What was said and not heard yet.
    wire: Vec<&'static str>,
    cut: bool,
    /// Some of the memory comes after it has gone on.
    leaves: bool,
    /// It was ended at the destination without all of its memory.
    lost: bool,
}

impl World {
    fn new(leaves: bool) -> Self {
        Self {
            source: (Step::Begin, None, Copy::Runs),
            destination: (Step::Begin, None, Copy::None),
            wire: Vec::new(),
            cut: false,
            leaves,
            lost: false,
        }
    }

    fn say(&mut self, word: &'static str) {
        if !self.cut {
            self.wire.push(word);
        }
    }

    fn hears(&self, word: &str) -> Option<World> {
        (self.wire.first() == Some(&word)).then(|| {
            let mut next = self.clone();
            next.wire.remove(0);
            next
        })
    }

    /// The source's next deed, in each way it can end.
    fn source_steps(&self) -> Vec<World> {
        let mut next = self.clone();
        match self.source.0 {
            Step::Begin => next.source = (Step::Stop, Some(State::Open), Copy::Runs),
            Step::Stop => {
                next.source = (Step::AwaitPrepared, Some(State::Open), Copy::Held);
                next.say("finish");
            }
            Step::AwaitPrepared => {
                return match self.hears("prepared") {
                    Some(mut next) => {
                        next.source.0 = Step::Freeze;
                        vec![next]
                    }
                    None if self.cut => {
                        next.source = (Step::End, Some(State::Aborted), Copy::Runs);
                        vec![next]
                    }
                    None => Vec::new(),
                };
            }
            Step::Freeze => (next.source.0, next.source.2) = (Step::Decide, Copy::Frozen),
            Step::Decide => (next.source.0, next.source.1) = (Step::SendCommit, Some(State::Committed)),
            Step::SendCommit => {
                next.source.0 = Step::AwaitActive;
                next.say("commit");
            }
            Step::AwaitActive => {
                if let Some(mut next) = self.hears("active") {
                    next.source.0 = if self.leaves { Step::AwaitWhole } else { Step::Release };
                    return vec![next];
                }
                if let Some(mut next) = self.hears("returned") {
                    next.source = (Step::Forget, Some(State::Aborted), Copy::Runs);
                    return vec![next];
                }
                if !self.cut {
                    return Vec::new();
                }
                next.source.0 = Step::End;
            }
            Step::AwaitWhole => {
                if let Some(mut next) = self.hears("whole") {
                    next.source.0 = Step::Release;
                    return vec![next];
                }
                if let Some(mut next) = self.hears("lost") {
                    next.source = (Step::Forget, Some(State::Lost), Copy::Frozen);
                    return vec![next];
                }
                if !self.cut {
                    return Vec::new();
                }
                next.source.0 = Step::End;
            }
            Step::Release => (next.source.0, next.source.2) = (Step::Forget, Copy::None),
            Step::Forget => {
                (next.source.0, next.source.1) = (Step::End, None);
                next.say("released");
            }
            _ => return Vec::new(),
        }
        vec![next]
    }

    fn destination_steps(&self) -> Vec<World> {
        let mut next = self.clone();
        match self.destination.0 {
            Step::Begin if self.source.0 == Step::Begin => return Vec::new(),
            Step::Begin => next.destination = (Step::AwaitFinish, Some(State::Open), Copy::None),
            Step::AwaitFinish => {
                return match self.hears("finish") {
                    Some(mut next) => {
                        next.destination.0 = Step::Restore;
                        vec![next]
                    }
                    None if self.cut => {
                        next.destination = (Step::End, None, Copy::None);
                        vec![next]
                    }
                    None => Vec::new(),
                };
            }
            Step::Restore => {
                next.destination = (Step::AwaitCommit, Some(State::Prepared), Copy::Held);
                next.say("prepared");
            }
            Step::AwaitCommit => {
                return match self.hears("commit") {
                    Some(mut next) => {
                        next.destination.0 = Step::NoteCommit;
                        vec![next]
                    }
                    None if self.cut => {
                        next.destination = (Step::End, Some(State::Prepared), Copy::None);
                        vec![next]
                    }
                    None => Vec::new(),
                };
            }
            Step::NoteCommit => {
                let state = if self.leaves { State::Incomplete } else { State::Committed };
                (next.destination.0, next.destination.1) = (Step::Resume, Some(state));
            }
            Step::Resume => {
                // CRIU may fail here, of all places.
                let mut failed = next.clone();
                failed.destination.0 = Step::GiveBack;
                failed.destination.2 = Copy::None;
                (next.destination.0, next.destination.2) = (Step::NoteActive, Copy::Runs);
                return vec![next, failed];
            }
            Step::GiveBack => {
                next.destination = (Step::End, Some(State::Returned), Copy::None);
                next.say("returned");
            }
            Step::NoteActive if self.leaves => {
                next.destination.0 = Step::AwaitWhole;
                next.say("active");
            }
            Step::AwaitWhole => {
                // What puts memory in its place may fail at any time, and the last of it may have come before a cut.
                let mut lost = next.clone();
                lost.destination = (Step::AwaitReleased, Some(State::Lost), Copy::None);
                lost.lost = true;
                lost.say("lost");
                (next.destination.0, next.destination.1) = (Step::AwaitReleased, Some(State::Active));
                next.say("whole");
                return vec![next, lost];
            }
            Step::NoteActive => {
                (next.destination.0, next.destination.1) = (Step::AwaitReleased, Some(State::Active));
                next.say("active");
            }
            Step::AwaitReleased => {
                return match self.hears("released") {
                    Some(mut next) => {
                        (next.destination.0, next.destination.1) = (Step::End, None);
                        vec![next]
                    }
                    None => Vec::new(),
                };
            }
            _ => return Vec::new(),
        }
        vec![next]
    }

    /// Either end is killed, or the connection is cut.
    fn faults(&self) -> Vec<World> {
        let cut = World { cut: true, wire: Vec::new(), ..self.clone() };
        let mut source = cut.clone();
        source.source.0 = Step::End;
        if source.source.2 == Copy::Held {
            source.source.2 = Copy::Runs;
        }
        let mut destination = cut.clone();
        destination.destination.0 = Step::End;
        if destination.destination.2 == Copy::Held {
            destination.destination.2 = Copy::None;
        }
        // What was sent before the cut may still arrive.
        let late = World { cut: true, ..self.clone() };
        vec![cut, late, source, destination]
    }

    /// `--recover` at the source, which reaches the destination.
    fn recover(mut self) -> World {
        self.source.0 = Step::End;
        self.destination.0 = Step::End;
        if self.destination.2 == Copy::Held {
            self.destination.2 = Copy::None;
        }
        if self.source.2 == Copy::Held {
            self.source.2 = Copy::Runs;
        }
        let Some(state) = self.source.1 else { return self };
        let at_source = at_source(state);
        if at_source == AtSource::Leave {
            assert!(self.lost && self.source.2 == Copy::Frozen, "{self:?}");
            self.source.1 = None;
            return self;
        }
        if at_source == AtSource::GoOn {
            assert_ne!(self.source.2, Copy::None, "nothing to go on with: {self:?}");
            self.source.2 = Copy::Runs;
        }
        match at_destination(self.destination.1, Some(verdict(state))) {
            AtDestination::Discard => (self.destination.1, self.source.1) = (None, None),
            AtDestination::TakeOver => {
                assert_ne!(self.destination.2, Copy::Runs, "restored twice: {self:?}");
                (self.destination.1, self.destination.2) = (None, Copy::Runs);
                (self.source.1, self.source.2) = (None, Copy::None);
            }
            AtDestination::Keep => (self.destination.1, self.source.1, self.source.2) = (None, None, Copy::None),
            AtDestination::Return => {
                assert_eq!(self.source.2, Copy::Frozen, "given back to nobody: {self:?}");
                (self.destination.1, self.source.1, self.source.2) = (None, None, Copy::Runs);
            }
            AtDestination::Lose | AtDestination::Lost => {
                assert_eq!(self.source.2, Copy::Frozen, "nothing is left of it: {self:?}");
                (self.destination.1, self.destination.2) = (None, Copy::None);
                (self.source.1, self.lost) = (None, true);
            }
            other => panic!("{other:?}: {self:?}"),
        }
        self
    }
}

/// A destination that was killed between letting the processes go on and noting it finds them running: see
/// `super::super::destination`, which looks before it restores.
fn looked(mut world: World) -> World {
    if world.destination.1 == Some(State::Committed) && world.destination.2 == Copy::Runs {
        world.destination.1 = Some(State::Active);
    }
    world
}

#[test]
fn never_two_and_always_one_that_can() {
    let (mut seen, mut waiting) = (HashSet::new(), vec![World::new(false), World::new(true)]);
    while let Some(world) = waiting.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        let runs = [world.source.2, world.destination.2].iter().filter(|copy| **copy == Copy::Runs).count();
        assert!(runs < 2, "two run: {world:?}");
        let can = world.source.2 != Copy::None || world.destination.2 == Copy::Runs || world.destination.1.is_some();
        assert!(can, "none can: {world:?}");
        let ended = looked(world.clone()).recover();
        let running = [ended.source.2, ended.destination.2].iter().filter(|copy| **copy == Copy::Runs).count();
        assert_eq!(running, usize::from(!ended.lost), "after recovery: {world:?} -> {ended:?}");
        if ended.lost {
            assert!(ended.leaves && ended.source.2 == Copy::Frozen, "{world:?} -> {ended:?}");
        }
        waiting.extend(world.source_steps());
        waiting.extend(world.destination_steps());
        waiting.extend(world.faults());
    }
    assert!(seen.len() > 100, "{}", seen.len());
}

#[test]
fn undisturbed_it_ends_at_the_destination_with_nothing_left() {
    for leaves in [false, true] {
        let mut world = World::new(leaves);
        while let Some(next) = world.source_steps().into_iter().chain(world.destination_steps()).next() {
            world = next;
        }
        assert_eq!(world.source, (Step::End, None, Copy::None));
        assert_eq!(world.destination, (Step::End, None, Copy::Runs));
    }
}

#[test]
fn only_the_source_knows_what_became_of_a_prepared_one() {
    assert_eq!(at_destination(Some(State::Prepared), None), AtDestination::Wait);
    assert_eq!(at_destination(Some(State::Committed), None), AtDestination::TakeOver);
    // What may have run without all of its memory is not restored again from what had come.
    assert_eq!(at_destination(Some(State::Incomplete), None), AtDestination::Lose);
    assert_eq!(at_destination(Some(State::Incomplete), Some(Verdict::Committed)), AtDestination::Lose);
    assert_eq!(at_destination(Some(State::Lost), Some(Verdict::Aborted)), AtDestination::Contradict);
    assert_eq!(at_destination(Some(State::Active), Some(Verdict::Aborted)), AtDestination::Contradict);
    assert_eq!(at_destination(None, Some(Verdict::Committed)), AtDestination::Unknown);
}
