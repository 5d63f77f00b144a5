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

use super::config::Config;
use super::dashboard::Dashboards;
use super::forward::Target;
use super::guests::GuestPlace;
use super::guests::Guests;
use super::query::token_in;
use super::quotas;
use super::quotas::Call;
use super::route::GlobalCall;
use super::tenant_access::Ask;
use super::tenant_access::Strangers;
use super::tenant_access::Verdict;
use super::tenant_route::is_listed;
use super::visitors::Visitors;
use crate::auth::Accepted;
use crate::auth::Principal;
use crate::auth::Verifier;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::quota::Place;
use crate::quota::Quotas;
use crate::realtime::Hub;
use crate::store::tenants::Tenant;
use crate::supervisor::Lease;
use crate::supervisor::Priority;
use crate::supervisor::Supervisor;
use crate::tenancy::Tenancy;

/// Requests without an accepted credential that the global instance serves at once. It has places for all who sign in;
/// strangers who read pictures slowly must not take them.
const GUESTS: usize = 16;

/// A stranger's place, which bounds how many of them there are at once.
#[derive(Debug)]
pub(crate) enum Guest {
    /// At the global instance.
    Global { _place: OwnedSemaphorePermit },
    /// At a tenant that lets strangers in.
    Tenant { _place: GuestPlace },
}

/// What a passed-on request holds until its answer is through.
#[derive(Debug)]
pub(crate) struct Hold {
    lease: Lease,
    _guest: Option<Guest>,
    /// Its place among the tenant's requests at work.
    place: Option<Place>,
}

impl Hold {
    /// Keeps a place as long as the rest.
    pub(crate) fn keep(&mut self, place: Option<Place>) {
        self.place = place;
    }

    /// The instance answered something.
    pub(crate) fn answered(&self) {
        self.lease.answered();
    }
}

/// The one credential that an instance sees.
#[derive(Debug)]
pub(crate) enum Credential {
    /// None, whatever was sent.
    Nothing,
    /// A token of the instance, in exchange for ours.
    Exchanged(HeaderValue),
    /// The control superuser's, for the dashboard of an owner: the call must then look like one of our own, because the
    /// instance takes this token from its own machine only.
    Superuser(HeaderValue),
    /// What was sent: it is the instance's own to judge, in the header and in the query.
    AsSent(Option<HeaderValue>),
}

/// Leave to pass a request on.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) target: Target,
    pub(crate) tenant: TenantId,
    pub(crate) credential: Credential,
    /// The instance's own file token in place of ours.
    pub(crate) file_token: Option<String>,
    /// Whether the answer is one caller's alone.
    pub(crate) is_private: bool,
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
    /// At the global instance.
    pub(crate) guests: Arc<Semaphore>,
    /// At tenants that let them in.
    pub(crate) strangers: Strangers,
    pub(crate) visitors: Visitors,
    pub(crate) hub: Hub,
    pub(crate) dashboards: Dashboards,
    pub(crate) quotas: Quotas,
}

impl Admission {
    pub(crate) fn new(
        lease: Lease,
        guest: Option<Guest>,
        tenant: &TenantId,
        credential: Credential,
        warm_after: Option<Duration>,
    ) -> Self {
        let (address, epoch) = (lease.address(), lease.epoch());
        let target = Target { address, epoch, hold: Some(Hold { lease, _guest: guest, place: None }) };
        let is_private = matches!(credential, Credential::Exchanged(_) | Credential::Superuser(_));
        Self { target, tenant: tenant.clone(), credential, file_token: None, is_private, warm_after }
    }

    /// Marks the answer as one caller's alone.
    #[must_use]
    pub(crate) fn private(self) -> Self {
        Self { is_private: true, ..self }
    }

    /// For a user of ours, with a token of their own row in the instance.
    pub(crate) fn of_user(
        lease: Lease,
        tenant: &TenantId,
        user: &UserId,
        warm_after: Option<Duration>,
    ) -> Result<Self, Problem> {
        let Some(token) = lease.user_authorization(user) else {
            return Err(Problem::new(Code::Forbidden).message("this account has no place in this instance"));
        };
        Ok(Self::new(lease, None, tenant, Credential::Exchanged(token), warm_after))
    }

