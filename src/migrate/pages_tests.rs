//! Pages there and back, and blocks that are none.

use std::io::Write;
use std::path::PathBuf;

use super::super::addresses::{layouts, tests::map};
use super::super::journal::tests::Scratch;
use super::*;

fn page(byte: u8) -> Vec<u8> {
    (0..PAGE).map(|at| byte ^ (at / 7) as u8).collect()
}

fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let step = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as u8
    };
    (0..PAGE).map(|_| step(&mut state)).collect()
}

fn file(path: PathBuf, content: &[u8]) -> Arc<File> {
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(path).unwrap();
    file.write_all(content).unwrap();
    Arc::new(file)
}

/// The layout of a file of so many pages of one memory, from this address on.
fn layout(first: u64, count: u64) -> Option<Layout> {
    let directory = Scratch::new("layout");
    let name = "pagemap-1.img".to_owned();
    std::fs::write(directory.0.join(&name), map(1, &[(first, count)])).unwrap();
    layouts(&directory.0, &[name]).remove("pages-1.img")
}

/// Packs files of pages, each all of one memory, unpacks them, and answers what was packed.
fn there(scratch: &Scratch, files: &[Vec<u8>], level: i32) -> (Vec<usize>, Counts) {
    let (mut packer, mut unpacker) = (Packer::new(Some(level)).unwrap(), Unpacker::new().unwrap());
    let mut sizes = Vec::new();
    for (number, content) in files.iter().enumerate() {
        let from = file(scratch.0.join(format!("from-{number}")), content);
        packer.begin(&from, layout(50, (content.len() / PAGE) as u64));
        let taken = file(scratch.0.join(format!("to-{number}")), b"");
        unpacker.begin(&taken);
        let (mut size, mut all) = (0, Vec::new());
        for pages in content.chunks(PAGE * BLOCK) {
            let block = packer.block(pages).unwrap();
            size += block.len();
            let pages = unpacker.block(&block).unwrap();
            (&*taken).write_all(&pages).unwrap();
            all.extend(pages);
        }
        packer.end();
        assert!(all == *content, "file {number} is another");
        sizes.push(size);
    }
    (sizes, packer.counts)
}

#[test]
fn pages_arrive_and_only_what_is_new_costs_anything() {
    let scratch = Scratch::new("pages");
    let zeros = vec![0; PAGE * 300];
    let random: Vec<u8> = (0..300).flat_map(noise).collect();
    let twice = [random.clone(), random.clone()].concat();
    // Nothing like what was there before.
    let text: Vec<u8> = (0..100).flat_map(page).collect();
    for level in [0, 1, 3] {
        let (sizes, counts) =
            there(&scratch, &[zeros.clone(), random.clone(), twice.clone(), text.clone(), Vec::new()], level);
        assert!(sizes[0] < 1000, "zeros: {}", sizes[0]);
        assert!(sizes[1] > random.len(), "noise is not compressed: {}", sizes[1]);
        assert!(sizes[2] < if level == 0 { 600 * 10 } else { 200 }, "sent before: {}", sizes[2]);
        assert_eq!((counts.pages, counts.zero, counts.same), (300 + 300 + 600 + 100, 300, 600));
        assert_eq!(sizes[3] < text.len() / 4, level > 0);
    }
}

/// Of a page that was written to only what is new goes over the link, whichever round it was in that it was sent last.
#[test]
fn what_has_not_changed_in_a_page_is_not_sent() {
    let scratch = Scratch::new("changed");
    let first: Vec<u8> = (0..300).flat_map(noise).collect();
    let mut second = first.clone();
    (0..300).for_each(|page| second[page * PAGE + 8 * page] ^= 0x55);
    let mut third = second.clone();
    third[PAGE..2 * PAGE].copy_from_slice(&noise(999));
    third[2 * PAGE + 7] ^= 1;
    for level in [0, 1, 9] {
        let (sizes, counts) = there(&scratch, &[first.clone(), second.clone(), third.clone()], level);
        assert_eq!((counts.changed, counts.same), (301, 298), "one is another altogether");
        assert!(sizes[1] < 300 * 20, "{}", sizes[1]);
        assert!((PAGE..PAGE + 299 * 10).contains(&sizes[2]), "{}", sizes[2]);
        assert!(counts.unchanged_away > 301 * (PAGE as u64 - 20));
    }
}

#[test]
fn a_file_whose_place_is_not_known_is_sent_all_the_same() {
    let scratch = Scratch::new("unknown");
    let (mut packer, mut unpacker) = (Packer::new(Some(1)).unwrap(), Unpacker::new().unwrap());
    let mut content = noise(1);
    for number in 0..3 {
        content[0] ^= 1 << number;
        packer.begin(&file(scratch.0.join(format!("from-{number}")), &content), layout(50, 1).filter(|_| number != 1));
        let taken = file(scratch.0.join(format!("to-{number}")), b"");
        unpacker.begin(&taken);
        let block = packer.block(&content).unwrap();
        packer.end();
        let pages = unpacker.block(&block).unwrap();
        assert!(pages == content, "{number}");
        (&*taken).write_all(&pages).unwrap();
    }
    assert_eq!(packer.counts.changed, 1);
}

