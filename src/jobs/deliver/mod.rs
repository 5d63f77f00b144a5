//! deliver
pub mod names;
pub mod render;
pub mod staging;
