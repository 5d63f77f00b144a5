//! What we know of one `PocketBase`: its tokens and its database file.
//!
//! Deliberately absent: processes (see `supervisor`) and any idea of who a user is.

pub mod database;
mod edit;
pub mod schema;
pub mod token;
pub mod visitors;