    /// Exchanges the file token as well.
    #[must_use]
    pub(crate) fn with_file_token(mut self, user: &UserId) -> Self {
        self.file_token = self.target.hold.as_ref().and_then(|hold| hold.lease.user_file_token(user));
        self
    }
}

impl Instances {
    pub(crate) fn new(
        supervisor: Supervisor,
        verifier: Verifier,
        tenancy: Tenancy,
        hub: Hub,
        dashboards: Dashboards,
        quotas: Quotas,
        config: &Config,
    ) -> Self {
        let guests = Arc::new(Semaphore::new(GUESTS));
        let strangers = Guests::new(config.public_wakes, config.hosted_sign_ins_per_ip);
        Self {
            supervisor,
            verifier,
            tenancy,
            guests,
            strangers,
            visitors: Visitors::default(),
            hub,
            dashboards,
            quotas,
        }
    }
}

impl Access {
    /// What becomes of a request to a tenant's address.
    pub(crate) async fn named(&self, ask: &Ask<'_>, recognised: &Recognised) -> Result<Verdict, Problem> {
        match self {
            Self::Instances(instances) => instances.named(ask, recognised).await,
            Self::Nothing => Err(not_found()),
            #[cfg(test)]
            Self::Fixed(address) => Ok(Verdict::Forward(Box::new(fixed(*address)))),
        }
    }

    /// Before a request that may write is passed on: whoever is to be told of it is attached.
    pub(crate) async fn settle(&self, admission: &Admission) {
        if let (Self::Instances(instances), Some(hold)) = (self, &admission.target.hold) {
            instances.hub.settle(&hold.lease).await;
        }
    }

    /// What the tenant's quota says of a request; nothing where there are no tenants.
    pub(crate) fn quotas(&self) -> Option<&Quotas> {
        match self {
            Self::Instances(instances) => Some(&instances.quotas),
            Self::Nothing => None,
            #[cfg(test)]
            Self::Fixed(_) => None,
        }
    }

    /// Admission to a file of the caller's own instance, by header or by file token.
    pub(crate) async fn file(
        &self,
        call: Call<'_>,
        query: Option<&str>,
        recognised: &Recognised,
    ) -> Result<Admission, Problem> {
        match self {
            Self::Instances(instances) => instances.file(call, query, recognised).await,
            Self::Nothing => Err(not_found()),
            #[cfg(test)]
            Self::Fixed(address) => Ok(fixed(*address)),
        }
    }

    /// Admission to a hook's route in the caller's own instance.
    pub(crate) async fn custom(&self, call: Call<'_>, recognised: &Recognised) -> Result<Admission, Problem> {
        match self {
            Self::Instances(instances) => instances.custom(call, recognised).await,
            Self::Nothing => Err(not_found()),
            #[cfg(test)]
            Self::Fixed(address) => Ok(fixed(*address)),
        }
    }

