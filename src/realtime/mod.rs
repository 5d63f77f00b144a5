//! The realtime relay: clients keep their event streams while instances come and go.
//!
//! A client's stream is answered here, with a client id of ours, and bound to a tenant by the authenticated call that
//! subscribes it. While the tenant is awake each client has a stream of its own to the instance ([`link`](self)),
//! subscribed verbatim, so that rules and options mean what they mean in `PocketBase`. While it sleeps the client is
//! *parked*: nobody else can write the tenant's database, so there is nothing to miss and nothing to run. Before the
//! first write after a wake every parked client is attached again ([`Hub::settle`]).
//!
//! # Invariants
//! - A subscription wakes no instance, and an open stream keeps none awake.
//! - Every event reaches a bound client exactly once, or the client's stream ends, which makes its SDK connect anew.
//! - A member's stream ends when the last session of its sign-in does, when the account or its key changes, and when the
//!   account loses its place in the tenant.
//! - Streams, what waits for each, and what an instance may send are bounded.
//!
//! Known limit: when an instance is killed, an event of a write that was under way in that moment may be lost; its
//! writer has no answer either.
//!
//! Deliberately absent: HTTP (see `gateway`), which tenant a request means, and any look into events.

mod binding;
mod client;
mod config;
mod error;
mod hub;
mod link;
mod overlap;
mod places;
mod sse;
mod subscription;
mod sweep;
mod upstream;

use std::net::IpAddr;

use hyper::header::HeaderValue;

pub use self::client::Stream;
pub use self::config::Config;
pub use self::config::Invalid;
pub use self::error::Error;
pub use self::hub::Admits;
pub use self::hub::Hub;
pub use self::hub::LetsIn;
pub use self::hub::Parts;

use crate::auth::Principal;
use crate::ids::TenantId;

/// The topic of a client that waits for an `OAuth2` sign-in in another window.
pub const OAUTH2: &str = "@oauth2";

/// A call that says what a stream is to be told of.
#[derive(Debug)]
pub struct Subscribe {
    /// Which stream.
    pub client_id: String,
    /// All of it, in place of what was before.
    pub subscriptions: Vec<String>,
    /// Who calls.
    pub ip: IpAddr,
    /// In whose name.
    pub audience: Audience,
}

/// In whose name a stream is subscribed.
pub enum Audience {
    /// A signed-in user who has a place in the tenant.
    Member {
        /// Where.
        tenant: TenantId,
        /// The user's token, just accepted.
        token: String,
        /// What it says.
        principal: Principal,
    },
    /// Somebody in a tenant that is open to everybody.
    Visitor {
        /// Where.
        tenant: TenantId,
        /// What they sent; the instance judges it.
        authorization: Option<HeaderValue>,
    },
    /// Somebody without a token who waits for an `OAuth2` sign-in.
    SignIn,
}

impl std::fmt::Debug for Audience {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Member { tenant, .. } => f.debug_struct("Member").field("tenant", tenant).finish_non_exhaustive(),
            Self::Visitor { tenant, .. } => f.debug_struct("Visitor").field("tenant", tenant).finish_non_exhaustive(),
            Self::SignIn => f.write_str("SignIn"),
        }
    }
}
