//! Clients of other people's APIs.
