//! The compiler of system call filters: what it makes can be installed, and lets no jump lead out of the program.

#![no_main]

use ferry::security::seccomp;
use ferry::spec::seccomp::Seccomp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(profile) = serde_json::from_slice::<Seccomp>(text) else { return };
    let Ok(Some(program)) = seccomp::compile(&profile) else { return };
    let length = program.instructions.len();
    assert!((1..=4096).contains(&length));
    for (at, instruction) in program.instructions.iter().enumerate() {
        let (furthest, is_return) = match instruction.code {
            0x05 => (instruction.k as usize, false),
            0x06 => (0, true),
            code if code & 7 == 5 => (usize::from(instruction.jt.max(instruction.jf)), false),
            _ => (0, false),
        };
        assert!(is_return || at + 1 + furthest < length, "{at}: {instruction:?}");
    }
    // Decides every number, or says that it depends on arguments.
    program.lets_through(&[0, 59, 322, 600, 0x4000_0000]);
});
