//! Puts the routers of the files together, and the frame around them.

use axum::Extension;
use axum::Router;
use axum::middleware::from_fn;
use bytes::Bytes;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::api::AppState;
use crate::api::account_pages;
use crate::api::admin_realtime;
use crate::api::api_keys;
use crate::api::artifacts;
use crate::api::asyncapi;
use crate::api::audit;
use crate::api::auth;
use crate::api::backups;
use crate::api::dashboard;
use crate::api::destinations;
use crate::api::error::ApiError;
use crate::api::events;
use crate::api::fathom;
use crate::api::files;
use crate::api::frame::frame;
use crate::api::health;
use crate::api::invitations;
use crate::api::jobs;
use crate::api::lifecycle;
use crate::api::mail;
use crate::api::meeting_hooks;
use crate::api::meetings;
use crate::api::members;
use crate::api::metrics;
use crate::api::oauth2_redirect;
use crate::api::openapi;
use crate::api::openapi::Document;
use crate::api::openapi::alias;
use crate::api::page;
use crate::api::pocketbase;
use crate::api::queue;
use crate::api::quotas;
use crate::api::schedules;
use crate::api::sessions;
use crate::api::tenants;
use crate::api::vault;
use crate::api::webhooks;
use crate::api::websocket;
use crate::api::welcome;
use crate::api::worker;
use crate::error::Code;
use crate::error::Problem;

const AUTH: &str = "/api/v1/auth";
const V1: &str = "/api/v1";
const VAULT: &str = "/api/v1/vault";
const USERS: &str = "/api/collections/users";
/// The id of the `users` collection, which SDKs may use in place of its name.
const USERS_BY_ID: &str = "/api/collections/_pb_users_auth_";

/// Every route with its documentation.
fn routes() -> OpenApiRouter<AppState> {
    let users = || pocketbase::router().merge(mail::router()).merge(lifecycle::users_router());
    let auth = || auth::router().merge(sessions::router()).merge(lifecycle::account_router());
    let meetings = || meetings::router().merge(meeting_hooks::router());
    OpenApiRouter::with_openapi(openapi::base())
        .nest(AUTH, auth())
        .nest("/auth", alias(auth(), "alias", AUTH))
        .nest(
            V1,
            tenants::router()
                .merge(members::router())
                .merge(invitations::router())
                .merge(lifecycle::router())
                .merge(quotas::router()),
        )
        .nest(V1, meetings().merge(fathom::router()))
        .nest("/api", alias(meetings(), "alias", V1))
        .nest(V1, audit::router())
        .nest(V1, backups::router())
        .nest(VAULT, vault::router())
        .nest("/api/keys", alias(vault::router(), "keys", VAULT))
        .nest(V1, api_keys::router())
        .nest(V1, jobs::router().merge(queue::router()).merge(schedules::router()).merge(worker::router()))
        .nest("/api", alias(queue::router(), "alias", V1))
        .nest(V1, destinations::router().merge(artifacts::router()))
        .nest(USERS, users())
        .nest(USERS_BY_ID, alias(users(), "by_collection_id", USERS))
        .merge(pocketbase::health_router())
        .merge(files::router())
        .merge(dashboard::router())
        .merge(health::router())
        .merge(metrics::router())
        .merge(openapi::router())
        .merge(welcome::router())
        .merge(account_pages::router())
        .merge(oauth2_redirect::router())
        .merge(webhooks::router())
        .nest(V1, admin_realtime::router())
        .merge(websocket::router())
        .merge(events::router())
        .merge(asyncapi::router())
}

/// The `OpenAPI` document of the routes.
pub fn document() -> OpenApi {
    let mut document = routes().into_openapi();
    openapi::complete(&mut document);
    document
}

/// The router that serves everything of ours.
pub fn router(state: AppState) -> Router {
    let document = serde_json::to_vec(&document()).unwrap_or_default();
    let (router, _) = routes().split_for_parts();
    let verifier = state.verifier.clone();
    let api = router.layer(Extension(Document(Bytes::from(document)))).with_state(state);
    framed(api.clone().merge(page::router(api, verifier)))
}

/// Adds the answers for wrong paths and methods, and the frame around everything.
pub(crate) fn framed(router: Router) -> Router {
    router.fallback(nothing_here).method_not_allowed_fallback(wrong_method).layer(from_fn(frame))
}

async fn nothing_here() -> ApiError {
    ApiError(Problem::new(Code::NotFound))
}

async fn wrong_method() -> ApiError {
    ApiError(Problem::new(Code::MethodNotAllowed))
}
