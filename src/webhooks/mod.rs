//! Signed calls from outside, and signing our own.
//!
//! Invariants: a signature is checked over the raw bytes before anybody parses them; compared in constant time; with the
//! time passed in. Nothing here knows what a call means or which secret belongs to whom.

pub mod providers;
pub mod standard;
