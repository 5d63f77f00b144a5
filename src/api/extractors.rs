//! Who asks: the principal behind a token, and the client behind the connection.
//!
//! A handler that takes [`AuthUser`] cannot be reached without a valid credential; one that takes [`Admin`], not
//! without the role. The token never reaches `Debug`.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::FromRef;
use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::header;
use axum::http::request::Parts;

use crate::api::error::ApiError;
use crate::auth::Principal;
use crate::auth::Role;
use crate::auth::Verifier;
use crate::auth::accounts::Client;
use crate::error::Code;
use crate::error::Problem;
use crate::gateway;
use crate::tenancy::Tenancy;

/// A caller with a valid token.
#[derive(Clone)]
pub struct AuthUser {
    /// Whom the token speaks for.
    pub principal: Principal,
    /// The token itself, for the calls that pass it on.
    pub token: String,
}

impl fmt::Debug for AuthUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthUser").field("principal", &self.principal).finish_non_exhaustive()
    }
}

impl<S> FromRequestParts<S> for AuthUser
where
    S: Send + Sync,
    Verifier: FromRef<S>,
    Tenancy: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let MaybeDeleted(user) = MaybeDeleted::from_request_parts(parts, state).await?;
        if Tenancy::from_ref(state).is_leaving(&user.principal.user) {
            return Err(Problem::new(Code::TenantDeleted).into());
        }
        Ok(user)
    }
}

/// A caller with a valid token whose account may have been deleted: for the few routes by which they see that, and come
/// back.
#[derive(Debug, Clone)]
pub struct MaybeDeleted(pub AuthUser);

impl<S> FromRequestParts<S> for MaybeDeleted
where
    S: Send + Sync,
    Verifier: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let token = token(&parts.headers).ok_or_else(|| Problem::new(Code::Unauthorized))?;
        let principal = Verifier::from_ref(state).verify(token, SystemTime::now())?;
        Ok(Self(AuthUser { principal, token: token.to_owned() }))
    }
}

/// A caller who may be anybody. A token that is not valid counts as none, as in `PocketBase`: the routes that take
/// this answer strangers too.
#[derive(Debug, Clone)]
pub struct OptionalAuthUser(pub Option<Principal>);

impl<S> FromRequestParts<S> for OptionalAuthUser
where
    S: Send + Sync,
    Verifier: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let principal =
            token(&parts.headers).and_then(|token| Verifier::from_ref(state).verify(token, SystemTime::now()).ok());
        Ok(Self(principal))
    }
}

impl OptionalAuthUser {
    /// Whether the caller is an admin.
    pub fn is_admin(&self) -> bool {
        self.0.as_ref().is_some_and(|principal| principal.role == Role::Admin)
    }
}

/// A caller with the role `admin`.
#[derive(Debug, Clone)]
pub struct Admin(pub Principal);

impl<S> FromRequestParts<S> for Admin
where
    S: Send + Sync,
    Verifier: FromRef<S>,
    Tenancy: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let AuthUser { principal, .. } = AuthUser::from_request_parts(parts, state).await?;
        if principal.role == Role::Admin { Ok(Self(principal)) } else { Err(Problem::new(Code::Forbidden).into()) }
    }
}

/// The client behind the connection, as the registry of sessions and the limits know it.
#[derive(Debug, Clone)]
pub struct ClientInfo(pub Client);

impl<S: Send + Sync> FromRequestParts<S> for ClientInfo {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        // Without the gateway's word every caller shares one address, hence one set of limits: never a way around.
        let ip = parts.extensions.get::<gateway::ClientIp>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |found| found.0);
        let agent = parts.headers.get(header::USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
        Ok(Self(Client::new(ip, agent.as_deref())))
    }
}

/// The request's id.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

impl<S: Send + Sync> FromRequestParts<S> for RequestId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let id = parts.extensions.get::<gateway::RequestId>().map_or_else(|| Arc::from(""), |found| found.0.clone());
        Ok(Self(id))
    }
}

/// The token of `Authorization: Bearer T` or, as `PocketBase`'s SDKs send it, a bare `T`. Two such headers are
/// nobody: which of them counts must not be a matter of who reads them.
pub(crate) fn token(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    let value = value.to_str().ok()?.trim();
    let token = match value.split_once(' ') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest.trim_start(),
        Some(_) => return None,
        None => value,
    };
    (!token.is_empty() && !token.eq_ignore_ascii_case("bearer")).then_some(token)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use axum::http::Request;

    use super::*;

    fn with(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (header::AUTHORIZATION, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn both_forms_of_authorization_are_read() {
        for good in ["Bearer abc", "bearer  abc", "abc", " abc "] {
            assert_eq!(token(&with(&[good])), Some("abc"), "{good:?}");
        }
        for bad in ["", "Bearer", "Bearer ", "Basic abc"] {
            assert_eq!(token(&with(&[bad])), None, "{bad:?}");
        }
        assert_eq!(token(&with(&["a", "a"])), None);
        assert_eq!(token(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_client_is_known_by_its_address_and_a_printable_device() {
        let agent = HeaderValue::from_bytes(b"a\tb\xff").unwrap();
        let request = Request::get("/").header(header::USER_AGENT, agent).body(()).unwrap();
        let (mut parts, ()) = request.into_parts();
        parts.extensions.insert(gateway::ClientIp(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let Ok(ClientInfo(client)) = ClientInfo::from_request_parts(&mut parts, &()).await;
        assert_eq!((client.ip, client.device.as_str()), (IpAddr::V4(Ipv4Addr::LOCALHOST), "ab\u{fffd}"));
    }
}
