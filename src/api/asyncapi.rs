//! The `AsyncAPI` document of the sockets, served at `/asyncapi.json`.

use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::events::asyncapi;

/// The route.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(asyncapi_document))
}

/// What is spoken on the sockets: an `AsyncAPI` 3.0 document.
#[utoipa::path(get, path = "/asyncapi.json", tag = "events",
    responses((status = 200, description = "The AsyncAPI document.", body = Object)))]
async fn asyncapi_document() -> Response {
    let text = asyncapi::document().to_string();
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}
