//! What a request weighs on its tenant's quota, and how its caller is told of it.

use std::time::Instant;

use hyper::HeaderMap;
use hyper::Method;
use hyper::Uri;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;

use super::access::Access;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::quota::Leave;
use crate::quota::Quotas;
use crate::quota::Weight;

/// Tells clients of a tenant that is beyond its soft limit: `soft; used=…; soft=…; hard=…`, in bytes.
const X_DISK: HeaderName = HeaderName::from_static("x-pocketfleet-disk");

/// Asks for leave; none where nothing is counted.
pub(super) fn admit(
    access: &Access,
    tenant: &TenantId,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Option<Leave>, Problem> {
    let Some(quotas) = access.quotas().filter(|_| !tenant.is_global()) else { return Ok(None) };
    let leave = quotas.admit(tenant, weight(method, uri.path(), headers), Instant::now())?;
    if *method == Method::DELETE && quotas.is_tight() {
        quotas.look_soon(tenant);
    }
    Ok(Some(leave))
}

/// Whether a request would be refused, before an instance is woken for it. Nothing is counted.
pub(super) fn look(quotas: &Quotas, tenant: &TenantId, call: Call<'_>) -> Result<(), Problem> {
    quotas.look(tenant, weight(call.method, call.path, call.headers), Instant::now())
}

/// What is looked at of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

/// Tells the caller.
pub(super) fn tell(notice: Option<String>, headers: &mut HeaderMap) {
    if let Some(value) = notice.and_then(|notice| HeaderValue::try_from(notice).ok()) {
        headers.insert(X_DISK, value);
    }
}

fn weight(method: &Method, path: &str, headers: &HeaderMap) -> Weight {
    let grows = matches!(*method, Method::POST | Method::PUT | Method::PATCH) && !is_sign_in(path);
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_upload = grows && kind.get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/"));
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    Weight { grows, is_upload, length }
}

/// Whether a hosted app's own users sign in by it, or ask for a mail: what that writes is next to nothing.
fn is_sign_in(path: &str) -> bool {
    let call = path.rsplit('/').next().unwrap_or_default();
    path.contains("/api/collections/")
        && ["auth-", "request-", "confirm-"].iter().any(|prefix| call.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_weigh_and_reads_deletes_and_sign_ins_do_not() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("Multipart/form-data; boundary=x"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("17"));
        let of = |method: Method, path: &str| weight(&method, path, &headers);
        let write = of(Method::POST, "/api/collections/notes/records");
        assert!(write.grows && write.is_upload && write.length == Some(17));
        assert!(of(Method::PATCH, "/t/x/api/collections/notes/records/a").grows);
        assert!(of(Method::POST, "/api/batch").grows && of(Method::POST, "/api/hello").grows);
        for (method, path) in [
            (Method::GET, "/api/collections/notes/records"),
            (Method::DELETE, "/api/collections/notes/records/a"),
            (Method::POST, "/t/x/api/collections/users/auth-with-password"),
            (Method::POST, "/api/collections/users/request-otp"),
        ] {
            assert!(!of(method, path).grows, "{path}");
        }
    }
}
