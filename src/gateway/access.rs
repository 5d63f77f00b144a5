//! Who a request speaks for, and the lease that this entitles it to. Nothing here wakes an instance before the
//! credential was verified.

use std::cell::RefCell;
#[cfg(test)]
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use hyper::HeaderMap;
use hyper::header;
use hyper::header::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use super::forward::Target;
use super::route::GlobalCall;
use crate::auth::Accepted;
use crate::auth::Principal;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::realtime::Hub;
use crate::supervisor::Lease;
use crate::supervisor::Priority;
use crate::supervisor::Supervisor;
use crate::tenancy::Tenancy;

/// Requests without an accepted credential that the global instance serves at once. It has places for all who sign in;
/// strangers who read pictures slowly must not take them.
const GUESTS: usize = 16;

/// What a passed-on request holds until its answer is through.
#[derive(Debug)]
pub(crate) struct Hold {
    lease: Lease,
    _guest: Option<OwnedSemaphorePermit>,
}

impl Hold {
    /// The instance answered something.
    pub(crate) fn answered(&self) {
        self.lease.answered();
    }
}

/// Leave to pass a request on.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) target: Target,
    pub(crate) tenant: TenantId,
    /// The one credential that the instance sees.
    pub(crate) authorization: Option<HeaderValue>,
    /// How long it took when the instance was awake and had room; `None` when the request had to wait.
    pub(crate) warm_after: Option<Duration>,
}

/// The token that a connection showed last, if it was accepted: most show one and the same with every request.
pub(crate) type Recognised = RefCell<Option<Accepted>>;

/// What stands behind the gateway.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    Instances(Instances),
    /// No instances: only our own router answers.
    Nothing,
    /// One server that everybody may reach.
    #[cfg(test)]
    Fixed(SocketAddr),
}

/// The fleet and what decides who reaches which part of it.
#[derive(Debug, Clone)]
pub(crate) struct Instances {
    pub(crate) supervisor: Supervisor,
    pub(crate) verifier: Verifier,
    pub(crate) tenancy: Tenancy,
    pub(crate) hub: Hub,
    pub(crate) guests: Arc<Semaphore>,
}

impl Instances {
    pub(crate) fn new(supervisor: Supervisor, verifier: Verifier, tenancy: Tenancy, hub: Hub) -> Self {
        Self { supervisor, verifier, tenancy, hub, guests: Arc::new(Semaphore::new(GUESTS)) }
    }
}

impl Access {
    /// Admission to the caller's own instance.
    pub(crate) async fn tenant(&self, headers: &HeaderMap, recognised: &Recognised) -> Result<Admission, Problem> {
        match self {
            Self::Instances(instances) => instances.tenant(headers, recognised).await,
            Self::Nothing => Err(not_found()),
            #[cfg(test)]
            Self::Fixed(address) => Ok(fixed(*address)),
        }
    }

    /// Before a request that may write is passed on: attaches whoever is to be told of it.
    pub(crate) async fn settle(&self, admission: &Admission) {
        if let (Self::Instances(instances), Some(hold)) = (self, &admission.target.hold) {
            instances.hub.settle(&hold.lease).await;
        }
    }

    /// Admission to the global instance.
    pub(crate) async fn global(
        &self,
        call: &GlobalCall<'_>,
        headers: &HeaderMap,
        recognised: &Recognised,
    ) -> Result<Admission, Problem> {
        match self {
            Self::Instances(instances) => instances.global(call, headers, recognised).await,
            Self::Nothing => Err(not_found()),
            #[cfg(test)]
            Self::Fixed(address) => Ok(fixed(*address)),
        }
    }
}

impl Instances {
    async fn tenant(&self, headers: &HeaderMap, recognised: &Recognised) -> Result<Admission, Problem> {
        let principal = self.principal(headers, recognised)?;
        let tenant = match self.tenancy.personal(&principal.user) {
            Some(tenant) => tenant,
            None => self.register(&principal).await?,
        };
        let (lease, warm_after) = self.lease(&tenant).await?;
        let Some(authorization) = lease.user_authorization(&principal.user) else {
            return Err(Problem::new(Code::Forbidden).message("this account has no place in this instance"));
        };
        Ok(admission(lease, None, tenant, Some(authorization), warm_after))
    }

