//! What is new in a file, block by block: by the sums of what was sent of it before. Pure.

use std::ops::Range;

use super::sum::Sum;

/// Bytes of a block.
pub const BLOCK: usize = 64 << 10;

/// What of a piece differs from the blocks that are known, as runs of bytes; its sums come behind `sums`. A block that is beyond what is
/// known and of zeros differs in nothing: the other end has a hole there. The piece begins with a block, and only the last one of the
/// file may be shorter.
pub fn differing(piece: &[u8], known: &[Sum], sums: &mut Vec<Sum>) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for block in piece.chunks(BLOCK) {
        let (sum, before) = (Sum::of(block), known.get(sums.len()));
        let is_there = before.map_or_else(|| block.iter().all(|byte| *byte == 0), |before| *before == sum);
        let end = at + block.len();
        match runs.last_mut() {
            _ if is_there => (),
            Some(run) if run.end == at => run.end = end,
            _ => runs.push(at..end),
        }
        sums.push(sum);
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(bytes: &[u8]) -> Vec<Sum> {
        bytes.chunks(BLOCK).map(Sum::of).collect()
    }

    #[test]
    fn only_blocks_that_differ_are_new() {
        let mut file = vec![1; 5 * BLOCK + 9];
        let mut now = Vec::new();
        assert_eq!(differing(&file, &[], &mut now), vec![0..5 * BLOCK + 9]);
        assert_eq!(now, sums(&file));
        let known = now;
        file[BLOCK] = 2;
        file[3 * BLOCK - 1] = 2;
        file[5 * BLOCK + 8] = 2;
        let mut now = Vec::new();
        assert_eq!(differing(&file, &known, &mut now), vec![BLOCK..3 * BLOCK, 5 * BLOCK..5 * BLOCK + 9]);
        assert_eq!(now, sums(&file));
        assert!(differing(&file, &now, &mut Vec::new()).is_empty());
    }

    #[test]
    fn what_was_appended_is_new_and_what_was_cut_off_needs_no_word() {
        let known = sums(&[1; BLOCK + 5]);
        assert_eq!(differing(&[1; BLOCK + 6], &known, &mut Vec::new()), vec![BLOCK..BLOCK + 6]);
        assert_eq!(differing(&[1; BLOCK], &known, &mut Vec::new()), Vec::new());
    }

    #[test]
    fn zeros_are_new_only_where_something_else_was() {
        let mut now = Vec::new();
        assert!(differing(&[0; 2 * BLOCK], &[], &mut now).is_empty());
        assert_eq!(differing(&[0; 2 * BLOCK], &sums(&[1; BLOCK]), &mut Vec::new()), vec![0..BLOCK]);
        // The first piece of the file is behind already.
        assert_eq!(differing(&[1; BLOCK], &sums(&[0; 3 * BLOCK]), &mut now), vec![0..BLOCK]);
    }
}
