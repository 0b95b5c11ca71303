//! What a checkpoint or restore tells while it works. Who listens decides what of it is shown.
//!
//! Steps come from what CRIU tells on its way, and bytes from what ferry itself reads and writes. CRIU does not tell how far it
//! is: while it is silent for long, the images are looked at.

use std::io::Read;
use std::path::Path;

use super::criu::WAITING;
use super::dump::STANDS_STILL;

/// The steps, in their order: of a checkpoint, of its archive, and of the way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The processes are being stopped.
    Freeze,
    /// They stand still, and are being saved.
    Dump,
    /// Everything is in the images.
    Saved,
    /// The digests of an archive's parts are computed.
    Digest,
    /// The archive is being written.
    Pack,
    /// The archive is being read.
    Unpack,
    /// The processes are being made again.
    Restore,
    /// They are there, and are about to go on.
    Resume,
}

impl Step {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Dump => "dump",
            Self::Saved => "saved",
            Self::Digest => "digest",
            Self::Pack => "pack",
            Self::Unpack => "unpack",
            Self::Restore => "restore",
            Self::Resume => "resume",
        }
    }

    /// The step that begins with a word of CRIU's, in a dump.
    fn of_word(word: &str) -> Option<Self> {
        match word {
            "pre-dump" => Some(Self::Freeze),
            "network-lock" => Some(Self::Dump),
            STANDS_STILL => Some(Self::Saved),
            _ => None,
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A step begins; with as many bytes to go through in it, where that is known.
    Step(Step, Option<u64>),
    /// So many more bytes of the step are done.
    More(u64),
    /// A file of the step is done.
    File,
    /// CRIU has so many bytes of memory in its images by now.
    Memory(u64),
}

/// Who listens. Called from several threads.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: Event);
}

/// Nobody.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) {}
}

/// Passes on what a word of CRIU's means for a dump into `images`.
pub fn heard(progress: &dyn Progress, word: &str, images: &Path) {
    match Step::of_word(word) {
        Some(step) => progress.event(Event::Step(step, None)),
        None if word == WAITING => progress.event(Event::Memory(memory(images))),
        None => (),
    }
}

/// Bytes of memory among the images; what cannot be looked at is none.
fn memory(images: &Path) -> u64 {
    let entries = std::fs::read_dir(images).into_iter().flatten().flatten();
    let pages = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"pages-"));
    pages.filter_map(|entry| entry.metadata().ok()).map(|found| found.len()).sum()
}

/// A stream of which is told how much was read.
pub struct Counted<'a, R> {
    stream: R,
    progress: &'a dyn Progress,
}

impl<'a, R> Counted<'a, R> {
    /// That of `stream`.
    pub fn new(stream: R, progress: &'a dyn Progress) -> Self {
        Self { stream, progress }
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.progress.event(Event::More(count as u64));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<Event>>);

    impl Progress for Heard {
        fn event(&self, event: Event) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn steps_come_from_words_and_bytes_from_streams() {
        let (heard, nowhere) = (Heard::default(), Path::new("/nonexistent"));
        for word in ["pre-dump", "network-lock", WAITING, "query-ext-files", STANDS_STILL] {
            super::heard(&heard, word, nowhere);
        }
        std::io::copy(&mut Counted::new(&b"four"[..], &heard), &mut std::io::sink()).unwrap();
        let steps = [Step::Freeze, Step::Dump].map(|step| Event::Step(step, None));
        let rest = [Event::Memory(0), Event::Step(Step::Saved, None), Event::More(4), Event::More(0)];
        assert_eq!(heard.0.into_inner().unwrap(), [&steps[..], &rest].concat());
    }
}
