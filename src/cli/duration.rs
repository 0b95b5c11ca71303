//! Times as Go writes them: `5s`, `1m30s`, `1.5s`, `250ms`.

use std::time::Duration;

/// Units by name and length in nanoseconds; a unit that begins another stands behind it.
const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A time: numbers with their units, one after the other, more than nothing in all.
///
/// # Errors
/// In words: what is wrong with it.
pub fn interval(given: &str) -> Result<Duration, String> {
    let mut total = Duration::ZERO;
    let mut rest = given;
    while !rest.is_empty() {
        let ends =
            rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or("a number has no unit (ns, us, ms, s, m, h)")?;
        let (whole, fraction) = rest[..ends].split_once('.').unwrap_or((&rest[..ends], ""));
        let no_time = |_| "it is not a time such as 5s or 1m30s".to_owned();
        let number: u64 = if whole.is_empty() && !fraction.is_empty() { 0 } else { whole.parse().map_err(no_time)? };
        let share: f64 = format!("0.{fraction}").parse().map_err(|_| "a number has two points".to_owned())?;
        let unit = UNITS.iter().find(|(name, _)| rest[ends..].starts_with(name));
        let (name, nanoseconds) = unit.ok_or("its unit is none of ns, us, ms, s, m, h")?;
        let part = number.checked_mul(*nanoseconds).ok_or("it is too long")?;
        total += Duration::from_nanos(part) + Duration::from_nanos((share * *nanoseconds as f64) as u64);
        rest = &rest[ends + name.len()..];
    }
    if total.is_zero() { Err("it must be greater than 0".to_owned()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_add_up() {
        for (given, milliseconds) in [
            ("5s", 5_000),
            ("250ms", 250),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("2000us", 2),
            ("1.5s", 1_500),
            (".5s", 500),
            ("1.5m.25s", 90_250),
            ("1.s", 1_000),
        ] {
            assert_eq!(interval(given), Ok(Duration::from_millis(milliseconds)), "{given}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for wrong in
            ["", "0s", "5", "s", "-5s", "5x", "5s6", ".s", "1.2.3s", "1.5", "99999999999999999999s", "9999999999999h"]
        {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
