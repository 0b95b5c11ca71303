//! A page that was written to, against what it held before: which runs of bytes are others, and those bytes. Pure.
//!
//! ```text
//! runs:      count u16 | (skip u16 | length u16) × count     little-endian; a skip counts from the end of the run before
//! literals:  the bytes of all runs, one after the other
//! ```
//!
//! The two are kept apart, and so are those of many pages put together: new bytes are compressed among their like. An exclusive
//! or, which is the usual way, turns a text that takes another's place into noise: of a store of documents it took 1.8 times the
//! bytes.

use super::pages::PAGE;

/// So many bytes that have stayed are sent again where the run would end otherwise: another run costs as much.
const BRIDGED: usize = 8;

/// A page is sent whole where its delta would have more bytes. Also what no delta that arrives may exceed.
pub const LONGEST: usize = PAGE * 3 / 4;

/// Appends the delta that makes `page` of `base`; both are whole pages. False: it is not worth it, and nothing is appended.
pub fn encode(base: &[u8], page: &[u8], runs: &mut Vec<u8>, literals: &mut Vec<u8>) -> bool {
    let found = differing(base, page);
    let new: usize = found.iter().map(|(start, end)| end - start).sum();
    if 2 + 4 * found.len() + new > LONGEST {
        return false;
    }
    let mut put = |value: usize| runs.extend_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes());
    put(found.len());
    let mut last = 0;
    for (start, end) in found {
        put(start - last);
        put(end - start);
        literals.extend_from_slice(&page[start..end]);
        last = end;
    }
    true
}

/// Where two pages differ: from, and up to.
fn differing(base: &[u8], page: &[u8]) -> Vec<(usize, usize)> {
    const WORD: usize = 16;
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (number, (before, after)) in base.chunks(WORD).zip(page.chunks(WORD)).enumerate() {
        if before == after {
            continue;
        }
        for (at, _) in before.iter().zip(after).enumerate().filter(|(_, (before, after))| before != after) {
            let at = number * WORD + at;
            match found.last_mut() {
                Some((_, end)) if at - *end <= BRIDGED => *end = at + 1,
                _ => found.push((at, at + 1)),
            }
        }
    }
    found
}

/// Makes the page of its base, which it holds, and takes the delta away from what there is. `None`: it is no delta.
pub fn apply(page: &mut [u8], runs: &mut &[u8], literals: &mut &[u8]) -> Option<()> {
    let count = number(runs)?;
    let mut last = 0_usize;
    let mut length = 2 + 4 * count;
    for _ in 0..count {
        let start = last.checked_add(number(runs)?)?;
        last = start.checked_add(number(runs)?)?;
        let (new, rest) = literals.split_at_checked(last - start)?;
        page.get_mut(start..last)?.copy_from_slice(new);
        *literals = rest;
        length += new.len();
    }
    (length <= LONGEST).then_some(())
}

fn number(bytes: &mut &[u8]) -> Option<usize> {
    let (number, rest) = bytes.split_first_chunk::<2>()?;
    *bytes = rest;
    Some(usize::from(u16::from_le_bytes(*number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there(base: &[u8], page: &[u8]) -> Option<(usize, usize)> {
        let (mut runs, mut literals) = (Vec::new(), Vec::new());
        if !encode(base, page, &mut runs, &mut literals) {
            assert!(runs.is_empty() && literals.is_empty());
            return None;
        }
        let (mut made, mut left) = (base.to_vec(), (&runs[..], &literals[..]));
        apply(&mut made, &mut left.0, &mut left.1).unwrap();
        assert!(made == page && left == (&[], &[]));
        Some((runs.len(), literals.len()))
    }

    #[test]
    fn only_what_is_new_is_sent() {
        let base: Vec<u8> = (0..PAGE).map(|at| (at / 5) as u8).collect();
        assert_eq!(there(&base, &base), Some((2, 0)));
        let mut page = base.clone();
        page[0] ^= 1;
        page[PAGE - 1] ^= 1;
        assert_eq!(there(&base, &page), Some((10, 2)));
        // What is close together is one run.
        page[6] ^= 1;
        assert_eq!(there(&base, &page), Some((10, 8)));
        page[100..1100].iter_mut().for_each(|byte| *byte ^= 0x55);
        assert_eq!(there(&base, &page), Some((14, 1008)));
        let other: Vec<u8> = base.iter().map(|byte| byte ^ 1).collect();
        assert_eq!(there(&base, &other), None);
        // Many short runs: their places take more than their bytes.
        let sparse: Vec<u8> = (0..PAGE).map(|at| base[at] ^ u8::from(at % 10 == 0)).collect();
        assert_eq!(there(&base, &sparse), Some((2 + 4 * 410, 410)));
    }

    /// Runs that lead out of the page, bytes that are not there, and more of them than would be sent.
    #[test]
    fn what_is_no_delta_is_refused() {
        let runs = |numbers: &[u16]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        for (numbers, literals) in [
            (vec![], 0),
            (vec![1], 0),
            (vec![1, 0], 0),
            (vec![1, 0, 1], 0),
            (vec![1, PAGE as u16, 1], 9),
            (vec![1, u16::MAX, u16::MAX], 100_000),
            (vec![2, 4000, 90, 7, 1], 100),
            (vec![u16::MAX], 9),
            (vec![1, 0, LONGEST as u16], PAGE),
        ] {
            let (runs, literals) = (runs(&numbers), vec![7; literals]);
            assert_eq!(apply(&mut vec![0; PAGE], &mut &runs[..], &mut &literals[..]), None, "{numbers:?}");
        }
    }
}
