//! Who may have what of a tenant that the address names.
//!
//! A tenant with our accounts is open to its members; one with accounts of its own is open to whoever its own tokens
//! or public calls admit. Absent and forbidden look the same: without a credential 401 (404 for files and pages, which
//! browsers fetch without one), with one 404, whether or not there is such a tenant.
//!
//! Invariant: nothing here starts a process before a credential was verified or a public rule matched, and what a
//! public rule starts is within the tenant's budget.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;
use std::time::SystemTime;

use hyper::HeaderMap;
use hyper::Method;
use hyper::Response;
use hyper::header;
use hyper::header::HeaderValue;

use super::access::Admission;
use super::access::Credential;
use super::access::Guest;
use super::access::Instances;
use super::access::Recognised;
use super::access::not_found;
use super::access::token_of;
use super::access::unauthorized;
use super::body::Body;
use super::dashboard;
use super::guests::Errand;
use super::query::token_in;
use super::quotas::Call;
use super::route::is_read;
use super::tenant_route::FilePath;
use super::tenant_route::SignIn;
use super::tenant_route::TenantRoute;
use crate::auth::Principal;
use crate::error::Code;
use crate::error::Problem;
use crate::pocketbase::database;
use crate::pocketbase::visitors;
use crate::store::tenants::Identity;
use crate::store::tenants::Tenant;
use crate::supervisor;
use crate::supervisor::Priority;
use crate::tenancy::MemberRole;
use crate::tenancy::Tenancy;

/// A request to a tenant's address.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    /// The slug or id in the address.
    pub(crate) name: &'a str,
    /// The decoded path within the tenant.
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) route: TenantRoute<'a>,
    pub(crate) client: IpAddr,
    /// Whether the tenant's own host was asked, which shares no storage in browsers with any other.
    pub(crate) by_host: bool,
}

impl Ask<'_> {
    fn call(&self) -> Call<'_> {
        Call { method: self.method, path: self.path, headers: self.headers }
    }
}

/// What becomes of it.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// The instance answers.
    Forward(Box<Admission>),
    /// Our own router answers, at this path.
    Own(String),
    /// This is the answer.
    Answer(Box<Response<Body>>),
}

/// Who asks, as far as our own accounts know.
enum Caller {
    Nobody,
    Known(Box<Principal>, Option<MemberRole>),
}

impl Instances {
    /// Decides on a request to a tenant's address, and takes the lease if an instance answers it.
    pub(crate) async fn named(&self, ask: &Ask<'_>, recognised: &Recognised) -> Result<Verdict, Problem> {
        if ask.by_host
            && self.dashboards.are_on()
            && let Some(verdict) = self.dashboard(ask).await?
        {
            return Ok(verdict);
        }
        match ask.route {
            TenantRoute::Health => return Ok(Verdict::Own("/api/health".to_owned())),
            TenantRoute::OAuth2Redirect => return Ok(Verdict::Own("/api/oauth2-redirect".to_owned())),
            // The stream and the dashboard have ways of their own.
            TenantRoute::Absent | TenantRoute::Realtime | TenantRoute::Dashboard => return Err(not_found()),
            _ => {}
        }
        match self.tenancy.resolve(ask.name) {
            Some(tenant) if tenant.identity == Identity::Own => self.visit(&tenant, ask).await,
            tenant => self.meet(tenant.as_deref(), ask, recognised).await,
        }
    }

