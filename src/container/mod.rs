//! A container as it stands on disk and in the kernel: its id, its record, what state it is in.

pub mod id;
pub mod record;
pub mod status;
pub mod store;
pub mod worker;

pub use id::Id;
pub use record::Record;
pub use status::{State, Status};
pub use store::Store;
