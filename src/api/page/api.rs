//! The API as the page calls it: the same router that programs reach, asked in this process with the user's own token.
//!
//! So the page has no rights and no rules of its own. Whatever it can do, a program with that token can do; whatever
//! the API refuses, the page shows as the reason.

use axum::Router;
use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::Request;
use axum::http::StatusCode;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Limited;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tower::ServiceExt;

use crate::error::Code;
use crate::error::Problem;
use crate::gateway;

/// The largest answer that is read: a transcript of a whole day is a tenth of it.
const LARGEST: usize = 64 << 20;

/// The API's router.
#[derive(Debug, Clone)]
pub(super) struct Api(Router);

impl Api {
    pub(super) fn new(router: Router) -> Self {
        Self(router)
    }

    /// The API for whoever sent a request, with a token or without.
    pub(super) fn caller(&self, parts: &Parts, token: Option<&str>) -> Caller {
        let authorization = token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
        Caller {
            router: self.0.clone(),
            authorization: authorization.map(|mut value| {
                value.set_sensitive(true);
                value
            }),
            agent: parts.headers.get(header::USER_AGENT).cloned(),
            ip: parts.extensions.get().copied(),
            id: parts.extensions.get().cloned(),
        }
    }
}

/// The API, for one caller.
#[derive(Clone)]
pub(super) struct Caller {
    router: Router,
    authorization: Option<HeaderValue>,
    agent: Option<HeaderValue>,
    ip: Option<gateway::ClientIp>,
    id: Option<gateway::RequestId>,
}

impl Caller {
    /// Reads something.
    pub(super) async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.call(Method::GET, path, None).await
    }

    /// Sends something; the answer is read as `T`, and an empty one as `null`.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<T, Problem> {
        self.call(method, path, Some(body)).await
    }

    /// Makes something; whether it is new.
    pub(super) async fn make(&self, path: &str, body: Value) -> Result<bool, Problem> {
        let (status, _) = self.ask(Method::POST, path, Some(body)).await?;
        Ok(status == StatusCode::CREATED)
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Value>) -> Result<T, Problem> {
        let (_, bytes) = self.ask(method, path, body).await?;
        let bytes = if bytes.is_empty() { &b"null"[..] } else { &bytes };
        serde_json::from_slice(bytes).map_err(|error| unread(path, &error))
    }

    /// A file, passed on while it is read.
    pub(super) async fn file(&self, path: &str) -> Result<Response, Problem> {
        self.answer(Method::GET, path, None).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<(StatusCode, Bytes), Problem> {
        let (parts, body) = self.answer(method, path, body).await?.into_parts();
        let read = Limited::new(body, LARGEST).collect().await.map_err(|error| unread(path, &error))?;
        Ok((parts.status, read.to_bytes()))
    }

    async fn answer(&self, method: Method, path: &str, body: Option<Value>) -> Result<Response, Problem> {
        let mut request = Request::builder().method(method).uri(path);
        let named = [(header::AUTHORIZATION, &self.authorization), (header::USER_AGENT, &self.agent)];
        for (name, value) in named.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
            request = request.header(name, value);
        }
        if let Some(ip) = self.ip {
            request = request.extension(ip);
        }
        if let Some(id) = &self.id {
            request = request.extension(id.clone());
        }
        let body = match body {
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        // What people type is encoded before it gets here; a path that is none all the same leads nowhere.
        let request = request.body(body).map_err(|_| Problem::new(Code::NotFound))?;
        let mut response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            return Err(problem);
        }
        if !response.status().is_success() {
            let code = match response.status() {
                StatusCode::NOT_FOUND => Code::NotFound,
                status if status.is_client_error() => Code::InvalidRequest,
                _ => Code::Internal,
            };
            return Err(Problem::new(code));
        }
        Ok(response)
    }
}

/// The API and the page disagree, which is our fault.
fn unread(path: &str, error: &dyn std::fmt::Display) -> Problem {
    let path = path.split('?').next().unwrap_or_default();
    tracing::error!(%error, path, "the page cannot read an answer of the API");
    Problem::new(Code::Internal)
}

/// A text as one part of a path, or as a value in a query.
pub(super) fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;
    use axum::routing::get;
    use serde_json::json;

    use super::*;
    use crate::api::error::ApiError;

    fn caller(token: Option<&str>) -> Caller {
        let router = Router::new()
            .route(
                "/me",
                get(|headers: HeaderMap| async move {
                    let sent = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
                    axum::Json(json!({ "sent": sent }))
                })
                .delete(|| async { StatusCode::NO_CONTENT }),
            )
            .route("/no", get(|| async { ApiError(Problem::new(Code::Conflict).message("not now")) }))
            .route("/plain", get(|| async { (StatusCode::BAD_REQUEST, "no") }))
            .route("/odd", get(|| async { "not JSON" }));
        let (parts, ()) = Request::get("/app").body(()).unwrap().into_parts();
        Api::new(router).caller(&parts, token)
    }

    #[tokio::test]
    async fn the_token_goes_along_and_problems_come_back_as_they_are() {
        let answer: Value = caller(Some("t")).read("/me").await.unwrap();
        assert_eq!(answer, json!({"sent": "Bearer t"}));
        let answer: Value = caller(None).read("/me").await.unwrap();
        assert_eq!(answer, json!({"sent": null}));
        let none: Option<Value> = caller(None).send(Method::DELETE, "/me", json!({})).await.unwrap();
        assert_eq!(none, None);
        let problem = caller(None).read::<Value>("/no").await.unwrap_err();
        assert_eq!((problem.code, &*problem.message), (Code::Conflict, "not now"));
        assert_eq!(caller(None).read::<Value>("/plain").await.unwrap_err().code, Code::InvalidRequest);
        assert_eq!(caller(None).read::<Value>("/odd").await.unwrap_err().code, Code::Internal);
    }

    #[test]
    fn what_people_type_stays_within_its_place() {
        assert_eq!(encoded("../a?b&c=d é"), "%2E%2E%2Fa%3Fb%26c%3Dd%20%C3%A9");
    }
}
