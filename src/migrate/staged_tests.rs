//! What a hostile source may not do with bodies.

use std::time::Duration;

use super::super::journal::tests::Scratch;
use super::super::link::tests::pair;
use super::super::pages::Packer;
use super::super::sum::Sum;
use super::*;

fn piece(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_le_bytes()[..], bytes].concat()
}

/// What a hostile source sends of a body of 10 bytes, and what is said of it.
#[test]
fn a_source_that_breaks_a_rule_is_refused() {
    let data = |bytes: &[u8]| Frame::Data(Packer::new(Some(0)).unwrap().bytes(bytes).unwrap());
    let end = |bytes: &[u8]| Frame::Message(Message::FileEnd(Sum::of(bytes)));
    let cases: Vec<(&str, Vec<Frame>, &str)> = vec![
        ("short", vec![data(b"1234567")], "a piece of body 7 has nothing in it"),
        ("nothing", vec![data(&piece(3, b""))], "a piece of body 7 has nothing in it"),
        ("long", vec![data(&piece(8, b"abc"))], "body 7 is longer than it was said to be"),
        ("far", vec![data(&piece(u64::MAX, b"abc"))], "body 7 is longer than it was said to be"),
        ("sum", vec![data(&piece(0, b"abc")), end(&piece(1, b"abc"))], "body 7 arrived damaged"),
        ("turn", vec![Frame::Message(Message::Prepared)], "out of turn"),
        ("broken", vec![Frame::Data(vec![9; 20])], "a piece of a file is broken"),
        ("abort", vec![Frame::Message(Message::Abort("tired".into()))], "the source gave up: tired"),
    ];
    for (name, frames, expected) in cases {
        let scratch = Scratch::new(&format!("staged-{name}"));
        let (mut one, mut other) = pair(Duration::from_secs(30));
        for frame in frames {
            match frame {
                Frame::Data(data) => one.send_data(&data).unwrap(),
                Frame::Message(message) => one.send(&message).unwrap(),
            }
        }
        let mut staged = Staged::new(scratch.0.join("bodies"));
        let error = staged.take(&mut other, &mut Unpacker::new().unwrap(), (7, 10), 1 << 20).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

/// Holes take no room; what is written does, however often it is announced.
#[test]
fn no_more_is_kept_than_there_is_room_for() {
    let scratch = Scratch::new("staged-room");
    let (mut one, mut other) = pair(Duration::from_secs(30));
    let (mut staged, mut unpacker) = (Staged::new(scratch.0.join("bodies")), Unpacker::new().unwrap());
    let mut send = |bytes: &[u8]| {
        let piece = piece(0, bytes);
        one.send_data(&Packer::new(Some(0)).unwrap().bytes(&piece).unwrap()).unwrap();
        one.send(&Message::FileEnd(Sum::of(&piece))).unwrap();
    };
    send(&[1; 60 << 10]);
    staged.take(&mut other, &mut unpacker, (1, 1 << 40), 128 << 10).unwrap();
    send(&[2; 60 << 10]);
    staged.take(&mut other, &mut unpacker, (1, 1 << 40), 128 << 10).unwrap();
    assert!(staged.all < 80 << 10, "{}", staged.all);
    send(&[3; 100 << 10]);
    let error = staged.take(&mut other, &mut unpacker, (2, 100 << 10), 128 << 10).unwrap_err().to_string();
    assert!(error.contains("more than was asked for"), "{error}");
    staged.remove(2).unwrap();
    assert!(staged.all < 80 << 10, "{}", staged.all);
    let error = staged.remove(2).unwrap_err().to_string();
    assert!(error.contains("it has body 2 removed, and has sent none"), "{error}");
    assert_eq!(staged.unsettled(), BTreeSet::from([1]));
    settle(&scratch.0.join("bodies"), &BTreeSet::from([1]), &mut || Ok(())).unwrap();
}
