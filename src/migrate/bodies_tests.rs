//! A tree that changes between passes: what goes, and that the other end has it then.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::super::journal::tests::Scratch;
use super::super::link::tests::pair;
use super::super::message::Message;
use super::super::pages::Unpacker;
use super::super::staged::Staged;
use super::*;

/// An upper layer here, and what has come of its bodies.
struct Ends {
    scratch: Scratch,
    bodies: Bodies,
    staged: Staged,
}

impl Ends {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(&format!("bodies-{name}"));
        [scratch.0.join("upper"), scratch.0.join("beside")].iter().for_each(|path| fs::create_dir(path).unwrap());
        let staged = Staged::new(scratch.0.join("staged"));
        Self { scratch, bodies: Bodies::default(), staged }
    }

    fn upper(&self) -> PathBuf {
        self.scratch.0.join("upper")
    }

    fn running(&self) -> Tree {
        Tree::running(fs::File::open(self.upper()).unwrap().into(), &self.scratch.0.join("beside")).unwrap()
    }

    /// One pass, looked through once the clock has gone on. Answers how many bytes went, and how many messages.
    fn pass(&mut self, tree: &Tree, still: bool) -> (u64, u32) {
        let (mut one, mut other) = pair(Duration::from_secs(30));
        let Self { bodies, staged, .. } = self;
        thread::scope(|scope| {
            let sending = scope.spawn(move || {
                let sent = bodies.send(&mut one, &mut Packer::new(Some(1)).unwrap(), tree, still).unwrap();
                one.send(&Message::Content).unwrap();
                sent
            });
            let (mut unpacker, mut messages) = (Unpacker::new().unwrap(), 0);
            loop {
                match other.hear().unwrap() {
                    Message::Body { number, size } => {
                        staged.take(&mut other, &mut unpacker, (number, size), 1 << 30).unwrap();
                    }
                    Message::Gone(number) => staged.remove(number).unwrap(),
                    _ => break,
                }
                messages += 1;
            }
            (sending.join().unwrap(), messages)
        })
    }

    fn ran(&mut self) -> (u64, u32) {
        let tree = self.running();
        self.pass(&tree, false)
    }

    fn stood_still(&mut self) -> (u64, u32) {
        let tree = Tree::still(fs::File::open(self.upper()).unwrap().into());
        self.pass(&tree, true)
    }

    /// Waits until the filesystem's clock says something else than it did for this file.
    fn tick(&self, name: &str) {
        let changed = |path: PathBuf| fs::metadata(path).map(|found| (found.ctime(), found.ctime_nsec())).unwrap();
        let (before, probe) = (changed(self.upper().join(name)), self.scratch.0.join("beside/tick"));
        while {
            fs::write(&probe, "x").unwrap();
            changed(probe.clone()) <= before
        } {}
    }

    /// Every body that is said to be there is as it is here. Answers how many there are.
    fn compare(&self) -> usize {
        let mut found = 0;
        walk(fs::File::open(self.upper()).unwrap().as_fd(), 0, &mut |dir, name, stat| {
            if self.bodies.has(stat) {
                let mut here = Vec::new();
                let mut file = fs::File::from(copy::opened(dir, name, OFlags::RDONLY).unwrap());
                std::io::Read::read_to_end(&mut file, &mut here).unwrap();
                let there = fs::read(self.scratch.0.join("staged").join(stat.st_ino.to_string())).unwrap();
                assert!(here == there, "{name:?}");
                found += 1;
            }
            Ok(())
        })
        .unwrap();
        found
    }
}

const MB: usize = 1 << 20;

#[test]
fn what_has_not_changed_is_neither_sent_nor_read_again() {
    let mut ends = Ends::new("unchanged");
    fs::create_dir_all(ends.upper().join("a/b")).unwrap();
    fs::write(ends.upper().join("a/b/large"), vec![7; 3 * MB + 5]).unwrap();
    fs::write(ends.upper().join("small"), "small").unwrap();
    fs::write(ends.upper().join("empty"), "").unwrap();
    ends.tick("small");
    assert_eq!(ends.ran(), (3 * MB as u64 + 10, 2));
    let settled = |ends: &Ends| ends.bodies.sent.values().filter(|body| body.changed.is_some()).count();
    assert_eq!(settled(&ends), 2);
    assert_eq!(ends.ran(), (0, 0));
    assert_eq!(ends.stood_still(), (0, 0));
    assert_eq!(ends.compare(), 2);
}

#[test]
fn a_file_that_grew_or_changed_in_part_is_sent_in_part() {
    let mut ends = Ends::new("part");
    let path = ends.upper().join("log");
    fs::write(&path, vec![7; 3 * MB]).unwrap();
    ends.ran();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"x", 2 * MB as u64 + 9).unwrap();
    file.write_all_at(b"appended", 3 * MB as u64).unwrap();
    assert_eq!(ends.ran(), (BLOCK as u64 + 8, 1));
    file.set_len(MB as u64 + 1).unwrap();
    assert_eq!(ends.ran(), (1, 1), "the block that it ends in now");
    // Longer again, with nothing where something else was.
    file.set_len(4 * MB as u64).unwrap();
    file.write_all_at(b"end", 4 * MB as u64 - 3).unwrap();
    ends.stood_still();
    assert_eq!(ends.compare(), 1);
    let there =
        fs::metadata(ends.scratch.0.join("staged").join(fs::metadata(&path).unwrap().ino().to_string())).unwrap();
    assert!(there.blocks() * 512 < 2 * MB as u64, "a hole stays one: {}", there.blocks());
}

