//! Sums of what goes over the link, so that a mistake in packing, in unpacking or on a disk is noticed: XXH3, of 128 bits. Against a
//! peer that means ill they are nothing, and no other would be: who chooses the bytes chooses the sum that goes with them. The link
//! itself is held together by ssh or TLS. What must be of a digest that is known, such as a layer, is held to that where it arrives.
//!
//! A cryptographic one took as long as compression where the processor has no instructions for it, on both ends, and for the last round
//! while the container stands still.

use serde::{Deserialize, Serialize};
use twox_hash::{XxHash3_64, XxHash3_128};

/// The sum of a file, as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sum(u128);

impl TryFrom<String> for Sum {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let good = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| good);
        number.map(Self).ok_or_else(|| "a sum has 32 hexadecimal digits".to_owned())
    }
}

impl From<Sum> for String {
    fn from(sum: Sum) -> Self {
        format!("{:032x}", sum.0)
    }
}

impl Sum {
    /// That of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(XxHash3_128::oneshot(bytes))
    }
}

/// The sum of what comes piece by piece.
pub struct Summed(XxHash3_128);

impl Summed {
    /// Of nothing yet.
    pub fn nothing() -> Self {
        Self(XxHash3_128::new())
    }

    /// More of it.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// What it came to.
    pub fn finish(self) -> Sum {
        Sum(self.0.finish_128())
    }
}

/// A number of 64 bits by which a page is found again among others, which then are compared.
pub fn short(page: &[u8]) -> u64 {
    XxHash3_64::oneshot(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut summed = Summed::nothing();
        bytes.chunks(777).for_each(|piece| summed.update(piece));
        assert_eq!(summed.finish(), Sum::of(&bytes));
        assert_ne!(Sum::of(&bytes), Sum::of(&bytes[1..]));
        assert_ne!(short(&bytes[..4096]), short(&bytes[1..4097]));
    }

    #[test]
    fn a_sum_is_read_as_it_was_written() {
        let sum = Sum::of(b"x");
        let text = String::from(sum);
        assert_eq!(Sum::try_from(text.clone()), Ok(sum));
        for wrong in [&text[1..], &format!("{text}0"), &text.to_uppercase(), "+0000000000000000000000000000001"] {
            assert!(Sum::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
