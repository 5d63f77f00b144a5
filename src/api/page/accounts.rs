//! Register, sign in, sign out.

use askama::Template;
use axum::extract::FromRequestParts;
use axum::extract::Query;
use axum::extract::Request;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::HeaderValue;
use axum::http::Method;
use axum::http::StatusCode;
use axum::http::header;
use axum::middleware::Next;
use axum::response::AppendHeaders;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use crate::api::error::status_of;
use crate::api::page::PageState;
use crate::api::page::Params;
use crate::api::page::api::Caller;
use crate::api::page::fields::Fields;
use crate::api::page::layout;
use crate::api::page::layout::Frame;
use crate::api::page::layout::Notice;
use crate::api::page::session;
use crate::api::page::session::Stranger;
use crate::api::page::session::Visitor;
use crate::api::session_cookie;
use crate::error::Code;
use crate::error::Problem;

#[derive(Template)]
#[template(path = "app/sign_in.html")]
struct SignInPage {
    frame: Frame,
    email: String,
}

#[derive(Template)]
#[template(path = "app/register.html")]
struct RegisterPage {
    frame: Frame,
    email: String,
    name: String,
}

/// The form to sign in.
pub(super) async fn sign_in_page(stranger: Stranger, Query(params): Params) -> Response {
    if stranger.is_signed_in {
        return Redirect::to("/app").into_response();
    }
    let notice = Notice::said(params.get("said").map(String::as_str));
    let frame = Frame::new("Sign in", "", notice);
    layout::page(StatusCode::OK, &SignInPage { frame, email: String::new() })
}

/// The form to register.
pub(super) async fn register_page(stranger: Stranger) -> Response {
    if stranger.is_signed_in {
        return Redirect::to("/app").into_response();
    }
    let frame = Frame::new("Create an account", "", None);
    layout::page(StatusCode::OK, &RegisterPage { frame, email: String::new(), name: String::new() })
}

/// Signs in.
pub(super) async fn sign_in(stranger: Stranger, headers: HeaderMap, fields: Fields) -> Response {
    let email = fields.text("email");
    match session_of(&stranger.api, email, fields.exact("password"), &headers, "/app").await {
        Ok(response) => response,
        Err(mut problem) => {
            if problem.code == Code::MfaRequired {
                problem = problem.message(
                    "this account needs a second factor, which this page does not ask for yet; use the API or an SDK",
                );
            }
            let frame = Frame::new("Sign in", "", Some(Notice::problem(&problem)));
            layout::page(status_of(problem.code), &SignInPage { frame, email: email.to_owned() })
        }
    }
}

/// Registers, and signs in with the same words.
pub(super) async fn register(stranger: Stranger, headers: HeaderMap, fields: Fields) -> Response {
    let (email, name, password) = (fields.text("email"), fields.text("name"), fields.exact("password"));
    let mut body = json!({ "email": email, "password": password });
    if !name.is_empty() {
        body["name"] = Value::from(name);
    }
    let made = stranger.api.send::<Value>(Method::POST, "/api/v1/auth/register", body).await;
    let done = match made {
        Ok(_) => session_of(&stranger.api, email, password, &headers, "/app?said=welcome").await,
        Err(problem) => Err(problem),
    };
    done.unwrap_or_else(|problem| {
        let frame = Frame::new("Create an account", "", Some(Notice::problem(&problem)));
        let page = RegisterPage { frame, email: email.to_owned(), name: name.to_owned() };
        layout::page(status_of(problem.code), &page)
    })
}

/// Signs out: the session ends, not only the cookie.
pub(super) async fn sign_out(visitor: Result<Visitor, Response>) -> Response {
    if let Ok(visitor) = visitor
        && let Err(problem) = visitor.api.send::<Value>(Method::POST, "/api/v1/auth/logout", Value::Null).await
        && problem.code != Code::Unauthorized
    {
        return layout::failure(&problem);
    }
    let [plain, host] = session_cookie::clear();
    (
        AppendHeaders([(header::SET_COOKIE, plain), (header::SET_COOKIE, host)]),
        Redirect::to("/app/sign-in?said=signed-out"),
    )
        .into_response()
}

#[derive(Deserialize)]
struct SignedIn {
    token: String,
}

async fn session_of(
    api: &Caller,
    email: &str,
    password: &str,
    headers: &HeaderMap,
    next: &'static str,
) -> Result<Response, Problem> {
    let body = json!({ "email": email, "password": password });
    let SignedIn { token } = api.send(Method::POST, "/api/v1/auth/login", body).await?;
    let cookie = session::set_cookie(&token, session::is_https(headers), OffsetDateTime::now_utc())
        .ok_or_else(|| Problem::new(Code::Internal))?;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to(next)).into_response())
}

/// The middleware that lets a session go on while it is used: with a change that is made after half of its time, its
/// token is exchanged for a fresh one. Only then, because only such requests say whether they came over https.
pub(super) async fn renewing(State(state): State<PageState>, request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let visitor = Visitor::from_request_parts(&mut parts, &state).await.ok();
    let is_https = session::is_https(&parts.headers);
    let mut response = next.run(Request::from_parts(parts, body)).await;
    // Who just signed in or out has what they need.
    if let Some(visitor) = visitor
        && !response.headers().contains_key(header::SET_COOKIE)
        && let Some(cookie) = renewed(&visitor, is_https).await
    {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

#[derive(Deserialize)]
struct Session {
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
}

impl Session {
    fn is_half_over(&self, now: OffsetDateTime) -> bool {
        now - self.created_at > self.expires_at - now
    }
}

/// The session's cookie with a fresh token; `None` while the old one will do.
async fn renewed(visitor: &Visitor, is_https: bool) -> Option<HeaderValue> {
    let now = OffsetDateTime::now_utc();
    let session: Session = visitor.api.read("/api/v1/auth/sessions/current").await.ok()?;
    if !session.is_half_over(now) {
        return None;
    }
    let SignedIn { token } = visitor.api.send(Method::POST, "/api/v1/auth/refresh", Value::Null).await.ok()?;
    session::set_cookie(&token, is_https, now)
}

#[cfg(test)]
mod tests {
    use time::Duration;

    use super::*;

    #[test]
    fn a_session_is_renewed_in_the_second_half_of_its_time() {
        let start = OffsetDateTime::UNIX_EPOCH;
        let session = Session { created_at: start, expires_at: start + Duration::days(14) };
        assert!(!session.is_half_over(start + Duration::days(6)));
        assert!(session.is_half_over(start + Duration::days(8)));
    }
}
