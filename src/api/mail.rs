//! The rest of the accounts part of `PocketBase`'s own API: one-time passwords, sign-in through other services, and
//! what goes by mail. What the global instance answers is relayed as it is.

use axum::extract::FromRef;
use axum::extract::FromRequestParts;
use axum::extract::RawQuery;
use axum::extract::State;
use axum::http::request::Parts;
use axum::response::Response;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::extractors::ClientInfo;
use crate::api::fields::Fields;
use crate::api::pocketbase::relay;
use crate::api::pocketbase::relay_refusal;
use crate::auth::Verifier;
use crate::auth::accounts::Accounts;
use crate::auth::accounts::Confirmation;
use crate::auth::accounts::Mailing;
use crate::tenancy::Tenancy;

/// The routes, relative to the collection.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(request_otp))
        .routes(routes!(auth_with_otp))
        .routes(routes!(auth_with_oauth2))
        .routes(routes!(request_verification))
        .routes(routes!(confirm_verification))
        .routes(routes!(request_password_reset))
        .routes(routes!(confirm_password_reset))
        .routes(routes!(request_email_change))
        .routes(routes!(confirm_email_change))
}

/// Declares bodies for the document; the extractor reads their fields by name.
macro_rules! body {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(ToSchema)]
        #[serde(rename_all = "camelCase")]
        #[expect(dead_code, reason = "describes a body for the document; the extractor reads the fields by name")]
        struct $name {
            $($(#[$field_doc])* $field: $type,)*
        }
    };
}

body!(
    /// An address that a mail goes to.
    EmailBody { email: String, }
);
body!(
    /// The address that the account shall have.
    NewEmailBody { new_email: String, }
);
body!(
    /// A token from a mail.
    TokenBody { token: String, }
);
body!(
    /// A token from a mail and a new password.
    PasswordResetBody { token: String, password: String, password_confirm: String, }
);
body!(
    /// A token from a mail and the account's password.
    EmailChangeBody { token: String, password: String, }
);
body!(
    /// A one-time password.
    OtpBody {
        otp_id: String,
        password: String,
        /// What the first of two ways to sign in answered; may be a query parameter instead.
        mfa_id: Option<String>,
    }
);
body!(
    /// A code of another service.
    OAuth2Body {
        provider: String,
        code: String,
        code_verifier: Option<String>,
        #[serde(rename = "redirectURL")]
        redirect_url: String,
        /// Fields of an account that is made now.
        #[schema(value_type = Option<Object>)]
        create_data: Option<Value>,
        /// What the first of two ways to sign in answered; may be a query parameter instead.
        mfa_id: Option<String>,
    }
);

/// A caller who may be signed in. A token that is not valid counts as none, as in `PocketBase`.
#[derive(Debug)]
struct MaybeUser(Option<AuthUser>);

impl<S> FromRequestParts<S> for MaybeUser
where
    S: Send + Sync,
    Verifier: FromRef<S>,
    Tenancy: FromRef<S>,
{
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(AuthUser::from_request_parts(parts, state).await.ok()))
    }
}

/// Has a one-time password sent.
///
/// The answer is the same for addresses without an account.
#[utoipa::path(post, path = "/request-otp", tag = "pocketbase", request_body = EmailBody,
    responses((status = 200, description = "`{otpId}` as `PocketBase` answers it.", body = Object)))]
async fn request_otp(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    fields: Fields,
) -> Result<Response, ApiError> {
    let answer = accounts.request_mail(Mailing::Otp, fields.text("email")?, query.as_deref(), &client).await;
    answer.map(relay).or_else(relay_refusal)
}

/// Signs in with a one-time password.
#[utoipa::path(post, path = "/auth-with-otp", tag = "pocketbase", request_body = OtpBody,
    responses((status = 200, description = "`{token, record}` as `PocketBase` answers it.", body = Object),
        (status = 401, description = "`{mfaId}`: the first of two ways to sign in was right.", body = Object)))]
async fn auth_with_otp(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    fields: Fields,
) -> Result<Response, ApiError> {
    let (otp, password, mfa) = (fields.text("otpId")?, fields.text("password")?, fields.optional("mfaId")?);
    match accounts.sign_in_otp(otp, password, mfa, query.as_deref(), &client).await {
        Ok(signed_in) => Ok(relay(signed_in.answer)),
        Err(error) => relay_refusal(error),
    }
}

