//! What is taken out of images, and given.

use std::time::Duration;

use super::super::journal::tests::Scratch;
use super::super::link::tests::pair;
use super::super::pages::Unpacker;
use super::*;
use crate::checkpoint::images::tests::image;

fn entry(address: u64, count: u64, flags: u64) -> wire::Message {
    let mut message = wire::Message::default();
    message.number(1, address).number(2, count).number(FLAGS, flags);
    message
}

/// A directory with a process of ten pages, of which the first three must be there at once, and one is in the images before.
pub fn images_of(directory: &Path) {
    let mut head = wire::Message::default();
    head.number(1, 7);
    let at = |index: u64| 0x10_000 + index * page();
    let runs = [
        entry(at(0), 3, PRESENT),
        entry(at(3), 4, LAZY | PRESENT),
        entry(at(7), 1, IN_PARENT),
        entry(at(9), 2, LAZY | PRESENT),
    ];
    let messages: Vec<_> = std::iter::once(head).chain(runs).collect();
    std::fs::write(directory.join("pagemap-1.img"), image(Kind::Pages, &messages)).unwrap();
    let pages: Vec<u8> = (0..9).flat_map(|number| vec![number; page() as usize]).collect();
    std::fs::write(directory.join("pages-7.img"), pages).unwrap();
}

#[test]
fn what_may_come_later_is_taken_out_and_given_when_it_is_asked_for() {
    let scratch = Scratch::new("left");
    images_of(&scratch.0);
    let left = Left::take_out(&scratch.0).unwrap();
    assert_eq!(left.pages, 6);
    let size = page() as usize;
    let sent = std::fs::read(scratch.0.join("pages-7.img")).unwrap();
    assert_eq!((sent.len(), sent[0], sent[size], sent[2 * size]), (3 * size, 0, 1, 2));
    let flags: Vec<u64> = images::read(&scratch.0.join("pagemap-1.img"), Kind::Pages).unwrap()[1..]
        .iter()
        .map(|entry| one(entry, FLAGS).unwrap().number())
        .collect();
    assert_eq!(flags, [PRESENT, LAZY, IN_PARENT, LAZY]);
    let (mut source, mut other) = pair(Duration::from_secs(30));
    let asked = |index: u64, count| Pages { image: 1, address: 0x10_000 + index * page(), count };
    for question in [asked(4, 9), asked(9, 2), asked(10, 1)] {
        other.send(&Message::Want(question)).unwrap();
    }
    // It is at work: that is no word to wait for another one after.
    other.send(&Message::Alive).unwrap();
    let mut packer = Packer::new(Some(1)).unwrap();
    let mut giving = Giving::new(&left, &mut packer);
    let mut unpacker = Unpacker::new().unwrap();
    // What a process waits for goes first.
    for (pages, first) in [(asked(10, 1), 8), (asked(4, 3), 4), (asked(9, 2), 7)] {
        while giving.asked.len() < 3 && first == 8 {
            let Some(Message::Want(asked)) = source.hear_now().unwrap() else { panic!("nothing is asked") };
            giving.asked.push_back(asked);
        }
        giving.give(&mut source).unwrap();
        assert_eq!(other.hear().unwrap(), Message::Pages(pages));
        let super::super::link::Frame::Data(block) = other.receive().unwrap() else { panic!("no pages") };
        let block = unpacker.block(&block).unwrap();
        assert_eq!((block.len() as u64, block[0]), (pages.count * page(), first));
    }
    assert_eq!(source.hear_now().unwrap(), None);
    other.send(&Message::Want(asked(3, 1))).unwrap();
    other.send(&Message::Prepared).unwrap();
    // A word is not kept waiting by who waits for memory, who is answered when there is time to listen again.
    assert_eq!(giving.hear(&mut source).unwrap(), Message::Prepared);
    other.send(&Message::Commit(super::super::message::Token::new().unwrap())).unwrap();
    giving.hear(&mut source).unwrap();
    drop(other);
    assert!(giving.hear(&mut source).is_err());
    assert_eq!(packer.counts.pages, 6 * page() / PAGE as u64);
}

#[test]
fn the_other_end_finds_out_what_is_left() {
    let scratch = Scratch::new("missing");
    images_of(&scratch.0);
    assert_eq!(missing(&scratch.0), []);
    Left::take_out(&scratch.0).unwrap();
    let asked = |index: u64, count| Pages { image: 1, address: 0x10_000 + index * page(), count };
    assert_eq!(missing(&scratch.0), [asked(3, 4), asked(9, 2)]);
    std::fs::write(scratch.0.join("pagemap-2.img"), "nonsense").unwrap();
    assert_eq!(missing(&scratch.0).len(), 2);
}

#[test]
fn what_is_not_left_is_not_given() {
    let scratch = Scratch::new("not-left");
    images_of(&scratch.0);
    let left = Left::take_out(&scratch.0).unwrap();
    let at = |index: u64| 0x10_000 + index * page();
    for (image, address, count) in [
        (1, at(0), 1),
        (1, at(7), 1),
        (1, at(11), 1),
        (2, at(4), 1),
        (1, at(4) + 1, 1),
        (1, at(4), 0),
        (1, u64::MAX, 1),
    ] {
        assert!(left.read(Pages { image, address, count }).is_err(), "{image} {address:#x} {count}");
    }
    assert_eq!(left.read(Pages { image: 1, address: at(5), count: u64::MAX }).unwrap().0, 2);
}

#[test]
fn images_without_any_stay_as_they_are() {
    let scratch = Scratch::new("none-left");
    std::fs::write(scratch.0.join("pagemap-1.img"), super::super::addresses::tests::map(1, &[(16, 2)])).unwrap();
    std::fs::write(scratch.0.join("pages-1.img"), vec![1; 2 * PAGE]).unwrap();
    let left = Left::take_out(&scratch.0).unwrap();
    assert!(left.pages == 0 && !scratch.0.join(".left-1").exists());
    std::fs::write(scratch.0.join("pagemap-2.img"), "nonsense").unwrap();
    assert!(Left::take_out(&scratch.0).is_err());
}

/// The container waits for its destination, which asks, and says nothing else.
#[test]
fn who_asks_for_the_same_over_and_over_keeps_nobody_waiting() {
    let scratch = Scratch::new("over-and-over");
    images_of(&scratch.0);
    let left = Left::take_out(&scratch.0).unwrap();
    let (mut source, other) = pair(Duration::from_secs(20));
    let mut packer = Packer::new(Some(1)).unwrap();
    let mut giving = Giving::new(&left, &mut packer);
    assert!(giving.most.is_some_and(|most| most >= left.pages), "all of it may be asked for");
    giving.most = Some(5);
    let asked = Pages { image: 1, address: 0x10_000 + 9 * page(), count: 2 };
    let mut give = |giving: &mut Giving<'_>| {
        giving.asked.push_back(asked);
        giving.give(&mut source)
    };
    assert!(give(&mut giving).is_ok() && give(&mut giving).is_ok());
    let said = give(&mut giving).unwrap_err().to_string();
    assert!(said.contains("the same memory over and over"), "{said}");
    // Once it is the destination's, it is the one that waits.
    giving.without_bound();
    assert!(give(&mut giving).is_ok());
    drop(other);
}
