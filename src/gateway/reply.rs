//! Our own errors as answers, in the shape that the path's readers understand.

use bytes::Bytes;
use hyper::Response;
use hyper::StatusCode;
use hyper::header;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;

use super::body::Body;
use super::security::secure;
use crate::error::Code;
use crate::error::Problem;
use crate::error::Shape;

/// Marks an answer as ours, with the code; an instance's own errors do not carry it.
const X_POCKETFLEET_ERROR: HeaderName = HeaderName::from_static("x-pocketfleet-error");

/// The answer that says `problem`.
pub(crate) fn reply(problem: &Problem, shape: Shape, request_id: &str) -> Response<Body> {
    let value = shape.body(problem, request_id);
    let mut response = Response::new(Body::Full(Bytes::from(value.to_string())));
    *response.status_mut() = StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    secure(headers);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_POCKETFLEET_ERROR, HeaderValue::from_static(problem.code.as_str()));
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
}
