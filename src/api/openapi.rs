//! The `OpenAPI` 3.1 document, made from the handlers themselves and served at `/openapi.json`.
//!
//! What holds for every operation (how errors look, what a missing token answers) is added here once instead of at
//! each handler.

use axum::Extension;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use bytes::Bytes;
use utoipa::PartialSchema;
use utoipa::ToSchema;
use utoipa::openapi::ComponentsBuilder;
use utoipa::openapi::ContentBuilder;
use utoipa::openapi::InfoBuilder;
use utoipa::openapi::LicenseBuilder;
use utoipa::openapi::OpenApi;
use utoipa::openapi::OpenApiBuilder;
use utoipa::openapi::PathItem;
use utoipa::openapi::Ref;
use utoipa::openapi::RefOr;
use utoipa::openapi::ResponseBuilder;
use utoipa::openapi::Server;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::Http;
use utoipa::openapi::security::HttpAuthScheme;
use utoipa::openapi::security::SecurityScheme;
use utoipa::openapi::tag::TagBuilder;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ErrorBody;
use crate::api::error::ErrorDetail;
use crate::api::error::PocketBaseErrorBody;
use crate::error::Code;
use crate::error::Shape;

/// Name of the security scheme.
const BEARER: &str = "bearer";

/// The document as it is sent.
#[derive(Debug, Clone)]
pub struct Document(pub Bytes);

/// The route.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(openapi_document))
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operators",
    responses((status = 200, description = "The OpenAPI document.", body = Object)))]
async fn openapi_document(Extension(Document(bytes)): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")], bytes).into_response()
}

/// The document before any route: what it is, how to authenticate, how errors look.
pub fn base() -> OpenApi {
    let bearer = Http::builder()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some("The token of a sign-in: `Authorization: Bearer <token>`; a bare token is understood too."))
        .build();
    let components = ComponentsBuilder::new()
        .security_scheme(BEARER, SecurityScheme::Http(bearer))
        .schema("Error", ErrorBody::schema())
        .schema("ErrorDetail", ErrorDetail::schema())
        .schema("PocketBaseError", PocketBaseErrorBody::schema())
        .response("Error", error_response(&ErrorBody::name()))
        .response("PocketBaseError", error_response(&PocketBaseErrorBody::name()))
        .build();
    let info = InfoBuilder::new()
        .title("pocketfleet")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(description()))
        .license(Some(LicenseBuilder::new().name("MIT").identifier(Some("MIT")).build()));
    let tags = [
        ("auth", "Register, sign in, refresh, log out."),
        ("sessions", "The devices that are signed in."),
        (
            "workspaces",
            "Instances that several people share, or that have users of their own; members and invitations.",
        ),
        ("meetings", "The caller's meetings from Fathom, kept in their own instance; search; their webhook."),
        ("webhooks", "What other services call, with a signature instead of a token."),
        ("queue", "Meetings on their way to a destination."),
        ("jobs", "Work of every kind, waiting, running and finished."),
        ("workers", "For programs that do jobs: claim, report, end. With an API key of an operator."),
        ("api keys", "Credentials of programs that act for an account."),
        ("pocketbase", "The accounts part of PocketBase's own API, for its SDKs."),
        ("vault", "Credentials for other services, encrypted: stored, used by jobs, shown only when it has to be."),
        ("backups", "Copies of an instance for its owner: taking, downloading, going back."),
        ("deliveries", "Where recordings are delivered to, and the files that are made of them."),
        ("events", "What happens, as it happens: sockets, streams, polls."),
        ("pages", "Pages that links in mails lead to."),
        ("operators", "Health, readiness, metrics, this document."),
    ];
    let tags = tags.map(|(name, text)| TagBuilder::new().name(name).description(Some(text)).build());
    OpenApiBuilder::new()
        .info(info.build())
        .servers(Some([Server::new("/")]))
        .tags(Some(tags))
        .components(Some(components))
        .build()
}

/// The introduction, with every error code.
fn description() -> String {
    use std::fmt::Write;
    let mut text = String::from(
        "One private PocketBase for every user, behind one URL. Records, files and batches of the signed-in user's own \
         instance are at PocketBase's own paths and documented by PocketBase; this document has everything else.\n\n\
         ## Errors\n\nEvery error of pocketfleet's own carries its code, also in the header `X-Pocketfleet-Error`; \
         what may be tried again says when in `Retry-After`.\n\n| code | status | meaning |\n| --- | --- | --- |\n",
    );
    for code in Code::ALL {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| `{}` | {} | {} |", code.as_str(), code.status(), code.message());
    }
    text
}

fn error_response(schema: &str) -> utoipa::openapi::Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
    ResponseBuilder::new().description("An error; `code` says which.").content("application/json", content).build()
}

/// Adds to each operation what holds for all: the shape of its errors, and 401 where a token is needed.
pub fn complete(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        let error = match Shape::of(path) {
            Shape::Own => "Error",
            Shape::PocketBase => "PocketBaseError",
        };
        for operation in operations(item) {
            let responses = &mut operation.responses.responses;
            let reference = || RefOr::Ref(Ref::from_response_name(error));
            responses.entry("default".to_owned()).or_insert_with(reference);
            if operation.security.as_ref().is_some_and(|needed| needed.len() == 1) {
                responses.entry("401".to_owned()).or_insert_with(reference);
            }
        }
    }
}

/// The same routes to be mounted at a second address: operation ids stay unique, and each says what it repeats.
pub fn alias(mut router: OpenApiRouter<AppState>, suffix: &str, canonical: &str) -> OpenApiRouter<AppState> {
    for (path, item) in &mut router.get_openapi_mut().paths.paths {
        for operation in operations(item) {
            operation.operation_id = operation.operation_id.take().map(|id| format!("{id}_{suffix}"));
            operation.description = Some(format!("The same as `{canonical}{path}`."));
        }
    }
    router
}

/// Every operation of a path.
pub fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch, &mut item.head, &mut item.options]
        .into_iter()
        .flatten()
}
