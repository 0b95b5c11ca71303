//! The command line as its callers see it: the program's answers, and the man pages. Needs no root and makes no container.

// A test ends at the first thing it did not expect; the lint's exception knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

mod man;
mod program;
