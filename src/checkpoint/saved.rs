//! How much a dump saved, and how long the container stood still for it: CRIU's statistics, and what follows from two of them
//! in a row, how fast the container writes to its memory.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::dump::DumpChoice;
use super::images::{self, Kind};
use crate::error::{Error, Result};

/// The name of CRIU's statistics.
pub const FILE: &str = "stats-dump";

/// What a dump came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// Memory in these images.
    pub bytes: u64,
    /// Memory that was left to the parent's.
    pub unchanged_bytes: u64,
    /// How long the processes stood still, while they were being stopped and after that.
    pub frozen_milliseconds: f64,
    /// How long the memory took to be written.
    pub write_milliseconds: f64,
    /// What was written to since the parent's images were made, in bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty_rate: Option<f64>,
    /// How long the container would stand still for the last dump, were it to begin now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_milliseconds: Option<f64>,
}

/// What the dump that was just made came to.
///
/// # Errors
/// There are no statistics of it.
pub fn read(choice: &DumpChoice) -> Result<Saved> {
    let directory = choice.choice.log_directory();
    let messages = images::read(&directory.join(FILE), Kind::Statistics)?;
    let message = messages.first().and_then(|message| images::one(message, 1));
    let message = message.ok_or_else(|| Error::said("read", FILE, "it tells of no dump"))?;
    let number = |field| images::one(message.bytes(), field).map_or(0, |value| value.number());
    let page = rustix::param::page_size() as u64;
    let bytes = |own, shared| (number(own).saturating_add(number(shared))).saturating_mul(page);
    let milliseconds = |field| number(field) as f64 / 1000.0;
    let saved = Saved {
        bytes: bytes(7, 14),
        unchanged_bytes: bytes(6, 13),
        frozen_milliseconds: milliseconds(1) + milliseconds(2),
        write_milliseconds: milliseconds(4),
        dirty_rate: None,
        estimated_milliseconds: None,
    };
    let made = |directory: &Path| std::fs::metadata(directory.join(FILE)).and_then(|found| found.modified()).ok();
    let parent = choice.parent.as_ref().and_then(|parent| made(&choice.choice.images.join(parent)));
    let since = |made: SystemTime| SystemTime::now().duration_since(made).ok();
    Ok(match parent.and_then(since) {
        Some(since) => saved.after(since),
        None => saved,
    })
}

impl Saved {
    /// With what follows from the time since the parent's images were made. What the container writes to while a dump is being
    /// written is what the next has to write; of the last one it is in addition to the standstill that any dump takes.
    fn after(mut self, since: Duration) -> Self {
        let seconds = since.as_secs_f64();
        if seconds > 0.0 {
            let rate = self.bytes as f64 / seconds;
            let written = rate * self.write_milliseconds / 1000.0;
            let share = if self.bytes == 0 { 0.0 } else { written / self.bytes as f64 };
            self.dirty_rate = Some(rate);
            self.estimated_milliseconds = Some(self.frozen_milliseconds + self.write_milliseconds * share.min(1.0));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::dump::Choice;
    use crate::checkpoint::wire::Message;

    #[test]
    fn the_rate_and_the_estimate() {
        let saved = Saved {
            bytes: 100_000_000,
            unchanged_bytes: 0,
            frozen_milliseconds: 20.0,
            write_milliseconds: 100.0,
            dirty_rate: None,
            estimated_milliseconds: None,
        };
        let after = saved.after(Duration::from_secs(1));
        assert_eq!((after.dirty_rate, after.estimated_milliseconds), (Some(100_000_000.0), Some(30.0)));
        let idle = Saved { bytes: 0, ..after }.after(Duration::from_secs(1));
        assert_eq!((idle.dirty_rate, idle.estimated_milliseconds), (Some(0.0), Some(20.0)));
    }

    #[test]
    fn statistics_are_read_from_the_file() {
        let directory = std::env::temp_dir().join(format!("ferry-saved-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let mut dump = Message::default();
        dump.number(1, 250).number(2, 1500).number(4, 2500).number(6, 3).number(7, 2);
        let mut message = Message::default();
        message.message(1, &dump);
        let bytes = images::tests::image(Kind::Statistics, &[message]);
        std::fs::write(directory.join(FILE), bytes).unwrap();
        let choice = Choice { images: directory.clone(), ..Choice::default() };
        let saved = read(&DumpChoice { choice, ..DumpChoice::default() }).unwrap();
        std::fs::remove_file(directory.join(FILE)).unwrap();
        std::fs::remove_dir(&directory).unwrap();
        let page = rustix::param::page_size() as u64;
        assert_eq!((saved.bytes, saved.unchanged_bytes), (2 * page, 3 * page));
        assert_eq!((saved.frozen_milliseconds, saved.write_milliseconds), (1.75, 2.5));
        assert_eq!(saved.dirty_rate, None);
    }
}
