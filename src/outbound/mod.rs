//! Calls to the world outside: the one place where HTTP clients are made, and the guard of addresses that users name.
//!
//! Invariants:
//! - Every client of the program starts from [`client`], so that all share one TLS provider and none follows
//!   redirects or uses a proxy that nobody asked for.
//! - What a user, or an answer of somebody else's API, names as an address is reached through a [`Guard`] only: `https`,
//!   usual ports, and no address that is not on the public internet, whatever its name resolves to at that moment.
//!
//! Deliberately absent: what is said to whom (`integrations`, `jobs`), and calls to our own instances (`records`).

mod address;
mod config;
mod guard;
pub mod objects;
mod resolver;

use std::sync::Once;

pub use config::Config;
pub use config::ConfigError;
pub use guard::BuildError;
pub use guard::Error;
pub use guard::Guard;
pub use guard::Refused;

/// A client to build on: no redirects, no system proxy, TLS by `rustls` with `ring`.
pub fn client() -> reqwest::ClientBuilder {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error says that one is installed already, which is what is wanted.
        drop(rustls::crypto::ring::default_provider().install_default());
    });
    reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none())
}
