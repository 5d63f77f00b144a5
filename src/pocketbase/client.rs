//! How a client's address is shown to an instance.
//!
//! An instance accepts superuser tokens from loopback only, and takes the client's address from the one
//! `X-Forwarded-For` that we send. Were a client on this machine passed on as loopback, a stolen superuser token would
//! work through us.

use std::net::IpAddr;
use std::net::Ipv4Addr;

use hyper::header::HeaderValue;

/// Stands for every loopback client (RFC 5737, documentation addresses).
const LOOPBACK_STAND_IN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// The value of the one `X-Forwarded-For` that an instance sees.
pub fn forwarded_for(client: IpAddr) -> Option<HeaderValue> {
    let client = client.to_canonical();
    let shown = if client.is_loopback() || client.is_unspecified() { LOOPBACK_STAND_IN } else { client };
    HeaderValue::try_from(shown.to_string()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_never_see_a_loopback_client() {
        for loopback in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"] {
            assert_eq!(forwarded_for(loopback.parse().unwrap()).unwrap(), "192.0.2.1", "{loopback}");
        }
        assert_eq!(forwarded_for("::ffff:198.51.100.1".parse().unwrap()).unwrap(), "198.51.100.1");
        assert_eq!(forwarded_for("2001:db8::1".parse().unwrap()).unwrap(), "2001:db8::1");
    }
}
