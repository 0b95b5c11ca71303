//! A container's record: what was read and is one is the same when it is written and read again.

#![no_main]

use ferry::container::Record;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(record) = serde_json::from_slice::<Record>(text) else { return };
    let Ok(written) = serde_json::to_vec(&record) else { return };
    assert_eq!(serde_json::from_slice::<Record>(&written).ok(), Some(record.clone()));
    if let Some(init) = record.init {
        // Any number is a pid that is there, or one that is not.
        drop(init.is_alive());
    }
});
