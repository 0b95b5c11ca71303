//! What `balance` takes from whom: one round, as a pure function of what was seen of each container.
//!
//! Three ideas meet here. **Working set**: what a container may lose is what it does not use. Of one that works, that is the
//! inactive end of the kernel's lists, probed a little at a time; of one that does nothing, all that can be reclaimed, a good
//! part at once. **Back-off**: the kernel's pressure figures say at once when too much was taken, and the refaults of the last
//! round say it exactly; either makes the next step smaller, down to none. **A tax on idle memory**: where only so much is
//! wanted, those pay first who hold most of it idle, each idle byte counting for several used ones; so nobody is safe by
//! merely being small, and nobody pays for being large and busy.
//!
//! What `memory.min` and `memory.low` promise is never taken: the kernel itself would not mind, as it protects a cgroup
//! against others and not against a request to itself.
//!
//! Source: Waldspurger, "Memory Resource Management in VMware ESX Server" (2002), 5.2-5.3, for the tax; the kernel's
//! accounting/psi.rst and admin-guide/cgroup-v2.rst ("memory.reclaim", "memory.stat").

use std::time::Duration;

use serde::Serialize;

/// One container, between two looks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Seen {
    /// The container.
    pub id: String,
    /// Memory in use, in bytes.
    pub memory: u64,
    /// What it was promised: the larger of memory.min and memory.low.
    pub promised: u64,
    /// Page cache that can be dropped: on the active list, and on the inactive.
    pub file: Lists,
    /// Anonymous memory, likewise.
    pub anonymous: Lists,
    /// How much more of it may go to swap: what is free there, and its own limit.
    pub swap: u64,
    /// Time between the looks.
    pub span: Duration,
    /// CPU time it used in between.
    pub cpu: Duration,
    /// Time in which one of its tasks waited for memory in between.
    pub stalled: Duration,
    /// Bytes that it has read back in between, after they had been taken.
    pub refaulted: u64,
    /// What it may be asked for at once, as a share of what it does not use; see [`next_step`].
    pub step: f64,
}

/// Bytes by the kernel's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lists {
    /// Used of late.
    pub active: u64,
    /// Not used of late.
    pub inactive: u64,
}

/// What holds for all containers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// The share of its idle memory that a container pays for, 0 to 1: an idle byte weighs as much as 1 / (1 - tax) used ones.
    pub tax: f64,
    /// The share of time for which a container may wait for memory.
    pub pressure: f64,
    /// No more than so much in this round, over all containers.
    pub wanted: Option<u64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { tax: 0.75, pressure: 0.001, wanted: None }
    }
}

/// What is taken from a container in a round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Take {
    /// The container.
    pub id: String,
    /// Memory in use, in bytes.
    pub memory: u64,
    /// Of it, what it does not use and was not promised.
    pub cold: u64,
    /// Bytes to reclaim now.
    pub bytes: u64,
    /// Why so many.
    pub why: Why,
}

/// Why so much is taken from a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// It does nothing.
    Idle,
    /// It works; only what it leaves alone is probed.
    Working,
    /// It waits for memory, or has just read back what was taken.
    Pressed,
    /// Nothing is left above what it was promised and what it uses.
    Settled,
    /// Others pay what is wanted.
    Spared,
}

/// The first step: a quarter of what lies idle.
pub const FIRST_STEP: f64 = 0.25;

/// A step below this is none: the next one after a rest begins there.
const SMALLEST_STEP: f64 = 1.0 / 64.0;

/// What is left of a step for a container that works: its inactive pages may be the next it wants.
const WORKING: f64 = 0.1;

/// Below so much of a CPU a container does nothing: a process that looks at a clock now and then is idle.
const IDLE_CPU: f64 = 0.01;

/// Less is not worth a request.
const LEAST: u64 = 256 << 10;

