//! One binary for all end-to-end tests: the real program, the real `PocketBase`, real sockets.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails, and says why")]

mod accounts;
mod architecture;
mod faults;
mod gateway;
mod openapi;
mod operators;
mod raw_http;
mod sdk;
mod startup;
mod store;
mod store_records;
mod streaming;
mod support;
mod templates;
mod tokens;
mod wake;
