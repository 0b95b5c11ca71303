//! The numbers that a container prints one after the other, over all its lives: what is lost or done twice is a gap or a step back.

use super::output::Lines;
use super::scenario::Outcome;

/// The lines of a container, which must be numbers in a row, over all its lives.
pub(super) struct Row {
    lines: Lines,
    /// The number that is to come.
    pub(super) next: u64,
}

impl Row {
    pub(super) fn of(lines: Lines) -> Self {
        Self { lines, next: 0 }
    }

    /// Reads so many more.
    pub(super) fn go_on(&mut self, count: u64) -> Outcome {
        let until = self.next + count;
        while self.next < until {
            self.read()?;
        }
        Ok(())
    }

    /// Begins with whatever number comes first.
    pub(super) fn resume(&mut self) -> Outcome {
        let line = self.lines.until("")?;
        self.next = line.parse::<u64>()? + 1;
        Ok(())
    }

    pub(super) fn read(&mut self) -> Outcome {
        let line = self.lines.until("")?;
        if line != self.next.to_string() {
            return Err(format!("after {} came {line:?}", self.next.saturating_sub(1)).into());
        }
        self.next += 1;
        Ok(())
    }

    /// Reads what was printed before the end, and goes on with the lines of the next life.
    pub(super) fn continued(&mut self, lines: Lines) -> Outcome {
        self.continued_for(lines, 10)
    }

    /// The same, with so many lines.
    pub(super) fn continued_for(&mut self, lines: Lines, count: u64) -> Outcome {
        while self.read().is_ok() {}
        self.lines = lines;
        self.go_on(count)
    }
}