    /// The dashboard of an owner who opened it; `None` for everything else.
    async fn dashboard(&self, ask: &Ask<'_>) -> Result<Option<Verdict>, Problem> {
        let now = SystemTime::now();
        let Some(tenant) = self.tenancy.resolve(ask.name) else { return Ok(None) };
        if ask.route == TenantRoute::Dashboard {
            if !is_read(ask.method) || !self.dashboards.is_open(&tenant.id, now) {
                return Ok(None);
            }
            if let Some(page) = dashboard::opener(ask.path) {
                return Ok(Some(Verdict::Answer(Box::new(page))));
            }
            // The same files for everybody, without any data.
            return self.stranger(&tenant, ask, Errand::Read).await.map(Some);
        }
        if ask.route == TenantRoute::Realtime || !ask.path.starts_with("/api/") {
            return Ok(None);
        }
        let in_query = || token_in(ask.query).filter(|_| matches!(ask.route, TenantRoute::File(_)));
        let token = bearer(ask.headers.get(header::AUTHORIZATION)).or_else(in_query);
        let Some(token) = token else { return Ok(None) };
        let Some(principal) = self.dashboards.find(&tenant.id, &token, now) else { return Ok(None) };
        let is_owner = self.tenancy.role(&tenant, &principal.user) == Some(MemberRole::Owner);
        if !is_owner || !self.verifier.still_holds(&principal) {
            return Err(unauthorized());
        }
        match dashboard::call(ask.method, ask.path, tenant.identity == Identity::Global) {
            dashboard::Call::Refuse => Err(Problem::new(Code::Forbidden)
                .message("the dashboard may not do this here; use pocketfleet's own commands")),
            dashboard::Call::Refresh => Ok(Some(Verdict::Answer(Box::new(dashboard::refreshed(&token, &principal))))),
            dashboard::Call::FileToken => Ok(Some(Verdict::Answer(Box::new(dashboard::file_token(&token))))),
            dashboard::Call::Pass => {
                let (lease, warm_after) = self.lease(&tenant.id).await?;
                let file_token = matches!(ask.route, TenantRoute::File(_)).then(|| lease.superuser_file_token());
                let credential = Credential::Superuser(lease.superuser_authorization());
                let admission = Admission::new(lease, None, &tenant.id, credential, warm_after);
                Ok(Some(Verdict::Forward(Box::new(Admission { file_token: file_token.flatten(), ..admission }))))
            }
        }
    }

    /// A tenant with our accounts, or none at all: the two must not be told apart by those who are not members.
    async fn meet(&self, tenant: Option<&Tenant>, ask: &Ask<'_>, recognised: &Recognised) -> Result<Verdict, Problem> {
        match ask.route {
            TenantRoute::SignIn(SignIn { is_users: true, call }) => {
                return Ok(Verdict::Own(format!("/api/collections/users/{call}")));
            }
            TenantRoute::SignIn(_) => return Err(not_found()),
            TenantRoute::FileToken => return Ok(Verdict::Own("/api/files/token".to_owned())),
            // The same for everybody, with whatever credential.
            TenantRoute::Page => {
                let tenant = tenant.filter(|tenant| self.has_pages(tenant)).ok_or_else(not_found)?;
                return self.stranger(tenant, ask, Errand::Read).await;
            }
            _ => {}
        }
        let caller = self.caller(tenant, ask, recognised)?;
        if let (TenantRoute::ChangeUser(id), Caller::Known(principal, _)) = (ask.route, &caller) {
            // Whoever changes themselves changes their account; the row here follows.
            let is_own = principal.user.as_str() == id && ask.method == Method::PATCH;
            return if is_own {
                Ok(Verdict::Own(format!("/api/collections/users/records/{id}")))
            } else {
                Err(not_found())
            };
        }
        if let (Some(tenant), Caller::Known(principal, Some(role))) = (tenant, &caller) {
            return self.member(tenant, ask, principal, *role).await;
        }
        match (tenant.filter(|tenant| self.is_public(tenant, ask)), ask.route, caller) {
            (Some(tenant), ..) => self.stranger(tenant, ask, Errand::Read).await,
            (None, TenantRoute::File(_), _) | (None, _, Caller::Known(..)) => Err(not_found()),
            (None, _, Caller::Nobody) => Err(unauthorized()),
        }
    }

