//! One binary for all end-to-end tests: the real program, the real `PocketBase`, real sockets.
#![expect(missing_docs, clippy::print_stderr, reason = "test code")]
#![expect(clippy::large_futures, reason = "test code")]

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
mod tokens;
mod wake;
