//! A user's secrets for other services: stored, listed, changed, deleted, and shown when it has to be.
//!
//! Whose they are comes from the credential. No answer but that of a reveal has a secret in it, and no error repeats one.

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::UtcOffset;
use time::format_description::well_known::Rfc3339;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::extractors::ClientInfo;
use crate::api::json;
use crate::api::json::Params;
use crate::api::json::invalid_field;
use crate::api::tenants::to_its_end;
use crate::auth::Principal;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::shutdown::Shutdown;
use crate::store::sessions::Sessions;
use crate::vault;
use crate::vault::Caller;
use crate::vault::Change;
use crate::vault::End;
use crate::vault::KeyId;
use crate::vault::NewSecret;
use crate::vault::Secret;
use crate::vault::Vault;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_secrets, put_secret))
        .routes(routes!(change_secret, delete_secret))
        .routes(routes!(reveal_secret))
}

/// What can be seen of a secret.
#[derive(Serialize, ToSchema)]
#[schema(as = StoredSecret)]
struct SecretView {
    /// Names the secret; it is not a credential.
    #[schema(value_type = String, example = "0b8f9c0e-6b7e-4d62-9a53-6a1f0f2f3c11")]
    key_id: KeyId,
    /// `fathom`, `s3`, `http`, `loom` or `generic`.
    #[schema(example = "fathom")]
    service: String,
    /// What its owner calls it; a service may have several.
    #[schema(example = "default")]
    label: String,
    /// The last characters of a long secret.
    #[schema(example = "…w3Zk")]
    hint: Option<String>,
    /// `valid`, `expiring` (soon) or `expired` (not used and not shown any more).
    #[schema(value_type = String, example = "valid")]
    state: &'static str,
    /// What goes with it and is not secret.
    #[schema(value_type = Object)]
    settings: Value,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<OffsetDateTime>,
    /// When a job used it last, within a minute or so.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    last_used_at: Option<OffsetDateTime>,
}

impl From<vault::Item> for SecretView {
    fn from(item: vault::Item) -> Self {
        Self {
            key_id: item.key_id,
            service: item.service,
            label: item.label,
            hint: item.hint.map(|hint| format!("…{hint}")),
            state: item.state.as_str(),
            settings: if item.settings.is_null() { Value::Object(serde_json::Map::new()) } else { item.settings },
            created_at: item.created_at,
            updated_at: item.updated_at,
            expires_at: item.expires_at,
            last_used_at: item.last_used_at,
        }
    }
}

/// A user's secrets.
#[derive(Serialize, ToSchema)]
struct SecretList {
    items: Vec<SecretView>,
}

/// A secret to store.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PutSecret {
    /// `fathom`, `s3`, `http`, `loom` or `generic`.
    #[schema(example = "fathom")]
    service: String,
    /// The secret: one line, at most 8 KiB. For `s3` the secret access key, whose id goes into `settings`.
    #[schema(value_type = String, format = Password)]
    secret: Secret,
    /// Tells several of one service apart; `default` when absent. The same service and label replaces.
    label: Option<String>,
    /// When it stops being used, as RFC 3339.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<String>,
    /// What goes with it and is not secret. `s3`: `access_key_id`, `region`, `endpoint`, `bucket`. `http`: `header`,
    /// `scheme`. `generic`: `url`, `note`.
    #[schema(value_type = Option<Object>)]
    #[serde(default)]
    settings: Value,
    /// Whether the service is asked first if the secret is good (where that is possible); yes when absent.
    verify: Option<bool>,
}

/// What to change of a secret; absent fields stay as they are.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangeSecret {
    /// Another label.
    label: Option<String>,
    /// Another end of its time; `null` for none.
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(default)]
    expires_at: Field,
}

/// Tells `null` from an absent field.
#[derive(Debug, Default, PartialEq)]
enum Field {
    #[default]
    Absent,
    Null,
    Text(String),
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Null, Self::Text))
    }
}

/// Why a secret has to be shown.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Reveal {
    /// For the audit log; at most 200 characters.
    purpose: Option<String>,
}

/// A secret in clear.
#[derive(Serialize, ToSchema)]
struct Revealed {
    #[schema(format = Password)]
    secret: String,
}

/// No parameters: one that is not known is refused and not ignored, a search by a secret above all.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn caller(user: &AuthUser, client: &ClientInfo) -> Caller {
    let user = &user.principal.user;
    Caller { tenant: TenantId::personal(user), user: user.clone(), ip: Some(client.0.ip) }
}

fn key_id(text: &str) -> Result<KeyId, Problem> {
    KeyId::parse(text).ok_or_else(|| vault::Error::NotFound.into())
}

/// A moment as RFC 3339, with any offset.
fn moment(text: &str) -> Result<OffsetDateTime, Problem> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok();
    let moment = moment.and_then(|moment| moment.checked_to_offset(UtcOffset::UTC));
    moment.ok_or_else(|| invalid_field("expires_at", "invalid_time", "must be a date and time of RFC 3339"))
}

/// When the sign-in was that a session goes back to. A session that was met first on a request goes back to nobody
/// knows what.
pub(super) fn signed_in_at(sessions: &Sessions, principal: &Principal) -> Option<OffsetDateTime> {
    let session = sessions.find(&principal.session)?;
    let first = sessions.find(session.family())?;
    (!first.adopted && !session.adopted && first.user == principal.user).then_some(first.created_at)
}

