//! A request to a tenant's address: by host or below `/t/{tenant}/`.

use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;

use super::access::Credential;
use super::access::not_found;
use super::body::Body;
use super::place::Detached;
use super::request_id::Tag;
use super::route::is_read;
use super::service::Passage;
use super::service::Peer;
use super::service::Seen;
use super::service::Service;
use super::tenant_access::Ask;
use super::tenant_access::Verdict;
use super::tenant_route::TenantRoute;
use super::tenant_route::tenant_route;
use crate::error::Problem;
use crate::error::Shape;

impl Service {
    /// Answers it, by the instance or by our own router.
    pub(super) async fn named(
        &self,
        peer: &Peer,
        tag: &Tag,
        request: Request<Incoming>,
        named: &Detached,
        seen: &mut Seen,
    ) -> Result<Response<Body>, Problem> {
        seen.shape = Shape::PocketBase;
        let route = tenant_route(request.method(), &named.path);
        if route == TenantRoute::Realtime {
            return self.realtime(peer, request, Some(named)).await;
        }
        self.check_tenant_call(&request, seen)?;
        let ask = Ask {
            name: &named.name,
            path: &named.path,
            query: request.uri().query(),
            method: request.method(),
            headers: request.headers(),
            route,
            by_host: named.cut == 0,
            client: self.trusted.client(peer.address, request.headers()),
        };
        match self.access.named(&ask, &peer.recognised).await? {
            Verdict::Own(path) => {
                seen.by = super::meters::Answerer::Own;
                self.own(peer, tag, request, Some(&path)).await
            }
            Verdict::Answer(response) => {
                seen.by = super::meters::Answerer::Own;
                Ok(*response)
            }
            Verdict::Forward(admission) => {
                let is_stranger = matches!(admission.credential, Credential::Nothing);
                let may_write = !is_read(request.method()) || route == TenantRoute::Custom;
                let passage = Passage { admission: *admission, cut: named.cut, may_write };
                let response = self.pass_on(peer, tag, request, passage, seen).await?;
                // A protected file must not tell a stranger in other words that it, and the tenant, are there.
                if is_stranger && response.status() == StatusCode::NOT_FOUND {
                    seen.by = super::meters::Answerer::Own;
                    return Err(not_found());
                }
                Ok(response)
            }
        }
    }
}