    /// A token that is not valid (any more) makes nobody of the caller, as in `PocketBase` itself.
    fn caller(&self, tenant: Option<&Tenant>, ask: &Ask<'_>, recognised: &Recognised) -> Result<Caller, Problem> {
        let by_file = |token: &str| self.verifier.verify_file(token, SystemTime::now()).map_err(Problem::from);
        let mut principal = self.principal(ask.headers, recognised);
        if let (TenantRoute::File(_), Some(token), true) = (ask.route, token_in(ask.query), is_nobody(&principal)) {
            principal = by_file(&token);
        }
        match principal {
            // One answer, whatever is at the address: who deleted their account has to bring it back first.
            Ok(principal) if self.tenancy.is_leaving(&principal.user) => Err(Problem::new(Code::TenantDeleted)),
            Ok(principal) => {
                let role = tenant.and_then(|tenant| self.tenancy.role(tenant, &principal.user));
                Ok(Caller::Known(Box::new(principal), role))
            }
            Err(problem) if problem.code == Code::Unauthorized => Ok(Caller::Nobody),
            Err(problem) => Err(problem),
        }
    }

    async fn member(
        &self,
        tenant: &Tenant,
        ask: &Ask<'_>,
        principal: &Principal,
        role: MemberRole,
    ) -> Result<Verdict, Problem> {
        if matches!(ask.route, TenantRoute::Custom) && !self.has_route(tenant, ask.path) && !self.is_public(tenant, ask)
        {
            return Err(not_found());
        }
        if role == MemberRole::Guest && !is_read(ask.method) {
            return Err(Problem::new(Code::Forbidden).message("guests of this workspace may only read"));
        }
        self.may_wake(&tenant.id, ask.call())?;
        let (lease, warm_after) = self.lease(&tenant.id).await?;
        if lease.user_authorization(&principal.user).is_none() {
            // A newcomer whose row the running instance has not been given yet.
            self.supervisor.enroll(&tenant.id).await?;
        }
        let admission = Admission::of_user(lease, &tenant.id, &principal.user, warm_after)?;
        let admission = if matches!(ask.route, TenantRoute::File(_)) {
            admission.with_file_token(&principal.user)
        } else {
            admission
        };
        Ok(Verdict::Forward(Box::new(admission)))
    }

    /// A tenant with accounts of its own: its tokens pass untouched, and no other credential reaches it.
    async fn visit(&self, tenant: &Tenant, ask: &Ask<'_>) -> Result<Verdict, Problem> {
        match ask.route {
            TenantRoute::Custom if !self.has_route(tenant, ask.path) && !self.is_public(tenant, ask) => {
                return Err(not_found());
            }
            TenantRoute::SignIn(call) if call.is_public() && call.call != "auth-methods" => {
                self.strangers.sign_in(&tenant.id, ask.client, Instant::now())?;
            }
            // A batch may hold sign-ups.
            TenantRoute::Records if ask.path == "/api/batch" => {
                self.strangers.sign_in(&tenant.id, ask.client, Instant::now())?;
            }
            _ => {}
        }
        let sent = ask.headers.get(header::AUTHORIZATION);
        let in_query = || token_in(ask.query).filter(|_| matches!(ask.route, TenantRoute::File(_)));
        let by_header = match bearer(sent) {
            Some(token) => self.accepts(tenant, &token).await?,
            None => false,
        };
        let in_query = match in_query() {
            Some(token) if self.accepts(tenant, &token).await? => Some(token.into_owned()),
            _ => None,
        };
        if by_header || in_query.is_some() {
            // What was not accepted stays here: it may be one of ours, and the app's hooks would see it.
            let sent = sent.filter(|_| by_header).cloned();
            self.may_wake(&tenant.id, ask.call())?;
            let (lease, warm_after) = self.lease(&tenant.id).await?;
            // A file's query is written anew with the token that was accepted; all other queries are the app's own affair.
            let credential = match (ask.route, sent) {
                (TenantRoute::File(_), Some(sent)) => Credential::Exchanged(sent),
                (TenantRoute::File(_), None) => Credential::Nothing,
                (_, sent) => Credential::AsSent(sent),
            };
            let admission = Admission::new(lease, None, &tenant.id, credential, warm_after).private();
            return Ok(Verdict::Forward(Box::new(Admission { file_token: in_query, ..admission })));
        }
        match ask.route {
            TenantRoute::SignIn(call) if call.is_public() => self.stranger(tenant, ask, Errand::SignIn).await,
            _ if self.is_public(tenant, ask) => self.stranger(tenant, ask, Errand::Read).await,
            TenantRoute::File(_) | TenantRoute::Page => Err(not_found()),
            _ => Err(unauthorized()),
        }
    }