/// Plans a round.
pub fn plan(seen: &[Seen], policy: &Policy) -> Vec<Take> {
    let mut takes: Vec<Take> = seen.iter().map(|one| take(one, policy)).collect();
    if let Some(wanted) = policy.wanted {
        let mut left = wanted;
        let mut order: Vec<usize> = (0..seen.len()).collect();
        order.sort_by(|a, b| taxed(&seen[*b], policy.tax).total_cmp(&taxed(&seen[*a], policy.tax)));
        for index in order {
            let take = &mut takes[index];
            if take.bytes > left {
                take.bytes = left;
            }
            if take.bytes == 0 && matches!(take.why, Why::Idle | Why::Working) {
                take.why = Why::Spared;
            }
            left -= take.bytes;
        }
    }
    takes
}

/// The step for the next round: half of the last for one that is pressed, up to [`FIRST_STEP`] again for one that is not.
pub fn next_step(seen: &Seen, policy: &Policy) -> f64 {
    if is_pressed(seen, policy) {
        let step = seen.step / 2.0;
        return if step < SMALLEST_STEP { 0.0 } else { step };
    }
    (seen.step * 1.5).clamp(SMALLEST_STEP, FIRST_STEP)
}

fn take(seen: &Seen, policy: &Policy) -> Take {
    let cold = cold(seen);
    let idle = is_idle(seen);
    let share = if idle { seen.step } else { seen.step * WORKING };
    let bytes = (cold as f64 * share) as u64;
    let (bytes, why) = match () {
        () if is_pressed(seen, policy) => (0, Why::Pressed),
        () if cold < LEAST => (0, Why::Settled),
        // The end of it is taken whole, else it would be halved for ever.
        () if idle && seen.step > 0.0 => (bytes.max(LEAST * 4).min(cold), Why::Idle),
        () if bytes < LEAST => (0, Why::Settled),
        () if idle => (bytes, Why::Idle),
        () => (bytes, Why::Working),
    };
    Take { id: seen.id.clone(), memory: seen.memory, cold, bytes, why }
}

fn is_idle(seen: &Seen) -> bool {
    seen.cpu.as_secs_f64() < seen.span.as_secs_f64() * IDLE_CPU
}

/// Waiting for memory more than it may, or reading back at a pace that shows it was not idle memory that went.
fn is_pressed(seen: &Seen, policy: &Policy) -> bool {
    seen.stalled.as_secs_f64() > seen.span.as_secs_f64() * policy.pressure || seen.refaulted > seen.memory / 64 + LEAST
}

/// What a container does not use, as far as it may be taken.
fn cold(seen: &Seen) -> u64 {
    let unused =
        |lists: Lists| if is_idle(seen) { lists.active.saturating_add(lists.inactive) } else { lists.inactive };
    let reclaimable = unused(seen.file).saturating_add(unused(seen.anonymous).min(seen.swap));
    reclaimable.min(seen.memory.saturating_sub(seen.promised))
}