/// Lists the caller's secrets: what they are for and how long they are good, not what they are.
#[utoipa::path(get, path = "/", tag = "vault", security(("bearer" = [])),
    responses((status = 200, description = "The secrets, without the secrets.", body = SecretList)))]
async fn list_secrets(
    State(vault): State<Vault>,
    user: AuthUser,
    Params(Nothing {}): Params<Nothing>,
) -> Json<SecretList> {
    let items = vault.list(&TenantId::personal(&user.principal.user), OffsetDateTime::now_utc());
    Json(SecretList { items: items.into_iter().map(SecretView::from).collect() })
}

/// Stores a secret, in place of the one with the same service and label if there is one.
#[utoipa::path(put, path = "/", tag = "vault", security(("bearer" = [])), request_body = PutSecret,
    responses((status = 201, description = "It is stored.", body = SecretView),
        (status = 200, description = "It is stored in place of another.", body = SecretView)))]
async fn put_secret(
    State(vault): State<Vault>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    client: ClientInfo,
    json::Json(body): json::Json<PutSecret>,
) -> Result<(StatusCode, Json<SecretView>), ApiError> {
    let new = NewSecret {
        expires_at: body.expires_at.as_deref().map(moment).transpose()?,
        service: body.service,
        label: body.label,
        secret: body.secret,
        settings: body.settings,
        verify: body.verify.unwrap_or(true),
    };
    let caller = caller(&user, &client);
    let putting = async move { Ok(vault.put(&caller, new, OffsetDateTime::now_utc()).await?) };
    let stored = to_its_end(&shutdown, putting).await?;
    let status = if stored.is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(stored.item.into())))
}

/// Changes a secret's label or the end of its time.
#[utoipa::path(patch, path = "/{key_id}", tag = "vault", security(("bearer" = [])), request_body = ChangeSecret,
    params(("key_id" = String, Path, description = "The secret's id.")),
    responses((status = 200, description = "The secret as it is now.", body = SecretView)))]
async fn change_secret(
    State(vault): State<Vault>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    client: ClientInfo,
    Path(id): Path<String>,
    json::Json(body): json::Json<ChangeSecret>,
) -> Result<Json<SecretView>, ApiError> {
    let end = match body.expires_at {
        Field::Absent => End::Keep,
        Field::Null => End::Never,
        Field::Text(text) => End::At(moment(&text)?),
    };
    let change = Change { label: body.label, end };
    let (caller, id) = (caller(&user, &client), key_id(&id)?);
    let changing = async move { Ok(vault.change(&caller, &id, change, OffsetDateTime::now_utc()).await?) };
    let item = to_its_end(&shutdown, changing).await?;
    Ok(Json(item.into()))
}

/// Deletes a secret. It is gone; what was sealed cannot be brought back.
#[utoipa::path(delete, path = "/{key_id}", tag = "vault", security(("bearer" = [])),
    params(("key_id" = String, Path, description = "The secret's id.")),
    responses((status = 204, description = "It is deleted.")))]
async fn delete_secret(
    State(vault): State<Vault>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    client: ClientInfo,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let (caller, id) = (caller(&user, &client), key_id(&id)?);
    to_its_end(&shutdown, async move { Ok(vault.remove(&caller, &id, OffsetDateTime::now_utc()).await?) }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shows a secret in clear. Needs a sign-in of the last minutes (a refreshed token does not count as one), is limited
/// per user, and is in the audit log before it is answered.
#[utoipa::path(post, path = "/{key_id}/reveal", tag = "vault", security(("bearer" = [])), request_body = Reveal,
    params(("key_id" = String, Path, description = "The secret's id.")),
    responses((status = 200, description = "The secret.", body = Revealed)))]
async fn reveal_secret(
    State(vault): State<Vault>,
    State(sessions): State<Sessions>,
    user: AuthUser,
    client: ClientInfo,
    Path(id): Path<String>,
    json::Json(body): json::Json<Reveal>,
) -> Result<Response, ApiError> {
    let now = OffsetDateTime::now_utc();
    let signed_in_at = signed_in_at(&sessions, &user.principal);
    let (caller, id) = (caller(&user, &client), key_id(&id)?);
    let revealed = vault.reveal(&caller, &id, body.purpose.as_deref(), signed_in_at, now);
    let secret = revealed.await.map_err(|error| {
        if matches!(error, vault::Error::Audit(_) | vault::Error::Store(_)) {
            tracing::error!(%error, "a secret was not shown");
        }
        Problem::from(error)
    })?;
    let body = Json(Revealed { secret: secret.expose().to_owned() });
    Ok(([(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], body).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    #[test]
    fn a_moment_may_have_an_offset_and_must_be_one() {
        assert_eq!(moment("2030-01-01T02:00:00+02:00").unwrap(), moment("2030-01-01T00:00:00Z").unwrap());
        for bad in
            ["", "soon", "2030-01-01", "292277026596-12-04T15:30:07Z", "-1", "1893456000", "2030-13-01T00:00:00Z"]
        {
            assert_eq!(moment(bad).unwrap_err().code, Code::ValidationFailed, "{bad}");
        }
    }

    #[test]
    fn null_takes_the_end_away_and_an_absent_field_leaves_it() {
        let read = |text: &str| serde_json::from_str::<ChangeSecret>(text).map(|change| change.expires_at).unwrap();
        assert_eq!((read("{}"), read(r#"{"expires_at":null}"#)), (Field::Absent, Field::Null));
        assert_eq!(read(r#"{"expires_at":"x"}"#), Field::Text("x".to_owned()));
    }
}
