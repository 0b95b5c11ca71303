//! The command line as its callers see it: the program's answers, and the man pages. Needs no root and makes no container.

// A test ends at the first thing it did not expect; the lint's exception knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

mod config_page;
mod flags;
mod man;
mod program;
#[path = "../tidy/source.rs"]
#[allow(dead_code, reason = "the house rules use the rest")]
mod source;
