//! Tokens of hosted apps that were found valid a moment ago, so that not every request of a visitor opens the app's
//! database. A short memory of good news only: while the app is awake it judges its tokens itself all the same.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use dashmap::DashMap;
use sha2::Digest;
use sha2::Sha256;

use crate::ids::TenantId;

/// How long a token counts as valid after a look.
const FRESH: Duration = Duration::from_secs(10);
/// Most tokens that are remembered; beyond, all are forgotten.
const MAX_TOKENS: usize = 50_000;

type Fingerprint = [u8; 32];

/// The memory. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Visitors(Arc<DashMap<Fingerprint, Instant>>);

impl Visitors {
    /// Whether the token was found valid at this tenant a moment ago.
    pub(crate) fn knows(&self, tenant: &TenantId, token: &str, now: Instant) -> bool {
        self.0.get(&fingerprint(tenant, token)).is_some_and(|seen| now.saturating_duration_since(*seen) < FRESH)
    }

    /// Remembers that it was.
    pub(crate) fn note(&self, tenant: &TenantId, token: &str, now: Instant) {
        if self.0.len() >= MAX_TOKENS {
            self.0.clear();
        }
        self.0.insert(fingerprint(tenant, token), now);
    }
}

fn fingerprint(tenant: &TenantId, token: &str) -> Fingerprint {
    let mut hash = Sha256::new();
    hash.update(tenant.as_str().as_bytes());
    // No id has a NUL.
    hash.update([0]);
    hash.update(token.as_bytes());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_at_its_tenant_for_a_moment() {
        let visitors = Visitors::default();
        let (one, two, now) = (TenantId::parse("one").unwrap(), TenantId::parse("two").unwrap(), Instant::now());
        assert!(!visitors.knows(&one, "t", now));
        visitors.note(&one, "t", now);
        assert!(visitors.knows(&one, "t", now) && !visitors.knows(&two, "t", now) && !visitors.knows(&one, "u", now));
        assert!(!visitors.knows(&one, "t", now + FRESH));
    }
}
