//! Memory that is asked for before CRIU's daemon does, so that the line is never empty while it comes. Pure: the times are given.
//!
//! The daemon asks for one run of a process at a time, in rising order, and for the next once it has put that in its place: over a line
//! of some length it waits most of the time. What it will ask for is known from the images. So the next pieces are asked for while
//! earlier ones are on their way, and are kept until it asks.
//!
//! A process that touches a page waits behind what is on its way already. So no more of it is than keeps the line full: while a piece
//! takes no more than twice as long as the quickest did, one more is asked for, and one less when it takes longer: they wait for each
//! other then.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::left::page;
use super::page_server::Pages;

/// The most bytes of a piece: a page that is touched waits for that much at least.
const PIECE: u64 = 128 << 10;

/// The fewest and the most pieces on their way.
const FEWEST: usize = 2;
const MOST: usize = 64;

/// Bytes that may wait for the daemon to ask for them.
const KEPT: u64 = 8 << 20;

/// The first page of a process' memory that is meant: the number of its image, and the address.
type At = (u64, u64);

/// What comes before it is asked for.
#[derive(Debug)]
pub struct Ahead {
    /// What is left of each process, rising.
    runs: HashMap<u64, Vec<Pages>>,
    /// The next that is to be asked for.
    next: Option<At>,
    /// What was asked for and has not come, and when.
    flying: VecDeque<(Pages, Instant)>,
    /// What has come, by its first page.
    kept: BTreeMap<At, Vec<u8>>,
    kept_bytes: u64,
    quickest: Option<Duration>,
    window: usize,
}

impl Ahead {
    /// Of all that is left; what is not rising there is not asked for.
    pub fn new(left: Vec<Pages>) -> Self {
        let mut runs: HashMap<u64, Vec<Pages>> = HashMap::new();
        for run in left {
            let of = runs.entry(run.image).or_default();
            if of.last().is_none_or(|last| end(*last) <= run.address) && end(run) > run.address {
                of.push(run);
            }
        }
        Self {
            runs,
            next: None,
            flying: VecDeque::new(),
            kept: BTreeMap::new(),
            kept_bytes: 0,
            quickest: None,
            window: FEWEST,
        }
    }

    /// The daemon wants these. Answers what is to be asked for now so that it gets the first of them: nothing if that has come, or is
    /// on its way. A single page is asked for all the same: it goes before what is on its way.
    pub fn wanted(&mut self, asked: Pages, now: Instant) -> Option<Pages> {
        let at = (asked.image, asked.address);
        if asked.count > 1 {
            self.forget_before(at);
            // It may begin anywhere, and go back to what it has left out.
            if self.next.is_none_or(|next| next.0 != at.0 || next.1 < at.1) {
                self.next = Some(at);
            }
        }
        let is_flying = self.flying.iter().any(|(pages, _)| holds(*pages, at));
        if self.holds(at) || (is_flying && asked.count > 1) {
            return None;
        }
        let asked = Pages { count: asked.count.min(PIECE / page()).max(1), ..asked };
        if self.next == Some(at) {
            self.next = Some((asked.image, end(asked)));
        }
        self.flying.push_back((asked, now));
        Some(asked)
    }

    /// The daemon waits for these still. Answers what is to be asked for, if none of what is on its way has the first of them: an
    /// answer may be shorter than the question.
    pub fn wanted_still(&mut self, asked: Pages, now: Instant) -> Option<Pages> {
        let at = (asked.image, asked.address);
        if self.flying.iter().any(|(pages, _)| holds(*pages, at)) { None } else { self.wanted(asked, now) }
    }

    /// What is to be asked for beside that.
    pub fn more(&mut self, now: Instant) -> Option<Pages> {
        let pieces = u64::try_from(self.flying.len()).unwrap_or(u64::MAX);
        if self.flying.len() >= self.window || self.kept_bytes + pieces * PIECE >= KEPT {
            return None;
        }
        let (image, address) = self.next?;
        let runs = self.runs.get(&image)?;
        let run = runs[runs.partition_point(|run| end(*run) <= address)..].first()?;
        let address = address.max(run.address);
        let count = ((end(*run) - address) / page()).min(PIECE / page());
        let piece = Pages { image, address, count };
        self.next = Some((image, end(piece)));
        self.flying.push_back((piece, now));
        Some(piece)
    }

    /// These are about to come. False: nobody asked for them.
    pub fn comes(&mut self, pages: Pages, now: Instant) -> bool {
        let fits = |asked: Pages| {
            (asked.image, asked.address) == (pages.image, pages.address) && (1..=asked.count).contains(&pages.count)
        };
        // A single page comes before what was asked for earlier, and may be the first of a piece.
        let found = self.flying.iter().enumerate().filter(|(_, (asked, _))| fits(*asked));
        let Some((at, (asked, since))) = found.min_by_key(|(_, (asked, _))| asked.count - pages.count) else {
            return false;
        };
        if asked.count == PIECE / page() {
            self.took(now.saturating_duration_since(*since));
        }
        self.flying.remove(at);
        true
    }

