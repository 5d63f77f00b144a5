//! The kinds of work that the queue runs.
