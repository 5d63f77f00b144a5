//! Calls to the world outside: the one place where HTTP clients are made.
//!
//! Invariant: every client of the program starts from [`client`], so that all share one TLS provider and none follows
//! redirects or uses a proxy that nobody asked for.

use std::sync::Once;

/// A client to build on: no redirects, no system proxy, TLS by `rustls` with `ring`.
pub fn client() -> reqwest::ClientBuilder {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error says that one is installed already, which is what is wanted.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}