    /// Whether one of the tenant's own tokens is valid, read from its database; nothing is started for it. What is no
    /// token of its (ours, a superuser's, a word) must not reach it.
    pub(crate) async fn accepts(&self, tenant: &Tenant, token: &str) -> Result<bool, Problem> {
        let now = Instant::now();
        if self.visitors.knows(&tenant.id, token, now) {
            return Ok(true);
        }
        if !visitors::may_be_token(token, SystemTime::now()) {
            return Ok(false);
        }
        let _place = self.strangers.enter(&tenant.id, Errand::Token)?;
        let (supervisor, id, shown) = (self.supervisor.clone(), tenant.id.clone(), token.to_owned());
        let look = tokio::task::spawn_blocking(move || supervisor.accepts(&id, &shown));
        match look.await {
            Ok(Ok(true)) => {
                self.visitors.note(&tenant.id, token, now);
                Ok(true)
            }
            // A tenant that has never run has no tokens.
            Ok(Ok(false) | Err(database::Error::NoFile { .. })) => Ok(false),
            Ok(Err(error)) => {
                tracing::warn!(tenant.id = %tenant.id, %error, "read a hosted app's accounts");
                Err(Problem::new(Code::TenantBlocked))
            }
            Err(_) => Err(Problem::new(Code::ShuttingDown)),
        }
    }

    /// Somebody without a credential that counts, within what strangers may have. Nothing that they sent in its place
    /// reaches the instance.
    async fn stranger(&self, tenant: &Tenant, ask: &Ask<'_>, errand: Errand) -> Result<Verdict, Problem> {
        self.may_wake(&tenant.id, ask.call())?;
        let place = Guest::Tenant { _place: self.strangers.enter(&tenant.id, errand)? };
        let asked = Instant::now();
        let (lease, warm_after) = if let Some(lease) = self.supervisor.try_lease(&tenant.id) {
            (lease, Some(asked.elapsed()))
        } else {
            // One that is awake and busy, or frozen, is waited for like by anybody else.
            if !self.supervisor.is_up(&tenant.id) {
                self.strangers.wake(&tenant.id, ask.client, asked)?;
            }
            let priority = if errand == Errand::SignIn { Priority::Client } else { Priority::Background };
            let lease = self.supervisor.lease(&tenant.id, priority).await.map_err(|error| match error {
                // Who is suspended is nobody else's business.
                supervisor::Error::Suspended | supervisor::Error::UnknownTenant => not_found(),
                error => error.into(),
            })?;
            (lease, None)
        };
        let admission = Admission::new(lease, Some(place), &tenant.id, Credential::Nothing, warm_after);
        Ok(Verdict::Forward(Box::new(admission)))
    }

    /// Whether anybody may have this.
    fn is_public(&self, tenant: &Tenant, ask: &Ask<'_>) -> bool {
        match ask.route {
            TenantRoute::Page => self.has_pages(tenant),
            // `PocketBase` decides whether the file needs a token. Its name has random parts, so whoever knows it was
            // told; whoever guesses wakes nobody.
            TenantRoute::File(FilePath { record, name }) => self.supervisor.has_file(&tenant.id, record, name),
            _ => is_read(ask.method) && Tenancy::is_public(tenant, ask.path),
        }
    }
}

fn is_nobody(principal: &Result<Principal, Problem>) -> bool {
    principal.as_ref().is_err_and(|problem| problem.code == Code::Unauthorized)
}

fn bearer(authorization: Option<&HeaderValue>) -> Option<std::borrow::Cow<'_, str>> {
    authorization.and_then(token_of).map(std::borrow::Cow::Borrowed)
}

/// Strangers are counted for the whole gateway.
pub(crate) type Strangers = Arc<super::guests::Guests>;
