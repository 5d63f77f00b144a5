//! One binary for all end-to-end tests: the real program, the real `PocketBase`, real sockets.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails, and says why")]

mod accounts;
mod answers;
mod architecture;
mod bad_input;
mod dashboard;
mod faults;
mod files;
mod gateway;
mod guestbook;
mod hosted;
mod http2;
mod mail;
mod matrix;
mod oauth2;
mod openapi;
mod operators;
mod python;
mod raw_http;
mod realtime;
mod realtime_limits;
mod sdk;
mod sdk_accounts;
mod sdk_tenants;
mod slow_clients;
mod startup;
mod store;
mod store_records;
mod streaming;
mod support;
mod templates;
mod tenancy;
mod tokens;
mod wake;
mod workspace_access;
mod workspaces;