#[test]
fn two_pages_of_one_hash_are_not_one() {
    let scratch = Scratch::new("hash");
    let mut packer = Packer::new(Some(0)).unwrap();
    packer.begin(&file(scratch.0.join("a"), &page(1)), None);
    packer.block(&page(1)).unwrap();
    // As if the two had the same hash.
    let number = packer.seen[&short(&page(1))];
    packer.seen.insert(short(&page(2)), number);
    let block = packer.block(&page(2)).unwrap();
    assert_eq!(block[HEAD + 2], FRESH);
}

/// Codec and length.
const HEAD: usize = 5;

/// A block of this body, as it is.
fn stored(body: &[u8]) -> Vec<u8> {
    [&[STORED][..], &(body.len() as u32).to_le_bytes(), body].concat()
}

/// Unpacks a block that comes after one page, noise(9).
fn try_one(scratch: &Scratch, block: &[u8]) -> Result<usize> {
    let mut unpacker = Unpacker::new().unwrap();
    unpacker.begin(&file(scratch.0.join("b"), &noise(9)));
    unpacker.block(&stored(&[&[1, 0, FRESH, 0, 0, 0, 0][..], &noise(9)].concat())).unwrap();
    unpacker.block(block).map(|pages| pages.len())
}

/// Every cut and flip of a real block.
#[test]
fn no_block_is_too_strange() {
    let scratch = Scratch::new("strange");
    let mut changed = noise(9);
    changed[77] ^= 1;
    let pages = [changed, page(1), vec![0; PAGE], page(1), page(2)].concat();
    for level in [0, 1] {
        let mut packer = Packer::new(Some(level)).unwrap();
        packer.begin(&file(scratch.0.join("a"), &noise(9)), layout(7, 1));
        packer.block(&noise(9)).unwrap();
        packer.end();
        packer.begin(&file(scratch.0.join("a2"), &pages), layout(7, 5));
        let block = packer.block(&pages).unwrap();
        if level == 0 {
            assert_eq!(block[HEAD + 2..HEAD + 7], [CHANGED, FRESH, ZERO, SAME, FRESH]);
        }
        assert_eq!(try_one(&scratch, &block).unwrap(), pages.len());
        for at in 0..block.len().min(100) {
            assert!(try_one(&scratch, &block[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = block.clone();
                flipped[at] ^= 1 << bit;
                if let Ok(length) = try_one(&scratch, &flipped) {
                    assert!(length <= BLOCK * PAGE);
                }
            }
        }
    }
}

/// Pages that are named and not there, runs that lead out of a page, and what is left over.
#[test]
fn what_does_not_fit_together_is_refused() {
    let scratch = Scratch::new("fit");
    let body = |kinds: &[u8], backs: &[u64], runs: &[u16], rest: &[u8]| {
        let count = u16::try_from(kinds.len()).unwrap().to_le_bytes();
        let backs: Vec<u8> = backs.iter().flat_map(|back| back.to_le_bytes()).collect();
        let runs: Vec<u8> = runs.iter().flat_map(|number| number.to_le_bytes()).collect();
        let length = u32::try_from(runs.len()).unwrap().to_le_bytes();
        stored(&[&count[..], kinds, &backs, &length, &runs, rest].concat())
    };
    for good in [
        body(&[SAME], &[1], &[], &[]),
        body(&[CHANGED], &[1], &[1, 4095, 1], &[7]),
        body(&[ZERO, CHANGED, FRESH], &[1], &[0], &noise(1)),
        body(&[FRESH, SAME, SAME], &[1, 2], &[], &noise(1)),
    ] {
        try_one(&scratch, &good).unwrap();
    }
    for (number, bad) in [
        body(&[], &[], &[], &[]),
        body(&[9], &[], &[], &[]),
        body(&vec![ZERO; BLOCK + 1], &[], &[], &[]),
        // Itself, and before all others.
        body(&[SAME], &[0], &[], &[]),
        body(&[CHANGED], &[0], &[0], &[]),
        body(&[SAME], &[2], &[], &[]),
        body(&[SAME], &[u64::MAX], &[], &[]),
        body(&[SAME], &[], &[], &[]),
        // Out of the page, of nothing, and of more than there is.
        body(&[CHANGED], &[1], &[1, 4096, 1], &[7]),
        body(&[CHANGED], &[1], &[1, 0, 2], &[7]),
        body(&[CHANGED], &[1], &[2, 0, 1], &[7]),
        body(&[CHANGED], &[1], &[], &[]),
        // Left over.
        body(&[CHANGED], &[1], &[1, 0, 1], &[7, 7]),
        body(&[CHANGED], &[1], &[0, 0], &[]),
        body(&[ZERO], &[], &[0], &[]),
        body(&[ZERO], &[], &[], &[7]),
        body(&[FRESH], &[], &[], &noise(1)[1..]),
        stored(&[1, 0, ZERO, 255, 255, 255, 255]),
    ]
    .iter()
    .enumerate()
    {
        assert!(try_one(&scratch, bad).is_err(), "{number}");
    }
    // A small stream that unpacks to much, whatever it says of itself.
    let bomb = Compressor::new(19).unwrap().compress(&vec![0; 64 << 20]).unwrap();
    for length in [PAGE as u32, LONGEST as u32, 64 << 20, u32::MAX] {
        assert!(try_one(&scratch, &[&[ZSTD][..], &length.to_le_bytes(), &bomb].concat()).is_err(), "{length}");
    }
}
