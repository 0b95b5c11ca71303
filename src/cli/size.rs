//! Sizes in bytes as people write them: `64m`, `1.5g`, `512KiB`.

/// Bytes of a size: a number, perhaps a fraction, then perhaps one of `k m g t p`, then perhaps `b` or `ib`. Units are
/// powers of 1024 in either spelling, as in every container tool.
///
/// # Errors
/// In words: what is wrong with it.
pub fn bytes(given: &str) -> Result<i64, String> {
    let text = given.trim().to_ascii_lowercase();
    if text.starts_with('-') {
        return Err("it is negative".to_owned());
    }
    let number_ends = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_ends);
    let shift =
        exponent(unit.trim_start()).ok_or_else(|| format!("unknown unit {unit:?} (known: k, m, g, t, p)"))? * 10;
    let too_large = || "it is too large".to_owned();
    if let Ok(whole) = number.parse::<u64>() {
        // Whole numbers stay exact: a float has 53 bits only.
        let bytes = u128::from(whole) << shift;
        return i64::try_from(bytes).map_err(|_| too_large());
    }
    let number: f64 = number.parse().map_err(|_| "it does not begin with a number".to_owned())?;
    let bytes = number * (1_u64 << shift) as f64;
    if bytes < i64::MAX as f64 { Ok(bytes as i64) } else { Err(too_large()) }
}

/// Bytes of a limit: a size, or -1 for none.
///
/// # Errors
/// In words: what is wrong with it.
pub fn limit(given: &str) -> Result<i64, String> {
    match given.trim() {
        "-1" => Ok(-1),
        negative if negative.starts_with('-') => Err("it is negative, and only -1 stands for no limit".to_owned()),
        size => bytes(size),
    }
}

/// Bytes as a person reads them, in three digits or so: `12.3M`.
pub fn text(bytes: u64) -> String {
    let (mut number, mut unit) = (bytes as f64, 0);
    while number >= 1023.95 && unit < 5 {
        (number, unit) = (number / 1024.0, unit + 1);
    }
    let letter = ["B", "K", "M", "G", "T", "P"][unit];
    if unit == 0 { format!("{bytes}B") } else { format!("{number:.1}{letter}") }
}

/// The power of 1024 of a unit.
fn exponent(unit: &str) -> Option<u32> {
    let mut letters = unit.chars();
    let exponent = match letters.next() {
        None => return Some(0),
        Some('b') => 0,
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some('p') => 5,
        Some(_) => return None,
    };
    match (exponent, letters.as_str()) {
        (_, "") | (1.., "b" | "ib") => Some(exponent),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_few_digits() {
        for (bytes, told) in [(0, "0B"), (1023, "1023B"), (1536, "1.5K"), (64 << 20, "64.0M"), (1 << 40, "1.0T")] {
            assert_eq!(text(bytes), told);
        }
        assert_eq!(text(u64::MAX), "16384.0P");
    }

    #[test]
    fn units_are_powers_of_1024_in_every_spelling() {
        for (given, expected) in [
            ("0", 0),
            ("1024", 1024),
            ("512b", 512),
            ("64m", 64 << 20),
            ("64M", 64 << 20),
            ("64mb", 64 << 20),
            ("64MiB", 64 << 20),
            ("64 m", 64 << 20),
            ("1.5g", 3 << 29),
            (".5k", 512),
            ("2t", 2 << 40),
            ("7p", 7 << 50),
            ("9007199254740993", 9_007_199_254_740_993),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(bytes(given), Ok(expected), "{given}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_in_words() {
        assert_eq!(bytes("64x").unwrap_err(), "unknown unit \"x\" (known: k, m, g, t, p)");
        assert_eq!(bytes("64mm").unwrap_err(), "unknown unit \"mm\" (known: k, m, g, t, p)");
        assert_eq!(bytes("m").unwrap_err(), "it does not begin with a number");
        assert_eq!(bytes("-5m").unwrap_err(), "it is negative");
        for wrong in ["", ".", "1.2.3", "-5", "-1", "1e3", "5bb", "5bib"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        for large in ["9223372036854775808", "8192p", "99999999999999999999", "9000000.5p"] {
            assert_eq!(bytes(large).unwrap_err(), "it is too large", "{large}");
        }
    }

    #[test]
    fn a_limit_may_be_none() {
        assert_eq!(limit("-1"), Ok(-1));
        assert_eq!(limit("1k"), Ok(1024));
        assert_eq!(limit("-5").unwrap_err(), "it is negative, and only -1 stands for no limit");
    }
}
