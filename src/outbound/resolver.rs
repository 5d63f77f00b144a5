//! Looking names up so that a connection goes to a public address or nowhere.
//!
//! The lookup that is checked is the one that is connected to: a name that answers differently the next time
//! ("rebinding") gains nothing.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::dns::Addrs;
use reqwest::dns::Name;
use reqwest::dns::Resolve;
use reqwest::dns::Resolving;

use super::address::is_public;
use super::guard::Refused;

/// How a name becomes addresses.
pub(super) type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// A resolver that gives out public addresses only, except for exempt hosts.
#[derive(Clone)]
pub(super) struct Resolver {
    pub(super) lookup: Lookup,
    /// Lower-case host names whose addresses are not looked at.
    pub(super) exempt: Arc<HashSet<String>>,
    pub(super) timeout: Duration,
}

/// The system's resolver.
pub(super) fn system() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

impl Resolver {
    pub(super) async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, Box<dyn std::error::Error + Send + Sync>> {
        let found = tokio::time::timeout(self.timeout, (self.lookup)(name.to_owned())).await??;
        if self.exempt.contains(&name.to_ascii_lowercase()) {
            return Ok(found);
        }
        let (public, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|address| is_public(*address));
        if public.is_empty() && !others.is_empty() {
            return Err(Box::new(Refused::Address));
        }
        Ok(public)
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let addresses = resolver.addresses(name.as_str()).await?;
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}