    async fn global(
        &self,
        call: &GlobalCall<'_>,
        headers: &HeaderMap,
        recognised: &Recognised,
    ) -> Result<Admission, Problem> {
        let principal = self.principal(headers, recognised);
        if let GlobalCall::Account(id) = call {
            match &principal {
                Ok(principal) if principal.user.as_str() == *id => {}
                // Absent and forbidden look the same.
                Ok(_) => return Err(not_found()),
                Err(problem) => return Err(problem.clone()),
            }
        }
        // A token that we no longer accept (an ended session, say) must not work at the instance either.
        let authorization = principal.is_ok().then(|| headers.get(header::AUTHORIZATION).cloned()).flatten();
        let guest = if principal.is_ok() {
            None
        } else {
            let full = || Problem::new(Code::Overloaded).retry_after(Duration::from_secs(2));
            Some(Arc::clone(&self.guests).try_acquire_owned().map_err(|_| full())?)
        };
        let tenant = TenantId::global();
        let (lease, warm_after) = self.lease(&tenant).await?;
        Ok(admission(lease, guest, tenant, authorization, warm_after))
    }

    fn principal(&self, headers: &HeaderMap, recognised: &Recognised) -> Result<Principal, Problem> {
        let token = headers.get(header::AUTHORIZATION).and_then(token_of).ok_or_else(unauthorized)?;
        self.verifier.verify_again(token, SystemTime::now(), &mut recognised.borrow_mut()).map_err(|error| {
            let problem = Problem::from(error);
            if problem.code == Code::Unauthorized { unauthorized() } else { problem }
        })
    }

    async fn register(&self, principal: &Principal) -> Result<TenantId, Problem> {
        self.tenancy.ensure_personal(&principal.user).await.map_err(|error| {
            tracing::error!(user.id = %principal.user, %error, "register a personal tenant");
            Problem::new(Code::Internal)
        })
    }

    async fn lease(&self, tenant: &TenantId) -> Result<(Lease, Option<Duration>), Problem> {
        let asked = Instant::now();
        if let Some(lease) = self.supervisor.try_lease(tenant) {
            return Ok((lease, Some(asked.elapsed())));
        }
        let lease = self.supervisor.lease(tenant, Priority::Client).await?;
        Ok((lease, None))
    }
}

fn admission(
    lease: Lease,
    guest: Option<OwnedSemaphorePermit>,
    tenant: TenantId,
    authorization: Option<HeaderValue>,
    warm_after: Option<Duration>,
) -> Admission {
    let (address, epoch) = (lease.address(), lease.epoch());
    let target = Target { address, epoch, hold: Some(Hold { lease, _guest: guest }) };
    Admission { target, tenant, authorization, warm_after }
}

#[cfg(test)]
fn fixed(address: SocketAddr) -> Admission {
    let target = Target { address, epoch: 0, hold: None };
    Admission { target, tenant: TenantId::global(), authorization: None, warm_after: None }
}

/// `T` or `Bearer T`, the scheme in any case, as `PocketBase` takes it.
pub(crate) fn token_of(value: &HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?.trim();
    let token = match text.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer ") => token.trim(),
        _ => text,
    };
    (!token.is_empty()).then_some(token)
}

pub(crate) fn unauthorized() -> Problem {
    Problem::new(Code::Unauthorized).message("the request requires valid record authorization token")
}

/// What `PocketBase` says about everything that is not there.
pub(crate) fn not_found() -> Problem {
    Problem::new(Code::NotFound).message("the requested resource wasn't found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_with_and_without_a_scheme() {
        for (value, token) in [
            ("abc.def.ghi", Some("abc.def.ghi")),
            ("Bearer abc.def.ghi", Some("abc.def.ghi")),
            ("bEARER  abc ", Some("abc")),
            ("Bearer ", Some("Bearer")),
            ("", None),
            ("   ", None),
        ] {
            assert_eq!(token_of(&HeaderValue::from_static(value)), token, "{value:?}");
        }
        assert_eq!(token_of(&HeaderValue::from_bytes(b"\xff").unwrap()), None);
    }
}
