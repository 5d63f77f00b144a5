//! What the queue's workers do: the kinds of jobs, one folder each, and the destinations they deliver to.

pub mod deliver;
pub mod destinations;
//! The kinds of work that the queue runs, and what stands between users and the queue.

pub mod intake;
pub mod item;
