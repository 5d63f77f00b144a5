//! What we know of one `PocketBase`: its tokens, its database file, and who may act in it.
//!
//! Deliberately absent: processes (see `supervisor`) and any idea of who a user is.

pub mod apart;
mod bounds;
pub mod client;
pub mod copy;
pub mod database;
mod edit;
mod locate;
pub mod roster;
pub mod routes;
pub mod schema;
pub mod token;
pub mod visitors;
