//! What we know of one `PocketBase`: its tokens and its database file.
//!
//! Deliberately absent: processes (see `supervisor`) and any idea of who a user is.

pub mod client;
pub mod database;
mod edit;
pub mod token;
