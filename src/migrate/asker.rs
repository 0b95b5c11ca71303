//! What asks for memory that follows, in place of CRIU's daemon, for tests.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::left::page;
use super::page_server::{Form, Pages, tests as words};
use super::world::Shared;

const FORM: Form = Form::Wide;

/// Waits until the container runs there. False: it never will.
pub fn has_gone_on(ferry: &mut UnixStream, copies: &Shared) -> bool {
    ferry.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    while !copies.lock().unwrap().there {
        if ferry.read(&mut [0]).is_ok() {
            return false;
        }
    }
    ferry.set_read_timeout(None).unwrap();
    true
}

/// Asks for all that is left, a run and then a page, and looks at it. Or ends in the middle.
pub fn daemon(mut ferry: UnixStream, copies: &Shared, dies: bool) {
    let at = |index: u64| 0x10_000 + index * page();
    for (index, count, first) in [(3, 9, 3), (9, 1, 7), (10, 1, 8)] {
        if index == 9 && (!has_gone_on(&mut ferry, copies) || dies) {
            return;
        }
        let asked = Pages { image: 1, address: at(index), count };
        let mut word = vec![0; FORM.length()];
        if ferry.write_all(&words::get(FORM, asked)).is_err() || ferry.read_exact(&mut word).is_err() {
            return;
        }
        let count = u64::from_ne_bytes(word[8..16].try_into().unwrap());
        assert_eq!(word, FORM.answer(Pages { count, ..asked }));
        assert_eq!(count, if index == 3 { 4 } else { 1 });
        let mut pages = vec![0; (count * page()) as usize];
        if ferry.read_exact(&mut pages).is_err() {
            return;
        }
        assert_eq!(pages[0], first);
    }
    if ferry.write_all(&words::close(FORM)).is_ok() {
        assert!(ferry.read_exact(&mut [0; 4]).is_ok());
    }
}
