//! Users' third-party credentials, sealed.

mod secret;

pub use secret::Secret;