/// Signs in with a code of another service.
///
/// An account that does not exist is made. A signed-in caller's account gets the service added.
#[utoipa::path(post, path = "/auth-with-oauth2", tag = "pocketbase", request_body = OAuth2Body,
    security((), ("bearer" = [])),
    responses((status = 200, description = "`{token, record, meta}` as `PocketBase` answers it.", body = Object),
        (status = 401, description = "`{mfaId}`: the first of two ways to sign in was right.", body = Object)))]
async fn auth_with_oauth2(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    MaybeUser(user): MaybeUser,
    Fields(fields): Fields,
) -> Result<Response, ApiError> {
    let token = user.as_ref().map(|user| user.token.as_str());
    match accounts.sign_in_oauth2(&fields, token, query.as_deref(), &client).await {
        Ok(signed_in) => Ok(relay(signed_in.answer)),
        Err(error) => relay_refusal(error),
    }
}

/// Has a mail sent that verifies the address.
///
/// The answer is the same for addresses without an account.
#[utoipa::path(post, path = "/request-verification", tag = "pocketbase", request_body = EmailBody,
    responses((status = 204, description = "A mail is on its way, if there is such an account.")))]
async fn request_verification(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    fields: Fields,
) -> Result<Response, ApiError> {
    let email = fields.text("email")?;
    let answer = accounts.request_mail(Mailing::Verification, email, query.as_deref(), &client).await;
    answer.map(relay).or_else(relay_refusal)
}

/// Verifies the address.
#[utoipa::path(post, path = "/confirm-verification", tag = "pocketbase", request_body = TokenBody,
    responses((status = 204, description = "The address is verified.")))]
async fn confirm_verification(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    fields: Fields,
) -> Result<Response, ApiError> {
    let confirmation = Confirmation::Verification { token: fields.text("token")? };
    accounts.confirm(confirmation, query.as_deref(), &client).await.map(relay).or_else(relay_refusal)
}

/// Has a mail sent that sets a new password.
///
/// The answer is the same for addresses without an account.
#[utoipa::path(post, path = "/request-password-reset", tag = "pocketbase", request_body = EmailBody,
    responses((status = 204, description = "A mail is on its way, if there is such an account.")))]
async fn request_password_reset(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    fields: Fields,
) -> Result<Response, ApiError> {
    let email = fields.text("email")?;
    let answer = accounts.request_mail(Mailing::PasswordReset, email, query.as_deref(), &client).await;
    answer.map(relay).or_else(relay_refusal)
}

/// Sets a new password; every session of the account ends.
#[utoipa::path(post, path = "/confirm-password-reset", tag = "pocketbase", request_body = PasswordResetBody,
    responses((status = 204, description = "The password is set.")))]
async fn confirm_password_reset(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    fields: Fields,
) -> Result<Response, ApiError> {
    let confirmation = Confirmation::PasswordReset {
        token: fields.text("token")?,
        password: fields.text("password")?,
        confirm: fields.text("passwordConfirm")?,
    };
    accounts.confirm(confirmation, query.as_deref(), &client).await.map(relay).or_else(relay_refusal)
}

/// Has a mail sent to the address that the caller's account shall have.
#[utoipa::path(post, path = "/request-email-change", tag = "pocketbase", request_body = NewEmailBody,
    security(("bearer" = [])),
    responses((status = 204, description = "A mail is on its way to the new address.")))]
async fn request_email_change(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    user: AuthUser,
    fields: Fields,
) -> Result<Response, ApiError> {
    let email = fields.text("newEmail")?;
    let answer = accounts.request_email_change(&user.principal, &user.token, email, query.as_deref(), &client).await;
    answer.map(relay).or_else(relay_refusal)
}

/// Gives the account its new address; every session of the account ends.
#[utoipa::path(post, path = "/confirm-email-change", tag = "pocketbase", request_body = EmailChangeBody,
    responses((status = 204, description = "The address is changed.")))]
async fn confirm_email_change(
    State(accounts): State<Accounts>,
    ClientInfo(client): ClientInfo,
    RawQuery(query): RawQuery,
    fields: Fields,
) -> Result<Response, ApiError> {
    let confirmation = Confirmation::EmailChange { token: fields.text("token")?, password: fields.text("password")? };
    accounts.confirm(confirmation, query.as_deref(), &client).await.map(relay).or_else(relay_refusal)
}
