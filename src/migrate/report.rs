//! What a migration came to: for a person, for a program, and as a picture ([`super::plot`]).

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::faults::Faults;
use super::pages::Counts;
use super::rounds::Round;

/// The version of the report's form.
pub const FORMAT: u32 = 1;

/// Everything that was measured. Times in nanoseconds, sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`FORMAT`].
    pub format: u32,
    /// The container at the source.
    pub id: String,
    /// Where it went.
    pub destination: String,
    /// The destination's own name for itself.
    pub host: String,
    /// `pre-copy`, `post-copy`, `hybrid` or `stop-and-copy`.
    pub mode: String,
    /// Whether it runs there now.
    pub migrated: bool,
    /// Its first process there.
    pub pid: i32,
    /// Each step with its time, in order.
    pub steps: Vec<Step>,
    /// Each round; the last one was with the container stopped.
    pub rounds: Vec<Round>,
    /// From the beginning to its running there with all of its memory.
    pub total: u64,
    /// From its standing still here to the word that it runs there.
    pub downtime: u64,
    /// What the downtime was estimated at when it was stopped.
    pub estimate: Option<u64>,
    /// What became of pages.
    pub pages: Counts,
    /// What became of bytes.
    pub bytes: Bytes,
    /// How long it waited there for memory that was left here, if any was.
    #[serde(default)]
    pub faults: Option<Faults>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// `reserve`, `content`, `pre-copy`, `stop-and-copy`, `commit`, `activate`, `push`, `release`.
    pub name: String,
    /// Nanoseconds.
    pub time: u64,
}

/// Bytes by their kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bytes {
    /// Pages, as they lie in memory.
    pub pages: u64,
    /// Other images.
    pub images: u64,
    /// Content of files of the upper layer that went in rounds, the last one included.
    #[serde(default)]
    pub files: u64,
    /// Documents and layers of the container's image, which the destination lacked.
    #[serde(default)]
    pub content: u64,
    /// Everything that went over the link.
    pub sent: u64,
    /// Pages of zeros.
    pub saved_zero: u64,
    /// Pages that were sent before.
    pub saved_same: u64,
    /// What had not changed in pages that were sent before.
    #[serde(default)]
    pub saved_unchanged: u64,
    /// Compression.
    pub saved_compression: u64,
}

impl Report {
    /// Notes a step.
    pub fn step(&mut self, name: &str, nanoseconds: u64) {
        self.steps.push(Step { name: name.to_owned(), time: nanoseconds });
    }

    /// For a person.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |words: String| {
            // Writing to a text does not fail.
            writeln!(text, "{words}").ok();
        };
        line(format!("{} runs at {} now, as process {}", self.id, self.host, self.pid));
        line(format!("  stood still   {}{}", time(self.downtime), self.estimated()));
        line(format!("  in all        {}, {}", time(self.total), self.mode));
        let steps: Vec<String> = self.steps.iter().map(|step| format!("{} {}", step.name, time(step.time))).collect();
        line(format!("  steps         {}", steps.join(", ")));
        for (number, round) in (1..).zip(&self.rounds) {
            let files = if round.files > 0 { format!(" and {} of files", size(round.files)) } else { String::new() };
            line(format!(
                "  round {number:<7} {} of pages{files}, {} sent in {}",
                size(round.pages),
                size(round.sent),
                time(round.dump.saturating_add(round.send))
            ));
        }
        let Bytes { pages, images, files, content, sent, saved_zero, saved_same, saved_unchanged, saved_compression } =
            self.bytes;
        line(format!(
            "  sent          {} for {} of pages and {} of other images",
            size(sent),
            size(pages),
            size(images)
        ));
        if files > 0 {
            let still = self.rounds.last().map_or(0, |last| last.files);
            line(format!("  files         {} in rounds, of which {} while it stood still", size(files), size(still)));
        }
        if content > 0 {
            line(format!("  image         {} of it were not there, and stay there", size(content)));
        }
        line(format!(
            "  saved         zeros {}, sent before {}, unchanged in a page {}, compression {}",
            size(saved_zero),
            size(saved_same),
            size(saved_unchanged),
            size(saved_compression)
        ));
        if let Some(Faults { count, median, p99, longest, bytes }) = self.faults {
            let wait = |nanoseconds: u64| format!("{:.1} ms", nanoseconds as f64 / 1e6);
            line(format!(
                "  left here     {} came after it went on; {count} times it waited for a page: median {}, 99 of 100 within {}, \
                 {} at most",
                size(bytes),
                wait(median),
                wait(p99),
                wait(longest)
            ));
        }
        self.notes.iter().for_each(|note| line(format!("  note          {note}")));
        text
    }

    fn estimated(&self) -> String {
        self.estimate.map(|estimate| format!(" (estimated: {})", time(estimate))).unwrap_or_default()
    }
}

/// A time as people write it.
pub fn time(nanoseconds: u64) -> String {
    match nanoseconds {
        0..1_000_000_000 => format!("{:.0} ms", nanoseconds as f64 / 1e6),
        _ => format!("{:.2} s", nanoseconds as f64 / 1e9),
    }
}

/// A size as people write it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn sample() -> Report {
        let mut report = Report {
            format: FORMAT,
            id: "web".into(),
            destination: "ssh://b".into(),
            host: "b".into(),
            mode: "pre-copy".into(),
            migrated: true,
            pid: 42,
            rounds: vec![
                Round { pages: 64 << 20, sent: 20 << 20, dump: 50_000_000, send: 900_000_000, files: 0 },
                Round { pages: 4 << 20, sent: 1 << 20, dump: 20_000_000, send: 40_000_000, files: 3 << 10 },
            ],
            total: 2_500_000_000,
            downtime: 160_000_000,
            estimate: Some(120_000_000),
            faults: Some(Faults { count: 9, median: 1_250_000, p99: 4_000_000, longest: 5_000_000, bytes: 3 << 20 }),
            bytes: Bytes { files: 5 << 20, ..Bytes::default() },
            notes: vec!["its output goes elsewhere".into()],
            ..Report::default()
        };
        report.step("reserve", 30_000_000);
        report
    }

    #[test]
    fn a_person_reads_what_it_took() {
        let text = sample().text();
        for said in [
            "web runs at b now, as process 42\n",
            "  stood still   160 ms (estimated: 120 ms)\n",
            "  in all        2.50 s, pre-copy\n",
            "  steps         reserve 30 ms\n",
            "  round 1       64.0 MiB of pages, 20.0 MiB sent in 950 ms\n",
            "  round 2       4.0 MiB of pages and 3.0 KiB of files, 1.0 MiB sent in 60 ms\n",
            "  files         5.0 MiB in rounds, of which 3.0 KiB while it stood still\n",
            "  left here     3.0 MiB came after it went on; 9 times it waited for a page: median 1.2 ms, 99 of 100 within 4.0 ms, 5.0 ms at most\n",
            "  note          its output goes elsewhere\n",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }

    #[test]
    fn a_program_reads_it_again() {
        let json = serde_json::to_string(&sample()).unwrap();
        assert!(json.contains("\"savedZero\":0") && json.contains("\"downtime\":160000000"), "{json}");
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), sample());
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!([size(3), size(2048), size(3 << 20), size(5 << 30)], ["3 B", "2.0 KiB", "3.0 MiB", "5.00 GiB"]);
        assert_eq!([time(0), time(999_000_000), time(61_500_000_000)], ["0 ms", "999 ms", "61.50 s"]);
    }
}
