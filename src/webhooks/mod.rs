//! Signed calls from outside.
