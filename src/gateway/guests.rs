//! What strangers may have of a tenant that lets them in: places at once, and wakes per minute.
//!
//! Neither counts for callers with a credential: a public page must not be a way to keep its owner out, nor a way to
//! keep an instance awake for ever at the operator's cost.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use dashmap::DashMap;

use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::limits::Keyed;

/// Requests of strangers that one tenant serves at once: half of what it takes from everybody.
const PLACES: usize = 32;
/// Tenants and addresses whose budgets are remembered.
const MAX_KEYS: usize = 20_000;
const MINUTE: Duration = Duration::from_mins(1);

/// The strangers of all tenants.
#[derive(Debug)]
pub(crate) struct Guests {
    present: DashMap<(TenantId, Errand), usize>,
    wakes: Mutex<Keyed<TenantId>>,
    wakes_by_client: Mutex<Keyed<IpAddr>>,
    sign_ins: Mutex<Keyed<(TenantId, IpAddr)>>,
}

/// What a stranger comes for. Each has places of its own: those who read slowly must not keep others from signing in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Errand {
    Read,
    SignIn,
    /// To have a token looked at.
    Token,
}

/// A stranger's place, until dropped.
#[derive(Debug)]
pub(crate) struct GuestPlace {
    guests: Arc<Guests>,
    key: (TenantId, Errand),
}

impl Guests {
    /// Budgets per minute: wakes of one tenant and by one address, and sign-ins at one tenant from one address.
    pub(crate) fn new(wakes: u32, sign_ins: u32) -> Arc<Self> {
        Arc::new(Self {
            present: DashMap::new(),
            wakes: Mutex::new(Keyed::new(wakes, MINUTE, MAX_KEYS)),
            wakes_by_client: Mutex::new(Keyed::new(wakes, MINUTE, MAX_KEYS)),
            sign_ins: Mutex::new(Keyed::new(sign_ins, MINUTE, MAX_KEYS)),
        })
    }

    /// Takes a place among the strangers of a tenant.
    pub(crate) fn enter(self: &Arc<Self>, tenant: &TenantId, errand: Errand) -> Result<GuestPlace, Problem> {
        let key = (tenant.clone(), errand);
        let mut count = self.present.entry(key.clone()).or_default();
        if *count >= PLACES {
            return Err(Problem::new(Code::Overloaded).retry_after(Duration::from_secs(2)));
        }
        *count += 1;
        drop(count);
        Ok(GuestPlace { guests: Arc::clone(self), key })
    }

    /// Takes one wake out of a client's budget and one out of the tenant's.
    pub(crate) fn wake(&self, tenant: &TenantId, client: IpAddr, now: Instant) -> Result<(), Problem> {
        let refused = |wait| Problem::new(Code::RateLimited).retry_after(wait);
        let mut by_client = self.wakes_by_client.lock().unwrap_or_else(PoisonError::into_inner);
        by_client.check(&super::client_addr::counted(client), now).map_err(refused)?;
        drop(by_client);
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.check(tenant, now).map_err(refused)
    }

    /// Takes one sign-in at a tenant out of an address's budget.
    pub(crate) fn sign_in(&self, tenant: &TenantId, client: IpAddr, now: Instant) -> Result<(), Problem> {
        let key = (tenant.clone(), super::client_addr::counted(client));
        let mut sign_ins = self.sign_ins.lock().unwrap_or_else(PoisonError::into_inner);
        sign_ins.check(&key, now).map_err(|wait| Problem::new(Code::RateLimited).retry_after(wait))
    }
}

impl Drop for GuestPlace {
    fn drop(&mut self) {
        self.guests.present.remove_if_mut(&self.key, |_, count| {
            *count = count.saturating_sub(1);
            *count == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_per_tenant_and_given_back() {
        let guests = Guests::new(1, 1);
        let (one, two) = (TenantId::parse("one").unwrap(), TenantId::parse("two").unwrap());
        let held: Vec<_> = (0..PLACES).map(|_| guests.enter(&one, Errand::Read).unwrap()).collect();
        assert_eq!(guests.enter(&one, Errand::Read).unwrap_err().code, Code::Overloaded);
        drop(guests.enter(&one, Errand::SignIn).unwrap());
        drop(guests.enter(&two, Errand::Read).unwrap());
        drop(held);
        assert!(guests.present.is_empty());
        drop(guests.enter(&one, Errand::Read).unwrap());
    }

    #[test]
    fn wakes_and_sign_ins_have_budgets_of_their_own() {
        let guests = Guests::new(1, 1);
        let (now, one) = (Instant::now(), TenantId::parse("one").unwrap());
        let (ann, bob) = (IpAddr::from([203, 0, 113, 1]), IpAddr::from([203, 0, 113, 2]));
        guests.wake(&one, ann, now).unwrap();
        assert_eq!(guests.wake(&one, bob, now).unwrap_err().code, Code::RateLimited, "of the tenant");
        let two = TenantId::parse("two").unwrap();
        assert_eq!(guests.wake(&two, ann, now).unwrap_err().code, Code::RateLimited, "of the client");
        guests.sign_in(&one, ann, now).unwrap();
        assert!(guests.sign_in(&one, ann, now).is_err());
        guests.sign_in(&one, bob, now).unwrap();
    }
}
