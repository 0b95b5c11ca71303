//! How long those had to wait who asked for memory that was not there yet. Pure.
//!
//! A page that a process touches is asked for alone; what is brought in the background is asked for in longer runs, but for the
//! last page of one. So what is counted as a fault is a question for one page, from when it was asked until it was answered.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many are remembered: 8 MiB. Later ones are counted, and that is all.
const REMEMBERED: usize = 1 << 20;

/// What they came to. Times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Faults {
    /// Questions for one page.
    pub count: u64,
    /// Half of them were answered within this time.
    pub median: u64,
    /// 99 of 100 were.
    pub p99: u64,
    /// The longest.
    pub longest: u64,
    /// Bytes that came after the container had gone on, all in all.
    pub bytes: u64,
}

/// While they are measured.
#[derive(Debug, Default)]
pub struct Waits {
    times: Vec<u64>,
    count: u64,
    longest: u64,
    bytes: u64,
}

impl Waits {
    /// Pages of so many bytes came after so long a time.
    pub fn note(&mut self, pages: u64, bytes: u64, time: Duration) {
        self.bytes = self.bytes.saturating_add(bytes);
        if pages != 1 {
            return;
        }
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.count += 1;
        self.longest = self.longest.max(time);
        if self.times.len() < REMEMBERED {
            self.times.push(time);
        }
    }

    /// What they have come to.
    pub fn faults(&self) -> Faults {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = |percent: usize| match times.len() {
            0 => 0,
            length => times[(length * percent).div_ceil(100).clamp(1, length) - 1],
        };
        Faults { count: self.count, median: at(50), p99: at(99), longest: self.longest, bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_apart_and_ranked() {
        let mut waits = Waits::default();
        assert_eq!(waits.faults(), Faults::default());
        for time in (1..=200).rev() {
            waits.note(1, 4096, Duration::from_nanos(time));
        }
        waits.note(64, 64 * 4096, Duration::from_secs(9));
        let expected = Faults { count: 200, median: 100, p99: 198, longest: 200, bytes: 264 * 4096 };
        assert_eq!(waits.faults(), expected);
    }
}