/// Memory as the tax counts it.
fn taxed(seen: &Seen, tax: f64) -> f64 {
    let idle = cold(seen).min(seen.memory) as f64;
    let used = seen.memory as f64 - idle;
    used + idle / (1.0 - tax.clamp(0.0, 0.99))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// 100 MiB, 80 of them page cache, half of which is active.
    fn idle(id: &str) -> Seen {
        Seen {
            id: id.to_owned(),
            memory: 100 * MIB,
            file: Lists { active: 40 * MIB, inactive: 40 * MIB },
            anonymous: Lists { active: 10 * MIB, inactive: 5 * MIB },
            span: Duration::from_secs(1),
            step: FIRST_STEP,
            ..Seen::default()
        }
    }

    fn working(id: &str) -> Seen {
        Seen { cpu: Duration::from_millis(500), ..idle(id) }
    }

    fn one(seen: Seen) -> (u64, Why) {
        let take = plan(&[seen], &Policy::default()).remove(0);
        (take.bytes, take.why)
    }

    #[test]
    fn an_idle_container_gives_a_quarter_of_all_that_can_be_reclaimed() {
        assert_eq!(one(idle("a")), (20 * MIB, Why::Idle));
        // With swap, anonymous memory as well: as much as may go there.
        assert_eq!(one(Seen { swap: 8 * MIB, ..idle("a") }), (22 * MIB, Why::Idle));
        assert_eq!(one(Seen { swap: 500 * MIB, ..idle("a") }), (95 * MIB / 4, Why::Idle));
    }

    #[test]
    fn one_that_works_gives_a_little_of_what_it_leaves_alone() {
        assert_eq!(one(working("a")), (MIB, Why::Working));
        assert_eq!(one(Seen { file: Lists { active: 90 * MIB, inactive: 0 }, ..working("a") }), (0, Why::Settled));
    }

    #[test]
    fn what_was_promised_is_not_taken() {
        assert_eq!(one(Seen { promised: 200 * MIB, ..idle("a") }), (0, Why::Settled));
        let take = plan(&[Seen { promised: 90 * MIB, ..idle("a") }], &Policy::default()).remove(0);
        assert_eq!((take.cold, take.bytes), (10 * MIB, 10 * MIB / 4));
    }

    #[test]
    fn pressure_and_refaults_stop_it_and_make_the_next_step_smaller() {
        let policy = Policy::default();
        let stalled = Seen { stalled: Duration::from_millis(5), ..idle("a") };
        let refaulting = Seen { refaulted: 10 * MIB, ..idle("a") };
        for pressed in [&stalled, &refaulting] {
            assert_eq!(one(pressed.clone()), (0, Why::Pressed));
            assert_eq!(next_step(pressed, &policy), FIRST_STEP / 2.0);
        }
        let mut step = FIRST_STEP;
        for _ in 0..10 {
            step = next_step(&Seen { step, ..stalled.clone() }, &policy);
        }
        assert_eq!(step, 0.0);
        // After a rest it begins again, smallest first.
        assert_eq!(next_step(&Seen { step, ..idle("a") }, &policy), SMALLEST_STEP);
        assert_eq!(next_step(&idle("a"), &policy), FIRST_STEP);
    }

    #[test]
    fn rounds_come_to_an_end_and_take_most_of_what_lies_idle() {
        let mut seen = idle("a");
        let (mut taken, mut rounds) = (0, 0);
        loop {
            let bytes = one(seen.clone()).0;
            if bytes == 0 {
                break;
            }
            (taken, rounds) = (taken + bytes, rounds + 1);
            seen.memory -= bytes;
            let active = bytes.min(seen.file.active);
            seen.file.active -= active;
            seen.file.inactive -= (bytes - active).min(seen.file.inactive);
        }
        assert!(taken >= 79 * MIB && rounds < 32, "{taken} in {rounds} rounds");
    }

    #[test]
    fn who_holds_most_idle_memory_pays_first() {
        let policy = Policy { wanted: Some(25 * MIB), ..Policy::default() };
        // The largest of all works on nearly all it has; the tax makes the idle one dearer.
        let large =
            Seen { memory: 250 * MIB, file: Lists { active: 180 * MIB, inactive: 8 * MIB }, ..working("large") };
        let small = Seen { memory: 60 * MIB, file: Lists { active: 0, inactive: 40 * MIB }, ..idle("small") };
        let takes = plan(&[large.clone(), small.clone(), idle("idle")], &policy);
        let bytes: Vec<_> = takes.iter().map(|take| (take.id.as_str(), take.bytes, take.why)).collect();
        assert_eq!(bytes, [("large", 0, Why::Settled), ("small", 5 * MIB, Why::Idle), ("idle", 20 * MIB, Why::Idle)]);
        let all = plan(&[small, idle("idle")], &Policy { wanted: Some(MIB), ..Policy::default() });
        assert_eq!(
            all.iter().map(|take| (take.bytes, take.why)).collect::<Vec<_>>(),
            [(0, Why::Spared), (MIB, Why::Idle)]
        );
    }
}
