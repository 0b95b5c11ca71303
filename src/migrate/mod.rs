//! A running container to another machine, with the source untouched if anything fails.
//!
//! ```text
//! ownership        who has it: two journals, and what follows from them           pure
//!   journal        a small file an end, on disk before the deed that it allows
//! transport        ssh://, exec:, tls://, tcp:// -> link
//!   tls            certificates of both ends, in a process of its own
//!   link           frames over two descriptors, and a bound on silence
//!     frame        kind, sequence, length                                         pure
//!     message      what is said                                                   pure
//!     pace         --bandwidth                                                    pure
//! source           the end that has it: the five steps    lifecycle::migrate gives it the container
//!   container      what goes
//!   stop           while it stands still, and until all of it is there
//! destination      the end that takes it                  lifecycle::receive gives it the machine
//!   host           the machine it is
//!   settle         what is left to be said after a cut
//!   reserve        what is in the way                                             pure
//!   rounds         when to stop it                                                pure
//!   content        an image's documents and layers on their way
//!   bodies         what the container changed in the files of its image, round by round
//!     blocks       what is new in one                                             pure
//!   staged         where those arrive
//!   images         a round's files on their way
//!     sum          whether a file came as it was sent                          pure
//!     pages        zeros, pages sent before, compression
//!       addresses  which page one was before
//!       delta      what is new in it                                            pure
//!       effort     how hard to compress                                         pure
//!   left           memory that stays until it is asked for
//!   pump           what brings it, in a process of its own
//!     ahead        what is asked for before it is needed                       pure
//!     page_server  CRIU's words for that                                          pure
//!     faults       how long who needed it had to wait                             pure
//! report, plot     what it came to
//! ```
//!
//! It is linked into `ferry-image` alone, which has zstd and the digests already: the program that starts containers stays
//! without, and the package has two programs and not three. The destination takes the rounds in a thread that can do nothing else
//! ([`crate::security::jail`]), and is alone again before CRIU is cloned off from it.

mod addresses;
mod ahead;
mod blocks;
pub mod bodies;
pub mod container;
pub mod content;
mod delta;
pub mod destination;
mod effort;
pub mod faults;
mod frame;
pub mod host;
mod images;
pub mod journal;
mod left;
pub mod link;
pub mod message;
pub mod ownership;
mod pace;
mod page_server;
pub mod pages;
pub mod plot;
pub mod progress;
pub mod pump;
pub mod report;
pub mod reserve;
pub mod rounds;
pub mod settle;
pub mod source;
mod staged;
mod stop;
pub mod sum;
pub mod tls;
pub mod transport;

#[cfg(test)]
mod asker;
#[cfg(test)]
mod relay;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