    fn took(&mut self, time: Duration) {
        let quickest = self.quickest.map_or(time, |quickest| quickest.min(time));
        self.quickest = Some(quickest);
        let is_quick = time <= quickest * 2;
        self.window = if is_quick { self.window + 1 } else { self.window - 1 }.clamp(FEWEST, MOST);
    }

    /// They have come.
    pub fn keep(&mut self, pages: Pages, bytes: Vec<u8>) {
        self.kept_bytes += bytes.len() as u64;
        if let Some(before) = self.kept.insert((pages.image, pages.address), bytes) {
            self.kept_bytes -= before.len() as u64;
        }
    }

    /// As many of these as have come, from the first on, which are kept no longer.
    pub fn take(&mut self, asked: Pages) -> Option<Vec<u8>> {
        let at = (asked.image, asked.address);
        let (&first, bytes) = self.kept.range(..=at).next_back()?;
        let skipped = (first.0 == at.0).then(|| usize::try_from(at.1 - first.1).ok()).flatten();
        let skipped = skipped.filter(|skipped| *skipped < bytes.len())?;
        let wanted = usize::try_from(asked.count.saturating_mul(page())).unwrap_or(usize::MAX);
        let taken: Vec<u8> = bytes[skipped..].iter().take(wanted).copied().collect();
        let mut bytes = self.kept.remove(&first)?;
        let rest = bytes.split_off(skipped + taken.len());
        bytes.truncate(skipped);
        self.kept_bytes -= taken.len() as u64;
        if !rest.is_empty() {
            self.kept.insert((at.0, at.1.saturating_add(taken.len() as u64)), rest);
        }
        if !bytes.is_empty() {
            self.kept.insert(first, bytes);
        }
        Some(taken)
    }

    fn holds(&self, at: At) -> bool {
        let found = self.kept.range(..=at).next_back();
        found.is_some_and(|(first, bytes)| first.0 == at.0 && at.1 - first.1 < bytes.len() as u64)
    }

    /// The daemon has everything before this, such as pages that it had asked for alone.
    fn forget_before(&mut self, at: At) {
        while let Some((&first, bytes)) = self.kept.range((at.0, 0)..at).next() {
            if first.1.saturating_add(bytes.len() as u64) > at.1 {
                return;
            }
            self.kept_bytes -= bytes.len() as u64;
            self.kept.remove(&first);
        }
    }
}

/// The first address after some pages.
fn end(pages: Pages) -> u64 {
    pages.address.saturating_add(pages.count.saturating_mul(page()))
}

