//! `/api/realtime`: a stream is opened by anybody, and bound by the call that subscribes it, which says who is asking and,
//! by its address, for which tenant. Neither wakes an instance.

use std::net::IpAddr;
use std::time::SystemTime;

use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;
use serde::Deserialize;

use super::access::Access;
use super::access::Instances;
use super::access::not_found;
use super::access::token_of;
use super::access::unauthorized;
use super::body::Body;
use super::place::Detached;
use super::service::Peer;
use super::service::Service;
use super::service::check_length;
use super::upload::RequestBody;
use crate::auth::Principal;
use crate::error::Code;
use crate::error::Problem;
use crate::realtime::Audience;
use crate::realtime::OAUTH2;
use crate::realtime::Subscribe;
use crate::store::tenants::Identity;
use crate::store::tenants::Tenant;
use crate::tenancy::Tenancy;

/// Tells proxies to pass events on as they come.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The body that subscribes a stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Call {
    client_id: String,
    subscriptions: Vec<String>,
}

impl Service {
    /// Opens a stream, or subscribes one to the caller's own tenant or to the one that the address names.
    pub(super) async fn realtime(
        &self,
        peer: &Peer,
        request: Request<Incoming>,
        named: Option<&Detached>,
    ) -> Result<Response<Body>, Problem> {
        let Access::Instances(instances) = &self.access else { return Err(not_found()) };
        let client = self.trusted.client(peer.address, request.headers());
        if request.method() == Method::GET {
            return open(instances, client);
        }
        let limit = self.config.max_json_bytes;
        check_length(request.headers(), limit)?;
        let (parts, incoming) = request.into_parts();
        let body = RequestBody::new(incoming, limit, self.config.reading()).collect().await.map_err(|_| malformed())?;
        let call: Call = serde_json::from_slice(&body.to_bytes()).map_err(|_| malformed())?;
        let audience = match named {
            None => instances.at_home(&parts.headers, &call).await?,
            Some(named) => instances.at_tenant(&named.name, &parts.headers, &call).await?,
        };
        let Call { client_id, subscriptions } = call;
        instances.hub.subscribe(Subscribe { client_id, subscriptions, ip: client, audience }).await?;
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }
}

fn open(instances: &Instances, client: IpAddr) -> Result<Response<Body>, Problem> {
    let mut response = Response::new(Body::Events(instances.hub.connect(client)?));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

impl Instances {
    /// The caller's own tenant.
    async fn at_home(&self, headers: &HeaderMap, call: &Call) -> Result<Audience, Problem> {
        match self.shown(headers)? {
            Some((token, principal)) => {
                let tenant = self.personal(&principal).await?;
                Ok(Audience::Member { tenant, token, principal })
            }
            None if call.subscriptions == [OAUTH2] => Ok(Audience::SignIn),
            None => Err(unauthorized()),
        }
    }

    /// The tenant that the address names, for its members and, as far as its public rules go, for everybody.
    async fn at_tenant(&self, name: &str, headers: &HeaderMap, call: &Call) -> Result<Audience, Problem> {
        let tenant = self.tenancy.resolve(name);
        if let Some(tenant) = tenant.as_deref().filter(|tenant| tenant.identity == Identity::Own) {
            return self.visitor(tenant, headers, call).await;
        }
        let shown = self.shown(headers)?;
        let is_somebody = shown.is_some();
        if let (Some(tenant), Some((token, principal))) = (tenant.as_deref(), shown)
            && self.tenancy.role(tenant, &principal.user).is_some()
        {
            return Ok(Audience::Member { tenant: tenant.id.clone(), token, principal });
        }
        match tenant.filter(|tenant| are_public(tenant, &call.subscriptions)) {
            Some(tenant) => Ok(Audience::Visitor { tenant: tenant.id.clone(), authorization: None }),
            None if !is_somebody && call.subscriptions == [OAUTH2] => Ok(Audience::SignIn),
            None => Err(if is_somebody { not_found() } else { unauthorized() }),
        }
    }

    /// A tenant with accounts of its own: its tokens, or what it makes public.
    async fn visitor(&self, tenant: &Tenant, headers: &HeaderMap, call: &Call) -> Result<Audience, Problem> {
        let authorization = headers.get(header::AUTHORIZATION);
        let id = tenant.id.clone();
        if let Some(token) = authorization.and_then(token_of)
            && self.accepts(tenant, token).await?
        {
            return Ok(Audience::Visitor { tenant: id, authorization: authorization.cloned() });
        }
        let is_public = call.subscriptions == [OAUTH2] || are_public(tenant, &call.subscriptions);
        if is_public { Ok(Audience::Visitor { tenant: id, authorization: None }) } else { Err(unauthorized()) }
    }

    /// The token that was shown, if it is one of ours and valid.
    fn shown(&self, headers: &HeaderMap) -> Result<Option<(String, Principal)>, Problem> {
        let Some(token) = headers.get(header::AUTHORIZATION).and_then(token_of) else { return Ok(None) };
        match self.verifier.verify(token, SystemTime::now()).map_err(Problem::from) {
            Ok(principal) => Ok(Some((token.to_owned(), principal))),
            Err(problem) if problem.code == Code::Unauthorized => Ok(None),
            Err(problem) => Err(problem),
        }
    }
}

/// Whether a stranger is told of all this; the topic of a sign-in says nothing of the tenant.
fn are_public(tenant: &Tenant, subscriptions: &[String]) -> bool {
    let topics: Vec<String> = subscriptions.iter().filter(|&topic| topic != OAUTH2).cloned().collect();
    !topics.is_empty() && Tenancy::are_public(tenant, &topics)
}

/// As `PocketBase` says it.
fn malformed() -> Problem {
    Problem::new(Code::InvalidBody).message("something went wrong while processing your request")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;
    use crate::store::tenants::Kind;

    #[test]
    fn strangers_hear_of_what_they_may_list() {
        let mut tenant = Tenant::new(TenantId::parse("w-1").unwrap(), Kind::Workspace, "hosted", None);
        tenant.public_read = vec!["/api/collections/posts/records".to_owned()];
        let are = |topics: &[&str]| {
            let topics: Vec<_> = topics.iter().map(|&topic| topic.to_owned()).collect();
            are_public(&tenant, &topics)
        };
        assert!(are(&["posts/*"]) && are(&["posts/*?options=%7B%7D"]) && are(&["posts/*", "@oauth2"]));
        for topics in
            [&[][..], &["posts/abc"], &["posts"], &["orders/*"], &["posts/*", "orders/*"], &["@oauth2"], &[""]]
        {
            assert!(!are(topics), "{topics:?}");
        }
    }
}
