//! `/`: says what this is to a person with a browser, and to a program that asks for JSON.

use axum::Json;
use axum::http::HeaderMap;
use axum::http::header;
use axum::response::Html;
use axum::response::IntoResponse;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;

const TAGLINE: &str = "One private PocketBase for every user, behind one URL.";
const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem}\
code{background:#8882;padding:.1em .3em;border-radius:.2em}@media(prefers-color-scheme:dark){\
body{background:#111;color:#eee}a{color:#8cf}}";

/// Links for the curious, path and what is there.
const LINKS: [(&str, &str); 6] = [
    ("/app", "your meetings: the page for people"),
    ("/openapi.json", "the API, as an OpenAPI document"),
    ("/health", "whether the process runs"),
    ("/ready", "whether it takes requests"),
    ("/health/pb", "the instances in numbers"),
    ("/metrics", "metrics in OpenMetrics text"),
];

/// The route.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(welcome))
}

/// What this is.
#[derive(Serialize, ToSchema)]
struct Welcome {
    #[schema(example = "pocketfleet")]
    name: &'static str,
    #[schema(example = "0.1.0")]
    version: &'static str,
    description: &'static str,
    /// Paths worth a look.
    links: Vec<&'static str>,
}

/// What this is, as HTML for browsers and as JSON for everybody else.
#[utoipa::path(get, path = "/", tag = "operators",
    responses((status = 200, description = "Name, version and links.", body = Welcome)))]
async fn welcome(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("text/html") {
        let policy = format!("default-src 'none'; style-src '{}'; frame-ancestors 'none'", style_source());
        ([(header::CONTENT_SECURITY_POLICY, policy), (header::VARY, "accept".to_owned())], Html(page())).into_response()
    } else {
        let links = LINKS.iter().map(|(path, _)| *path).collect();
        let welcome = Welcome { name: "pocketfleet", version: env!("CARGO_PKG_VERSION"), description: TAGLINE, links };
        ([(header::VARY, "accept")], Json(welcome)).into_response()
    }
}

/// The only style the page may carry, by its hash.
fn style_source() -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(STYLE)))
}

fn page() -> String {
    use std::fmt::Write;
    let mut list = String::new();
    for (path, what) in LINKS {
        // Writing to a string cannot fail.
        let _ = write!(list, "<li><a href=\"{path}\"><code>{path}</code></a> {what}</li>");
    }
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>pocketfleet</title><style>{STYLE}</style><h1>pocketfleet {}</h1>\
         <p>{TAGLINE}</p><p>Point a PocketBase SDK at this URL: <code>new PocketBase(\"http://this-host\")</code>. \
         Register with <code>POST /api/v1/auth/register</code>.</p><ul>{list}</ul></html>",
        env!("CARGO_PKG_VERSION")
    )
}
