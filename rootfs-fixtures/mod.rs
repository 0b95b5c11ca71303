//! Makers of what containers are made from: a root file system and its config.json.
//!
//! Compiled into whatever needs a bundle (tests, benches) by path; it leans on nothing but the standard library and
//! serde_json.

pub mod bundle;
pub mod config;
