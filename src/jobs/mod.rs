//! The kinds of work that the queue runs, the destinations they deliver to, and what stands between users and the queue.

pub mod announce;
pub mod backup;
pub mod deliver;
pub mod destinations;
pub mod intake;
pub mod item;
