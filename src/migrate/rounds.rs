//! When to stop the container: how long it would stand still if that were now, from what the rounds so far have shown. Pure.
//!
//! A round sends what was written to since the round before, in memory and in files. While that shrinks, the next one is shorter
//! than this one; once what is left fits the downtime that was asked for, the rest is sent with the container stopped. A
//! container that writes faster than the link carries never gets there, which is seen by rounds that do not shrink.
//!
//! CRIU takes its time however little is left, which no further round makes less. The shortest dump so far shows how long; to
//! restore it takes about as long again, which nobody has seen yet when it is decided.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One round, as it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// Bytes of pages in it.
    pub pages: u64,
    /// Bytes of files in it.
    #[serde(default)]
    pub files: u64,
    /// Bytes that went over the link.
    pub sent: u64,
    /// Nanoseconds of the dump.
    pub dump: u64,
    /// Nanoseconds of sending.
    pub send: u64,
}

impl Round {
    /// Bytes that were to be carried.
    pub fn carried(&self) -> u64 {
        self.pages.saturating_add(self.files)
    }
}

/// What the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wishes {
    /// How long it may stand still.
    pub max_downtime: Duration,
    /// The most rounds before it is stopped.
    pub max_rounds: u32,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// One more round.
    Another,
    /// Stop it: the rest fits.
    Stop,
    /// The rest does not fit, and another round would not help.
    Diverges,
    /// There have been as many as were asked for.
    Limit,
    /// There is next to no rest, and it does not fit all the same: to save and restore anything takes longer.
    Overhead,
}

/// How long it would stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Downtime {
    /// To save and to restore it, however little is left.
    pub overhead: Duration,
    /// To save and send what is left.
    pub rest: Duration,
}

impl Downtime {
    /// Both.
    pub fn total(self) -> Duration {
        self.overhead.saturating_add(self.rest)
    }
}

/// A round must be shorter than the one before by this much to be worth another. Percent.
const SHRINKS: u64 = 90;

/// What is left is next to nothing if it takes this fraction of the overhead.
const NEXT_TO_NOTHING: u32 = 10;

/// Decides.
pub fn next(rounds: &[Round], wishes: &Wishes) -> Next {
    let count = u32::try_from(rounds.len()).unwrap_or(u32::MAX);
    let is_next_to_nothing = |estimate: Downtime| estimate.rest <= estimate.overhead / NEXT_TO_NOTHING;
    match downtime(rounds) {
        Some(estimate) if estimate.total() <= wishes.max_downtime => Next::Stop,
        Some(estimate) if estimate.overhead > wishes.max_downtime && is_next_to_nothing(estimate) => Next::Overhead,
        Some(_) if !shrinks(rounds) => Next::Diverges,
        _ if count >= wishes.max_rounds => Next::Limit,
        _ => Next::Another,
    }
}

/// How long it would stand still, were it stopped now: the time to dump and send what it has written to since the last round
/// was dumped, and what CRIU takes for anything. The first round says nothing of what is written to, and so nothing of that.
pub fn downtime(rounds: &[Round]) -> Option<Downtime> {
    let [.., before, last] = rounds else { return None };
    let interval = before.dump.saturating_add(before.send).max(1);
    let since = last.dump.saturating_add(last.send);
    // Written to since, at the rate of the last interval; nobody writes to more than there is, which the first round tells.
    let dirty = scaled(last.carried(), since, interval).min(rounds[0].carried().max(last.carried()));
    let shortest = rounds.iter().map(|round| round.dump).min().unwrap_or(0);
    let of_rest = (last.dump - shortest).saturating_add(last.send);
    Some(Downtime {
        overhead: Duration::from_nanos(shortest.saturating_mul(2)),
        rest: Duration::from_nanos(scaled(of_rest, dirty, last.carried().max(1))),
    })
}

/// Bytes a second that are written to, as the last round shows.
pub fn dirty_rate(rounds: &[Round]) -> Option<u64> {
    let [.., before, last] = rounds else { return None };
    Some(scaled(last.carried(), 1_000_000_000, before.dump.saturating_add(before.send).max(1)))
}

/// Bytes of pages and files a second that the link takes, as the last round shows.
pub fn bandwidth(rounds: &[Round]) -> Option<u64> {
    rounds.last().map(|last| scaled(last.carried(), 1_000_000_000, last.send.max(1)))
}

/// Neither of the last two rounds may be as long as the one before it: one alone can be chance.
fn shrinks(rounds: &[Round]) -> bool {
    let [.., first, second, third] = rounds else { return true };
    let shorter = |before: &Round, after: &Round| after.carried() < scaled(before.carried(), SHRINKS, 100);
    shorter(first, second) || shorter(second, third)
}