#[test]
fn names_and_owners_need_no_word_and_what_is_removed_does_not_stay() {
    let mut ends = Ends::new("names");
    let at = |ends: &Ends, name: &str| ends.upper().join(name);
    for name in ["renamed", "linked", "removed", "chmod"] {
        fs::write(at(&ends, name), vec![name.len() as u8; MB]).unwrap();
    }
    ends.ran();
    fs::create_dir(at(&ends, "dir")).unwrap();
    fs::rename(at(&ends, "renamed"), at(&ends, "dir/other")).unwrap();
    fs::hard_link(at(&ends, "linked"), at(&ends, "dir/again")).unwrap();
    fs::remove_file(at(&ends, "removed")).unwrap();
    fs::set_permissions(at(&ends, "chmod"), std::os::unix::fs::PermissionsExt::from_mode(0o4711)).unwrap();
    assert_eq!(ends.ran(), (0, 1), "that one is gone");
    assert_eq!(ends.stood_still(), (0, 0));
    assert_eq!(ends.compare(), 4);
    assert_eq!(fs::read_dir(ends.scratch.0.join("staged")).unwrap().count(), 3);
}

/// What came with the last round alone is in the archive.
#[test]
fn a_file_that_is_new_in_the_end_is_none_of_them() {
    let mut ends = Ends::new("new");
    fs::write(ends.upper().join("old"), "old").unwrap();
    ends.ran();
    fs::write(ends.upper().join("new"), "new").unwrap();
    fs::write(ends.upper().join("old"), "changed").unwrap();
    assert_eq!(ends.stood_still(), (7, 1));
    assert_eq!(ends.compare(), 1);
    fs::write(ends.upper().join("old"), "").unwrap();
    assert_eq!(ends.stood_still(), (0, 1), "what is empty is none of them either");
    assert_eq!(ends.compare(), 0);
}

/// A write in the tick in which it was read leaves no trace in its times.
#[test]
fn what_may_have_changed_unseen_is_read_again() {
    let mut ends = Ends::new("unseen");
    let path = ends.upper().join("file");
    fs::write(&path, vec![1; MB]).unwrap();
    // The clock is that of before it was written to.
    let tree = Tree { before: Some(changed(&rustix::fs::stat(&path).unwrap())), ..ends.running() };
    ends.pass(&tree, false);
    assert_eq!(ends.bodies.sent.values().next().unwrap().changed, None);
    let found = fs::metadata(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"unseen", 5).unwrap();
    // As if the time had stayed the same.
    ends.bodies.sent.values_mut().for_each(|body| assert!(body.changed.is_none() && body.size == found.len()));
    assert_eq!(ends.stood_still(), (BLOCK as u64, 1));
    assert_eq!(ends.compare(), 1);
    // Nor is anything known of one that had no moment of standing still, or that writes by memory where nobody notes that.
    assert_eq!(ends.running().unsettled().before, None);
    let tree = Tree { upper: fs::File::open("/proc").unwrap().into(), ..ends.running() };
    assert!(tree.before.is_some());
    let mapped = tree.mapped();
    assert!(mapped.is_mapped && mapped.before.is_none());
}

#[test]
fn what_there_is_no_room_for_goes_in_the_archive() {
    let mut ends = Ends::new("room");
    fs::write(ends.upper().join("file"), vec![1; MB]).unwrap();
    fs::write(ends.upper().join("small"), "x").unwrap();
    ends.bodies.blocks = BLOCKS - 1;
    assert_eq!(ends.ran(), (1, 1));
    assert_eq!(ends.bodies.sent.len(), 1);
    // One that outgrows it is not kept.
    fs::write(ends.upper().join("small"), vec![1; MB]).unwrap();
    assert_eq!(ends.ran(), (0, 1));
    assert_eq!((ends.bodies.sent.len(), ends.bodies.blocks), (0, BLOCKS - 1));
    assert_eq!(weigh(&fs::File::open(ends.upper()).unwrap().into(), true).unwrap(), 2 * MB as u64);
}

/// What is to be sent is what the destination finds room for.
#[test]
fn holes_and_further_names_weigh_nothing_in_rounds() {
    const MIB: u64 = 1 << 20;
    let ends = Ends::new("weigh");
    let weigh = |in_rounds| weigh(&fs::File::open(ends.upper()).unwrap().into(), in_rounds).unwrap();
    fs::create_dir(ends.upper().join("dir")).unwrap();
    fs::write(ends.upper().join("dir/full"), vec![1; 1 << 20]).unwrap();
    for name in ["second", "dir/third"] {
        fs::hard_link(ends.upper().join("dir/full"), ends.upper().join(name)).unwrap();
    }
    assert_eq!([weigh(true), weigh(false)], [MIB; 2]);
    let sparse = fs::File::create(ends.upper().join("sparse")).unwrap();
    sparse.set_len(100 << 30).unwrap();
    assert_eq!(weigh(true), MIB);
    // What is not sent in rounds has its zeros in the archive.
    assert_eq!(weigh(false), MIB + (100 << 30));
    sparse.set_len(200 << 30).unwrap();
    assert_eq!(weigh(true), MIB + (200 << 30));
}
