//! Routes that clients of the finished product will call and that are not built yet. They answer 501 instead of 404,
//! so that a client can tell "not yet" from "wrong address". The `OpenAPI` document leaves them out.

use axum::routing::any;
use utoipa_axum::router::OpenApiRouter;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::error::Code;
use crate::error::Problem;

/// Every path that is served and not documented.
pub const UNDOCUMENTED: [&str; 0] = [];

/// The routes.
pub fn router() -> OpenApiRouter<AppState> {
    UNDOCUMENTED.iter().fold(OpenApiRouter::new(), |router, path| router.route(path, any(not_yet)))
}

async fn not_yet() -> ApiError {
    ApiError(Problem::new(Code::NotImplemented))
}
