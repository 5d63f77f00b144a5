//! Tickets: a way to connect for clients that can send neither header nor cookie, without a token in the address.
//!
//! A ticket is good once, for a short time, and only where it was asked for: the same origin and network. Tickets live
//! in memory: after a restart clients ask for another.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::census::network;
use crate::auth::Principal;

/// Tickets that are out at once; beyond, the request is refused.
const MAX: usize = 100_000;

#[derive(Debug)]
pub(super) struct Tickets {
    issued: Mutex<HashMap<String, Issued>>,
    ttl: Duration,
}

#[derive(Debug)]
struct Issued {
    principal: Principal,
    network: IpAddr,
    origin: Option<String>,
    expires: Instant,
}

/// A client may change its last byte between two requests, not its network.
fn prefix(ip: IpAddr) -> IpAddr {
    match network(ip) {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & !0xff).into(),
        v6 @ IpAddr::V6(_) => v6,
    }
}

impl Tickets {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { issued: Mutex::default(), ttl }
    }

    /// A new ticket; none while too many are out.
    pub(super) fn issue(
        &self,
        principal: &Principal,
        ip: IpAddr,
        origin: Option<&str>,
        now: Instant,
    ) -> Option<String> {
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if issued.len() >= MAX {
            issued.retain(|_, ticket| ticket.expires > now);
            if issued.len() >= MAX {
                return None;
            }
        }
        let ticket = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        let (principal, network, origin) = (principal.clone(), prefix(ip), origin.map(str::to_owned));
        issued.insert(ticket.clone(), Issued { principal, network, origin, expires: now + self.ttl });
        Some(ticket)
    }

    /// Whose ticket it is; after that it is gone, whatever the answer.
    pub(super) fn redeem(&self, ticket: &str, ip: IpAddr, origin: Option<&str>, now: Instant) -> Option<Principal> {
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner).remove(ticket)?;
        let holds = issued.expires > now && issued.network == prefix(ip) && issued.origin.as_deref() == origin;
        holds.then_some(issued.principal)
    }

    pub(super) fn ttl(&self) -> Duration {
        self.ttl
    }
}
