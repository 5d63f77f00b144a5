//! Clients of other people's APIs.
//!
//! Each keeps to what its provider publishes, takes credentials as [`crate::vault::Secret`], and reaches addresses that
//! an answer names through [`crate::outbound::Guard`].

pub mod fathom;
