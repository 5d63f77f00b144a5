//! The kinds of work that the queue runs, and what stands between users and the queue.

pub mod announce;
pub mod intake;
pub mod item;
