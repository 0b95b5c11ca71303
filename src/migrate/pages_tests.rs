//! Pages there and back, and blocks that are none.

use std::io::Write;
use std::path::PathBuf;

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

/// Packs files of pages, unpacks them, and answers what was packed.
fn there(scratch: &Scratch, files: &[Vec<u8>], level: i32) -> (Vec<usize>, Counts) {
    let (mut packer, mut unpacker) = (Packer::new(level).unwrap(), Unpacker::new().unwrap());
    let mut sizes = Vec::new();
    for (number, content) in files.iter().enumerate() {
        packer.begin(&file(scratch.0.join(format!("from-{number}")), content));
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
    let text: Vec<u8> = (0..100).flat_map(page).collect();
    for level in [0, 1, 3] {
        let (sizes, counts) =
            there(&scratch, &[zeros.clone(), random.clone(), twice.clone(), text.clone(), Vec::new()], level);
        assert!(sizes[0] < 1000, "zeros: {}", sizes[0]);
        assert!(sizes[1] > random.len(), "noise is not compressed: {}", sizes[1]);
        assert!(sizes[2] < 300 * 40, "sent before: {}", sizes[2]);
        assert_eq!((counts.pages, counts.zero, counts.same), (300 + 300 + 600 + 100, 300, 600));
        assert_eq!(sizes[3] < text.len() / 4, level > 0);
    }
}

#[test]
fn two_pages_of_one_hash_are_not_one() {
    let scratch = Scratch::new("hash");
    let mut packer = Packer::new(0).unwrap();
    packer.begin(&file(scratch.0.join("a"), &page(1)));
    packer.block(&page(1)).unwrap();
    // As if the two had the same hash.
    let number = packer.seen[&hash(&page(1))];
    packer.seen.insert(hash(&page(2)), number);
    let block = packer.block(&page(2)).unwrap();
    assert_eq!(block[2], FRESH);
}

/// Every cut and flip of a real block, and blocks that name pages that are not there.
#[test]
fn no_block_is_too_strange() {
    let scratch = Scratch::new("strange");
    let pages = [page(1), vec![0; PAGE], page(1), page(2)].concat();
    let mut packer = Packer::new(1).unwrap();
    packer.begin(&file(scratch.0.join("a"), &pages));
    let block = packer.block(&pages).unwrap();
    assert_eq!(block[2..6], [FRESH, ZERO, SAME, FRESH]);
    let try_one = |block: &[u8]| {
        let mut unpacker = Unpacker::new().unwrap();
        unpacker.begin(&file(scratch.0.join("b"), b""));
        unpacker.block(block).map(|pages| pages.len())
    };
    assert_eq!(try_one(&block).unwrap(), pages.len());
    for at in 0..block.len() {
        assert!(try_one(&block[..at]).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut flipped = block.clone();
            flipped[at] ^= 1 << bit;
            if let Ok(length) = try_one(&flipped) {
                assert!(length <= BLOCK * PAGE);
            }
        }
    }
    // A page that names itself, one that comes later, and one out of all bounds.
    for number in [0_u64, 1, 5, u64::MAX, u64::MAX / PAGE as u64] {
        let mut block = vec![1, 0, SAME];
        block.extend_from_slice(&number.to_le_bytes());
        block.extend_from_slice(&[STORED, 0, 0, 0, 0]);
        assert!(try_one(&block).is_err(), "{number}");
    }
    // A small stream that unpacks to much.
    let bomb = Compressor::new(19).unwrap().compress(&vec![0; 64 << 20]).unwrap();
    let mut block = vec![1, 0, FRESH, ZSTD];
    block.extend_from_slice(&(PAGE as u32).to_le_bytes());
    block.extend_from_slice(&bomb);
    assert!(try_one(&block).is_err());
}