    /// Admission to the caller's own instance.
    pub(crate) async fn tenant(&self, call: Call<'_>, recognised: &Recognised) -> Result<Admission, Problem> {
        match self {
            Self::Instances(instances) => instances.tenant(call, recognised).await,
            Self::Nothing => Err(not_found()),
            #[cfg(test)]
            Self::Fixed(address) => Ok(fixed(*address)),
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
    async fn tenant(&self, call: Call<'_>, recognised: &Recognised) -> Result<Admission, Problem> {
        let principal = self.principal(call.headers, recognised)?;
        self.own_instance(call, &principal).await
    }

    /// The caller's own tenant, registered if this is their first request.
    pub(crate) async fn personal(&self, principal: &Principal) -> Result<TenantId, Problem> {
        match self.tenancy.personal(&principal.user) {
            Some(tenant) => Ok(tenant),
            None => self.register(principal).await,
        }
    }

    /// Whether a sleeping instance may be woken for a request: one that is refused afterwards should not have been.
    pub(crate) fn may_wake(&self, tenant: &TenantId, call: Call<'_>) -> Result<(), Problem> {
        if self.supervisor.is_awake(tenant) { Ok(()) } else { quotas::look(&self.quotas, tenant, call) }
    }

    async fn own_instance(&self, call: Call<'_>, principal: &Principal) -> Result<Admission, Problem> {
        let tenant = self.personal(principal).await?;
        self.may_wake(&tenant, call)?;
        let (lease, warm_after) = self.lease(&tenant).await?;
        if lease.user_authorization(&principal.user).is_none() {
            // It was a spare, and its owner could not be let in when the account was made.
            self.supervisor.enroll(&tenant).await?;
        }
        Admission::of_user(lease, &tenant, &principal.user, warm_after)
    }

    async fn file(&self, call: Call<'_>, query: Option<&str>, recognised: &Recognised) -> Result<Admission, Problem> {
        let mut principal = self.principal(call.headers, recognised);
        if let (Some(token), true) = (token_in(query), principal.is_err()) {
            principal = self.verifier.verify_file(&token, SystemTime::now()).map_err(Problem::from);
        }
        // Without a credential nobody can tell whose file it is: there is none at this address.
        let principal = principal.map_err(|problem| match problem.code {
            Code::Unauthorized => not_found(),
            _ => problem,
        })?;
        Ok(self.own_instance(call, &principal).await?.with_file_token(&principal.user))
    }

    async fn custom(&self, call: Call<'_>, recognised: &Recognised) -> Result<Admission, Problem> {
        // Whoever is nobody here learns nothing about what hooks serve.
        let principal = self.principal(call.headers, recognised).map_err(|problem| match problem.code {
            Code::Unauthorized => not_found(),
            _ => problem,
        })?;
        if self.has_route_in(self.tenancy.personal_template(), call.path) {
            self.own_instance(call, &principal).await
        } else {
            Err(not_found())
        }
    }

    /// Whether the tenant's template lists a hook's route.
    pub(crate) fn has_route(&self, tenant: &Tenant, path: &str) -> bool {
        self.has_route_in(&tenant.template, path)
    }

    fn has_route_in(&self, template: &str, path: &str) -> bool {
        self.supervisor.templates().traits(template).is_some_and(|traits| is_listed(&traits.routes, path))
    }

    /// Whether the tenant's template has public files.
    pub(crate) fn has_pages(&self, tenant: &Tenant) -> bool {
        self.supervisor.templates().traits(&tenant.template).is_some_and(|traits| traits.has_public)
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
            Some(Guest::Global { _place: Arc::clone(&self.guests).try_acquire_owned().map_err(|_| full())? })
        };
        let tenant = TenantId::global();
        let (lease, warm_after) = self.lease(&tenant).await?;
        let credential = authorization.map_or(Credential::Nothing, Credential::Exchanged);
        Ok(Admission::new(lease, guest, &tenant, credential, warm_after))
    }

    pub(crate) fn principal(&self, headers: &HeaderMap, recognised: &Recognised) -> Result<Principal, Problem> {
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

    pub(crate) async fn lease(&self, tenant: &TenantId) -> Result<(Lease, Option<Duration>), Problem> {
        let asked = Instant::now();
        if let Some(lease) = self.supervisor.try_lease(tenant) {
            return Ok((lease, Some(asked.elapsed())));
        }
        let lease = self.supervisor.lease(tenant, Priority::Client).await?;
        Ok((lease, None))
    }
}

#[cfg(test)]
fn fixed(address: SocketAddr) -> Admission {
    let target = Target { address, epoch: 0, hold: None };
    let (credential, file_token, is_private) = (Credential::Nothing, None, false);
    let tenant = TenantId::parse("fixed").expect("an id");
    Admission { target, tenant, credential, file_token, is_private, warm_after: None }
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
