//! Callers that may come with an API key (`pfk_…`) in place of a sign-in, or must.
//!
//! Each extractor names the scope it asks for, so that a route cannot be reached with a key that was not meant for it.
//! A key that is not valid is answered 401 like any other credential, one without the scope 403.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::FromRef;
use axum::extract::FromRequestParts;
use axum::http::Method;
use axum::http::request::Parts;

use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::extractors::token;
use crate::auth::Role;
use crate::auth::Verifier;
use crate::auth::api_keys;
use crate::auth::api_keys::ApiKeys;
use crate::auth::api_keys::Bearer;
use crate::auth::api_keys::Scope;
use crate::error::Code;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::tenancy::Tenancy;

/// An API key that counts, whatever it may do.
#[derive(Debug, Clone)]
pub struct ApiKey(pub Bearer);

impl<S> FromRequestParts<S> for ApiKey
where
    S: Send + Sync,
    ApiKeys: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let key = token(&parts.headers).ok_or_else(|| {
            Problem::new(Code::Unauthorized).message("send an API key as `Authorization: Bearer pfk_…`")
        })?;
        Ok(Self(ApiKeys::from_ref(state).recognise(key, SystemTime::now()).await?))
    }
}

/// A program that does jobs of some kinds, for every tenant.
#[derive(Clone)]
pub struct Worker {
    /// The kinds of job it may do, at least one.
    pub kinds: Vec<Arc<str>>,
    /// Its key's id, which names it among the workers.
    pub id: String,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("id", &self.id).field("kinds", &self.kinds).finish()
    }
}

impl<S> FromRequestParts<S> for Worker
where
    S: Send + Sync,
    ApiKeys: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let ApiKey(bearer) = ApiKey::from_request_parts(parts, state).await?;
        let kinds = bearer.kinds();
        // A user's key never has such a scope; the look at the owner keeps it so whatever a record says.
        if kinds.is_empty() || bearer.user().is_some() {
            return Err(lacks("worker:<kind>").into());
        }
        Ok(Self { kinds, id: bearer.id })
    }
}

/// Somebody who may see or change their own jobs: signed in, or with a key of theirs with the scope `jobs` (or
/// `jobs:read`, to see).
#[derive(Debug, Clone)]
pub struct JobOwner {
    /// The account.
    pub user: UserId,
    /// Whether it may speak for other accounts. A key never does, even an admin's.
    pub is_admin: bool,
}

impl JobOwner {
    /// Where the caller's jobs are.
    pub fn tenant(&self) -> TenantId {
        TenantId::personal(&self.user)
    }
}

impl<S> FromRequestParts<S> for JobOwner
where
    S: Send + Sync,
    ApiKeys: FromRef<S>,
    Verifier: FromRef<S>,
    Tenancy: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let token = token(&parts.headers).ok_or_else(|| Problem::new(Code::Unauthorized))?;
        if !token.starts_with(api_keys::PREFIX) {
            let AuthUser { principal, .. } = AuthUser::from_request_parts(parts, state).await?;
            return Ok(Self { is_admin: principal.role == Role::Admin, user: principal.user });
        }
        let bearer = ApiKeys::from_ref(state).recognise(token, SystemTime::now()).await?;
        let only_reads = matches!(parts.method, Method::GET | Method::HEAD);
        let suffices = |scope: &Scope| match scope {
            Scope::Jobs => true,
            Scope::JobsRead => only_reads,
            Scope::Worker(_) => false,
        };
        match bearer.user() {
            Some(user) if bearer.scopes.iter().any(suffices) => Ok(Self { user: user.clone(), is_admin: false }),
            _ => Err(lacks("jobs").into()),
        }
    }
}

fn lacks(scope: &str) -> Problem {
    Problem::new(Code::Forbidden).message(format!("this API key lacks the scope {scope}"))
}
