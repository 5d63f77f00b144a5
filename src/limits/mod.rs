//! Limits per key: token buckets and growing delays, bounded in memory whatever the callers send.
//!
//! Everything here is pure: time comes in as `now`, nothing is spawned, nothing locks. The owner wraps a limiter in
//! the lock that suits it.
//!
//! Invariant: no limiter ever holds more keys than it was told. Keys that were not touched for the longest time are
//! forgotten first, which errs on the side of letting a caller through.

mod bucket;
mod generations;
mod penalty;

pub use bucket::Keyed;
pub use penalty::Penalty;
