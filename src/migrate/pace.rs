//! `--bandwidth`: how long to wait before more is sent. Pure: the time is given.

use std::time::{Duration, Instant};

/// A rate that is held over time: what was not used is not saved up for longer than a moment.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    bytes_per_second: u64,
    next: Instant,
}

/// What may be made up for after a pause.
const MOMENT: Duration = Duration::from_millis(50);

impl Pace {
    /// From `now` on; a rate of 0 counts as 1.
    pub fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), next: now }
    }

    /// How many bytes may go in this time; never none.
    pub fn within(&self, time: Duration) -> usize {
        let bytes = u128::from(self.bytes_per_second) * time.as_millis() / 1000;
        usize::try_from(bytes).unwrap_or(usize::MAX).max(1)
    }

    /// When so many bytes may go.
    pub fn take(&mut self, bytes: u64, now: Instant) -> Instant {
        let at = self.next.max(now.checked_sub(MOMENT).unwrap_or(now));
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        self.next = at + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_held() {
        let start = Instant::now();
        let mut pace = Pace::new(1000, start);
        assert_eq!(pace.take(500, start), start);
        assert_eq!(pace.take(500, start), start + Duration::from_millis(500));
        assert_eq!(pace.take(1, start), start + Duration::from_secs(1));
        // A long pause is not made up for.
        let later = start + Duration::from_secs(60);
        assert!(pace.take(1000, later) <= later);
        assert!(pace.take(1000, later) > later + Duration::from_millis(900));
    }
}
