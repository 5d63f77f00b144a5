//! Users' third-party credentials, encrypted.
