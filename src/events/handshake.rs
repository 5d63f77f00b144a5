//! The one computation of the opening handshake (RFC 6455 4.2.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The answer to a client's key; none when the key is not one (16 bytes in base64).
pub fn accept(key: &[u8]) -> Option<String> {
    let decoded = STANDARD.decode(key).ok()?;
    (decoded.len() == 16).then(|| derive_accept_key(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_as_the_standard_says() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ==").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        for bad in ["", "x", "dGhlIHNhbXBsZQ==", "dGhlIHNhbXBsZSBub25jZSBtb3Jl"] {
            assert_eq!(accept(bad.as_bytes()), None, "{bad}");
        }
    }
}
