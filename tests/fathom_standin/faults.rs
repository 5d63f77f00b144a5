//! Single calls that fail in a chosen way.

use std::time::Duration;

use axum::body::Body;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use hyper::StatusCode;
use hyper::header;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;

/// How a call fails.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A status, with `Retry-After` if given.
    Status { status: u16, retry_after: Option<u64> },
    /// 429 that says nothing of when to come back.
    NoHeaders429,
    /// 200 with something that is no JSON.
    Malformed,
    /// The answer without a field (of each item, where it is a list).
    MissingField { field: String },
    /// The answer with something else in a field (of each item, where it is a list).
    SetField { field: String, value: Value },
    /// Half the body, then the connection is cut.
    ShortBody,
    /// No body at all: cut at once.
    Drop,
    /// The download says another size than the media has.
    WrongSize,
    /// 302 to a place of this machine.
    RedirectLoopback { to: Option<String> },
    /// The answer after a while.
    Slow { ms: u64 },
    /// An answer that never comes to its end.
    Stall,
    /// The signed link is over.
    ExpiredLink,
    /// The download failed.
    FailedDownload,
    /// The download expired.
    ExpiredDownload,
    /// The page's cursor is its own.
    RepeatCursor,
}

/// A fault that waits for its call.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Fault {
    /// Path below the API's base, or of the media; `*` stands for one segment, or at the end for the rest.
    pub(crate) path: String,
    /// Only this method.
    pub(crate) method: Option<String>,
    /// How many matching calls pass first, plus one.
    #[serde(default = "one")]
    pub(crate) nth: u64,
    /// How many calls fail then.
    #[serde(default = "one")]
    pub(crate) times: u64,
    #[serde(flatten)]
    pub(crate) kind: Kind,
}

fn one() -> u64 {
    1
}

fn matches(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut found) = (pattern.split('/').peekable(), path.split('/'));
    while let Some(segment) = wanted.next() {
        let Some(there) = found.next() else { return false };
        if segment == "*" && wanted.peek().is_none() {
            return true;
        }
        if segment != "*" && segment != there {
            return false;
        }
    }
    found.next().is_none()
}

/// The fault of this call, if one is due; counts it.
pub(crate) fn due(faults: &mut Vec<Fault>, method: &str, path: &str) -> Option<Kind> {
    let mut found = None;
    for fault in faults.iter_mut() {
        if fault.method.as_deref().is_some_and(|wanted| wanted != method) || !matches(&fault.path, path) {
            continue;
        }
        if fault.nth > 1 {
            fault.nth -= 1;
        } else if found.is_none() && fault.times > 0 {
            fault.times -= 1;
            found = Some(fault.kind.clone());
        }
    }
    faults.retain(|fault| fault.times > 0);
    found
}

/// What answers instead of the call, where the fault needs nothing of it.
pub(crate) fn instead(kind: &Kind, base: &str) -> Option<Response> {
    match kind {
        Kind::Status { status, retry_after } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = (status, "a fault that was asked for").into_response();
            if let Some(value) = retry_after.and_then(|seconds| seconds.to_string().parse().ok()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
            Some(response)
        }
        Kind::NoHeaders429 => Some(StatusCode::TOO_MANY_REQUESTS.into_response()),
        Kind::Malformed => Some(([(header::CONTENT_TYPE, "application/json")], "{\"items\": [{\"oops").into_response()),
        Kind::RedirectLoopback { to } => {
            let to = to.clone().unwrap_or_else(|| format!("{}/_control/calls", base.replace("127.0.0.1", "127.0.0.2")));
            Some((StatusCode::FOUND, [(header::LOCATION, to)]).into_response())
        }
        Kind::ExpiredLink => Some(StatusCode::FORBIDDEN.into_response()),
        Kind::Drop => Some(cut(Bytes::new(), 1000)),
        Kind::Stall => Some(stalled()),
        _ => None,
    }
}

/// What a fault makes of an answer.
pub(crate) fn change(kind: &Kind, answer: &mut Value) {
    let has_items = answer["items"].is_array();
    let mut each = |edit: &dyn Fn(&mut Value)| match answer["items"].as_array_mut() {
        Some(items) if has_items => items.iter_mut().for_each(edit),
        _ => edit(answer),
    };
    match kind {
        Kind::MissingField { field } => each(&|value| {
            value.as_object_mut().map(|object| object.remove(field));
        }),
        Kind::SetField { field, value: new } => each(&|value| value[field] = new.clone()),
        Kind::WrongSize => {
            if let Some(size) = answer["video"]["file_size_bytes"].as_u64() {
                answer["video"]["file_size_bytes"] = json!(size + 1);
            }
        }
        _ => {}
    }
}

/// An answer that promises `missing` more bytes than it has, and is cut.
pub(crate) fn cut(part: Bytes, missing: usize) -> Response {
    let length = part.len() + missing;
    let pieces: [Result<Bytes, std::io::Error>; 2] = [Ok(part), Err(std::io::Error::other("cut"))];
    let mut response = Response::new(Body::from_stream(stream::iter(pieces)));
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn stalled() -> Response {
    Response::new(Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()))
}

pub(crate) async fn wait(kind: Option<&Kind>) {
    if let Some(Kind::Slow { ms }) = kind {
        tokio::time::sleep_until(Instant::now() + Duration::from_millis(*ms)).await;
    }
}
