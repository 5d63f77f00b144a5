//! Bodies and query strings, read so that every refusal is a [`Problem`]: the wrong content type, broken JSON, a
//! field of the wrong type, too many bytes, a body that never ends.
//!
//! Messages never quote a value from the body, which may be a password. Nesting is bounded by the parser (128).

use std::time::Duration;

use axum::body::Body;
use axum::body::HttpBody;
use axum::extract::FromRef;
use axum::extract::FromRequest;
use axum::extract::FromRequestParts;
use axum::extract::Query;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header;
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::LengthLimitError;
use http_body_util::Limited;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::json;

use crate::api::AccountBodies;
use crate::api::Limits;
use crate::api::error::ApiError;
use crate::error::Code;
use crate::error::Problem;

/// How long a JSON body may take to arrive.
pub(crate) const JSON_TIME: Duration = Duration::from_secs(30);
/// Largest body that is a list or a result, in bytes.
const BULK_BYTES: usize = 1 << 20;
/// How long a sign-up with an avatar may take to arrive.
const ACCOUNT_TIME: Duration = Duration::from_secs(30);

/// A JSON body of type `T`, at most `server.max_json_bytes` long.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
    Limits: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(not_json().into());
        }
        let body = read(request.into_body(), Limits::from_ref(state).json, JSON_TIME).await?;
        parse(&body).map(Self).map_err(ApiError)
    }
}

/// A JSON body of type `T` that may be a list or a result: up to 1 MiB (or `server.max_account_bytes`, if that is less),
/// for callers who have shown who they are before it is read.
#[derive(Debug, Clone, Copy)]
pub struct Bulk<T>(pub T);

impl<S, T> FromRequest<S> for Bulk<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
    Limits: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(not_json().into());
        }
        let limits = Limits::from_ref(state);
        let body = read(request.into_body(), BULK_BYTES.min(limits.json.max(limits.account)), JSON_TIME).await?;
        parse(&body).map(Self).map_err(ApiError)
    }
}

/// The bytes of a body of any type, at most `server.max_account_bytes` long.
#[derive(Debug, Clone)]
pub struct AccountBody(pub Bytes);

impl<S> FromRequest<S> for AccountBody
where
    S: Send + Sync,
    Limits: FromRef<S>,
    AccountBodies: FromRef<S>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let AccountBodies(room) = AccountBodies::from_ref(state);
        let Ok(_room) = room.try_acquire() else {
            return Err(Problem::new(Code::Overloaded).retry_after(Duration::from_secs(2)).into());
        };
        Ok(Self(read(request.into_body(), Limits::from_ref(state).account, ACCOUNT_TIME).await?))
    }
}

/// A query string of type `T`.
#[derive(Debug, Clone, Copy)]
pub struct Params<T>(pub T);

impl<S, T> FromRequestParts<S> for Params<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let Query(params) = Query::<T>::try_from_uri(&parts.uri).map_err(|_| {
            Problem::new(Code::InvalidRequest).message("a query parameter is not what this route takes")
        })?;
        Ok(Self(params))
    }
}

/// A field that is not valid, in the form that `PocketBase` uses too: `{field: {code, message}}`.
pub fn invalid_field(field: &str, code: &'static str, message: &'static str) -> Problem {
    Problem::new(Code::ValidationFailed).details(json!({ field: { "code": code, "message": message } }))
}

fn not_json() -> Problem {
    Problem::new(Code::InvalidBody).message("send the body as JSON, with `Content-Type: application/json`")
}

pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let media = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media == "application/json" || (media.starts_with("application/") && media.ends_with("+json"))
}

/// Collects a body, refusing it as soon as it is known to be too long.
pub(crate) async fn read(body: Body, limit: usize, time: Duration) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Code::BodyTooLarge).details(json!({ "limit_bytes": limit }));
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(time, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Problem::new(Code::InvalidBody).message("the body broke off")),
        Err(_) => Err(Problem::new(Code::InvalidBody).message("the body took too long to arrive")),
    }
}

pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let place = json!({ "line": error.line(), "column": error.column() });
        let problem = Problem::new(Code::InvalidBody).details(place);
        match error.classify() {
            Category::Data => problem.message(without_values(&error.to_string())),
            Category::Eof if body.is_empty() => problem.message("the body is empty; this route takes JSON"),
            Category::Syntax | Category::Eof | Category::Io => problem.message("the body is not valid JSON"),
        }
    })
}

/// A value that was read already, as a type.
pub(crate) fn convert<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Problem> {
    serde_json::from_value(value)
        .map_err(|error| Problem::new(Code::InvalidBody).message(without_values(&error.to_string())))
}

/// The parser's message where it speaks of fields only; one that quotes a value is replaced.
fn without_values(message: &str) -> String {
    let fields_only =
        ["missing field", "unknown field", "duplicate field"].iter().any(|start| message.starts_with(start));
    if fields_only {
        let text = message.rsplit_once(" at line ").map_or(message, |(text, _)| text);
        text.chars().filter(|c| !c.is_control()).take(200).collect()
    } else {
        "a field of the body has the wrong type".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Login {
        #[serde(alias = "identity")]
        email: String,
        #[expect(dead_code, reason = "read by the parser only")]
        password: String,
    }

    #[derive(Clone)]
    struct State;

    impl FromRef<State> for Limits {
        fn from_ref(_: &State) -> Self {
            Self { json: 100, account: 100 }
        }
    }

    async fn send(content_type: &str, body: Body) -> Result<Login, Problem> {
        let request = Request::post("/").header("content-type", content_type).body(body).unwrap();
        Json::<Login>::from_request(request, &State).await.map(|Json(login)| login).map_err(|error| error.0)
    }

    #[tokio::test]
    async fn json_is_read_and_aliases_count_as_the_field() {
        let login =
            send("application/json; charset=utf-8", r#"{"identity":"a@b.c","password":"p"}"#.into()).await.unwrap();
        assert_eq!(login.email, "a@b.c");
        let twice =
            send("application/json", r#"{"identity":"a","email":"b","password":"p"}"#.into()).await.unwrap_err();
        assert_eq!((twice.code, &*twice.message), (Code::InvalidBody, "duplicate field `email`"));
    }

    #[tokio::test]
    async fn every_refusal_says_what_is_wrong_and_quotes_no_value() {
        for (content_type, body, message) in [
            ("text/plain", "{}", "send the body as JSON, with `Content-Type: application/json`"),
            ("application/json", "", "the body is empty; this route takes JSON"),
            ("application/json", "{\"email\":", "the body is not valid JSON"),
            ("application/json", "nonsense", "the body is not valid JSON"),
            ("application/json", "{\"email\":\"a\"}", "missing field `password`"),
            (
                "application/json",
                "{\"email\":\"a\",\"role\":1}",
                "unknown field `role`, expected one of `email`, `identity`, `password`",
            ),
            ("application/json", "{\"email\":\"a\",\"password\":98765}", "a field of the body has the wrong type"),
            ("application/json", "\"hunter2\"", "a field of the body has the wrong type"),
        ] {
            let problem = send(content_type, body.into()).await.unwrap_err();
            assert_eq!((problem.code, &*problem.message), (Code::InvalidBody, message), "{body}");
        }
    }

    #[tokio::test]
    async fn a_long_body_is_refused_by_its_length_and_by_its_bytes() {
        let declared = send("application/json", vec![b' '; 101].into()).await.unwrap_err();
        assert_eq!(declared.code, Code::BodyTooLarge);
        let chunks = stream::iter((0..50).map(|_| Ok::<_, Infallible>(Bytes::from_static(b"   "))));
        let streamed = send("application/json", Body::from_stream(chunks)).await.unwrap_err();
        assert_eq!((streamed.code, &streamed.details["limit_bytes"]), (Code::BodyTooLarge, &json!(100)));
    }

    #[test]
    fn deep_nesting_is_refused_without_deep_recursion() {
        let deep = "[".repeat(100_000);
        assert_eq!(parse::<serde_json::Value>(deep.as_bytes()).unwrap_err().code, Code::InvalidBody);
    }
}