fn scaled(value: u64, by: u64, of: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(by) / u128::from(of.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;
    const WISHES: Wishes = Wishes { max_downtime: Duration::from_millis(300), max_rounds: 10 };

    /// Rounds of a container of `memory` bytes that writes to `rate` bytes a second over a link of `speed` bytes a second.
    fn simulated(memory: u64, rate: u64, speed: u64) -> (Vec<Round>, Next) {
        let mut rounds: Vec<Round> = Vec::new();
        loop {
            let pages = match rounds.last() {
                None => memory,
                Some(last) => scaled(rate, last.send + last.dump, 1_000_000_000).min(memory),
            };
            let send = scaled(pages, 1_000_000_000, speed);
            rounds.push(Round { pages, sent: pages, dump: send / 20, send, files: 0 });
            match next(&rounds, &WISHES) {
                Next::Another => (),
                end => return (rounds, end),
            }
        }
    }

    #[test]
    fn rounds_shrink_until_the_rest_fits() {
        let (rounds, end) = simulated(512 * MB, 10 * MB, 100 * MB);
        assert_eq!(end, Next::Stop);
        assert!(rounds.len() <= 4, "{rounds:?}");
        assert!(downtime(&rounds).unwrap().total() <= WISHES.max_downtime);
    }

    #[test]
    fn an_idle_container_takes_two() {
        let (rounds, end) = simulated(512 * MB, 0, 100 * MB);
        assert_eq!((rounds.len(), end), (2, Next::Stop));
        assert_eq!(downtime(&rounds).map(Downtime::total), Some(Duration::ZERO));
    }

    #[test]
    fn one_that_writes_faster_than_the_link_is_noticed() {
        let (rounds, end) = simulated(512 * MB, 200 * MB, 100 * MB);
        assert_eq!((rounds.len(), end), (3, Next::Diverges));
        // Slower than the link, but never within the time.
        let (rounds, end) = simulated(4096 * MB, 95 * MB, 100 * MB);
        assert_eq!(end, Next::Diverges);
        assert!(rounds.len() <= 10);
        assert!(bandwidth(&rounds).is_some_and(|rate| (99 * MB..102 * MB).contains(&rate)));
        assert!(dirty_rate(&rounds).unwrap() > 90 * MB);
    }

    #[test]
    fn no_more_rounds_are_made_than_were_asked_for() {
        let large = Round { pages: 4096 * MB, sent: 4096 * MB, dump: 1 << 30, send: 40 << 30, files: 0 };
        let smaller = |by: u64| Round { pages: large.pages / by, send: large.send / by, ..large };
        let rounds = [large, smaller(2), smaller(4), smaller(8)];
        for count in 1..=rounds.len() {
            let rounds = &rounds[..count];
            assert_eq!(next(rounds, &Wishes { max_rounds: count as u32, ..WISHES }), Next::Limit, "{count}");
            assert_eq!(next(rounds, &Wishes { max_rounds: count as u32 + 1, ..WISHES }), Next::Another, "{count}");
        }
    }

    /// As an emulated machine has it: CRIU takes a second for nothing.
    #[test]
    fn what_criu_takes_for_anything_is_counted() {
        const SECOND: u64 = 1_000_000_000;
        let first = Round { pages: 64 * MB, sent: MB, dump: 3 * SECOND, send: 5 * SECOND, files: 0 };
        let idle = Round { sent: 100, dump: SECOND, send: SECOND / 100, ..Round::default() };
        let rounds = [first, idle];
        assert_eq!(next(&rounds, &WISHES), Next::Overhead);
        assert_eq!(downtime(&rounds).map(|found| found.overhead), Some(Duration::from_secs(2)));
        // Where that is no more than was asked for, it is stopped; where much is left, there is more to gain.
        assert_eq!(next(&rounds, &Wishes { max_downtime: Duration::from_secs(3), ..WISHES }), Next::Stop);
        let busy = Round { pages: 32 * MB, sent: MB, dump: SECOND, send: 3 * SECOND, files: 0 };
        assert_eq!(next(&[first, busy], &WISHES), Next::Another);
        // Files are as much of a rest as pages are.
        let writes = Round { pages: 0, files: 32 * MB, ..busy };
        assert_eq!(next(&[first, writes], &WISHES), Next::Another);
        assert_eq!(downtime(&[first, writes]), downtime(&[first, busy]));
    }

    #[test]
    fn numbers_without_bounds_end_in_an_answer() {
        let most = Round { pages: u64::MAX, sent: u64::MAX, dump: u64::MAX, send: u64::MAX, files: u64::MAX };
        for (rounds, expected) in [
            (vec![most; 3], Next::Diverges),
            (vec![Round::default(); 3], Next::Stop),
            (vec![Round::default(), most], Next::Another),
            (vec![most, Round::default()], Next::Stop),
            (Vec::new(), Next::Another),
        ] {
            assert_eq!(next(&rounds, &WISHES), expected, "{rounds:?}");
        }
    }
}
