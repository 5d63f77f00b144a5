//! What the queue's workers do: the kinds of jobs, one folder each, and the destinations they deliver to.

pub mod deliver;
pub mod destinations;
