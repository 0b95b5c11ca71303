//! A filter that comes compiled, in base64: what crun's `run.oci.seccomp_bpf_data` holds.

use super::Program;
use crate::sys::seccomp::{Instruction, MAX_INSTRUCTIONS};

/// The bytes of a `struct sock_filter`.
const SIZE: usize = 8;

/// Reads a filter: instructions of this machine's byte order, one behind the other, in base64 with or without padding.
///
/// # Errors
/// In words: not base64, or no whole number of instructions between 1 and 4096. Whether they are a program is for the
/// kernel to judge when it is installed.
pub fn program(base64: &str) -> Result<Program, String> {
    let bytes = decoded(base64).ok_or("is not base64")?;
    let count = bytes.len() / SIZE;
    if bytes.len() % SIZE != 0 || count == 0 || count > MAX_INSTRUCTIONS {
        return Err(format!("holds {} bytes, which are no 1 to {MAX_INSTRUCTIONS} instructions of 8", bytes.len()));
    }
    let instructions = bytes.chunks_exact(SIZE).map(instruction).collect();
    Ok(Program { instructions, flags: 0, notify: None, warnings: Vec::new(), unknown: Vec::new() })
}

fn instruction(bytes: &[u8]) -> Instruction {
    let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let k = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    Instruction { code: half(0), jt: bytes[2], jf: bytes[3], k }
}

/// RFC 4648, section 4; blanks between the characters are passed over, as engines break lines.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut held, mut bits) = (0u32, 0);
    for character in text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>() {
        let six = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => continue,
            _ => return None,
        };
        held = (held << 6 | u32::from(six)) & 0x00ff_ffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_come_out_as_they_went_in() {
        // ret ALLOW: code 0x06, k 0x7fff0000, little endian.
        let allow = program("BgAAAAAA/38=").unwrap();
        assert_eq!(allow.to_bytes(), [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f]);
        assert_eq!(program("BgAA AAAA\n/38").unwrap(), allow);
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        assert_eq!(program("Bg*A").unwrap_err(), "is not base64");
        assert!(program("").unwrap_err().starts_with("holds 0 bytes"));
        assert!(program("BgAAAAAA/38BgA==").unwrap_err().contains("instructions of 8"));
        assert!(program(&"BgAAAAAA/38GAAAAAAD/fwYAAAAAAP9/".repeat(2000)).is_err());
    }
}
