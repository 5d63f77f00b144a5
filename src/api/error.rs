//! How an error leaves a handler, and the two shapes it is written in.
//!
//! A handler does not know the request's id, so [`ApiError`] only attaches the [`Problem`] to an empty response;
//! [`frame`](crate::api::frame) writes the body.

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::Code;
use crate::error::Problem;

/// The error of every handler: any domain error that says what its caller sees.
#[derive(Debug, Clone)]
pub struct ApiError(pub Problem);

impl<E: Into<Problem>> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status_of(self.0.code);
        response.extensions_mut().insert(self.0);
        response
    }
}

/// The HTTP status of a code.
pub fn status_of(code: Code) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// What our own routes answer when something is wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// The particulars of an error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// Stable code; see the list in this document's description.
    #[schema(example = "UNAUTHORIZED")]
    pub code: String,
    /// The code in lower case.
    #[schema(example = "unauthorized")]
    pub r#type: String,
    /// One sentence for a person.
    #[schema(example = "sign in and send the token as `Authorization: Bearer <token>`")]
    pub message: String,
    /// Machine-readable particulars, such as the fields that are not valid.
    #[schema(value_type = Object)]
    pub details: Value,
    /// Quote it when you ask for help.
    #[schema(example = "0199c2f4a7b8")]
    pub request_id: String,
}

/// What `PocketBase`'s own paths answer when something is wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PocketBaseError)]
pub struct PocketBaseErrorBody {
    /// The HTTP status again.
    #[schema(example = 400)]
    pub status: u16,
    /// One sentence for a person.
    #[schema(example = "Failed to authenticate.")]
    pub message: String,
    /// Particulars by field: `{"email":{"code","message"}}`.
    #[schema(value_type = Object)]
    pub data: Value,
    /// Stable code, when the answer is pocketfleet's and not the instance's.
    #[schema(required = false, example = "INVALID_CREDENTIALS")]
    pub code: Option<String>,
    /// Quote it when you ask for help.
    #[schema(required = false)]
    pub request_id: Option<String>,
}
