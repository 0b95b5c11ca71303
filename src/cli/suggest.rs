//! The word somebody meant.

use std::cmp::Reverse;

/// The word nearest to a misspelt one, if it is near enough to be meant: at most a third of its letters differ. Of two as
/// near, the one that begins alike for longer: people slip at a word's end.
pub fn nearest<'a>(given: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let alike = |word: &str| given.chars().zip(word.chars()).take_while(|(one, other)| one == other).count();
    let near = words.map(|word| (distance(given, word), Reverse(alike(word)), word)).min();
    near.filter(|(distance, _, word)| distance * 3 <= word.chars().count().max(3)).map(|(_, _, word)| word)
}

/// Levenshtein's distance: how many letters are put in, left out or changed.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_another_word_none() {
        let words = || ["run", "state", "start", "delete", "exec"].into_iter();
        for (given, word) in
            [("stat", "state"), ("stte", "state"), ("exce", ""), ("rm", ""), ("delte", "delete"), ("ru", "run")]
        {
            assert_eq!(nearest(given, words()).unwrap_or_default(), word, "{given}");
        }
    }
}