fn holds(pages: Pages, at: At) -> bool {
    pages.image == at.0 && (pages.address..end(pages)).contains(&at.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(index: u64, count: u64) -> Pages {
        Pages { image: 1, address: index * page(), count }
    }

    fn of(pages: Pages) -> Vec<u8> {
        (0..pages.count).flat_map(|at| vec![(pages.address / page() + at) as u8; page() as usize]).collect()
    }

    fn piece() -> u64 {
        PIECE / page()
    }

    #[test]
    fn what_will_be_asked_for_is_on_its_way() {
        let (now, piece) = (Instant::now(), piece());
        let mut ahead = Ahead::new(vec![pages(10, 2 * piece), pages(500, 3)]);
        assert_eq!(ahead.more(now), None, "nothing before the daemon has begun");
        assert_eq!(ahead.wanted(pages(10, 16), now), Some(pages(10, 16)));
        assert_eq!(ahead.more(now), Some(pages(26, piece)));
        assert_eq!(ahead.more(now), None, "two at a time to begin with");
        assert!(ahead.comes(pages(10, 16), now));
        ahead.keep(pages(10, 16), of(pages(10, 16)));
        assert_eq!(ahead.take(pages(10, 16)), Some(of(pages(10, 16))));
        assert_eq!(ahead.take(pages(10, 16)), None, "once");
        assert_eq!(ahead.more(now), Some(pages(26 + piece, piece - 16)));
        // The daemon comes to what is on its way, and nothing is asked for twice.
        assert_eq!(ahead.wanted(pages(26, 2 * piece - 16), now), None);
        assert!(ahead.comes(pages(26, piece), now));
        ahead.keep(pages(26, piece), of(pages(26, piece)));
        assert_eq!(ahead.more(now), Some(pages(500, 3)));
        assert_eq!(ahead.more(now), None, "that is all");
        assert_eq!(ahead.take(pages(26, 2 * piece - 16)), Some(of(pages(26, piece))));
    }

    #[test]
    fn a_page_that_is_touched_is_asked_for_at_once() {
        let now = Instant::now();
        let mut ahead = Ahead::new(vec![pages(0, 100)]);
        assert_eq!(ahead.wanted(pages(0, 16), now), Some(pages(0, 16)));
        assert_eq!(ahead.more(now), Some(pages(16, piece())));
        // On its way, behind others: it goes before them.
        assert_eq!(ahead.wanted(pages(16, 1), now), Some(pages(16, 1)));
        assert!(ahead.comes(pages(16, 1), now));
        ahead.keep(pages(16, 1), of(pages(16, 1)));
        assert_eq!(ahead.take(pages(16, 1)), Some(of(pages(16, 1))));
        // What holds it too comes all the same, and the daemon takes the rest of it, from both sides of a hole.
        assert!(ahead.comes(pages(16, piece()), now));
        ahead.keep(pages(16, piece()), of(pages(16, piece())));
        assert_eq!(ahead.wanted(pages(20, 1), now), None, "it is here");
        assert_eq!(ahead.take(pages(20, 1)), Some(of(pages(20, 1))));
        assert_eq!(ahead.wanted(pages(17, 3), now), None);
        assert_eq!(ahead.take(pages(17, 3)), Some(of(pages(17, 3))));
        assert_eq!(ahead.take(pages(21, 900)), Some(of(pages(21, piece() - 5))));
        // What it never asks for does not stay for ever.
        assert_eq!(ahead.kept_bytes, page());
        ahead.wanted(pages(90, 5), now);
        assert_eq!((ahead.kept_bytes, ahead.kept.len()), (0, 0));
    }

    /// Each has addresses of its own, which are often the same.
    #[test]
    fn processes_are_told_apart() {
        let (now, other) = (Instant::now(), |pages| Pages { image: 2, ..pages });
        let mut ahead = Ahead::new(vec![pages(50, 4), other(pages(40, 4))]);
        for asked in [pages(50, 4), other(pages(40, 4))] {
            assert_eq!(ahead.take(asked), None);
            assert_eq!(ahead.wanted(asked, now), Some(asked));
            assert!(ahead.comes(asked, now));
            ahead.keep(asked, of(asked));
        }
        assert_eq!(ahead.take(other(pages(50, 4))), None);
        assert_eq!(ahead.take(pages(40, 4)), None);
        assert_eq!(ahead.take(other(pages(41, 9))), Some(of(pages(41, 3))));
        assert_eq!(ahead.take(pages(50, 2)), Some(of(pages(50, 2))));
    }

    #[test]
    fn only_what_was_asked_for_comes() {
        let now = Instant::now();
        let mut ahead = Ahead::new(vec![pages(0, 8)]);
        assert!(!ahead.comes(pages(0, 1), now));
        ahead.wanted(pages(0, 4), now);
        for wrong in [pages(1, 1), pages(0, 5), pages(0, 0), Pages { image: 2, ..pages(0, 4) }] {
            assert!(!ahead.comes(wrong, now), "{wrong:?}");
        }
        assert!(ahead.comes(pages(0, 3), now) && !ahead.comes(pages(0, 3), now));
        // The one that was left out is asked for by itself.
        assert_eq!(ahead.wanted(pages(3, 1), now), Some(pages(3, 1)));
    }

    /// A line that carries a piece in 10 ms and is 100 ms long needs ten on their way, and one that is short no more than two. It takes a while to notice.
    #[test]
    fn as_many_are_on_their_way_as_the_line_holds() {
        for (length, fewest, most) in [(100, 8, 48), (0, 2, 4)] {
            let (start, mut free) = (Instant::now(), Duration::ZERO);
            let mut ahead = Ahead::new(vec![pages(0, 1 << 20)]);
            let mut line: VecDeque<(Duration, Pages)> = VecDeque::new();
            let mut clock = Duration::ZERO;
            let mut send = |pages, clock: Duration, line: &mut VecDeque<(Duration, Pages)>| {
                free = free.max(clock) + Duration::from_millis(10);
                line.push_back((free + Duration::from_millis(length), pages));
            };
            if let Some(first) = ahead.wanted(pages(0, 1 << 20), start) {
                send(first, clock, &mut line);
            }
            for _ in 0..300 {
                while let Some(more) = ahead.more(start + clock) {
                    send(more, clock, &mut line);
                }
                let (at, came) = line.pop_front().unwrap();
                clock = at;
                assert!(ahead.comes(came, start + clock));
            }
            assert!((fewest..=most).contains(&ahead.window), "{length} ms: {}", ahead.window);
        }
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let now = Instant::now();
        let mut ahead = Ahead::new(vec![pages(0, 1 << 20)]);
        ahead.wanted(pages(0, 2), now);
        let mut asked = 1;
        while let Some(more) = ahead.more(now) {
            assert!(ahead.comes(more, now));
            ahead.keep(more, vec![0; (more.count * page()) as usize]);
            asked += 1;
        }
        assert!(ahead.kept_bytes <= KEPT && asked > 30, "{asked}");
    }

    #[test]
    fn images_that_make_no_sense_are_not_followed() {
        let odd = vec![pages(5, 5), pages(3, 9), Pages { image: 1, address: u64::MAX, count: 0 }, pages(20, u64::MAX)];
        let mut ahead = Ahead::new(odd);
        let now = Instant::now();
        ahead.wanted(pages(5, 5), now);
        for _ in 0..100 {
            if let Some(more) = ahead.more(now) {
                assert!(more.count > 0);
                ahead.comes(more, now);
            }
        }
    }
}
