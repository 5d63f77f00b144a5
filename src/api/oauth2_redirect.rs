//! Where another service sends the browser back to after a sign-in there: `PocketBase`'s SDKs open it in a window of
//! its own and wait for the outcome on a realtime connection, whose client id they gave the service as `state`.
//!
//! The outcome goes to whoever holds that connection, if the window is on the same network: a link that somebody else
//! made, with their own client id in it, brings them nothing. The window is told whether it can be closed. Nothing of what
//! came with the request is in the page.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::RawQuery;
use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::account_pages::page;
use crate::api::extractors::ClientInfo;
use crate::api::fields::Fields;
use crate::api::fields::encoded;

/// Longest of the values that are passed on, in bytes.
const LONGEST: usize = 4096;

const DONE: &str = include_str!("../../assets/account/oauth2-done.html");
const FAILED: &str = include_str!("../../assets/account/oauth2-failed.html");

/// Of the window's address, `state`, `code` and `error`; whether somebody waited.
type Function = dyn Fn(IpAddr, &str, &str, &str) -> bool + Send + Sync;

/// Hands the outcome of a sign-in at another service to the realtime connection that waits for it.
#[derive(Clone)]
pub struct Deliver(Arc<Function>);

impl Deliver {
    /// By this function of the window's address, `state`, `code` and `error` (one of the last two is empty). It says
    /// whether somebody waited.
    pub fn new(deliver: impl Fn(IpAddr, &str, &str, &str) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(deliver))
    }

    /// To nobody.
    pub fn nowhere() -> Self {
        Self::new(|_, _, _, _| false)
    }
}

impl fmt::Debug for Deliver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deliver").finish_non_exhaustive()
    }
}

/// The routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(oauth2_redirect, oauth2_redirect_form))
}

/// Ends a sign-in at another service.
#[utoipa::path(get, path = "/api/oauth2-redirect", tag = "pocketbase",
    params(("state" = Option<String>, Query, description = "Who waits for the outcome."),
        ("code" = Option<String>, Query, description = "What the SDK exchanges for a token."),
        ("error" = Option<String>, Query, description = "Why there is no code.")),
    responses((status = 200, description = "A page that says that the window can be closed.", body = String,
        content_type = "text/html")))]
async fn oauth2_redirect(
    State(deliver): State<Deliver>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
) -> Response {
    let fields = encoded(query.as_deref().unwrap_or_default()).map(Fields).ok();
    finish(&deliver, client.ip, fields.as_ref())
}

/// Ends a sign-in at another service that sends a form, as Apple does.
#[utoipa::path(post, path = "/api/oauth2-redirect", tag = "pocketbase",
    request_body(content = Object, description = "`state`, and `code` or `error`, as a form."),
    responses((status = 200, description = "A page that says that the window can be closed.", body = String,
        content_type = "text/html")))]
async fn oauth2_redirect_form(
    State(deliver): State<Deliver>,
    ClientInfo(client): ClientInfo,
    fields: Result<Fields, crate::api::error::ApiError>,
) -> Response {
    finish(&deliver, client.ip, fields.ok().as_ref())
}

fn finish(deliver: &Deliver, from: IpAddr, fields: Option<&Fields>) -> Response {
    let text = |name: &str| {
        let text = fields.and_then(|fields| fields.text(name).ok()).unwrap_or_default();
        if text.len() <= LONGEST { text } else { "" }
    };
    let (state, code, error) = (text("state"), text("code"), text("error"));
    let delivered = !state.is_empty() && (deliver.0)(from, state, code, error);
    page(if delivered && error.is_empty() && !code.is_empty() { DONE } else { FAILED })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http_body_util::BodyExt;
    use serde_json::json;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn text(response: Response) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn the_outcome_goes_to_who_waits_and_never_into_the_page() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let deliver = Deliver::new({
            let seen = Arc::clone(&seen);
            move |_, state, code, error| {
                seen.lock().unwrap().push([state, code, error].map(str::to_owned));
                state == "client1"
            }
        });
        for (fields, page) in [
            (json!({"state": "client1", "code": "c0de"}), DONE),
            (json!({"state": "client1", "error": "<script>"}), FAILED),
            (json!({"state": "client1"}), FAILED),
            (json!({"state": "stranger", "code": "c0de"}), FAILED),
        ] {
            let fields = Fields(fields.as_object().cloned().unwrap());
            assert_eq!(text(finish(&deliver, HERE, Some(&fields))).await, page, "{fields:?}");
        }
        assert_eq!(seen.lock().unwrap().len(), 4);
        let endless = Fields(json!({"state": "x".repeat(LONGEST + 1), "code": "c"}).as_object().cloned().unwrap());
        for nothing in [None, Some(&endless)] {
            assert_eq!(text(finish(&deliver, HERE, nothing)).await, FAILED);
        }
        assert_eq!(seen.lock().unwrap().len(), 4, "nobody is asked for an empty state");
    }
}
