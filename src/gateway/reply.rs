//! Our own errors as answers, in the shape that the path's readers understand.

use bytes::Bytes;
use hyper::Response;
use hyper::StatusCode;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;

use super::body::Body;
use crate::error::Code;
use crate::error::Problem;

/// Marks an answer as ours, with the code; an instance's own errors do not carry it.
const X_POCKETFLEET_ERROR: HeaderName = HeaderName::from_static("x-pocketfleet-error");

/// The two shapes of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `{"error":{...}}`, for our own routes.
    Own,
    /// `{"status","message","data"}`, for `PocketBase`'s paths, whose readers are its SDKs.
    PocketBase,
}

impl Shape {
    /// The shape for a path that could not be routed.
    pub(crate) fn of(path: &str) -> Self {
        let pocketbase = path.starts_with("/api/") && !path.starts_with("/api/v1/");
        if pocketbase || path.starts_with("/_/") { Self::PocketBase } else { Self::Own }
    }
}

/// The answer that says `problem`.
pub(crate) fn reply(problem: &Problem, shape: Shape, request_id: &str) -> Response<Body> {
    let value = match shape {
        Shape::Own => problem.body(request_id),
        Shape::PocketBase => problem.pocketbase_body(request_id),
    };
    let mut response = Response::new(Body::Full(Bytes::from(value.to_string())));
    *response.status_mut() = StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_POCKETFLEET_ERROR, HeaderValue::from_static(problem.code.as_str()));
    headers.insert(
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("retry-after, x-request-id, x-pocketfleet-error"),
    );
    if let Some(seconds) = problem.retry_after_seconds() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if problem.code == Code::MethodNotAllowed {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn errors_carry_code_and_waiting_time() {
        let problem = Problem::new(Code::Overloaded).retry_after(Duration::from_millis(1_500));
        let response = reply(&problem, Shape::PocketBase, "id");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["x-pocketfleet-error"], "OVERLOADED");
        assert_eq!(response.headers()["retry-after"], "2");
        let Body::Full(body) = response.into_body() else { panic!("not a full body") };
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["status"], 503);
        assert!(value["data"].is_object());
    }

    #[test]
    fn unrouted_paths_have_the_shape_of_their_readers() {
        assert_eq!(Shape::of("/api/collections/x/../y"), Shape::PocketBase);
        assert_eq!(Shape::of("/_/../"), Shape::PocketBase);
        assert_eq!(Shape::of("/api/v1/x//"), Shape::Own);
        assert_eq!(Shape::of("//"), Shape::Own);
    }
}
