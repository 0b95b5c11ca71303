//! Options of a mount, separated by commas as mount(8) has them.

#![no_main]

use ferry::rootfs::options;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let words: Vec<String> = text.split(',').map(str::to_owned).collect();
    let parsed = options::parse(&words);
    // The same words mean the same.
    assert_eq!(format!("{parsed:?}"), format!("{:?}", options::parse(&words)));
});
