//! The pages that links in mails lead to: verify an address, set a new password, confirm a new address. They use the
//! public API like any front end; operators with one of their own set `accounts.*_url` instead.
//!
//! The token stands in the address's fragment, which browsers send to nobody, and the script takes it out of the
//! address before it does anything else. Nothing happens without a click: mail scanners follow links.

use axum::http::HeaderValue;
use axum::http::header;
use axum::response::Html;
use axum::response::IntoResponse;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;

/// Scripts and styles from here only, calls to here only, no frames.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(verify))
        .routes(routes!(reset_password))
        .routes(routes!(change_email))
        .routes(routes!(script))
        .routes(routes!(close_script))
        .routes(routes!(style))
}

/// An HTML page under a strict policy.
pub(crate) fn page(html: &'static str) -> Response {
    ([(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))], Html(html)).into_response()
}

fn asset(content_type: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, content_type), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

/// The page that verifies an address.
#[utoipa::path(get, path = "/account/verify", tag = "pages",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
async fn verify() -> Response {
    page(include_str!("../../assets/account/verify.html"))
}

/// The page that sets a new password.
#[utoipa::path(get, path = "/account/reset-password", tag = "pages",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
async fn reset_password() -> Response {
    page(include_str!("../../assets/account/reset-password.html"))
}

/// The page that confirms a new address.
#[utoipa::path(get, path = "/account/change-email", tag = "pages",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
async fn change_email() -> Response {
    page(include_str!("../../assets/account/change-email.html"))
}

/// What the pages do.
#[utoipa::path(get, path = "/account/pages.js", tag = "pages",
    responses((status = 200, description = "The script.", body = String, content_type = "text/javascript")))]
async fn script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("../../assets/account/pages.js"))
}

/// What closes the window of a sign-in at another service.
#[utoipa::path(get, path = "/account/close.js", tag = "pages",
    responses((status = 200, description = "The script.", body = String, content_type = "text/javascript")))]
async fn close_script() -> Response {
    asset("text/javascript; charset=utf-8", include_str!("../../assets/account/close.js"))
}

/// How the pages look.
#[utoipa::path(get, path = "/account/pages.css", tag = "pages",
    responses((status = 200, description = "The style sheet.", body = String, content_type = "text/css")))]
async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("../../assets/account/pages.css"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: [&str; 5] = [
        include_str!("../../assets/account/verify.html"),
        include_str!("../../assets/account/reset-password.html"),
        include_str!("../../assets/account/change-email.html"),
        include_str!("../../assets/account/oauth2-done.html"),
        include_str!("../../assets/account/oauth2-failed.html"),
    ];

    #[test]
    fn pages_carry_nothing_that_their_policy_would_stop() {
        for html in PAGES {
            assert!(html.starts_with("<!doctype html>") && html.contains("<html lang=\"en\">"), "{html}");
            for inline in ["<style", " style=", "<script>", " onclick", "javascript:", "http://", "https://"] {
                assert!(!html.contains(inline), "{inline} in {html}");
            }
        }
        let headers = page(PAGES[0]).headers()[header::CONTENT_SECURITY_POLICY].clone();
        assert!(!headers.to_str().unwrap().contains("unsafe"));
    }
}
