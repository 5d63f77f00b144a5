//! The frame around every answer of ours: catches panics, writes problems in the shape of the path, adds the
//! request's id and the security headers. It is the outermost layer, so that nothing leaves without it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderName;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::middleware::Next;
use axum::response::IntoResponse;
use axum::response::Response;
use futures_util::FutureExt;

use crate::api::error::ApiError;
use crate::api::error::status_of;
use crate::error::Code;
use crate::error::Problem;
use crate::error::Shape;
use crate::gateway::RequestId;
use crate::gateway::secure;

/// Marks an answer as an error of ours, not of an instance behind us; the value is the code.
pub const ERROR_HEADER: HeaderName = HeaderName::from_static("x-pocketfleet-error");

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The middleware.
pub async fn frame(mut request: Request, next: Next) -> Response {
    let id = name(&mut request);
    let shape = Shape::of(request.uri().path());
    let response = if let Ok(response) = AssertUnwindSafe(next.run(request)).catch_unwind().await {
        response
    } else {
        // The panic hook has written the message and the place; here is which request it was.
        tracing::error!(request.id = &*id, "a handler panicked");
        ApiError(Problem::new(Code::Internal)).into_response()
    };
    finish(response, shape, &id)
}

/// The request's id as the gateway gave it; requests that came past the gateway (control socket) get one here.
fn name(request: &mut Request) -> Arc<str> {
    if let Some(RequestId(id)) = request.extensions().get::<RequestId>() {
        return id.clone();
    }
    let id: Arc<str> = format!("{:032x}", rand::random::<u128>()).into();
    request.extensions_mut().insert(RequestId(id.clone()));
    id
}

/// Writes the problem, if there is one, and the headers.
fn finish(mut response: Response, shape: Shape, id: &str) -> Response {
    let problem = response.extensions_mut().remove::<Problem>().or_else(|| stray(&response));
    let mut response = match problem {
        Some(problem) => render(response, &problem, shape, id),
        None => response,
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.entry(REQUEST_ID).or_insert(value);
    }
    secure(headers);
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// An error that a library answered in plain text (a rejected path parameter, say) becomes one of ours, so that
/// callers meet two shapes and no third.
fn stray(response: &Response) -> Option<Problem> {
    let status = response.status();
    // A page of ours may be an error as well; libraries write plain text.
    let is_ours = response.headers().get(header::CONTENT_TYPE).is_some_and(|value| {
        [&b"application/json"[..], b"text/html"].iter().any(|ours| value.as_bytes().starts_with(ours))
    });
    if is_ours || !(status.is_client_error() || status.is_server_error()) {
        return None;
    }
    Some(Problem::new(match status {
        StatusCode::NOT_FOUND => Code::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
        other if other.is_client_error() => Code::InvalidRequest,
        _ => Code::Internal,
    }))
}

fn render(response: Response, problem: &Problem, shape: Shape, id: &str) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.status = status_of(problem.code);
    // The router has measured the empty body already.
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    parts.headers.insert(ERROR_HEADER, HeaderValue::from_static(problem.code.as_str()));
    if let Some(seconds) = problem.retry_after_seconds() {
        parts.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if parts.status == StatusCode::UNAUTHORIZED {
        parts.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    Response::from_parts(parts, Body::from(shape.body(problem, id).to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    #[expect(clippy::panic, reason = "the panic is what is tested")]
    async fn broken() -> &'static str {
        panic!("boom")
    }

    async fn busy() -> ApiError {
        ApiError(Problem::new(Code::Overloaded).retry_after(Duration::from_millis(1500)))
    }

    fn app() -> Router {
        Router::new()
            .route("/broken", get(broken))
            .route("/api/broken", get(broken))
            .route("/busy", get(busy))
            .route("/plain", get(|| async { (StatusCode::UNPROCESSABLE_ENTITY, "no") }))
            .route("/fine", get(|| async { "fine" }))
            .layer(axum::middleware::from_fn(frame))
    }

    async fn ask(path: &str) -> (axum::http::response::Parts, Value) {
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(RequestId("r-1".into()));
        let (parts, body) = app().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_in_the_shape_of_the_path() {
        let (parts, body) = ask("/broken").await;
        assert_eq!(parts.status, 500);
        assert_eq!(parts.headers[ERROR_HEADER], "INTERNAL_ERROR");
        assert_eq!(body["error"]["code"], "INTERNAL_ERROR");
        assert_eq!(body["error"]["request_id"], "r-1");
        let (_, body) = ask("/api/broken").await;
        assert_eq!(body["status"], 500);
        assert_eq!(body["request_id"], "r-1");
    }

    #[tokio::test]
    async fn limits_say_when_to_come_back_and_answers_carry_security_headers() {
        let (parts, _) = ask("/busy").await;
        assert_eq!((parts.status.as_u16(), parts.headers["retry-after"].to_str().unwrap()), (503, "2"));
        for path in ["/busy", "/fine"] {
            let (parts, _) = ask(path).await;
            assert_eq!(parts.headers["x-content-type-options"], "nosniff");
            assert_eq!(parts.headers["cache-control"], "no-store");
            assert_eq!(parts.headers["x-request-id"], "r-1");
        }
    }

    #[tokio::test]
    async fn errors_of_libraries_take_our_shape() {
        let (parts, body) = ask("/plain").await;
        assert_eq!(parts.status, 400);
        assert_eq!(body["error"]["code"], "INVALID_REQUEST");
        let (parts, body) = ask("/nowhere").await;
        assert_eq!((parts.status.as_u16(), &body["error"]["code"]), (404, &Value::from("NOT_FOUND")));
    }
}
