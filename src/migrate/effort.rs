//! How hard to compress: harder on a slow link, where the processor would only wait, and less hard on a fast one, where the
//! link would. Pure: the times are given.

use std::time::Duration;

/// The hardest that is chosen by itself: beyond it, a per cent less takes several times as long.
const HARDEST: i32 = 9;

/// What it begins with, before anything is known of the link.
const FIRST: i32 = 3;

/// So many blocks are looked at together: what lies in the buffers of a link makes one alone look quick.
const BLOCKS: u32 = 8;

/// A level of zstd, and what it is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    level: i32,
    is_fixed: bool,
    blocks: u32,
    packing: Duration,
    sending: Duration,
}

impl Effort {
    /// Always this level; or, without one, what the link asks for.
    pub fn new(level: Option<i32>) -> Self {
        let (packing, sending) = (Duration::ZERO, Duration::ZERO);
        Self { level: level.unwrap_or(FIRST), is_fixed: level.is_some(), blocks: 0, packing, sending }
    }

    /// The level of the next block; 0 is without compression.
    pub fn level(&self) -> i32 {
        self.level
    }

    /// A block took so long to be packed, and so long until the link had taken it.
    pub fn took(&mut self, packing: Duration, sending: Duration) {
        self.blocks += 1;
        self.packing += packing;
        self.sending += sending;
        if self.is_fixed || self.blocks < BLOCKS {
            return;
        }
        // A level more takes up to half as long again, and must be no more than what the link waits for anyhow.
        if self.sending > self.packing * 2 {
            self.level = (self.level + 1).min(HARDEST);
        } else if self.sending < self.packing / 2 {
            self.level = (self.level - 1).max(1);
        }
        (self.blocks, self.packing, self.sending) = (0, Duration::ZERO, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(effort: Effort, blocks: u32, packing: u64, sending: u64) -> i32 {
        let mut effort = effort;
        (0..blocks).for_each(|_| effort.took(Duration::from_micros(packing), Duration::from_micros(sending)));
        effort.level()
    }

    #[test]
    fn a_slow_link_has_it_work_harder_and_a_fast_one_less() {
        let effort = Effort::new(None);
        assert_eq!(after(effort, 1000, 10, 100), HARDEST);
        assert_eq!(after(effort, 1000, 100, 10), 1);
        assert_eq!(after(effort, 1000, 100, 100), FIRST);
        // Not for one block that the link took its time over.
        assert_eq!(after(effort, BLOCKS - 1, 10, 100_000), FIRST);
        assert_eq!(after(effort, BLOCKS, 10, 100_000), FIRST + 1);
    }

    #[test]
    fn a_level_that_was_asked_for_stays() {
        for level in [0, 1, 19] {
            assert_eq!(after(Effort::new(Some(level)), 1000, 10, 100), level);
            assert_eq!(after(Effort::new(Some(level)), 1000, 100, 10), level);
        }
    }
}
