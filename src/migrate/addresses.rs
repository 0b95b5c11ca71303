//! Where in whose memory the pages of a file belong, and so which page was sent last from there. Only the end that sends asks:
//! what goes over the link names pages by their numbers.
//!
//! The images are CRIU's own, of a container that wrote the memory and not the images; all the same, what cannot be made sense
//! of costs no more than a delta that is not taken.

use std::collections::HashMap;
use std::path::Path;

use super::pages::PAGE;
use crate::checkpoint::images::{self, Kind, all, one};
use crate::checkpoint::wire::Value;

/// How many extents are remembered, over all files: 12 MiB.
const REMEMBERED: usize = 512 << 10;

/// criu/include/pagemap.h: the page is in the images of the round before, and it is in these.
const IN_PARENT: u64 = 1;
const PRESENT: u64 = 4;

/// Pages in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    /// The first one's address. Pages.
    page: u64,
    /// How many.
    count: u64,
    /// Where the first lies in the file. Pages.
    offset: u64,
}

/// What a file of pages holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Whose memory: the name of the image that says where it is.
    space: String,
    /// Rising, by address and so by place.
    extents: Vec<Extent>,
}

impl Layout {
    /// From the entries of a `pagemap-*.img`, without the first. `None`: they overlap or do not rise.
    fn new(space: &str, entries: &[Vec<u8>]) -> Option<Self> {
        let mut extents: Vec<Extent> = Vec::new();
        let (mut offset, mut free) = (0_u64, 0);
        for entry in entries {
            let field = |number| one(entry, number).map(Value::number);
            let in_parent = field(3) == Some(1) || field(4).is_some_and(|flags| flags & IN_PARENT != 0);
            let is_present = field(4).is_none_or(|flags| flags & PRESENT != 0);
            if in_parent || !is_present {
                continue;
            }
            let (page, count) = (field(1)? / PAGE as u64, field(5).or_else(|| field(2))?);
            if page < free {
                return None;
            }
            extents.push(Extent { page, count, offset });
            free = page.checked_add(count)?;
            offset = offset.checked_add(count)?;
        }
        Some(Self { space: space.to_owned(), extents })
    }

    /// How many pages it says there are.
    pub fn pages(&self) -> u64 {
        self.extents.last().map_or(0, |last| last.offset + last.count)
    }

    /// The address of what lies there. Both in pages.
    fn address(&self, offset: u64) -> Option<u64> {
        let at = self.extents.partition_point(|extent| extent.offset <= offset);
        let extent = self.extents[..at].last()?;
        let index = offset - extent.offset;
        (index < extent.count).then(|| extent.page + index)
    }

    /// Where the page of an address lies. Both in pages.
    fn offset(&self, page: u64) -> Option<u64> {
        let at = self.extents.partition_point(|extent| extent.page <= page);
        let extent = self.extents[..at].last()?;
        let index = page - extent.page;
        (index < extent.count).then(|| extent.offset + index)
    }
}

/// The layouts of a directory's files of pages, by their names; those that can be read.
pub fn layouts(directory: &Path, names: &[String]) -> HashMap<String, Layout> {
    let maps = names.iter().filter(|name| name.starts_with("pagemap-"));
    let read = |name: &String| {
        let messages = images::read(&directory.join(name), Kind::Pages).ok()?;
        let (head, entries) = messages.split_first()?;
        let number = all(head, 1).last()?.number();
        Some((format!("pages-{number}.img"), Layout::new(name, entries)?))
    };
    maps.filter_map(read).collect()
}

/// What was sent from where.
#[derive(Debug, Default)]
pub struct History {
    files: Vec<(u64, Layout)>,
    extents: usize,
}

impl History {
    /// A file of this layout has the pages from this number on.
    pub fn learn(&mut self, first: u64, layout: Layout) {
        self.extents += layout.extents.len();
        if self.extents <= REMEMBERED {
            self.files.push((first, layout));
        }
    }

    /// The number of the page that was sent last from where this one comes from, which lies at `offset`.
    pub fn before(&self, layout: &Layout, offset: u64) -> Option<u64> {
        let page = layout.address(offset)?;
        let of_it = self.files.iter().rev().filter(|(_, file)| file.space == layout.space);
        of_it.filter_map(|(first, file)| Some(first + file.offset(page)?)).next()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::checkpoint::images::tests::image;
    use crate::checkpoint::wire::Message;

    fn entry(page: u64, count: u64, flags: u64) -> Message {
        let mut message = Message::default();
        message.number(1, page * PAGE as u64).number(2, count).number(4, flags);
        message
    }

    /// A `pagemap-*.img` of the file of that number, with runs of addresses and counts in pages.
    pub fn map(number: u64, runs: &[(u64, u64)]) -> Vec<u8> {
        let mut head = Message::default();
        head.number(1, number);
        let entries = runs.iter().map(|(page, count)| entry(*page, *count, PRESENT));
        image(Kind::Pages, &std::iter::once(head).chain(entries).collect::<Vec<_>>())
    }

    fn layout(space: &str, entries: &[(u64, u64, u64)]) -> Option<Layout> {
        let entries: Vec<_> =
            entries.iter().map(|(page, count, flags)| entry(*page, *count, *flags).into_bytes()).collect();
        Layout::new(space, &entries)
    }

    #[test]
    fn the_last_page_from_there_is_found() {
        let first = layout("a", &[(10, 5, PRESENT), (20, 5, PRESENT)]).unwrap();
        let other = layout("b", &[(10, 5, PRESENT)]).unwrap();
        let second =
            layout("a", &[(10, 1, IN_PARENT), (11, 1, PRESENT), (20, 5, IN_PARENT), (30, 1, PRESENT)]).unwrap();
        let third = layout("a", &[(10, 2, PRESENT), (24, 1, PRESENT), (30, 2, PRESENT)]).unwrap();
        assert_eq!((first.pages(), second.pages(), third.pages()), (10, 2, 5));
        let mut history = History::default();
        history.learn(100, first);
        history.learn(200, other);
        history.learn(300, second);
        let found: Vec<_> = (0..6).map(|offset| history.before(&third, offset)).collect();
        assert_eq!(found, [Some(100), Some(300), Some(109), Some(301), None, None]);
    }

    #[test]
    fn what_makes_no_sense_gives_no_layout() {
        assert_eq!(layout("a", &[(10, 5, PRESENT), (12, 1, PRESENT)]), None);
        assert_eq!(layout("a", &[(10, u64::MAX, PRESENT)]), None);
        assert_eq!(Layout::new("a", &[Message::default().into_bytes()]), None);
        // As of a version that has no flags.
        let mut old = Message::default();
        old.number(1, 8 * PAGE as u64).number(2, 3);
        assert_eq!(Layout::new("a", &[old.into_bytes()]).map(|layout| layout.pages()), Some(3));
    }

    #[test]
    fn what_takes_too_much_room_is_not_remembered() {
        let many: Vec<_> = (0..1000).map(|page| (2 * page, 1, PRESENT)).collect();
        let layout = layout("a", &many).unwrap();
        let mut history = History::default();
        (0..REMEMBERED as u64 / 1000 + 9).for_each(|number| history.learn(1000 * number, layout.clone()));
        assert_eq!(history.files.len(), REMEMBERED / 1000);
        assert!(history.before(&layout, 7).is_some());
    }
}
