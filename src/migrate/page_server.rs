//! CRIU's own words for memory that comes later: its lazy-pages daemon asks a page server for it, which is ferry here. Pure.
//!
//! ```text
//! a word:  command u32 | pages u32 | address u64 | image u64             up to CRIU 4.1
//!          command u32 | zero u32 | pages u64 | address u64 | image u64  since 4.2
//! ```
//!
//! In the machine's own byte order. `GET` is answered by a word that says how many pages follow, which may be fewer than were
//! asked for, and `CLOSE` by a status of four bytes. criu/criu/page-xfer.c

use super::frame::refused;
use crate::error::Result;

const ADD: u32 = 6;
const GET: u32 = 7;
const CLOSE: u32 = 0x1023;
const FORCE_CLOSE: u32 = 0x1024;

/// The flag of pages that follow, in the upper half of a command.
const PRESENT: u32 = 4 << 16;

/// The first CRIU whose words count pages in 64 bits.
const WIDE: u32 = 40_200;

/// The answer to a word that it is over.
pub const CLOSED: [u8; 4] = [0; 4];

/// Some pages of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pages {
    /// The number in the name of the image that says where they are.
    pub image: u64,
    /// The first one's address. Bytes.
    pub address: u64,
    /// How many.
    pub count: u64,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Pages.
    Get(Pages),
    /// Nothing more.
    Close,
}

/// The layout of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Of 24 bytes.
    Narrow,
    /// Of 32 bytes.
    Wide,
}

impl Form {
    /// Of a version of CRIU, as 40101 for 4.1.1.
    pub fn of(version: u32) -> Self {
        if version >= WIDE { Self::Wide } else { Self::Narrow }
    }

    /// Bytes of a word.
    pub fn length(self) -> usize {
        match self {
            Self::Narrow => 24,
            Self::Wide => 32,
        }
    }

    /// Reads a word of so many bytes.
    ///
    /// # Errors
    /// It is none that a page server is told.
    pub fn decode(self, bytes: &[u8]) -> Result<Word> {
        let strange = || refused("CRIU asks for memory in words that ferry does not know");
        let half = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let whole = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let count = match self {
            Self::Narrow => half(4).map(u64::from),
            Self::Wide => whole(8),
        };
        let at = self.length() - 16;
        match (half(0), count, whole(at), whole(at + 8)) {
            (Some(GET), Some(count), Some(address), Some(image)) if count > 0 => {
                Ok(Word::Get(Pages { image, address, count }))
            }
            (Some(CLOSE | FORCE_CLOSE), Some(_), Some(_), Some(_)) => Ok(Word::Close),
            _ => Err(strange()),
        }
    }

    /// The word before pages that follow.
    pub fn answer(self, pages: Pages) -> Vec<u8> {
        let mut word = Vec::with_capacity(self.length());
        word.extend((ADD | PRESENT).to_ne_bytes());
        match self {
            // No more are sent than were asked for.
            Self::Narrow => word.extend((pages.count as u32).to_ne_bytes()),
            Self::Wide => {
                word.extend([0; 4]);
                word.extend(pages.count.to_ne_bytes());
            }
        }
        word.extend(pages.address.to_ne_bytes());
        word.extend(pages.image.to_ne_bytes());
        word
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A word as CRIU would say it.
    pub fn said(form: Form, command: u32, pages: Pages) -> Vec<u8> {
        let mut word = form.answer(pages);
        word[..4].copy_from_slice(&command.to_ne_bytes());
        word
    }

    /// It asks.
    pub fn get(form: Form, pages: Pages) -> Vec<u8> {
        said(form, GET, pages)
    }

    /// It is done.
    pub fn close(form: Form) -> Vec<u8> {
        said(form, FORCE_CLOSE, Pages { image: 0, address: 0, count: 0 })
    }

    const PAGES: Pages = Pages { image: 3, address: 0x7f00_0000_1000, count: 16 };

    #[test]
    fn words_of_both_forms() {
        for (form, version, length) in [(Form::Narrow, 40_101, 24), (Form::Wide, 40_200, 32)] {
            assert_eq!(Form::of(version), form);
            let word = get(form, PAGES);
            assert_eq!(word.len(), length);
            assert_eq!(form.decode(&word).unwrap(), Word::Get(PAGES));
            assert_eq!(form.decode(&close(form)).unwrap(), Word::Close);
            let answer = form.answer(PAGES);
            assert_eq!(answer[..4], 0x0004_0006_u32.to_ne_bytes());
            assert_eq!((answer.len(), &answer[4..]), (length, &word[4..]));
        }
    }

    #[test]
    fn what_is_no_question_is_refused() {
        for form in [Form::Narrow, Form::Wide] {
            let none = Pages { count: 0, ..PAGES };
            for wrong in [said(form, 1, PAGES), get(form, none), Vec::new(), vec![7; 5]] {
                assert!(form.decode(&wrong).is_err(), "{wrong:?}");
            }
        }
    }
}
